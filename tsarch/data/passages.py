"""Questions and their passages to contexts, and to windows of the passage that the student reads.

A context is `[CLS] question [SEP] passage [SEP]`, a window `[CLS] question [SEP]` and a slice of
the passage. A passage that is too long for a context becomes several that overlap (`doc_stride` in
the script of Devlin et al. 2019).
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tsarch.data.cuts import Cutting
from tsarch.data.rows import Origin
from tsarch.data.words import num_words
from tsarch.errors import UserError
from tsarch.records import IGNORED, SPAN_END, SPAN_START, IntArray, Piece, TokenizedSplit
from tsarch.seeding import generator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LEAST_ROOM = 8
"""Tokens that contexts and windows must have for a question and its passage."""


_LONG_QUESTIONS = "ends of questions longer than half of a window or context"
_LONG_WORDS = "ends of words longer than a window or context"
_LONG_ANSWERS = "answers that no window of the student has whole (student.max_tokens)"
CharSpan = tuple[int, int]
"""Characters [start, stop) of an answer."""
WordSpan = tuple[int, int]
"""First and last word of an answer."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question and the passage that may answer it."""

    origin: Origin = field(repr=False)
    question: str
    passage: str
    answers: tuple[str, ...] | None
    """Right answers; none: it has none; None: not known."""
    spans: tuple[CharSpan, ...] | None
    """Where each answer stands in the passage; the first answer is the one that is learned."""

    @property
    def num_words(self) -> int:
        """Of the question and its passage."""
        return num_words(self.question, self.passage)

    @property
    def num_labels(self) -> int:
        """The right answers."""
        return len(self.answers or ())


@dataclass(frozen=True)
class Limits:
    """Lengths in tokens."""

    context: int
    window: int
    overlap: int
    """What neighbouring contexts of a passage share."""


@dataclass(frozen=True)
class Specials:
    """Tokens around and between a question and its passage."""

    before: list[int]
    between: list[int]
    after: list[int]


@dataclass(frozen=True)
class PairTypes:
    """Types of the tokens of a pair of texts (BERT's segments, `token_type_ids`)."""

    before: list[int]
    question: int
    between: list[int]
    passage: int
    after: list[int]


@dataclass(frozen=True)
class PassageTokens:
    """A tokenised row. Words of a passage are its `Parts`: mostly a token each."""

    question: list[int]
    words: list[list[int]]
    """Tokens of each of the passage's words."""
    bounds: IntArray
    """(words, 2) characters [start, stop) of each in the passage."""


def pair_specials(tokenizer: PreTrainedTokenizerBase) -> tuple[Specials, PairTypes | None]:
    """What the tokenizer puts around and between two texts, and the types that it gives to their
    tokens, if it gives them any."""
    encoded = tokenizer("a", "a")
    ids, owners = list(encoded["input_ids"]), encoded.sequence_ids()
    first = [place for place, owner in enumerate(owners) if owner == 0]
    second = [place for place, owner in enumerate(owners) if owner == 1]
    before, after = slice(first[0]), slice(second[-1] + 1, None)
    between = slice(first[-1] + 1, second[0])
    specials = Specials(ids[before], ids[between], ids[after])
    types = encoded.get("token_type_ids")
    if types is None or not any(types):
        return specials, None
    parts = types[before], types[first[0]], types[between], types[second[0]], types[after]
    return specials, PairTypes(*parts)


def pack_passages(
    rows: Sequence[PassageTokens],
    spans: Sequence[Sequence[WordSpan] | None],
    specials: Specials,
    limits: Limits,
    seed: int,
    types: PairTypes | None = None,
) -> TokenizedSplit:
    """Every question and its passage to one context, or to several that overlap; `spans` are the
    answers of each, as words, the first of them learned; None: labels are `IGNORED`.

    Labels are bits of `losses.spans`. The windows are those of training: one around the answer, at
    a random place of it, and one hard negative without any (`_negative`). A question longer than
    half of a window or context is cut, and so is a word longer than what a question leaves of
    them; both are counted.

    Raises:
        UserError: contexts or windows are too short for any question.
    """
    room = min(
        limits.context - len(specials.before + specials.between + specials.after),
        limits.window - len(specials.before + specials.between),
    )
    if room < _LEAST_ROOM:
        what = f"leave {room} tokens for a question and its passage."
        raise UserError.single("teacher.max_tokens and student.max_tokens", what)
    packer = _Packer(specials, limits, room, _rarity(rows), types)
    for number, (row, answers) in enumerate(zip(rows, spans, strict=True)):
        packer.add(row, answers, generator(seed, "windows", number))
    return packer.split()


def _rarity(rows: Iterable[PassageTokens]) -> dict[int, float]:
    """Inverse document frequency of the passages' tokens (Robertson & Zaragoza 2009, "The
    Probabilistic Relevance Framework: BM25 and Beyond", equation 3.3, kept positive)."""
    counts: Counter[int] = Counter()
    num_rows = 0
    for row in rows:
        counts.update(set(itertools.chain.from_iterable(row.words)))
        num_rows += 1
    return {t: math.log(1 + (num_rows - n + 0.5) / (n + 0.5)) for t, n in counts.items()}


@dataclass
class _Packer:
    """Grows the flat arrays of a `TokenizedSplit`."""

    specials: Specials
    limits: Limits
    room: int
    """Tokens that a question and its passage have in every context and window."""
    rarity: Mapping[int, float]
    types: PairTypes | None
    token_ids: list[int] = field(default_factory=list)
    token_types: list[int] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    context_offsets: list[int] = field(default_factory=lambda: [0])
    leads: list[tuple[int, int]] = field(default_factory=list)
    windows: list[tuple[int, int]] = field(default_factory=list)
    window_offsets: list[int] = field(default_factory=lambda: [0])
    row_offsets: list[int] = field(default_factory=lambda: [0])
    pieces: list[tuple[Piece, ...]] = field(default_factory=list)
    cutting: Cutting = field(default_factory=Cutting)

    def add(
        self, row: PassageTokens, answers: Sequence[WordSpan] | None, rng: np.random.Generator
    ) -> None:
        """Add a question's contexts and windows."""
        limit = self.room // 2
        question = row.question[:limit]
        num_cut, left = len(row.question) - limit, (limit, len(row.question))
        number = len(self.pieces)
        self.cutting.add(_LONG_QUESTIONS, number, num_cut, spans=[left], of="question")
        words = self._words(row.words, self.room - len(question))
        lead = [*self.specials.before, *question, *self.specials.between]
        room = self.limits.context - len(lead) - len(self.specials.after)
        pieces = []
        has_window = False
        for first, stop in strides([len(word) for word in words], room, self.limits.overlap):
            spans = [(a - first, b - first) for a, b in answers or ()]
            learned = None if answers is None else spans[:1]
            bounds = row.bounds[first:stop]
            piece = self._add_context(lead, bounds, words[first:stop], learned)
            self._add_types(len(question), int(piece.places[-1] - piece.places[0]))
            inside = [(max(a, 0), min(b, stop - first - 1)) for a, b in spans]
            here = [(a, b) for a, b in inside if a <= b]
            is_whole = bool(spans) and inside[0] == spans[0]
            has_window |= self._add_windows(
                piece, set(question), here, is_whole, self.limits.window - len(lead), rng
            )
            pieces.append(piece)
        if answers and not has_window:
            size = sum(len(word) for word in words[answers[0][0] : answers[0][1] + 1])
            self.cutting.add(_LONG_ANSWERS, len(self.pieces), size, is_read=True)
        self.row_offsets.append(len(self.labels))
        self.pieces.append(tuple(pieces))

    def split(self) -> TokenizedSplit:
        """All that was added."""
        return TokenizedSplit(
            token_ids=_array(self.token_ids),
            words=_array(self.words),
            context_offsets=_array(self.context_offsets),
            windows=_array(self.windows).reshape(-1, 2),
            window_offsets=_array(self.window_offsets),
            labels=_array(self.labels),
            sentence_offsets=_array(self.row_offsets),
            cuts=self.cutting.cuts(),
            leads=_array(self.leads).reshape(-1, 2),
            pieces=tuple(self.pieces),
            token_types=None if self.types is None else _array(self.token_types),
        )

    def _words(self, words: Sequence[list[int]], limit: int) -> list[list[int]]:
        """A passage's words, what of them is too long cut off."""
        for place, word in enumerate(words):
            own, number = [(place, place + 1)], len(self.pieces)
            self.cutting.add(_LONG_WORDS, number, len(word) - limit, spans=own, of="context")
        return [word[:limit] for word in words]

    def _add_context(
        self,
        lead: list[int],
        bounds: IntArray,
        words: Sequence[list[int]],
        learned: Sequence[WordSpan] | None,
    ) -> Piece:
        """Add a context; `learned`: first and last word of the answer, maybe outside; None: not
        known."""
        begin = len(self.token_ids)
        self.token_ids += lead
        self.words += [-1] * len(lead)
        self.leads.append((begin, begin + len(lead)))
        places = [len(self.token_ids)]
        for number, word in enumerate(words):
            label = _label(number, learned)
            self.words += [len(self.labels), *([-1] * (len(word) - 1))]
            self.labels.append(label)
            self.token_ids += word
            places.append(len(self.token_ids))
        self.token_ids += self.specials.after
        self.words += [-1] * len(self.specials.after)
        self.context_offsets.append(len(self.token_ids))
        return Piece(_array(places), bounds)

    def _add_types(self, num_question: int, num_passage: int) -> None:
        """Types of the context that was added last."""
        if self.types is None:
            return
        own = self.types
        self.token_types += [*own.before, *[own.question] * num_question, *own.between]
        self.token_types += [*[own.passage] * num_passage, *own.after]

    def _add_windows(
        self,
        piece: Piece,
        question: set[int],
        answers: list[WordSpan],
        has_answer: bool,
        room: int,
        rng: np.random.Generator,
    ) -> bool:
        """Add a piece's windows; `answers` are the parts of answers that are in it, the learned
        one first if it `has_answer` whole. Whether a window has that one."""
        found = []
        if has_answer:
            found.append(_around(piece.places, answers[0], room, rng))
        found.append(self._negative(piece, question, answers, room))
        for words in sorted(own for own in found if own is not None):
            start, stop = (int(piece.places[word]) for word in words)
            self.windows.append((start, stop))
        self.window_offsets.append(len(self.windows))
        return has_answer and found[0] is not None

    def _negative(
        self, piece: Piece, question: set[int], answers: list[tuple[int, int]], room: int
    ) -> tuple[int, int] | None:
        """The window without a part of an answer that has most of the question's tokens, weighed by
        rarity; of a piece that is no longer than a window only the whole is good enough."""
        places, best = piece.places, None
        least = min(room, int(places[-1] - places[0]) if not answers else room) // 2
        highest = -1.0
        for first, last in _gaps(answers, piece.num_words):
            for place in range(int(places[first]), int(places[last]), max(room // 4, 1)):
                start = int(np.searchsorted(places, place))
                stop = min(_fill(places, start, room), last)
                if places[stop] - places[start] < max(least, 1):
                    break
                tokens = question.intersection(self.token_ids[places[start] : places[stop]])
                score = sum(self.rarity[token] for token in sorted(tokens))
                if score > highest:
                    best, highest = (start, stop), score
        return best


def strides(sizes: Sequence[int], room: int, overlap: int) -> list[tuple[int, int]]:
    """Words [first, stop) of the parts of at most `room` tokens that a passage is read in.

    Neighbours share at most `overlap` tokens, and at most half of a part.
    """
    places = _array([0, *itertools.accumulate(sizes)])
    parts = []
    first = 0
    while True:
        stop = _fill(places, first, room)
        parts.append((first, stop))
        if stop == len(sizes):
            return parts
        shared = min(overlap, int(places[stop] - places[first]) // 2)
        # The next word must fit too, or the next part would end where this one does.
        least = max(places[stop] - shared, places[stop + 1] - room)
        first = max(int(np.searchsorted(places, least)), first + 1)


def window_of(places: IntArray, span: tuple[int, int], wanted: int, room: int) -> tuple[int, int]:
    """Words [start, stop) of a window of at most `room` tokens that has all of a span.

    Args:
        places: (words + 1,) where words start and the last ends.
        span: first and last word, no longer than `room`.
        wanted: where the window should start; it starts where that keeps it full, if it can be.
        room: its length in tokens.
    """
    first, last = span
    lowest = max(int(places[last + 1]) - room, int(places[0]))
    highest = min(int(places[first]), max(int(places[-1]) - room, lowest))
    start = int(np.searchsorted(places, min(max(wanted, lowest), highest)))
    return start, _fill(places, start, room)


def _label(word: int, learned: Sequence[WordSpan] | None) -> int:
    """Bits of a word's label."""
    if learned is None:
        return IGNORED
    return sum(SPAN_START * (word == a) + SPAN_END * (word == b) for a, b in learned)


def _around(
    places: IntArray, span: tuple[int, int], room: int, rng: np.random.Generator
) -> tuple[int, int] | None:
    """A window with a span anywhere in it; None where it doesn't fit."""
    length = int(places[span[1] + 1] - places[span[0]])
    if length > room:
        return None
    before = int(rng.integers(room - length + 1))
    return window_of(places, span, int(places[span[0]]) - before, room)


def _fill(places: IntArray, start: int, room: int) -> int:
    """Word before which `room` tokens from the word `start` on end."""
    return int(np.searchsorted(places, places[start] + room, side="right")) - 1


def _gaps(spans: Iterable[tuple[int, int]], num_words: int) -> list[tuple[int, int]]:
    """Words [start, stop) between the spans [first, last]."""
    gaps, start = [], 0
    for first, last in sorted(spans):
        if first > start:
            gaps.append((start, first))
        start = max(start, last + 1)
    if start < num_words:
        gaps.append((start, num_words))
    return gaps


def _array(values: Sequence[object]) -> IntArray:
    return np.array(values, dtype=np.int64)
