"""What rows ask of their texts, and whether a text obeys: rules that look at the text alone."""

from __future__ import annotations

import json
import re
import reprlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import regex

from tsarch.config import ControlConfig
from tsarch.data.rows import Place, is_absent
from tsarch.data.words import SPACELESS, num_words
from tsarch.errors import Mistake, UserError

_BETWEEN = ";"
"""Parts of a control whose words a text has to have."""
_MOST = 10**9
"""Larger numbers are no names."""
_OF_WORDS = rf"(?![{SPACELESS}])[\p{{L}}\p{{M}}\p{{N}}]"
"""A letter of scripts whose words are longer than one, for a regular expression."""
_LETTER = regex.compile(_OF_WORDS)
_NOT_BEHIND, _NOT_BEFORE = rf"(?<!{_OF_WORDS})", rf"(?!{_OF_WORDS})"


@dataclass(frozen=True)
class Control:
    """See `ControlConfig`."""

    config: ControlConfig

    @property
    def names(self) -> tuple[str, ...]:
        """Controls that there are; none: any words."""
        return (*self.config.num_words, *self.config.patterns)

    def before(self, control: str) -> str:
        """What stands before the source of a row with this control."""
        return self.config.text.replace("{}", control)

    def of_target(self, target: str) -> str | None:
        """The first control that a target obeys; None: no name of one."""
        return next((name for name in self.names if self.is_obeyed(name, target)), None)

    def is_obeyed(self, control: str, text: str) -> bool:
        """Whether a text is as its control asks."""
        if self.config.contains:
            written = _compared(text)
            return all(_has(written, _compared(part)) for part in control.split(_BETWEEN))
        if control in self.config.patterns:
            return re.search(self.config.patterns[control], text) is not None
        least, most = self.config.num_words[control]
        return least <= num_words(text) <= most

    def mistake(self, control: str) -> str:
        """What is wrong with a control, in words behind its row; empty: nothing."""
        if self.config.contains or control in self.names:
            return ""
        return f"has the control `{control}`; task.control has {', '.join(self.names)}."


def _compared(text: str) -> str:
    """A text whatever its case, its spaces and how its accents are encoded."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def _has(text: str, part: str) -> bool:
    """Whether a text has some words as words, not inside longer ones."""
    before = _NOT_BEHIND if _LETTER.match(part) else ""
    behind = _NOT_BEFORE if _LETTER.match(part[-1:]) else ""
    return regex.search(before + regex.escape(part) + behind, text) is not None


def read_control(
    place: Place, raw: Mapping[str, Any], column: str
) -> tuple[str | None, list[Mistake]]:
    """A row's control, from its column, and what is wrong with it; a list of words as one text, a
    whole number as its name. None: it has none."""
    value = raw.get(column)
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # of tables that have cells without any
    if isinstance(value, bool | int) and abs(value) < _MOST:
        return json.dumps(value), []
    if isinstance(value, list) and all(isinstance(own, str) for own in value):
        value = f"{_BETWEEN} ".join(value)
    if is_absent(value):
        return None, []
    if isinstance(value, str):
        return value, []
    what = f"`{column}` is {reprlib.repr(value)}, not a text, a list of words or a whole number."
    return None, [Mistake(str(place), what)]


def check_controls(control: ControlConfig | None, splits: Mapping[str, Sequence[Any]]) -> None:
    """See that rows that are measured ask for something.

    Raises:
        UserError: none of a split's does.
    """
    if control is None:
        return
    for name, rows in splits.items():
        if rows and all(row.control is None for row in rows):
            what = "no row has a control, so whether texts obey can't be told."
            hint = "Name its column (data.columns.control), or leave out task.control."
            raise UserError.single(f"the {name} split", what, hint)
