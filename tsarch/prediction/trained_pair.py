"""What was trained, ready to answer: the pair of a run with its task, tokenizer and labels."""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tsarch.config import Mode
from tsarch.data.corpus import read_rows
from tsarch.data.layouts import Layout
from tsarch.data.row_reader import RowReader
from tsarch.errors import UserError
from tsarch.pair.answering import Answering
from tsarch.prediction.inputs import Input, Inputs, PlainText, as_rows
from tsarch.tasks.answers import Answer, Entity


@dataclass(frozen=True)
class TextEntity:
    """A named entity of a plain text."""

    type: str
    start: int
    """Its first character."""
    end: int
    """The character after its last."""
    text: str
    """As it stands there."""
    score: float
    """Mean probability of its words' tags, 0 to 1."""


Prediction = Answer | TextEntity
Predicted = Prediction | tuple[Prediction, ...]
"""Of an input: its entities in order, none or many; of all other tasks one answer."""


class TrainedPair:
    """The pair of a finished run. Made by `tsarch.load`; threads may share it.

    Attributes:
        task: name of what was learned.
        labels: names that answers can have; none where answers are texts.
        modes: who can predict: of `teacher`, `student`, `joint`, `student_alone` those there are.
    """

    def __init__(
        self,
        task: str,
        labels: Sequence[str],
        modes: Sequence[Mode],
        reader: RowReader[Any],
        layout: Layout[Any],
        answering: Answering,
        folder: Path,
    ) -> None:
        self.task = task
        self.labels = tuple(labels)
        self.modes = tuple(modes)
        self._reader = reader
        self._layout = layout
        self._answering = answering
        self._folder = folder
        # Tokenizers of Rust change their settings while they work.
        self._tokenizing = threading.Lock()

    @cached_property
    def revision(self) -> str:
        """Hexadecimal digest of the weights and of what goes with them."""
        digest = hashlib.sha256()
        for path in sorted((self._folder / "model").rglob("*")):
            if path.is_file():
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    @property
    def default_mode(self) -> Mode:
        """`joint`, or the one mode that there is."""
        return "joint" if "joint" in self.modes else self.modes[-1]

    def predict(self, inputs: Iterable[Input], mode: Mode | None = None) -> list[Predicted]:
        """Answers to inputs, in their order.

        Args:
            inputs: plain texts, lists of words (`ner`), or rows of the task (column → value; no
                labels are needed). Rows of one `doc_id` are read together, as a document is. A
                plain text is a document: its sentences and words are found by the rules of
                `tsarch.data.plain_text`, and entities say where in it they stand.
            mode: who predicts. Default: `default_mode`.

        Raises:
            UserError: names every input that can't be read, or read whole, and modes that there
                aren't.
        """
        if isinstance(inputs, str | dict):
            raise UserError.single("inputs", "is one input.", "Give a list: predict([text]).")
        mode = self._known(mode)
        own = as_rows(inputs, self.task, self._reader)
        if not own.rows:
            return []
        with self._tokenizing:
            rows = read_rows(own.rows, self._reader)
            split = self._layout.pack(rows)
        if split.num_cut_tokens:
            hint = "Split what is longer than a context or window into several inputs."
            what = f"{split.num_cut_tokens} tokens don't fit, so they would not be read."
            raise UserError.single("inputs", what, hint)
        answers = self._answering.answers(split, mode)
        by_row = {row.origin.place.number - 1: found for row, found in zip(rows, answers)}
        return list(_by_input(own, [by_row[row] for row in range(len(rows))]))

    @property
    def document_column(self) -> str | None:
        """Column of rows that names their document; None: every row is by itself."""
        name: str | None = self._reader.columns.model_dump().get("doc_id")
        return name

    def problem(self, given: Input) -> str:
        """What is wrong with an input; empty: nothing."""
        try:
            read_rows(as_rows([given], self.task, self._reader).rows, self._reader)
        except UserError as error:
            return " ".join(f"{own.what} {own.hint}".strip() for own in error.mistakes)
        return ""

    def _known(self, mode: Mode | None) -> Mode:
        if mode is None:
            return self.default_mode
        if mode not in self.modes:
            hint = f"It has {', '.join(self.modes)}."
            raise UserError.single(f"mode {mode}", "is none of this pair's.", hint)
        return mode


def _by_input(inputs: Inputs, answers: Sequence[tuple[Answer, ...]]) -> Iterator[Predicted]:
    """Answers of rows, put together to those of inputs."""
    rows = itertools.groupby(range(len(answers)), key=lambda row: inputs.owners[row])
    for number, own in rows:
        found = [answers[row] for row in own]
        text = inputs.texts.get(number)
        if text is not None:
            yield tuple(_in_text(text, found))
        elif len(found[0]) == 1 and not isinstance(found[0][0], Entity):
            yield found[0][0]
        else:
            yield found[0]


def _in_text(text: PlainText, answers: Sequence[tuple[Answer, ...]]) -> Iterator[TextEntity]:
    """Entities of a text's sentences by their characters in it."""
    for bounds, own in zip(text.bounds, answers, strict=True):
        for entity in own:
            assert isinstance(entity, Entity)
            start, end = int(bounds[entity.first, 0]), int(bounds[entity.stop - 1, 1])
            yield TextEntity(entity.type, start, end, text.text[start:end], entity.score)
