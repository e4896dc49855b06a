"""Code: what it shall do and how it begins, and the code that follows."""

from __future__ import annotations

import ast
import sys
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from tsarch.config import DataConfig, TaskConfig
from tsarch.data.rows import Place, check_text, found, is_absent
from tsarch.data.source_target import SourceTarget
from tsarch.errors import Mistake
from tsarch.tasks.base import Metrics, References
from tsarch.tasks.generative import (
    OBEDIENCE,
    SourceTargetColumns,
    SourceTargetReader,
    TargetTask,
)

_SHARES = ("exact_match", "edit_similarity", "valid_syntax")


class CodeColumns(SourceTargetColumns):
    """Columns of `code`."""

    description: str = "description"
    """Column with what the code shall do, such as a docstring, or with code from further up.
    Absent: nothing is said."""
    start: str = "start"
    """Column with the code right before, such as a function's first line; the student reads it
    too."""
    code: str = "code"
    """Column with the code that follows."""


class CodeReader(SourceTargetReader):
    """`description`, which may be absent, `start` and `code`. The student reads the start too."""

    keep_last = True

    columns: CodeColumns

    def __init__(self, data: DataConfig, labelled: bool = True) -> None:
        self.columns = CodeColumns(**data.columns)
        self._labelled = labelled

    @property
    def source_column(self) -> str:
        """The code right before."""
        return self.columns.start

    @property
    def label_column(self) -> str:
        """The code that follows."""
        return self.columns.code

    @property
    def optional(self) -> tuple[str, ...]:
        """What the code shall do, and further references."""
        return (self.columns.description, *super().optional)

    def read(self, place: Place, raw: dict[str, Any]) -> tuple[SourceTarget | None, list[Mistake]]:
        """A start and code that aren't empty; every row is a context of its own."""
        names = [*self.needed]
        if not is_absent(raw.get(self.columns.description)):
            names.insert(0, self.columns.description)
        mistakes = found(*(check_text(place, raw, name) for name in names))
        if mistakes:
            return None, mistakes
        sources = (name for name in names if name != self.columns.code)
        return self.row(place, raw, tuple(raw[name] for name in sources), reads_last=True)

    def raw_pair(self, row: SourceTarget) -> dict[str, Any]:
        """The same three."""
        *before, start = row.parts
        own = {"description": before[0]} if before else {}
        return {**own, "start": start, "code": row.target}


class CodeTask(TargetTask):
    """Code that does what was asked."""

    table_metrics: tuple[str, ...] = ("perplexity", *_SHARES, OBEDIENCE)

    def __init__(self, labels: Sequence[str], config: TaskConfig | None = None) -> None:
        super().__init__(labels, config)
        self._is_python = config is None or config.language == "python"
        measured = _SHARES if self._is_python else _SHARES[:-1]
        self.text_marks: Mapping[str, float] = dict.fromkeys(measured, 1.0)

    def as_written(self, text: str) -> str:
        """Lines without the indentation that all have and without spaces at their ends, from the
        first that isn't empty to the last."""
        return "\n".join(line.rstrip() for line in _without_indentation(text).strip().splitlines())

    def text_metrics(self, hypotheses: Sequence[str], references: References) -> Metrics:
        """Means over the texts, 0 to 1: exact match and edit similarity, the better of several
        references, as in CodeXGLUE (Lu et al. 2021, section 4); of Python also the share that
        parses."""
        written = [[self.as_written(own) for own in texts] for texts in references]
        pairs = list(zip(map(self.as_written, hypotheses), written, strict=True))
        scores = {
            "exact_match": [float(text in own) for text, own in pairs],
            "edit_similarity": [
                max(edit_similarity(text, one) for one in own) for text, own in pairs
            ],
        }
        if self._is_python:
            scores["valid_syntax"] = [float(is_python(text)) for text, _ in pairs]
        return {name: sum(own) / max(len(own), 1) for name, own in scores.items()}

    def text_signatures(self, hypotheses: Sequence[str], references: References) -> dict[str, str]:
        """How the metrics are computed."""
        own = {"edit_similarity": "1 − insertions and deletions of characters / characters of both"}
        if self._is_python:
            own["valid_syntax"] = f"ast.parse of Python {sys.version_info[0]}.{sys.version_info[1]}"
        return own


def _without_indentation(text: str) -> str:
    """A text without what all of its lines begin with; a single space before the first line is a
    tokenizer's, which begins a text as it begins a word."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    is_tokenizers = first[:1] == " " and first[1:2].strip() != ""
    return text if is_tokenizers else textwrap.dedent(text)


def edit_similarity(one: str, other: str) -> float:
    """1 − the fewest characters that are put in or taken out to make one text the other, divided by
    the characters of both, 0 to 1: `fuzz.ratio` of rapidfuzz and fuzzywuzzy / 100."""
    from nltk.metrics.distance import edit_distance

    total = len(one) + len(other)
    return 1.0 if total == 0 else 1 - float(edit_distance(one, other, substitution_cost=2)) / total


def is_python(text: str) -> bool:
    """Whether a text by itself is statements of Python: a function's body without its indentation
    is, nothing at all isn't."""
    if not text.strip():
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


COLUMNS, READER, TASK = CodeColumns, CodeReader, CodeTask
