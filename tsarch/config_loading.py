"""From YAML and `--set key=value` to a `Config`: every mistake listed at once."""

from __future__ import annotations

import difflib
import importlib
import json
import os
import re
import reprlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import BaseModel, ValidationError

from tsarch.config import Columns, Config, TaskConfig
from tsarch.errors import Mistake, UserError, one_line
from tsarch.redaction import redact, redact_urls
from tsarch.task_names import TASKS

_MOST_VALUES = 100_000
"""Values of a config file at most, anchors written out."""
_MOST_BITS = 1000
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200
_PATH_FIELDS = ("train", "validation", "test")


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses duplicate keys and reads `1e-4` as a number (YAML 1.2)."""

    def get_single_node(self) -> yaml.Node | None:
        """The document; anchors may not make it huge, or part of itself."""
        node = super().get_single_node()
        if node is not None and _num_values(node, {}) > _MOST_VALUES:
            what = f"has more than {_MOST_VALUES:,} values once its anchors are written out"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Where PyYAML passes on what Python says of a number or date, say where it stands."""
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, int) and value.bit_length() > _MOST_BITS:
                raise ValueError("it is too large")  # Python wouldn't even print it
            return value
        except (ValueError, LookupError, AttributeError) as error:
            kind = node.tag.rpartition(":")[2]
            what = f"{_SHORT.repr(node.value)} is not a valid {kind} ({one_line(error)})"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"key given twice: {', '.join(twice)}", node.start_mark
            )
        return cast(dict[Any, Any], super().construct_mapping(node, deep))


def _num_values(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """Values in and below a node. (Nodes are compared by identity; 0: it is being counted.)"""
    if known.setdefault(node, 0):
        return known[node]
    below: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        below = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        below = node.value
    for part in below:
        if known.get(part) == 0:
            raise yaml.constructor.ConstructorError(
                None, None, "an anchor stands inside of what it names", part.start_mark
            )
    known[node] = 1 + sum(_num_values(part, known) for part in below)
    return known[node]


def read_yaml(text: str) -> Any:
    """Plain values of a YAML text; no tag makes it anything else.

    Raises:
        ValueError: what is wrong with it.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)


def load_config(
    path: str | Path, overrides: Sequence[str] = (), base: Path | None = None
) -> Config:
    """Read the YAML file `path`, apply `a.b=c` overrides and validate the whole.

    Data paths become absolute; they are relative to `base` (None: the file's folder).

    Raises:
        UserError: the file can't be read, or holds mistakes; all of them are named.
    """
    file = Path(path)
    raw = _read_mapping(file)
    mistakes = [m for m in (_override(raw, text) for text in overrides) if m is not None]
    if mistakes:
        raise UserError(mistakes)
    return parse_config(raw, str(path), base=base or file.resolve().parent)


def parse_config(raw: dict[str, Any], source: str, base: Path | None = None) -> Config:
    """Validate a mapping; `source` names it in messages, `base` resolves data paths.

    Raises:
        UserError: names every mistake, with the nearest right key for unknown ones.
    """
    if mistakes := list(_odd_texts(source, raw)):
        raise UserError(mistakes)
    unknown = list(_unknown_columns(source, raw))
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        mistakes = [_mistake(source, e) for e in error.errors()]
        raise UserError([*mistakes, *unknown]) from None
    if unknown:
        raise UserError(unknown)
    resolved: dict[str, Any] = {
        "columns": columns_of(config.task.name)(**config.data.columns).model_dump()
    }
    if base is not None:
        resolved |= _resolved_paths(config, base)
    return config.model_copy(update={"data": config.data.model_copy(update=resolved)})


def columns_of(task: str) -> type[Columns]:
    """The columns of the task called `task`."""
    columns: type[Columns] = importlib.import_module(TASKS[task]).COLUMNS
    return columns


def _unknown_columns(source: str, raw: dict[str, Any]) -> Iterator[Mistake]:
    """A mistake for each of `data.columns` that the task doesn't have."""
    task, data = raw.get("task", {}), raw.get("data")
    default = TaskConfig.model_fields["name"].default
    name = task.get("name", default) if isinstance(task, dict) else None
    given = data.get("columns") if isinstance(data, dict) else None
    if not isinstance(name, str) or name not in TASKS or not isinstance(given, dict):
        return  # said already
    own = columns_of(name).model_fields
    for column in given:
        if column in own or not isinstance(column, str):
            continue
        others = [task for task in TASKS if column in columns_of(task).model_fields]
        what = "is not a key."
        if others:
            shown = " and ".join(f"`{task}`" for task in others)
            what = f"is a column of {shown}, not of `{name}`."
        close = difflib.get_close_matches(column, own, n=1, cutoff=0.6)
        hint = f"Columns of `{name}`: {', '.join(own)}."
        if close and not others:
            hint = f"Did you mean `data.columns.{close[0]}`?"
        yield Mistake(f"{source}: data.columns.{column}", what, hint)


def _resolved_paths(config: Config, base: Path) -> dict[str, str | list[str]]:
    """Data files, and the tokenizer's folder, as absolute paths."""
    resolved: dict[str, str | list[str]] = {}
    for name in _PATH_FIELDS:
        value = getattr(config.data, name)
        if isinstance(value, list):
            resolved[name] = [str(base / own) for own in value]
        elif value is not None:
            resolved[name] = str(base / value)
    tokenizer = config.data.tokenizer
    if tokenizer is not None and os.path.isdir(base / tokenizer):
        resolved["tokenizer"] = str(base / tokenizer)
    return resolved


def dump_config(config: Config) -> str:
    """The resolved config as YAML, in the order of the sections, without credentials of URLs."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return redact_urls(text)


def config_schema() -> str:
    """JSON Schema of the config file, as editors read it: `data.columns` has those of any task."""
    schema = Config.model_json_schema()
    sections = {task: columns_of(task) for task in TASKS}
    for columns in sections.values():
        own = columns.model_json_schema()
        for column in own["properties"].values():
            column["type"] = ["string", "integer"]
        schema["$defs"][columns.__name__] = own
    refs = [{"$ref": f"#/$defs/{columns.__name__}"} for columns in sections.values()]
    place = schema["$defs"]["DataConfig"]["properties"]["columns"]
    kept = {name: place[name] for name in ("default", "description")}
    schema["$defs"]["DataConfig"]["properties"]["columns"] = {"anyOf": refs, **kept}
    return json.dumps(schema, indent=2) + "\n"


def _read_mapping(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError.single(str(file), f"can't be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise UserError.single(str(file), "is not UTF-8 text.") from None
    try:
        raw = read_yaml(text)
    except ValueError as error:
        raise UserError.single(str(file), f"is not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise UserError.single(str(file), "must hold sections such as `data:` and `teacher:`.")
    return raw


def _override(raw: dict[str, Any], text: str) -> Mistake | None:
    """Put `a.b=c` into `raw`; the value is read as YAML."""
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
        node[last] = read_yaml(value)
    except ValueError as error:
        return Mistake(where, f"has a value that is not valid YAML: {error}")
    return None


def _odd_texts(source: str, value: Any, location: str = "") -> Iterator[Mistake]:
    """A mistake for each text that no file or file name can hold."""
    if isinstance(value, str):
        if "\0" in value or not _is_unicode(value):
            what = "holds a character that no file can hold (NUL, or half a surrogate pair)."
            yield Mistake(f"{source}: {location}" if location else source, what)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _odd_texts(source, key, location)
            yield from _odd_texts(source, inner, f"{location}.{key}".lstrip("."))
    elif isinstance(value, (list, tuple, set)):
        for inner in value:
            yield from _odd_texts(source, inner, location)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _mistake(source: str, error: Any) -> Mistake:
    location = ".".join(str(part) for part in error["loc"])
    where = f"{source}: {location}" if location else source
    if error["type"] == "extra_forbidden":
        return Mistake(where, "is not a key.", _nearest(location))
    if error["type"] == "missing":
        return Mistake(where, "is missing.")
    what = error["msg"].removeprefix("Value error, ")
    value = error["input"]
    value = redact(value) if isinstance(value, str) else value
    given = "" if isinstance(value, dict) else f" (given: {_SHORT.repr(value)})"
    return Mistake(where, f"{what}{given}.")


def _nearest(location: str) -> str:
    """`Did you mean …?` with the valid key that is spelled most like `location`."""
    keys = list(_keys(Config))
    section, _, name = location.rpartition(".")
    siblings = [key for key in keys if key.rpartition(".")[0] == section]
    close = difflib.get_close_matches(location, siblings, n=1, cutoff=0.6)
    close = close or [key for key in keys if key.rpartition(".")[2] == name][:1]
    close = close or difflib.get_close_matches(location, keys, n=1, cutoff=0.6)
    if close:
        return f"Did you mean `{close[0]}`?"
    return f"Keys here: {', '.join(key.rpartition('.')[2] for key in siblings)}."


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of all fields of `model` and its sections."""
    for name, field in model.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, f"{prefix}{name}.")
