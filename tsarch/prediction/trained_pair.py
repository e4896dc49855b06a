"""What was trained, ready to answer: the pair of a run with its task, tokenizer and labels."""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from tsarch.config import DataConfig, Mode, Query, SpanEnds
from tsarch.data.merging import merged
from tsarch.data.row_reader import RowReader
from tsarch.data.sources import column_names
from tsarch.errors import Mistake, UserError
from tsarch.inputs.given import inputs_of
from tsarch.inputs.reading import Reading
from tsarch.inputs.rows import (
    Input,
    Inputs,
    Predicted,
    as_document,
    as_rows,
)
from tsarch.inputs.sound_rows import sound_rows
from tsarch.model_folder import files_digest
from tsarch.pair.answering import Answering, StateStore, context_key
from tsarch.pair.state_files import READ_AGAIN
from tsarch.pair.state_folder import StateFolder
from tsarch.pair.states import States
from tsarch.prediction.asked import AskedDocument, alone
from tsarch.prediction.context import Context, load_document
from tsarch.prediction.modes import known_mode
from tsarch.prediction.packed import Layouts
from tsarch.prediction.prepared import Prepared
from tsarch.prediction.unread import OnUnread, gaps, told_gaps, with_unread
from tsarch.records import FloatArray, TokenizedSplit
from tsarch.tasks.answers import Answer

if TYPE_CHECKING:
    from tsarch.prediction.answers import Answers
    from tsarch.tasks.relation import RelationReader

_DOCUMENTS = ("ner", "classification")
"""Tasks whose contexts are documents: what the teacher makes of them serves every window."""


class TrainedPair:
    """The pair of a finished run. Made by `tsarch.load`; threads may share it.

    Attributes:
        task: name of what was learned.
        labels: names that answers can have; none where answers are texts.
        modes: who can predict: of `teacher`, `student`, `joint`, `student_alone` those there are.
        stored: the store that the teacher's states of documents are taken from; None: none.

    Args:
        graphs: kind of the ONNX graphs that compute; empty: torch does.
        query: who reads what is asked.
    """

    def __init__(
        self,
        task: str,
        labels: Sequence[str],
        modes: Sequence[Mode],
        reader: RowReader[Any],
        layouts: Layouts,
        answering: Answers,
        folder: Path,
        graphs: str = "",
        query: Query = "both",
    ) -> None:
        self.task = task
        self.labels = tuple(labels)
        self.modes = tuple(modes)
        self._reader = reader
        self._layouts = layouts
        self._answering = answering
        self._folder = folder
        self._graphs = graphs
        self._kind = Context if query == "both" else AskedDocument
        self.stored: StateFolder | None = None

    @cached_property
    def revision(self) -> str:
        """Hexadecimal digest of the weights and of what goes with them."""
        paths = sorted((self._folder / "model").rglob("*"))
        return files_digest((own for own in paths if own.is_file()), self._graphs)

    @property
    def window_tokens(self) -> int:
        """Tokens of the student's windows at most."""
        return self._answering.window_tokens

    @property
    def default_mode(self) -> Mode:
        """`joint`, else `student`, else the one mode that there is."""
        return max(self.modes, key=("teacher", "student_alone", "student", "joint").index)

    def with_modes(self, modes: Collection[Mode] | None) -> TrainedPair:
        """The same pair, with some of its modes; None: all.

        Raises:
            UserError: it hasn't got one of them.
        """
        if modes is not None:
            if not modes:
                raise UserError.single("modes", "names none.", "Leave it out for all of them.")
            self.modes = tuple(
                m for m in self.modes if m in {self.known_mode(own) for own in modes}
            )
        return self

    def predict(
        self,
        inputs: Iterable[Input],
        mode: Mode | None = None,
        on_unread: OnUnread = "error",
    ) -> list[Predicted]:
        """Answers to inputs, in their order.

        Args:
            inputs: plain texts, lists of words (`ner`), or rows of the task (column → value; no
                labels are needed). Rows of one `doc_id` are read together, as a document is. A
                plain text is a document: its sentences and words are found by the rules of
                `tsarch.data.plain_text`, and entities say where in it they stand.
            mode: who predicts. Default: `default_mode`.
            on_unread: what is done about an input that can't be read whole. `mark`: the answer is
                a `PartlyRead`, which says what of it wasn't. `parts` (`translation` and
                `summarization`): its source is read in parts of whole sentences that each fit, and
                their texts are put together (`GeneratedText.parts`).

        Raises:
            UserError: names every input that can't be read, or read whole, and modes that there
                aren't.
        """
        answers, problems = self.try_predict(inputs, mode, on_unread)
        if problems:
            raise UserError(Mistake(f"input {n + 1}", what) for n, what in sorted(problems.items()))
        return [answers[number] for number in range(len(answers))]

    def try_predict(
        self,
        inputs: Iterable[Input],
        mode: Mode | None = None,
        on_unread: OnUnread = "error",
    ) -> tuple[dict[int, Predicted], dict[int, str]]:
        """As `predict`, but inputs that can't be read, or not whole, don't keep others from being
        answered: number of an input → its answer, and number → what is wrong.

        Raises:
            UserError: there is no such mode or option, or `inputs` are none.
        """
        self.known_mode(mode)
        return self.answer([self.prepare(inputs_of(inputs))], mode, on_unread=on_unread)[0]

    def prepare(self, inputs: Iterable[Input]) -> Prepared:
        """Inputs, tokenised; no model runs."""
        return self._prepared(as_rows(inputs, self.task, self._reader))

    def answer(
        self,
        prepared: Sequence[Prepared],
        mode: Mode | None = None,
        states: Sequence[Sequence[States]] | None = None,
        on_unread: OnUnread = "error",
    ) -> list[tuple[dict[int, Predicted], dict[int, str]]]:
        """Of each list of inputs what `try_predict` gives; all are read together.

        Args:
            states: of the contexts of each, where the teacher has read them: see `states`.

        Raises:
            UserError: there is no such mode or option.
        """
        mode = self.known_mode(mode)
        self.check_unread(on_unread)
        packed = [
            self._layouts.in_parts(own.split)
            if on_unread == "parts"
            else self._layouts.as_read(own.split, mode)
            for own in prepared
        ]
        splits = [split for own in packed for split in own.splits]
        given = None if states is None else [own for read in states for own in read]
        found = iter(self._answering.answers(merged(splits), mode, given) if splits else ())
        return [
            with_unread(
                own.inputs.with_problems(read.problems), read.splits, found, mode, on_unread
            )
            for own, read in zip(prepared, packed, strict=True)
        ]

    def scores(
        self, prepared: Prepared, mode: Mode
    ) -> tuple[Inputs, tuple[TokenizedSplit, FloatArray] | None]:
        """Inputs, with what is wrong with some as a mode reads; of the others contexts and windows,
        and what it says of each word (`Answering.scores`). Of tasks whose answers aren't texts."""
        assert isinstance(self._answering, Answering)
        packed = self._layouts.as_read(prepared.split, mode)
        split = merged(packed.splits) if packed.splits else None
        found = None if split is None else (split, self._answering.scores(split, mode))
        return prepared.inputs.with_problems(packed.problems), found

    def states(self, prepared: Sequence[Prepared]) -> list[list[States]]:
        """What the teacher makes of the contexts of each; all are read together. Of tasks whose
        answers aren't texts."""
        assert isinstance(self._answering, Answering)
        splits = [own.split for own in prepared if own.split is not None]
        found = iter(self._answering.states(merged(splits)) if splits else ())
        counts = [0 if own.split is None else own.split.num_contexts for own in prepared]
        return [list(itertools.islice(found, count)) for count in counts]

    @property
    def writes(self) -> bool:
        """Whether answers are texts, which teacher and student write together."""
        return not isinstance(self._answering, Answering)

    def reads_contexts(self, mode: Mode) -> bool:
        """Whether a mode needs the teacher."""
        if isinstance(self._answering, Answering):
            return self._answering.reads_contexts(mode)
        return mode != "student_alone"

    def keep_states(self, store: StateStore) -> bool:
        """Look for the teacher's states of contexts in a store before it reads them, and put them
        there; whether this pair can: only where contexts are documents, see `read`."""
        if not self.reads_documents:
            return False
        assert isinstance(self._answering, Answering)
        self._answering.store = store
        return True

    @property
    def reads_documents(self) -> bool:
        """Whether the teacher's contexts are documents alone: what it makes of one serves all that
        is asked of it."""
        return self.task in _DOCUMENTS or self.asks_later

    @property
    def asks_later(self) -> bool:
        """Whether the teacher reads documents without what is asked of them (`task.query`)."""
        return self._kind is AskedDocument

    def take_states(self, store: str | os.PathLike[str]) -> None:
        """Take the teacher's states of documents from a store (`tsarch read`): the teacher reads
        what isn't there.

        Raises:
            UserError: it is none, is damaged or another pair's; or the task has no use for it.
        """
        self.check_reads_documents("store")
        self.stored = StateFolder(Path(store), self.revision)
        self.keep_states(self.stored)

    def check_reads_documents(self, where: str) -> None:
        """Check that there is a use for kept states.

        Raises:
            UserError: there is none, of such a task or without both models.
        """
        if "student" not in self.modes and "joint" not in self.modes:
            raise UserError.single(where, "needs a pair of a teacher and a student.")
        if not self.reads_documents:
            what = f"is not for {self.task}, whose teacher reads what is asked or written too."
            raise UserError.single(where, what, "Use predict.")

    def read_missing(
        self, prepared: Prepared, known: Container[bytes]
    ) -> Iterator[tuple[bytes, States]]:
        """See `Answering.read_missing`."""
        assert isinstance(self._answering, Answering)
        if prepared.split is not None:
            yield from self._answering.read_missing(prepared.split, known)

    def states_of(
        self, split: TokenizedSplit, contexts: Sequence[int]
    ) -> Iterator[tuple[int, States]]:
        """See `Answering.states_of`."""
        assert isinstance(self._answering, Answering)
        yield from self._answering.states_of(split, contexts)

    def read(
        self, document: str | Sequence[Sequence[str] | Mapping[str, Any]]
    ) -> Context | AskedDocument:
        """Let the teacher read a document once, to ask for windows of it as often as wanted, or,
        where it was trained with `task.query: student`, questions about it, or pairs.

        Args:
            document: a plain text, or its sentences, each a list of words or a row; of `qa` a
                passage, of `relation` a list of words.

        Raises:
            UserError: it can't be read, or read whole; or the teacher's contexts are not documents:
                in `relation` and `qa` what is asked is else a part of what it reads.
        """
        self.check_reads_documents("read")
        own, split = self._document(document)
        assert isinstance(self._answering, Answering)
        return self._kind(self, document, own, split, self._answering.states(split))

    def load_context(self, path: str | os.PathLike[str]) -> Context | AskedDocument:
        """A context that was saved; the teacher doesn't run.

        Raises:
            UserError: it is none, or another pair's.
        """
        document, states = load_document(Path(path), self.revision)
        own, split = self._document(document)
        keys = [context_key(split, context) for context in range(split.num_contexts)]
        if any(key not in states for key in keys):
            raise UserError.single(str(path), "is damaged.", READ_AGAIN)
        return self._kind(self, document, own, split, [states[key] for key in keys])

    def answers(
        self, split: TokenizedSplit, mode: Mode | None, states: Sequence[States]
    ) -> list[tuple[Answer, ...]]:
        """Answers to every row of a document that the teacher has read."""
        return self._answering.answers(split, self.known_mode(mode), states)

    def _prepared(self, inputs: Inputs) -> Prepared:
        """The inputs that can be read and that contexts have room for."""
        own, rows = sound_rows(inputs, self._reader)
        packed = self._layouts.pack(rows)
        return Prepared(own.with_problems(packed.problems), next(iter(packed.splits), None))

    def _document(self, document: Any) -> tuple[Inputs, TokenizedSplit]:
        """The rows, contexts and windows of a document.

        Raises:
            UserError: it can't be read, or not whole.
        """
        if self.asks_later:
            found = self.prepare(alone(self, document))
        else:
            found = self._prepared(as_document(document, self.task, self._reader))
        own, split = found.inputs, found.split
        unread = {} if split is None else gaps(own, [split], "joint")
        problems = own.problems | {n: told_gaps(parts, None) for n, parts in unread.items()}
        if problems:
            what = "document" if self.asks_later else "sentence"
            raise UserError(Mistake(f"{what} {n + 1}", w) for n, w in sorted(problems.items()))
        assert split is not None
        return own, split

    @property
    def columns(self) -> dict[str, str]:
        """The task's own name of a column → what this run calls it."""
        return self._reader.columns.model_dump()

    @property
    def span_ends(self) -> SpanEnds:
        """What ends a span of words in rows of `relation`."""
        if self.task != "relation":
            return "exclusive"
        return cast("RelationReader", self._reader).span_ends

    @property
    def reading(self) -> Reading:
        """How files are read for it, where nobody says otherwise: with the columns that its data
        had, but for numbers, which files without names have."""
        columns = column_names(self._reader)
        named = {own: name for own, name in columns.items() if not name.isdecimal()}
        return Reading(self.task, columns, DataConfig(columns=named))

    def check_unread(self, on_unread: OnUnread) -> None:
        """Check what shall be done about inputs that can't be read whole.

        Raises:
            UserError: it isn't known, or not of this task.
        """
        where = f"on_unread {on_unread}"
        if on_unread not in get_args(OnUnread):
            raise UserError.single(where, "is unknown.", "It is error, mark or parts.")
        if on_unread == "parts" and not self._layouts.takes_parts:
            what = f"is for translation and summarization, not for {self.task}."
            raise UserError.single(where, what, "Take error or mark.")

    def known_mode(self, mode: Mode | None) -> Mode:
        """The mode, or the default one.

        Raises:
            UserError: there is no such mode.
        """
        return self.default_mode if mode is None else known_mode(mode, self.modes)
