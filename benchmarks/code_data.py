"""The data of `configs/code.yaml`: functions with docstrings, from packages that are installed.

    python -m benchmarks.code_data configs/python_code

Takes functions of a few lines from the sources of packages whose licences let them be passed on,
and writes the three splits, `packages.csv` (package, version, licence, files, rows) and the
licences' texts. A file of sources is in one split only, and so is a body: of equal ones the first
is kept.
"""

from __future__ import annotations

import ast
import csv
import json
import random
import shutil
import sys
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Annotated, Any

import typer

LICENCES = {
    "attrs": "MIT",
    "babel": "BSD-3-Clause",
    "click": "BSD-3-Clause",
    "flask": "BSD-3-Clause",
    "fonttools": "MIT",
    "jinja2": "BSD-3-Clause",
    "networkx": "BSD-3-Clause",
    "nltk": "Apache-2.0",
    "pandas": "BSD-3-Clause",
    "pygments": "BSD-2-Clause",
    "rich": "MIT",
    "scikit-learn": "BSD-3-Clause",
    "sqlalchemy": "MIT",
    "starlette": "BSD-3-Clause",
    "sympy": "BSD-3-Clause",
    "werkzeug": "BSD-3-Clause",
}
"""Distribution → its licence (SPDX), as its metadata and its licence file say it."""
PYTHON = "python"
"""The standard library, PSF-2.0."""
SIZES = {"validation": 80, "test": 160, "train": 1600}
"""Split → rows, drawn in this order."""
MOST_OF_A_FILE = 6
"""Rows, so that no file fills a split."""
_OTHERS = (
    *("test", "tests", "testing", "_testing", "conftest", "site-packages", "lib2to3", "idlelib"),
    *("externals", "_vendored", "_vendor", "vendored", "compat", "_distutils_hook", "ensurepip"),
)
"""Folders with code of other people, or with tests."""
_NOTICES = ("GPL", "All rights reserved", "Mozilla", "Creative Commons")
"""What a file says that may have terms of its own."""


@dataclass(frozen=True)
class Function:
    """A function as a row."""

    package: str
    file: str
    """Within the installed packages."""
    line: int
    description: str
    start: str
    code: str

    def as_json(self) -> dict[str, Any]:
        """The row."""
        place = f"{self.package}: {self.file}:{self.line}"
        return {
            "description": self.description,
            "start": self.start,
            "code": self.code,
            "from": place,
        }


def functions(package: str, file: str, source: str) -> Iterator[Function]:
    """Short functions with a docstring that are in a file."""
    lines = source.splitlines()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        tree = ast.parse(source)
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or len(node.body) < 2:
            continue
        said = ast.get_docstring(node)
        text, *code = node.body
        last = node.end_lineno
        if said is None or text.end_lineno is None or last is None:
            continue
        first = text.end_lineno  # the line behind the docstring, from 0
        start = "\n".join(lines[node.lineno - 1 : text.lineno - 1])
        found = Function(
            package,
            file,
            node.lineno,
            " ".join(said.partition("\n\n")[0].split()),
            textwrap.dedent(start).strip(),
            textwrap.dedent("\n".join(lines[first:last])).strip(),
        )
        if code[0].lineno > first and _is_fit(found):
            yield found


def _is_fit(own: Function) -> bool:
    """Whether it is short, plain and says something."""
    parts = (own.description, own.start, own.code)
    if not all(part.isascii() for part in parts) or "\t" in "".join(parts):
        return False
    num_lines = own.code.count("\n") + 1
    sizes = len(own.description), len(own.start), len(own.code)
    if not (15 <= sizes[0] <= 200 and sizes[1] <= 100 and 10 <= sizes[2] <= 160 and num_lines <= 6):
        return False
    if own.start.count("\n") or not own.start.endswith(":"):
        return False
    try:
        tree = ast.parse(own.code)
    except SyntaxError:
        return False
    plain = (ast.Pass, ast.Raise)
    return not isinstance(tree.body[0], plain)


def sources(package: str) -> Iterator[tuple[str, str]]:
    """(path within the installed packages, text) of the sources of a package, in order."""
    if package == PYTHON:
        root = Path(sysconfig.get_path("stdlib"))
        files = [own.relative_to(root) for own in root.rglob("*.py")]
    else:
        found = distribution(package)
        root = Path(str(found.locate_file(".")))
        files = [Path(str(own)) for own in found.files or () if own.suffix == ".py"]
    for path in sorted(files):
        if any(own in _OTHERS or own.startswith("test_") for own in (*path.parts, path.stem)):
            continue
        text = (root / path).read_text(encoding="utf-8", errors="replace")
        if not any(notice in text for notice in _NOTICES):
            yield path.as_posix(), text


def split_rows(rows: list[Function]) -> dict[str, list[Function]]:
    """Split → rows: files in an order drawn once, no body twice."""
    by_file: dict[str, list[Function]] = {}
    seen: set[str] = set()
    for row in rows:
        if row.code not in seen:
            seen.add(row.code)
            by_file.setdefault(f"{row.package}/{row.file}", []).append(row)
    drawn = random.Random(0)
    names = sorted(by_file)
    drawn.shuffle(names)
    splits: dict[str, list[Function]] = {name: [] for name in SIZES}
    for name in names:
        own = by_file[name]
        taken = drawn.sample(own, min(MOST_OF_A_FILE, len(own)))
        open_split = next((n for n, size in SIZES.items() if len(splits[n]) < size), None)
        if open_split is None:
            break
        splits[open_split] += taken[: SIZES[open_split] - len(splits[open_split])]
    return splits


def copy_licence(package: str, folder: Path) -> None:
    """Put a package's licence beside the data."""
    if package == PYTHON:
        where = Path(sysconfig.get_path("stdlib")) / "LICENSE.txt"
        places = [where, *Path("/usr/share/doc").glob("python3.*/copyright")]
        source = next(own for own in places if own.exists())
    else:
        named = distribution(package).files or ()
        kinds = ("license", "licence", "copying")
        source = next(
            Path(str(own.locate()))
            for own in sorted(named, key=lambda own: len(own.parts))
            if own.name.lower().startswith(kinds) and ".dist-info" in own.parts[0]
        )
    shutil.copyfile(source, folder / f"{package}.txt")


def version_of(package: str) -> str:
    """The version that is installed."""
    return sys.version.split()[0] if package == PYTHON else distribution(package).version


def main(
    folder: Annotated[Path, typer.Argument(help="Folder of the data, which is written anew.")],
) -> None:
    """Write the data."""
    licences = {**LICENCES, PYTHON: "PSF-2.0"}
    rows = [
        own
        for package in sorted(licences)
        for file, source in sources(package)
        for own in functions(package, file, source)
    ]
    splits = split_rows(rows)
    (folder / "licences").mkdir(parents=True, exist_ok=True)
    for name, own in splits.items():
        lines = (json.dumps(row.as_json()) + "\n" for row in own)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    with (folder / "packages.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["package", "version", "licence", "files", *splits])
        for package, licence in sorted(licences.items()):
            by_split = [[row for row in own if row.package == package] for own in splits.values()]
            num_files = len({row.file for own in by_split for row in own})
            if num_files:
                counts = [len(own) for own in by_split]
                table.writerow([package, version_of(package), licence, num_files, *counts])
                copy_licence(package, folder / "licences")
    told = ", ".join(f"{name} {len(own):,}" for name, own in splits.items())
    typer.echo(f"{len(rows):,} functions; {told}")


if __name__ == "__main__":
    typer.run(main)
