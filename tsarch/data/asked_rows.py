"""Documents that the teacher reads alone, each once, and rows about marked spans of them, which the
student reads.

A context is the words of a document. A window is the row's words, or what is around its marked
spans: it is fed with the context's states but for the marks and the label's token, which stand in
the window alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tsarch.data.cuts import Cutting
from tsarch.data.packing import Sentence, label_place, left_out
from tsarch.data.row_slices import slices_around
from tsarch.errors import Mistake, UserError
from tsarch.records import (
    IGNORED,
    SPAN_END,
    SPAN_START,
    Queries,
    TokenizedSplit,
    int_array,
)

_LONG_DOCUMENTS = "ends of documents longer than a context (teacher.max_tokens)"
Span = tuple[int, int]


@dataclass(frozen=True)
class AskedRow:
    """A row about spans of a document."""

    words: Sequence[int | str]
    """Of each of its words the document's word, by its number, or a mark."""
    spans: Sequence[Span]
    """Words [start, stop) of the document that it is about, which its context must have."""
    marked: tuple[Span, ...]
    """Its own words [start, stop) that its window must have: the same, with their marks."""
    focus: int
    """Word that its label stands before, where it stands before what it is about."""
    label: int
    place: str
    """Where it stands, for messages."""
    shared: Sequence[Span] = ()
    """Further words [start, stop) of the document for the teacher to learn."""


@dataclass(frozen=True)
class Frame:
    """What stands around documents and in windows."""

    before: list[int]
    """Tokens before a document."""
    after: list[int]
    marks: Mapping[str, list[int]]
    """Tokens of each mark."""
    label_token: int
    label_last: bool
    """Whether a label stands after what it is about."""
    cut_off: str = _LONG_DOCUMENTS
    """What ends of documents are counted as that contexts have no room for."""
    of: str = "words"
    """What of a row they are (`Cutting`)."""
    unread: str | None = None
    """The same of what windows have no room for; None: nobody misses it."""


def pack_asked_rows(
    documents: Sequence[Sentence],
    groups: Sequence[Sequence[int]],
    rows: Sequence[AskedRow],
    frame: Frame,
    teacher_max_tokens: int,
    student_max_tokens: int,
) -> TokenizedSplit:
    """A context for each group of rows, with a window for each of them.

    Of a context's words the teacher learns at which a span starts that some row is about or shares,
    and at which one ends (bits as of `losses.spans`). What a document is longer than a context is
    cut off and counted. Of a row longer than a window this is what is around its spans
    (`slices_around`).

    Args:
        documents: the tokenised document of each group.
        groups: the rows about each.

    Raises:
        UserError: spans lie behind the end of a context, or are longer than a window; every such
            row is named.
    """
    packer = _Packer(frame, teacher_max_tokens, student_max_tokens)
    for document, group in zip(documents, groups, strict=True):
        packer.add(document, [(number, rows[number]) for number in group])
    if packer.mistakes:
        raise UserError(packer.mistakes)
    return packer.split([row.label for row in rows])


@dataclass
class _Packer:
    """Grows contexts, and behind each the windows that are fed with it."""

    frame: Frame
    teacher_max_tokens: int
    student_max_tokens: int
    token_ids: list[int] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    context_labels: list[int] = field(default_factory=list)
    context_offsets: list[int] = field(default_factory=lambda: [0])
    context_stops: list[int] = field(default_factory=list)
    windows: list[Span] = field(default_factory=list)
    window_offsets: list[int] = field(default_factory=lambda: [0])
    cutting: Cutting = field(default_factory=Cutting)
    mistakes: list[Mistake] = field(default_factory=list)

    def add(self, document: Sentence, group: Sequence[tuple[int, AskedRow]]) -> None:
        """Add a document and the rows about it, with their numbers."""
        room = self.teacher_max_tokens - len(self.frame.before) - len(self.frame.after)
        bounds = [place for place, word in enumerate(document.starts) if word >= 0]
        bounds.append(len(document.starts))
        num_words = sum(stop <= room for stop in bounds[1:])
        read = _Read(document.token_ids, bounds, num_words)
        first = self._add_context(read, [row for _, row in group])
        for number, row in group:
            if max((stop for _, stop in row.spans), default=0) > num_words:
                what = f"its entities lie behind the {room} tokens that a context has room for."
                self.mistakes.append(Mistake(row.place, what, "Set a larger teacher.max_tokens."))
                continue
            kept = [
                place
                for place, word in enumerate(row.words)
                if isinstance(word, str) or word < num_words
            ]
            spans, num_cut = left_out(range(len(row.words)), kept), bounds[-1] - bounds[num_words]
            self.cutting.add(self.frame.cut_off, number, num_cut, spans=spans, of=self.frame.of)
            self._add_window(number, row, *self._tokens_of(row, kept, read, first))
        self.context_offsets.append(len(self.token_ids))
        self.window_offsets.append(len(self.windows))

    def split(self, labels: Sequence[int]) -> TokenizedSplit:
        """All that was added, for rows with these labels."""
        return TokenizedSplit(
            token_ids=int_array(self.token_ids),
            words=int_array(self.words),
            context_offsets=int_array(self.context_offsets),
            windows=int_array(self.windows).reshape(-1, 2),
            window_offsets=int_array(self.window_offsets),
            labels=int_array(labels),
            sentence_offsets=np.arange(len(labels) + 1),
            cuts=self.cutting.cuts(),
            queries=Queries(
                int_array(self.context_stops),
                int_array(self.sources),
                int_array(self.context_labels),
            ),
        )

    def _add_context(self, read: _Read, rows: Sequence[AskedRow]) -> int:
        """Add what the teacher reads of a document → place of its first token."""
        before, after = self.frame.before, self.frame.after
        spans = {span for row in rows for span in (*row.spans, *row.shared)}
        bits = [0] * len(read.bounds)
        for bit, words in (
            (SPAN_START, {start for start, _ in spans}),
            (SPAN_END, {stop - 1 for _, stop in spans}),
        ):
            for word in words:
                bits[word] += bit
        tokens = read.token_ids[: read.bounds[read.num_words]]
        labels = [IGNORED] * len(tokens)
        for word in range(read.num_words):
            labels[read.bounds[word]] = bits[word]
        start = len(self.token_ids)
        self.token_ids += [*before, *tokens, *after]
        self.context_labels += [*[IGNORED] * len(before), *labels, *[IGNORED] * len(after)]
        self.context_stops.append(len(self.token_ids))
        self.sources += range(start, len(self.token_ids))
        self.words += [-1] * (len(self.token_ids) - start)
        return start + len(before)

    def _tokens_of(
        self, row: AskedRow, kept: Sequence[int], read: _Read, first: int
    ) -> tuple[list[int], list[int], list[int]]:
        """Tokens of the words of a row that its context has, per token the word that starts there
        or −1, and the place that feeds it or −1."""
        tokens: list[int] = []
        starts: list[int] = []
        sources: list[int] = []
        for number in kept:
            word = row.words[number]
            if isinstance(word, str):
                own: Sequence[int] = self.frame.marks[word]
                sources += [-1] * len(own)
            else:
                start, stop = read.bounds[word : word + 2]
                own = read.token_ids[start:stop]
                sources += range(first + start, first + stop)
            tokens += own
            starts += [number, *[-1] * (len(own) - 1)]
        return tokens, starts, sources

    def _add_window(
        self, number: int, row: AskedRow, tokens: list[int], starts: list[int], sources: list[int]
    ) -> None:
        """Add the window of a row, or what of it fits around its spans."""
        room = self.student_max_tokens - 1
        slices = [(0, len(tokens))]
        if len(tokens) > room:
            found = slices_around(starts, row.marked, room)
            if found is None:
                what = f"its entities have more tokens than the {room} that a window has room for."
                self.mistakes.append(Mistake(row.place, what, "Set a larger student.max_tokens."))
                return
            slices = found
        kept = [place for start, stop in slices for place in range(start, stop)]
        if self.frame.unread is not None:
            self.cutting.add(self.frame.unread, number, len(tokens) - len(kept), is_read=True)
        words = [starts[place] for place in kept]
        at = label_place(words, row.focus, row.marked, self.frame.label_last)
        begin = len(self.token_ids)
        self.token_ids += _with([tokens[place] for place in kept], at, self.frame.label_token)
        self.sources += _with([sources[place] for place in kept], at, -1)
        self.words += _with([-1] * len(kept), at, number)
        self.context_labels += [IGNORED] * (len(kept) + 1)
        self.windows.append((begin, len(self.token_ids)))


@dataclass(frozen=True)
class _Read:
    """A document, and what the teacher reads of it."""

    token_ids: Sequence[int]
    bounds: Sequence[int]
    """(words + 1,) where its words start, and the end."""
    num_words: int
    """That the context has."""


def _with(values: list[int], place: int, value: int) -> list[int]:
    """The values with one more at a place."""
    return [*values[:place], value, *values[place:]]
