"""Some rows with what was predicted, on the terminal: marked in colours, and readable without."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tsarch.redaction import redact

Errors = Mapping[str, Any]
"""`errors.json` (`tsarch.marking.summary`)."""
_COLOURS = {"right": "green", "gold": "cyan", "missed": "yellow"}
_WRONG = "red"


def read_errors(folder: Path) -> Errors | None:
    """A run's `errors.json`; None: it has none."""
    path = folder / "errors.json"
    if not path.is_file():
        return None
    found: Errors = json.loads(path.read_text(encoding="utf-8"))
    return found


def show_sample(console: Console, errors: Errors) -> None:
    """Some rows: `✓` where all is right, `✗` elsewhere; in brackets what is marked."""
    if not errors["sample"]:
        return
    kinds = errors["kinds"][errors["mode"]]
    told = ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in kinds.items())
    title = f"{errors['split']} split as {errors['mode']} sees it ({told}); some rows:"
    console.print(Text(title, "bold"))
    table = Table(show_header=False, box=None, padding=(0, 1), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in errors["sample"]:
        colour = "green" if row["right"] else _WRONG
        table.add_row(Text("✓" if row["right"] else "✗", colour), _row(row))
    console.print(table)


def _row(row: Mapping[str, Any]) -> Text:
    text = Text()
    if row["question"]:
        text.append(f"{_clean(row['question'])}\n", "bold")
    if row["said"]:
        text.append(_clean(row["said"]), "green" if row["right"] else _WRONG)
        text.append("" if row["score"] is None else f" {row['score']:.2f}", "dim")
        text.append("" if row["right"] else f", is {_clean(row['gold'])}", "cyan")
        text.append("\n")
    for number, part in enumerate(row["parts"]):
        text.append(" " if number and not _touch(row["parts"][number - 1], part) else "")
        if not part["mark"]:
            text.append(_clean(part["text"]), "dim" if row["said"] else "")
            continue
        colour = _COLOURS.get(part["mark"], _WRONG)
        own = f"{_clean(part['text'])} " if part["text"] else ""
        text.append(f"[{own}", colour)
        text.append(_clean(part["note"]), f"bold {colour}")
        text.append("]", colour)
    text.append(f"  {_clean(file_name(row['place']))}", "dim")
    return text


def _touch(before: Mapping[str, Any], part: Mapping[str, Any]) -> bool:
    """Whether texts bring the space between them with them."""
    ends, begins = str(before["text"])[-1:], str(part["text"])[:1]
    return ends.isspace() or begins.isspace()


def file_name(place: str) -> str:
    """A row's place without the folders."""
    return re.split(r"[/\\]", place)[-1]


def _clean(text: str) -> str:
    """In one line, without what a terminal would obey."""
    return redact("".join(c if c.isprintable() else " " for c in text))
