"""What rows ask of their texts, and whether a text obeys: rules that look at the text alone."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tsarch.config import ControlConfig
from tsarch.data.words import num_words
from tsarch.errors import UserError

_BETWEEN = ";"
"""Parts of a control whose words a text has to have."""
_MOST = 10**9
"""Larger numbers are no names."""


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
            parts = (" ".join(part.split()).casefold() for part in control.split(_BETWEEN))
            written = " ".join(text.split()).casefold()
            return all(part in written for part in parts)
        if control in self.config.patterns:
            return re.search(self.config.patterns[control], text) is not None
        least, most = self.config.num_words[control]
        return least <= num_words(text) <= most

    def mistake(self, control: str) -> str:
        """What is wrong with a control, in words behind its row; empty: nothing."""
        if self.config.contains or control in self.names:
            return ""
        return f"has the control `{control}`; task.control has {', '.join(self.names)}."


def read_control(value: Any) -> str | None:
    """A row's control, from its column; a list of words as one text. None: it has none."""
    if isinstance(value, bool | int) and abs(value) < _MOST:
        return json.dumps(value)
    if isinstance(value, list) and value and all(isinstance(own, str) for own in value):
        value = f"{_BETWEEN} ".join(value)
    return value if isinstance(value, str) and value.strip() else None


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
