"""`--set a.b=c`: the value is the text as it was typed, where its key wants a text.

A shell's word is no YAML: `run #7` would lose its end, `no`, `007` and `2026-01-01` would be a
truth value, a number and a date. So the type that the config has for the key decides: what wants a
number, a list or a section is read as YAML, a text stays as it is. Quoted, it is what YAML makes of
it (`"\\t"` is a tab).
"""

from __future__ import annotations

import datetime
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from tsarch.config import Config
from tsarch.errors import Mistake
from tsarch.yaml_text import read_yaml

_NONE = ("", "~", "null")
"""What stands for no value; a comment doesn't."""


def override(raw: dict[str, Any], text: str) -> Mistake | None:
    """Put `a.b=c` into `raw`."""
    key, equals, value = text.partition("=")
    where = f"--set {text}"
    if not equals or not key:
        return Mistake(where, "is not of the form key=value.", "Example: --set run.seed=1")
    node: Any = raw
    *parents, last = key.strip().split(".")
    for name in parents:
        node = node.setdefault(name, {})
        if not isinstance(node, dict):
            return Mistake(where, f"`{name}` is a value, not a section.")
    try:
        node[last] = typed_value(value, kinds_of(key.strip()))
    except ValueError as error:
        return Mistake(where, f"has a value that is not valid YAML: {error}")
    return None


def typed_value(text: str, kinds: frozenset[Any]) -> Any:
    """What a text means for a key that takes values of these kinds (see `kinds_of`).

    Raises:
        ValueError: it isn't YAML, and no text is wanted.
    """
    if str not in kinds and Any not in kinds:
        return read_yaml(text)
    try:
        value = read_yaml(text)
    except ValueError:
        if str not in kinds:
            raise
        return text
    if isinstance(value, str) and text.lstrip()[:1] in ("'", '"'):
        return value
    if value is None:
        is_none = kinds & {NoneType, Any} and text.strip().lower() in _NONE
        return None if is_none else text
    if type(value) in kinds - {str} or (float in kinds and type(value) is int):
        return value
    return value if Any in kinds and not isinstance(value, str | datetime.date) else text


def kinds_of(key: str) -> frozenset[Any]:
    """The kinds of values that a dotted key takes: `str`, `int`, `dict` (a section too), `list`, …,
    `NoneType`; `Any`: whatever there is, as for keys that there are none of."""
    annotation: Any = Config
    for name in key.split("."):
        annotation = _below(annotation, name)
    return frozenset(_kinds(annotation))


def _below(annotation: Any, name: str) -> Any:
    """The type of what stands under `name` in a value of a type."""
    for own in parts_of(annotation):
        if isinstance(own, type) and issubclass(own, BaseModel):
            field = own.model_fields.get(name)
            if field is not None:
                return field.annotation
        elif get_origin(own) is dict:
            return get_args(own)[1]
    return Any


def parts_of(annotation: Any) -> list[Any]:
    """The types that a type is a union of, without what is annotated."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return parts_of(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [part for own in get_args(annotation) for part in parts_of(own)]
    return [annotation]


def _kinds(annotation: Any) -> set[Any]:
    found: set[Any] = set()
    for own in parts_of(annotation):
        origin = get_origin(own)
        if origin is Literal:
            found |= {type(value) for value in get_args(own)}
        elif isinstance(own, type) and issubclass(own, BaseModel):
            found.add(dict)
        else:
            found.add(list if origin is tuple else origin or own)
    return found
