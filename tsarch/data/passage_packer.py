"""Questions and their passages to contexts, and to windows of the passage that the student reads.

Where both models read the question a context is `[CLS] question [SEP] passage [SEP]`, and a window
`[CLS] question [SEP]` and a slice of the passage. A passage that is too long for a context becomes
several that overlap (`doc_stride` in the script of Devlin et al. 2019).
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tsarch.data.cuts import Cutting
from tsarch.data.passages import (
    Limits,
    PairTypes,
    PassageTokens,
    Specials,
    WordSpan,
    filled,
    strides,
    window_of,
)
from tsarch.errors import UserError
from tsarch.records import IGNORED, SPAN_END, SPAN_START, IntArray, Piece, TokenizedSplit, int_array
from tsarch.seeding import generator

_LEAST_ROOM = 8
"""Tokens that contexts and windows must have for a question and its passage."""
_LONG_QUESTIONS = "ends of questions longer than half of a window or context"
_LONG_WORDS = "ends of words longer than a window or context"
_LONG_ANSWERS = "answers that no window of the student has whole (student.max_tokens)"
Answers = Sequence[WordSpan] | None
"""First and last word of each answer, the first of them learned; None: not known."""


def pack_passages(
    rows: Sequence[PassageTokens],
    spans: Sequence[Answers],
    specials: Specials,
    limits: Limits,
    seed: int,
    types: PairTypes | None = None,
) -> TokenizedSplit:
    """Every question and its passage to one context, or to several that overlap; `spans` are the
    answers of each. Labels of rows whose answers aren't known are `IGNORED`.

    Labels are bits of `losses.spans`. The windows are those of training: one around the answer, at
    a random place of it, and, of a passage longer than a window, one hard negative without any
    (`_negative`). A question longer than
    half of a window or context is cut, and so is a word longer than what a question leaves of
    them; both are counted.

    Raises:
        UserError: contexts or windows are too short for any question.
    """
    room = min(
        limits.context - len(specials.before + specials.between + specials.after),
        limits.window - len(specials.before + specials.between),
    )
    check_room(room)
    packer = PassagePacker(specials, limits, room, rarity(rows), types)
    for number, (row, answers) in enumerate(zip(rows, spans, strict=True)):
        _add_row(packer, row, answers, generator(seed, "windows", number))
    return packer.split()


def _add_row(
    packer: PassagePacker, row: PassageTokens, answers: Answers, rng: np.random.Generator
) -> None:
    """Add a question's contexts and windows."""
    number = len(packer.pieces)
    question = packer.question(number, row.question)
    words = packer.words_of(number, row.words, packer.room - len(question))
    lead = packer.lead(question)
    room = packer.limits.context - len(lead) - len(packer.specials.after)
    pieces = []
    has_window = False
    for part in strides([len(word) for word in words], room, packer.limits.overlap):
        piece, is_whole = packer.add_reading(question, words, row.bounds, part, answers, rng)
        packer.end_context(packer.specials.after)
        pieces.append(piece)
        has_window |= is_whole
    packer.count_answer(number, words, answers, has_window)
    packer.row_offsets.append(len(packer.labels))
    packer.pieces.append(tuple(pieces))


def check_room(room: int) -> None:
    """Check that contexts and windows have tokens for a question and its passage.

    Raises:
        UserError: they have too few.
    """
    if room < _LEAST_ROOM:
        what = f"leave {room} tokens for a question and its passage."
        raise UserError.single("teacher.max_tokens and student.max_tokens", what)


def rarity(rows: Iterable[PassageTokens]) -> dict[int, float]:
    """Inverse document frequency of the passages' tokens (Robertson & Zaragoza 2009, "The
    Probabilistic Relevance Framework: BM25 and Beyond", equation 3.3, kept positive)."""
    counts: Counter[int] = Counter()
    num_rows = 0
    for row in rows:
        counts.update(set(itertools.chain.from_iterable(row.words)))
        num_rows += 1
    return {t: math.log(1 + (num_rows - n + 0.5) / (n + 0.5)) for t, n in counts.items()}


@dataclass
class PassagePacker:
    """Grows the flat arrays of a `TokenizedSplit`; a reading is a question and a part of its
    passage."""

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

    def split(self) -> TokenizedSplit:
        """All that was added."""
        return TokenizedSplit(
            token_ids=int_array(self.token_ids),
            words=int_array(self.words),
            context_offsets=int_array(self.context_offsets),
            windows=int_array(self.windows).reshape(-1, 2),
            window_offsets=int_array(self.window_offsets),
            labels=int_array(self.labels),
            sentence_offsets=int_array(self.row_offsets),
            cuts=self.cutting.cuts(),
            leads=int_array(self.leads).reshape(-1, 2),
            pieces=tuple(self.pieces),
            token_types=None if self.types is None else int_array(self.token_types),
        )

    def question(self, row: int, tokens: list[int]) -> list[int]:
        """A row's question, cut to what there is room for."""
        limit = self.room // 2
        num_cut, left = len(tokens) - limit, (limit, len(tokens))
        self.cutting.add(_LONG_QUESTIONS, row, num_cut, spans=[left], of="question")
        return tokens[:limit]

    def words_of(self, row: int, words: Sequence[list[int]], limit: int) -> list[list[int]]:
        """The words of a row's passage, what of them is too long cut off."""
        for place, word in enumerate(words):
            own = [(place, place + 1)]
            self.cutting.add(_LONG_WORDS, row, len(word) - limit, spans=own, of="context")
        return [word[:limit] for word in words]

    def lead(self, question: list[int]) -> list[int]:
        """What windows have before their slices."""
        return [*self.specials.before, *question, *self.specials.between]

    def add_reading(
        self,
        question: list[int],
        words: Sequence[list[int]],
        bounds: IntArray,
        part: tuple[int, int],
        answers: Answers,
        rng: np.random.Generator,
    ) -> tuple[Piece, bool]:
        """Add a question, the words [start, stop) of its passage, and their windows.

        Returns:
            Where the words are, and whether a window has the learned answer whole.
        """
        first, stop = part
        spans = [(a - first, b - first) for a, b in answers or ()]
        learned = None if answers is None else spans[:1]
        lead = self.lead(question)
        piece = self._add_tokens(lead, bounds[first:stop], words[first:stop], learned)
        self._add_types(len(question), int(piece.places[-1] - piece.places[0]))
        inside = [(max(a, 0), min(b, stop - first - 1)) for a, b in spans]
        here = [(a, b) for a, b in inside if a <= b]
        is_whole = bool(spans) and inside[0] == spans[0]
        room = self.limits.window - len(lead)
        return piece, self._add_windows(piece, set(question), here, is_whole, room, rng)

    def end_context(self, after: Sequence[int]) -> None:
        """Nothing more is of this context but the tokens `after`."""
        self.token_ids += after
        self.words += [-1] * len(after)
        if self.types is not None:
            self.token_types += self.types.after[: len(after)]
        self.context_offsets.append(len(self.token_ids))
        self.window_offsets.append(len(self.windows))

    def count_answer(
        self, row: int, words: Sequence[list[int]], answers: Answers, has_window: bool
    ) -> None:
        """Count the learned answer of a row, if no window has it."""
        if answers and not has_window:
            size = sum(len(word) for word in words[answers[0][0] : answers[0][1] + 1])
            self.cutting.add(_LONG_ANSWERS, row, size, is_read=True)

    def _add_tokens(
        self,
        lead: list[int],
        bounds: IntArray,
        words: Sequence[list[int]],
        learned: Sequence[WordSpan] | None,
    ) -> Piece:
        """Add a reading; `learned`: first and last word of the answer, maybe outside; None: not
        known."""
        begin = len(self.token_ids)
        self.token_ids += lead
        self.words += [-1] * len(lead)
        self.leads.append((begin, begin + len(lead)))
        places = [len(self.token_ids)]
        for number, word in enumerate(words):
            self.words += [len(self.labels), *([-1] * (len(word) - 1))]
            self.labels.append(span_label(number, learned))
            self.token_ids += word
            places.append(len(self.token_ids))
        return Piece(int_array(places), bounds)

    def _add_types(self, num_question: int, num_passage: int) -> None:
        """Types of the reading that was added last."""
        if self.types is None:
            return
        own = self.types
        self.token_types += [*own.before, *[own.question] * num_question, *own.between]
        self.token_types += [own.passage] * num_passage

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
        return has_answer and found[0] is not None

    def _negative(
        self, piece: Piece, question: set[int], answers: list[tuple[int, int]], room: int
    ) -> tuple[int, int] | None:
        """The window without a part of an answer that has most of the question's tokens, weighed by
        rarity. A piece that is no longer than a window is never read but whole, so of one with an
        answer there is none."""
        places, best = piece.places, None
        size = int(places[-1] - places[0])
        if answers and size <= room:
            return None
        least = min(room, size) // 2
        highest = -1.0
        for first, last in _gaps(answers, piece.num_words):
            for place in range(int(places[first]), int(places[last]), max(room // 4, 1)):
                start = int(np.searchsorted(places, place))
                stop = min(filled(places, start, room), last)
                if places[stop] - places[start] < max(least, 1):
                    break
                tokens = question.intersection(self.token_ids[places[start] : places[stop]])
                score = sum(self.rarity[token] for token in sorted(tokens))
                if score > highest:
                    best, highest = (start, stop), score
        return best


def span_label(word: int, learned: Sequence[WordSpan] | None) -> int:
    """Bits of a word's label: the spans that start or end there; `IGNORED`: they aren't known."""
    if learned is None:
        return IGNORED
    starts, ends = (any(word == own[end] for own in learned) for end in (0, 1))
    return SPAN_START * starts + SPAN_END * ends


def _around(
    places: IntArray, span: tuple[int, int], room: int, rng: np.random.Generator
) -> tuple[int, int] | None:
    """A window with a span anywhere in it; None where it doesn't fit."""
    length = int(places[span[1] + 1] - places[span[0]])
    if length > room:
        return None
    before = int(rng.integers(room - length + 1))
    return window_of(places, span, int(places[span[0]]) - before, room)


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
