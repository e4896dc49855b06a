"""Dialogue: the turns so far and the one that answers them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tsarch.config import ColumnsConfig, DataConfig
from tsarch.data.rows import Place, RowOrMistakes, check_text, check_words, found
from tsarch.errors import Mistake
from tsarch.tasks.base import Metrics, References
from tsarch.tasks.generative import PairRows, PairTask
from tsarch.tasks.text_metrics import bleu, distinct


class DialogueRows(PairRows):
    """`history`, a list of turns, and `response`. The student reads the last turn too."""

    keep_last = True

    def source_column(self, columns: ColumnsConfig) -> str:
        """The turns so far."""
        return columns.history

    def label_column(self, columns: ColumnsConfig) -> str:
        """The turn that answers."""
        return columns.response

    def word_lists(self, columns: ColumnsConfig) -> tuple[str, ...]:
        """The turns."""
        return (columns.history,)

    def read(self, place: Place, raw: dict[str, Any], data: DataConfig) -> RowOrMistakes:
        """At least one turn, none of them empty."""
        columns = data.columns
        mistakes = found(
            check_words(place, raw, columns.history), check_text(place, raw, columns.response)
        )
        if mistakes:
            return None, mistakes
        turns = raw[columns.history]
        if not turns or not all(turn.split() for turn in turns):
            what = f"`{columns.history}` has no turn, or an empty one."
            return None, [Mistake(str(place), what)]
        row, mistakes = self.row(place, raw, columns, turns)
        return row and replace(row, focus=len(turns) - 1), mistakes


class DialogueTask(PairTask):
    """Responses in dialogues."""

    table_metrics: tuple[str, ...] = ("perplexity", "bleu", "distinct1", "distinct2")

    def text_metrics(self, hypotheses: Sequence[str], references: References) -> Metrics:
        """BLEU, 0 to 100, by sacrebleu; distinct-1 and distinct-2 (Li et al. 2016, "A
        Diversity-Promoting Objective Function for Neural Conversation Models", section 5.2)."""
        return {
            "bleu": bleu(hypotheses, references),
            "distinct1": distinct(hypotheses, 1),
            "distinct2": distinct(hypotheses, 2),
        }


ROWS, TASK = DialogueRows, DialogueTask
