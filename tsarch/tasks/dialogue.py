"""Dialogue: the turns so far and the one that answers them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tsarch.config import DataConfig
from tsarch.data.formats.dialogue_shapes import DIALOGUE_SHAPES
from tsarch.data.formats.shapes import Shape
from tsarch.data.rows import Place, check_text, check_words, found
from tsarch.data.source_target import SourceTarget
from tsarch.errors import Mistake
from tsarch.tasks.base import Metrics, References
from tsarch.tasks.generative import (
    OBEDIENCE,
    SourceTargetColumns,
    SourceTargetReader,
    TargetTask,
)
from tsarch.tasks.text_metrics import bleu, bleu_signature, distinct


class DialogueColumns(SourceTargetColumns):
    """Columns of `dialogue`."""

    history: str = "history"
    """Column with the turns so far (a list of strings)."""
    response: str = "response"
    """Column with the turn that answers them."""


class DialogueReader(SourceTargetReader):
    """`history`, a list of turns, and `response`. The student reads the last turn too."""

    keep_last = True

    columns: DialogueColumns

    shapes: tuple[Shape, ...] = DIALOGUE_SHAPES

    def __init__(self, data: DataConfig, labelled: bool = True) -> None:
        self.columns = DialogueColumns(**data.columns)
        self._labelled = labelled

    @property
    def source_column(self) -> str:
        """The turns so far."""
        return self.columns.history

    @property
    def label_column(self) -> str:
        """The turn that answers."""
        return self.columns.response

    @property
    def word_lists(self) -> tuple[str, ...]:
        """The turns."""
        return (self.columns.history,)

    def read(self, place: Place, raw: dict[str, Any]) -> tuple[SourceTarget | None, list[Mistake]]:
        """At least one turn, none of them empty."""
        history = self.columns.history
        mistakes = found(check_words(place, raw, history))
        if self._labelled:
            mistakes += found(check_text(place, raw, self.columns.response))
        if mistakes:
            return None, mistakes
        turns = raw[history]
        if not turns or not all(turn.split() for turn in turns):
            return None, [Mistake(str(place), f"`{history}` has no turn, or an empty one.")]
        return self.row(place, raw, tuple(turns), reads_last=True)

    def raw_pair(self, row: SourceTarget) -> dict[str, Any]:
        """The same two."""
        return {"history": list(row.parts), "response": row.target}


class DialogueTask(TargetTask):
    """Responses in dialogues."""

    table_metrics: tuple[str, ...] = ("perplexity", "bleu", "distinct1", "distinct2", OBEDIENCE)
    text_marks: Mapping[str, float] = {"bleu": 100.0}

    def text_metrics(self, hypotheses: Sequence[str], references: References) -> Metrics:
        """BLEU, 0 to 100, by sacrebleu; distinct-1 and distinct-2 (Li et al. 2016, "A
        Diversity-Promoting Objective Function for Neural Conversation Models", section 5.2)."""
        return {
            "bleu": bleu(hypotheses, references),
            "distinct1": distinct(hypotheses, 1),
            "distinct2": distinct(hypotheses, 2),
        }

    def text_signatures(self, hypotheses: Sequence[str], references: References) -> dict[str, str]:
        """How the metrics are computed."""
        return {"bleu": bleu_signature(hypotheses, references)}


COLUMNS, READER, TASK = DialogueColumns, DialogueReader, DialogueTask
