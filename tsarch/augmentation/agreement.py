"""How much a pair agrees with the labels of rows: a probability a row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

from tsarch.config import Mode
from tsarch.inputs.rows import Input
from tsarch.prediction.trained_pair import TrainedPair
from tsarch.prediction.unread import gaps, told_gaps
from tsarch.records import FloatArray, TokenizedSplit
from tsarch.tasks.answers import Answer, Label, NoAnswer, SpanAnswer
from tsarch.tasks.base import AnsweringTask
from tsarch.tasks.registry import make_task

LEFT_OUT = "leave it out: --skip-bad"
"""What can be done about a row that can't be read whole, but to split it."""


class Judge:
    """A pair that reads rows and says how likely their labels are.

    Args:
        mode: who of it reads.
    """

    def __init__(self, pair: TrainedPair, mode: Mode) -> None:
        self._pair = pair
        self._mode: Mode = mode
        self._task = cast(AnsweringTask, make_task(pair.task, pair.labels))
        self._numbers = {name: number for number, name in enumerate(pair.labels)}

    def read(
        self, inputs: Sequence[Input], whole: bool = False
    ) -> tuple[list[Said], dict[int, str]]:
        """What it says of the rows of inputs, in order, and number of an input → what is wrong.

        Args:
            whole: it is wrong, too, that a part of an input can't be read.
        """
        own, found = self._pair.scores(self._pair.prepare(inputs), self._mode)
        if found is None:
            return [], own.problems
        split, scores = found
        unread = gaps(own, [split], self._mode) if whole else {}
        told = {n: told_gaps(parts, LEFT_OUT) for n, parts in unread.items()}
        problems = own.problems | told
        answers = self._task.answers(split, scores)
        said = [
            Said(self, split, scores, place, own.owner(row), row.origin.place.number, answer)
            for place, (row, answer) in enumerate(zip(split.rows, answers, strict=True))
            if own.owner(row) not in problems
        ]
        return sorted(said, key=lambda each: each.order), problems

    def agreement(self, said: Said, row: Any) -> float:
        """Probability of the least likely of a row's labels: of `ner` over its words; of a label or
        relation the mean over the places that vote; of an answer its odds against none; of a choice
        beside the others."""
        if hasattr(row, "choices"):  # it has tags too, of words that a split may have left out
            (answer,) = said.answers
            assert isinstance(answer, Label)
            return answer.scores[row.choices[row.answer]]
        if hasattr(row, "tags"):
            start, stop = said.split.sentence_offsets[said.place : said.place + 2].tolist()
            own = said.scores[start:stop]
            return min(
                (
                    float(own[word, self._numbers[tag]]) if tag in self._numbers else 0.0
                    for word, tag in enumerate(row.tags)
                ),
                default=0.0,
            )
        if hasattr(row, "spans"):
            return _of_answer(said.answers[0])
        number = self._numbers.get(row.label)
        return 0.0 if number is None else float(said.means[number])


class Said:
    """What a pair says of one row."""

    def __init__(
        self,
        judge: Judge,
        split: TokenizedSplit,
        scores: FloatArray,
        place: int,
        owner: int,
        order: int,
        answers: tuple[Answer, ...],
    ) -> None:
        self._judge = judge
        self.split = split
        self.scores = scores
        self.place = place
        """Of the row in its split."""
        self.owner = owner
        """Input that the row is a part of."""
        self.order = order
        """Of the row among all."""
        self.answers = answers

    @property
    def row(self) -> Any:
        """The row, without labels."""
        return self.split.rows[self.place]

    @property
    def means(self) -> FloatArray:
        """(labels,) mean probabilities over the places that vote."""
        start, stop = self.split.sentence_offsets[self.place : self.place + 2].tolist()
        own: FloatArray = self.scores[start:stop].mean(0)
        return own

    def agreement(self, row: Any) -> float:
        """See `Judge.agreement`."""
        return self._judge.agreement(self, row)


def _of_answer(answer: Answer) -> float:
    """Probability of an answer against none, or of none, from the log-odds."""
    assert isinstance(answer, SpanAnswer | NoAnswer)
    odds = answer.score if isinstance(answer, SpanAnswer) else -answer.score
    return 1 / (1 + math.exp(-odds)) if odds > -700 else 0.0
