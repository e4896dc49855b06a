"""From YAML and `--set key=value` to a `Config`: every mistake listed at once."""

from __future__ import annotations

import datetime
import difflib
import importlib
import json
import os
import reprlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from tsarch.config import Columns, Config, TaskConfig
from tsarch.errors import Mistake, UserError
from tsarch.overrides import override, parts_of
from tsarch.redaction import redact, redact_urls
from tsarch.task_names import TASKS
from tsarch.yaml_text import read_yaml, write_yaml

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200
_PATH_FIELDS = ("train", "validation", "test", "unlabelled")


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
    mistakes = [m for m in (override(raw, text) for text in overrides) if m is not None]
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

    def placed(name: str, own: str) -> str:
        is_url = name == "unlabelled" and "://" in own
        return own if is_url else str(base / own)

    for name in _PATH_FIELDS:
        value = getattr(config.data, name)
        if isinstance(value, list):
            resolved[name] = [placed(name, own) for own in value]
        elif value is not None:
            resolved[name] = placed(name, value)
    tokenizer = config.data.tokenizer
    if tokenizer is not None and os.path.isdir(base / tokenizer):
        resolved["tokenizer"] = str(base / tokenizer)
    return resolved


def dump_config(config: Config) -> str:
    """The resolved config as YAML, in the order of the sections, without credentials of URLs."""
    text = write_yaml(config.model_dump(mode="json"))
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
    return Mistake(where, f"{what}{given}.", _quoted(error["type"], value))


def _quoted(kind: str, value: Any) -> str:
    """A hint, if YAML has made something else of what is meant to be a text."""
    if kind not in ("string_type", "literal_error") or value is None:
        return ""
    if not isinstance(value, bool | int | float | datetime.date):
        return ""
    names = {bool: "yes or no", int: "a number", float: "a number"}
    own = names.get(type(value), "a date")
    return f"YAML reads {own} there: for a text put it in quotes."


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
        for own in parts_of(field.annotation):
            if isinstance(own, type) and issubclass(own, BaseModel):
                yield from _keys(own, f"{prefix}{name}.")
