"""What pages take from the code itself, so that it is never written twice: a hook of MkDocs.

Where a page has `<!-- generated: NAME -->` … `<!-- end -->`, the site has the text that the
function of that name here returns. Between the marks stands what a reader of the bare file sees.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic.fields import FieldInfo
from typer.main import get_command

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # this checkout's tsarch, whichever is installed

from tsarch.config import Config, Section  # noqa: E402
from tsarch.config_loading import columns_of  # noqa: E402
from tsarch.launch.cli import app  # noqa: E402
from tsarch.task_names import TASKS  # noqa: E402

_MARKED = re.compile(r"<!-- generated: (\w+) -->.*?<!-- end -->", re.DOTALL)
_OUTWARD = re.compile(r"(?<=\]\()\.\./(?P<path>[^)#\s]+)")
"""A link out of docs/ to another file of the project."""
_SIGNS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_TYPES = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
}
_LARGEST = 2**31 - 1


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take the files that pages link to, outside docs/, into the site."""
    pages = [Path(file.abs_src_path) for file in files.documentation_pages() if file.abs_src_path]
    for page in pages:
        for link in _OUTWARD.finditer(page.read_text(encoding="utf-8")):
            path = link["path"]
            if files.get_file_from_path(path) is None and (ROOT / path).is_file():
                files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in what is generated; links out of docs/ lead to the copies in the site."""
    filled = _MARKED.sub(lambda mark: GENERATED[mark[1]](), markdown)
    if page.file.generated_by is None:
        filled = _OUTWARD.sub(lambda link: link["path"], filled)
    return filled


# ---- configuration


def config_keys() -> str:
    """Every key with its type, default and text."""
    return "\n".join(_section(Config, ""))


def _columns() -> Iterator[str]:
    """The columns of every task."""
    for task in TASKS:
        yield f"#### `data.columns` of `{task}` {{ #data.columns.{task} }}\n"
        for name, field in columns_of(task).model_fields.items():
            yield f"`data.columns.{name}` <small>text · default {_code(name)}</small>"
            yield f":   {_one_line(field.description)}\n"


def _section(section: type[Section], prefix: str) -> Iterator[str]:
    """The keys of a section, then the sections in it."""
    inner: list[str] = []
    properties = section.model_json_schema()["properties"]
    for name, field in section.model_fields.items():
        key = f"{prefix}{name}"
        nested = _section_of(field.annotation)
        if nested is None:
            facts = [_type(properties[name]), *_presence(field)]
            yield f'<a id="{key}"></a>`{key}` <small>{" · ".join(facts)}</small>'
            yield f":   {_one_line(field.description)}\n"
        else:
            texts = [] if prefix else [nested.__doc__ or ""]
            if prefix or field.default is None:
                texts.append(field.description or "")
            inner += [
                f"{'#' * (3 + key.count('.'))} `{key}` {{ #{key} }}\n",
                f"{_one_line(' '.join(texts))}\n",
                *_section(nested, f"{key}."),
                *(_columns() if key == "data" else ()),
            ]
    yield from inner


def _presence(field: FieldInfo) -> Iterator[str]:
    """Whether a key must be given, or what it is otherwise."""
    if field.is_required():
        yield "required"
    elif field.default == "":
        yield "default: empty"
    elif field.default is not None:
        yield f"default {_code(field.default)}"


def _section_of(annotation: Any) -> type[Section] | None:
    """The section that a key holds, if it is one."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, Section):
            return kind
    return None


def _type(schema: dict[str, Any]) -> str:
    """A key's type in words."""
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"] if one.get("type") != "null")
    if "enum" in schema:
        return " · ".join(_code(value) for value in schema["enum"]).replace(" · ", ", ")
    if "const" in schema:
        return _code(schema["const"])
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}s"
    words = _TYPES.get(schema.get("type", ""), "mapping")
    limits = [
        f"{sign} {schema[name]:g}"
        for name, sign in _SIGNS.items()
        if name in schema and schema[name] < _LARGEST
    ]
    return " ".join([words, " and ".join(limits)]).strip()


def configs() -> str:
    """The configs that come with tsarch, each with its comment."""
    rows = ["| config | what |", "|---|---|"]
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        comments = re.match(r"(#.*\n)+", path.read_text(encoding="utf-8"))
        assert comments is not None, f"{path} starts without a comment"
        lines = [line.lstrip("# ") for line in comments[0].splitlines()]
        text = " ".join(line for line in lines if not line.startswith("yaml-language-server"))
        rows.append(f"| `configs/{path.name}` | {_cell(text)} |")
    return "\n".join(rows)


# ---- models


def architectures() -> str:
    """What came of every architecture in `make parity`."""
    return (ROOT / "tests" / "suites" / "results" / "parity.md").read_text(encoding="utf-8")


# ---- command line


def commands() -> str:
    """Every command with its arguments and options."""
    found = get_command(app).commands.items()  # type: ignore[attr-defined]
    return "\n".join(line for name, command in found for line in _command(name, command))


def _command(name: str, command: Any) -> Iterator[str]:
    hints = get_type_hints(command.callback)
    yield f"## tsarch {name}\n"
    yield f"{_one_line(command.help)}\n"
    yield "| argument | takes | what |\n|---|---|---|"
    for parameter in command.params:
        is_option = parameter.opts[0].startswith("-")
        spelled = ", ".join(parameter.opts) if is_option else parameter.name.upper()
        default = " Required." if parameter.required else _default(parameter.default)
        text = f"{_cell(parameter.help or '')}{default}"
        yield f"| `{spelled}` | {_kind(hints[parameter.name])} | {text} |"
    yield ""


def _default(value: Any) -> str:
    if value in (None, False, []):
        return ""
    return f" Default: {_code(value.value if isinstance(value, Enum) else value)}."


def _kind(annotation: Any) -> str:
    """What an argument takes, in words."""
    kinds = [kind for kind in get_args(annotation) or (annotation,) if kind is not type(None)]
    words = {str: "text", int: "whole number", float: "number", bool: "–", Path: "path"}
    if get_origin(annotation) is list:
        return f"{_kind(kinds[0])}, more than once"
    if isinstance(kinds[0], type) and issubclass(kinds[0], Enum):
        return ", ".join(f"`{value.value}`" for value in kinds[0])
    return words.get(kinds[0], str(kinds[0]))


# ---- architecture


def rooms() -> str:
    """Every file of tsarch, cluster and launch with its job, from the lowest room up."""
    lines: list[str] = []
    loose: list[Path] = []
    for layer in _layers():
        for name in layer:
            path = _place(name)
            if path.is_dir():
                lines += [*_loose(loose), *_room(path)]
                loose = []
            else:
                loose.append(path)
    return "\n".join([*lines, *_loose(loose)])


def benchmark_files() -> str:
    """Files of benchmarks/ with their jobs."""
    return _table(sorted((ROOT / "benchmarks").glob("*.py")))


def test_files() -> str:
    """Files of tests/ with their jobs."""
    return _table(sorted((ROOT / "tests").rglob("*.py")))


def _layers() -> list[list[str]]:
    """The rooms, lowest first, as the layering test has them."""
    tree = ast.parse((ROOT / "tests" / "test_layers.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LAYERS":
            layers: list[list[str]] = ast.literal_eval(node.value)
            return layers
    raise LookupError("tests/test_layers.py has no LAYERS")


def _place(module: str) -> Path:
    """Folder or file of a module; links are followed, since cluster and launch lie at the top."""
    path = ROOT.joinpath(*module.split("."))
    return path.resolve() if path.is_dir() else path.with_suffix(".py")


def _room(folder: Path) -> list[str]:
    files = sorted(path for path in folder.rglob("*.py") if path.name != "__init__.py")
    title = f"### `{folder.relative_to(ROOT)}/`\n"
    return [title, f"{_docstring(folder / '__init__.py')}\n", _table(files), ""]


def _loose(files: list[Path]) -> list[str]:
    """Files of tsarch/ itself, between the rooms."""
    if not files:
        return []
    return ["### `tsarch/`: own files\n", _table(files), ""]


def _table(files: list[Path]) -> str:
    rows = [
        f"| `{path.relative_to(ROOT)}` | {_cell(_docstring(path))} |"
        for path in files
        if _docstring(path)
    ]
    return "\n".join(["| file | job |", "|---|---|", *rows])


def _docstring(path: Path) -> str:
    """The first paragraph of a file's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return _one_line(text.partition("\n\n")[0]).removesuffix(":")


# ---- text


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _code(value: Any) -> str:
    return f"`{value if isinstance(value, str) else json.dumps(value, default=str)}`"


GENERATED: dict[str, Callable[[], str]] = {
    made.__name__: made
    for made in (config_keys, configs, architectures, commands, rooms, benchmark_files, test_files)
}
