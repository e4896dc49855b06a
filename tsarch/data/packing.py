"""Tokenised sentences, and rows with one label, to teacher contexts and student windows."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from tsarch.data.cuts import Cutting
from tsarch.data.overlaps import Part, parts_of
from tsarch.data.pieces import pieces_of, with_breaks
from tsarch.data.row_slices import slices_around
from tsarch.errors import Mistake, UserError
from tsarch.records import TokenizedSplit, int_array

_LONG_WORDS = "ends of words longer than a window (student.max_tokens)"
_BETWEEN = "what is far from a relation's entities (teacher.max_tokens)"
_UNREAD = "ends of texts longer than a window (student.max_tokens)"
_UNREAD_START = "starts of texts longer than a window (student.max_tokens)"
_UNREAD_ENTITY = "what follows a window with the first entity alone (student.max_tokens)"
_UNREAD_FIRST = "what stands before a window with the last entity alone (student.max_tokens)"
_ELSEWHERE = -2
"""In place of a token's word, where another context answers for it."""
_LEAST_ROOM = 2
"""Tokens of a label and of what it is about."""
NUM_VOTES = 4
"""Words of a row's window that its one label stands at, beside its own token. At every word, long
rows would weigh more than short ones in the loss, which metrics count alike."""


@dataclass(frozen=True)
class Sentence:
    """A tokenised sentence; words stay whole where they fit."""

    document: str
    token_ids: list[int]
    starts: list[int]
    """Per token: the word (in the sentence) that starts here, or −1."""
    focus: int | None = None
    """Word that the row's one label stands before; None: before the first, and at several. Where
    labels stand last: after the last of the `marked` spans, or after the last word."""
    marked: tuple[tuple[int, int], ...] = ()
    """Words [start, stop) of the spans that the label is about, which every context must have."""
    place: str = ""
    """Where the row stands, for messages."""


@dataclass
class _Packer:
    """Grows the flat arrays of a `TokenizedSplit`."""

    prefix: list[int]
    suffix: list[int]
    teacher_max_tokens: int
    student_max_tokens: int
    """At most what a context has room for."""
    overlap: int = 0
    """See `parts_of`; of contexts and of windows."""
    token_ids: list[int] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    context_offsets: list[int] = field(default_factory=lambda: [0])
    windows: list[tuple[int, int]] = field(default_factory=list)
    answered: list[tuple[int, int]] = field(default_factory=list)
    window_offsets: list[int] = field(default_factory=lambda: [0])
    waiting: list[tuple[list[int], list[int]]] = field(default_factory=list)
    """Tokens and words of sentences that follow the open context, see `_add_apart`."""
    cutting: Cutting = field(default_factory=Cutting)
    mistakes: list[Mistake] = field(default_factory=list)
    row: int = -1
    """The row that is being added."""
    num_labels: int = 0
    """Of the rows so far."""
    is_open: bool = False

    @property
    def room(self) -> int:
        """Tokens that still fit into the open context."""
        used = len(self.token_ids) - self.context_offsets[-1] if self.is_open else len(self.prefix)
        return self.teacher_max_tokens - used - len(self.suffix)

    def add(self, token_ids: list[int], words: list[int]) -> None:
        """Add a sentence; start a new context if it doesn't fit into the open one."""
        self.row += 1
        token_ids, words = self._cut_words(token_ids, words)
        whole = self.teacher_max_tokens - len(self.prefix) - len(self.suffix)
        parts = parts_of(words, whole, 0)
        is_apart = self.overlap > 0 and len(parts) > 1
        for part in parts:
            self._make_room(part.stop - part.start)
            own = words[part.start : part.stop]
            self._append(
                token_ids[part.start : part.stop], [_ELSEWHERE] * len(own) if is_apart else own
            )
            if not is_apart:
                self._add_windows(part, words)
        if is_apart:
            self.waiting.append((token_ids, words))

    def _add_apart(self, token_ids: list[int], words: list[int]) -> None:
        """Add a sentence as contexts of its own that overlap. What stands beside it in the document
        is read with its plain parts, as if nothing overlapped."""
        whole = self.teacher_max_tokens - len(self.prefix) - len(self.suffix)
        for part in parts_of(words, whole, self.overlap):
            self._make_room(part.stop - part.start)
            own = [
                word if part.first <= place < part.end else _ELSEWHERE
                for place, word in enumerate(words[part.start : part.stop], part.start)
            ]
            self._append(token_ids[part.start : part.stop], own)
            self._add_windows(part, words)
            self.close()

    def _add_windows(self, context: Part, words: list[int]) -> None:
        """Add the windows of the part of a sentence that was just added."""
        begin = len(self.token_ids) - context.stop
        inside = words[context.start : context.stop]
        for part in parts_of(inside, self.student_max_tokens, self.overlap):
            first, end = part.first + context.start, part.end + context.start
            first, end = max(first, context.first), min(end, context.end)
            if first < end:
                start = begin + context.start
                self.windows.append((start + part.start, start + part.stop))
                self.answered.append((begin + first, begin + end))

    def add_row(self, token_ids: list[int], labelled: list[int], start: int) -> None:
        """Add a row whose one window is what fits of it from the token `start` on.

        Args:
            labelled: tokens that carry the row's label, all inside the window.
        """
        self._make_room(len(token_ids))
        begin = len(self.token_ids)
        stop = min(start + self.student_max_tokens, len(token_ids))
        words = [-1] * len(token_ids)
        for token in labelled:
            words[token] = self.num_labels
            self.num_labels += 1
        self._append(token_ids, words)
        self.windows.append((begin + start, begin + stop))

    def close(self) -> None:
        """End the open context."""
        if self.is_open:
            self._append(self.suffix, [-1] * len(self.suffix))
            self.context_offsets.append(len(self.token_ids))
            self.window_offsets.append(len(self.windows))
            self.is_open = False
        waiting, self.waiting = self.waiting, []
        for token_ids, words in waiting:
            self._add_apart(token_ids, words)

    def _make_room(self, num_tokens: int) -> None:
        """Have a context open that `num_tokens` more fit into."""
        if self.is_open and num_tokens > self.room:
            self.close()
        if not self.is_open:
            self._append(self.prefix, [-1] * len(self.prefix))
            self.is_open = True

    def _append(self, token_ids: list[int], words: list[int]) -> None:
        self.token_ids += token_ids
        self.words += words

    def _cut_words(self, token_ids: list[int], words: list[int]) -> tuple[list[int], list[int]]:
        """Shorten words that alone exceed a window."""
        limit = self.student_max_tokens
        if len(token_ids) <= limit:
            return token_ids, words
        kept = []
        first, number = 0, -1
        long = set()
        for place, word in enumerate(words):
            first, number = (place, number + 1) if word >= 0 else (first, number)
            if place - first < limit:
                kept.append(place)
            else:
                long.add((number, number + 1))
        num_cut = len(words) - len(kept)
        self.cutting.add(_LONG_WORDS, self.row, num_cut, spans=sorted(long))
        return [token_ids[place] for place in kept], [words[place] for place in kept]


def _room(prefix: list[int], suffix: list[int], teacher_max_tokens: int) -> int:
    """Tokens that a context has between its special ones.

    Raises:
        UserError: none to speak of.
    """
    room = teacher_max_tokens - len(prefix) - len(suffix)
    if room < _LEAST_ROOM:
        what = f"leaves {room} tokens beside the tokenizer's {len(prefix) + len(suffix)} special"
        raise UserError.single(f"teacher.max_tokens: {teacher_max_tokens}", f"{what} ones.")
    return room


def pack(
    sentences: Sequence[Sentence],
    labels: Sequence[Sequence[int]],
    prefix: list[int],
    suffix: list[int],
    teacher_max_tokens: int,
    student_max_tokens: int,
    overlap: int = 0,
) -> TokenizedSplit:
    """Sentences of a document in order to contexts, cut at sentence boundaries; every sentence
    to one window, or to several of about equal length if it exceeds `student_max_tokens`.

    A sentence longer than a context becomes several contexts, cut at word boundaries; a word
    longer than a window is cut, and counted. With an `overlap` these contexts and windows share
    some tokens (`parts_of`). Special tokens belong to no window.
    """
    limit = min(student_max_tokens, _room(prefix, suffix, teacher_max_tokens))
    packer = _Packer(prefix, suffix, teacher_max_tokens, limit, overlap)
    num_words, document = 0, None
    for sentence, own in zip(sentences, labels, strict=True):
        if sentence.document != document:
            packer.close()
            document = sentence.document
        packer.add(sentence.token_ids, [num_words + w if w >= 0 else -1 for w in sentence.starts])
        num_words += len(own)
    packer.close()
    packed = _split(packer, labels)
    answered = int_array(packer.answered).reshape(-1, 2) if overlap else None
    return replace(packed, answered=answered)


def pack_rows(
    rows: Sequence[Sentence],
    labels: Sequence[int],
    label_token: int,
    prefix: list[int],
    suffix: list[int],
    teacher_max_tokens: int,
    student_max_tokens: int,
    label_last: bool = False,
) -> TokenizedSplit:
    """Rows of a document in order to contexts, cut between rows; every row has one label, at a
    `label_token` put before its word `focus`, and one window, the row, or what fits of it from
    there on. Without a `focus` the label also stands at `NUM_VOTES` words of the window, or all
    if it has fewer, at their first tokens: they vote (`row_votes`).

    With `label_last` the label stands after what it is about and nowhere else: after the last
    marked span, without a `focus` after the last word. The window is what fits up to there.

    A row longer than a context is cut at word boundaries into several, each with labels and a
    window of its own, which vote too. With a `focus` only the piece that has all marked spans is
    kept, or what is around each of them (`slices_around`). What is left out is counted.

    Raises:
        UserError: marked spans are too long for a context; every such row is named.
    """
    room = _room(prefix, suffix, teacher_max_tokens)
    packer = _Packer(prefix, suffix, teacher_max_tokens, min(student_max_tokens, room))
    add = _add_piece_before if label_last else _add_piece
    packed: list[list[int]] = []
    document = None
    for number, (row, label) in enumerate(zip(rows, labels, strict=True)):
        if row.document != document:
            packer.close()
            document = row.document
        packer.row = number
        starts = with_breaks(row.starts, max(packer.student_max_tokens - 1, 1))
        pieces = pieces_of(row.token_ids, starts, room - 1)
        if row.focus is not None and len(pieces) > 1:
            pieces = [_marked_piece(packer, row, pieces, room - 1)]
            num_cut = len(row.token_ids) - len(pieces[0][0])
            packer.cutting.add(_BETWEEN, number, num_cut, spans=left_out(row.starts, pieces[0][1]))
        before = packer.num_labels
        for ids, words in pieces:
            add(packer, row, ids, words, label_token)
        packed.append([label] * (packer.num_labels - before))
    packer.close()
    if packer.mistakes:
        raise UserError(packer.mistakes)
    return _split(packer, packed)


def _marked_piece(
    packer: _Packer, row: Sentence, pieces: Sequence[tuple[list[int], list[int]]], room: int
) -> tuple[list[int], list[int]]:
    """What is kept of a row with marked spans that is longer than a context."""
    assert row.focus is not None
    spans = row.marked or ((row.focus, row.focus + 1),)
    needed = {word for start, stop in spans for word in range(start, stop)}
    found = [(ids, words) for ids, words in pieces if needed & set(words)]
    if len(found) == 1:
        return found[0]
    slices = slices_around(row.starts, spans, room)
    if slices is None:
        what = f"its entities have more tokens than the {room} that a context has room for."
        packer.mistakes.append(Mistake(row.place, what, "Set a larger teacher.max_tokens."))
        return pieces[0][0], [row.focus, *pieces[0][1][1:]]
    return (
        [token for start, stop in slices for token in row.token_ids[start:stop]],
        [word for start, stop in slices for word in row.starts[start:stop]],
    )


def left_out(words: Iterable[int], kept: Collection[int]) -> list[tuple[int, int]]:
    """Words [start, stop) of a row, −1 for none, that aren't kept."""
    there = set(kept)
    spans: list[tuple[int, int]] = []
    for word in (own for own in words if own >= 0 and own not in there):
        if spans and spans[-1][1] == word:
            spans[-1] = (spans[-1][0], word + 1)
        else:
            spans.append((word, word + 1))
    return spans


def _add_piece(
    packer: _Packer, row: Sentence, ids: list[int], words: list[int], label_token: int
) -> None:
    """Add a row, or a piece of one, with its label before what it is about."""
    place = 0 if row.focus is None else label_place(words, row.focus, row.marked, last=False)
    labelled = [place]
    if row.focus is None:
        window = words[: packer.student_max_tokens - 1]
        labelled += _spread([n for n, word in enumerate(window, 1) if word >= 0], NUM_VOTES)
    unread = len(ids) + 1 - packer.student_max_tokens
    start = place if unread > 0 else 0
    packer.add_row([*ids[:place], label_token, *ids[place:]], labelled, start)
    if row.focus is None:
        packer.cutting.add(_UNREAD, packer.row, unread, is_read=True)
    elif unread > 0:
        inside = set(words[place : place + packer.student_max_tokens - 1])
        if not all(set(range(*span)) <= inside for span in row.marked):
            rest = len(ids) - place - packer.student_max_tokens + 1
            packer.cutting.add(_UNREAD_ENTITY, packer.row, rest, is_read=True)


def _add_piece_before(
    packer: _Packer, row: Sentence, ids: list[int], words: list[int], label_token: int
) -> None:
    """Add a row, or a piece of one, with its label after what it is about."""
    place = len(ids)
    if row.focus is not None:
        place = label_place(words, row.focus, row.marked, last=True)
    start = max(place + 1 - packer.student_max_tokens, 0)
    packer.add_row([*ids[:place], label_token, *ids[place:]], [place], start)
    if row.focus is None:
        packer.cutting.add(_UNREAD_START, packer.row, start, is_read=True)
    elif not all(set(range(*span)) <= set(words[start:]) for span in row.marked):
        packer.cutting.add(_UNREAD_FIRST, packer.row, start, is_read=True)


def label_place(
    words: Sequence[int], focus: int, marked: Sequence[tuple[int, int]], last: bool
) -> int:
    """Token of a row that its label stands before, of the word that starts at each, or −1: its word
    `focus`, or, where labels stand last, what follows the last of the `marked` spans."""
    if not last:
        return words.index(focus)
    last_word = max([focus, *(stop - 1 for _, stop in marked)])
    return next((place for place, own in enumerate(words) if own > last_word), len(words))


def _spread(values: Sequence[int], most: int) -> list[int]:
    """At most so many of the values, at even distances, the first one among them."""
    size = min(len(values), most)
    return [values[number * len(values) // size] for number in range(size)]


def _split(packer: _Packer, labels: Sequence[Sequence[int]]) -> TokenizedSplit:
    """What a closed packer has, with the labels of every row."""
    return TokenizedSplit(
        token_ids=int_array(packer.token_ids),
        words=int_array(packer.words),
        context_offsets=int_array(packer.context_offsets),
        windows=int_array(packer.windows).reshape(-1, 2),
        window_offsets=int_array(packer.window_offsets),
        labels=int_array([label for own in labels for label in own]),
        sentence_offsets=int_array([0, *itertools.accumulate(len(own) for own in labels)]),
        cuts=packer.cutting.cuts(),
    )
