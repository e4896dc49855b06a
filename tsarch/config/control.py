"""What a row asks of its text: the section `task.control`."""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from tsarch.config.base import NonNegativeInt, Section


def _known_pattern(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"`{pattern}` is no regular expression: {error}") from None
    return pattern


_Bounds = Annotated[list[NonNegativeInt], Field(min_length=2, max_length=2)]


class ControlConfig(Section):
    """What a row asks of its text, such as a length: its control, which the column `control` has
    (`data.columns.control`). The teacher reads it before the source, and whether generated texts
    obey is measured (`obedience`), by one of three rules. See
    [Texts that obey](tasks.md#texts-that-obey-taskcontrol)."""

    text: str = "{}:"
    """What is put before a source; `{}` stands for the row's control."""
    num_words: dict[str, _Bounds] = Field(default={})
    """Control → least and most words of a text that obeys it. A row of training or test that has no
    control gets the first that its own target obeys."""
    patterns: dict[str, Annotated[str, AfterValidator(_known_pattern)]] = Field(default={})
    """Control → regular expression, which a text that obeys it has somewhere. Rows without a
    control get one in the same way."""
    contains: bool = False
    """A control is words that the text has to have, whatever their case: several parts with `;`
    between them. Rows without a control are learned without."""

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        rules = (bool(self.num_words), bool(self.patterns), self.contains)
        if sum(rules) != 1:
            raise ValueError("give one rule: `num_words`, `patterns` or `contains`")
        if "{}" not in self.text:
            raise ValueError("`text` lacks `{}`, which stands for the row's control")
        for name, (least, most) in self.num_words.items():
            if least > most:
                raise ValueError(f"num_words.{name}: the least words ({least}) are above the most")
        return self
