"""From logits of start and end to spans, and from the teacher's spans to the student's windows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tsarch.data.passages import strides, window_of
from tsarch.records import Array, FloatArray, IntArray, Piece, Predictions, TokenizedSplit, Windows

MAX_ANSWER_WORDS = 30
"""Longest answer that is predicted, as in the script of Devlin et al. 2019, where a word is a token
too."""
_NUM_BEST = 20
"""Best spans of a context that windows are put around."""


class SpanCandidate(NamedTuple):
    """A possible answer."""

    score: float
    """Log-odds against no answer."""
    piece: int
    """Context of the question, counted from its first."""
    first: int
    """First word, counted from the context's first."""
    last: int


def best_spans(pieces: Sequence[Piece], logits: FloatArray, count: int) -> list[SpanCandidate]:
    """Up to `count` best spans of each of a question's pieces, best first.

    `logits`: (words of all contexts, 2) of start and end; −∞ where nothing was predicted.
    """
    spans, start = [], 0
    for number, piece in enumerate(pieces):
        own = logits[start : start + piece.num_words]
        start += piece.num_words
        spans += [SpanCandidate(score, number, a, b) for score, a, b in _best_of(own, count)]
    return sorted(spans, key=lambda span: (-span.score, *span[1:]))


def _best_of(logits: FloatArray, count: int) -> list[tuple[float, int, int]]:
    """(score, first, last) of the best spans of one context."""
    num_words = len(logits)
    width = min(MAX_ANSWER_WORDS, num_words)
    ends = np.full(num_words + width - 1, -np.inf)
    ends[:num_words] = logits[:, 1]
    scores = logits[:, :1] + np.lib.stride_tricks.sliding_window_view(ends, width)
    flat = scores.ravel()
    count = min(count, len(flat))
    places = np.argpartition(-flat, count - 1)[:count]
    return [
        (float(flat[place]), int(place) // width, int(place) // width + int(place) % width)
        for place in places
        if flat[place] > -np.inf
    ]


def question_logits(split: TokenizedSplit, logits: Array) -> list[FloatArray]:
    """The part of (num_words, 2) logits that each question has."""
    bounds = itertools.pairwise(split.sentence_offsets.tolist())
    return [logits[start:stop] for start, stop in bounds]


class SpanWindows:
    """Windows around the teacher's best spans; a word is in one of them at most."""

    def windows(
        self, split: TokenizedSplit, teacher: Array, max_tokens: int, count: int
    ) -> Windows:
        """At most `count` windows a question, of at most `max_tokens`, around the best spans of
        (num_words, 2) logits of the teacher."""
        slices: list[tuple[int, int]] = []
        for pieces, own in zip(split.pieces, question_logits(split, teacher), strict=True):
            rooms = [_room(split, piece, max_tokens) for piece in pieces]
            chosen = _choose(pieces, best_spans(pieces, own, _NUM_BEST), rooms, count)
            for number, piece in enumerate(pieces):
                slices += [(int(piece.places[a]), int(piece.places[b])) for a, b in chosen[number]]
        return _windows(split, slices)

    def tiles(self, split: TokenizedSplit, max_tokens: int) -> Windows:
        """Windows of at most `max_tokens` that have every word once, for a student that no teacher
        tells where to look."""
        slices: list[tuple[int, int]] = []
        for piece in itertools.chain.from_iterable(split.pieces):
            sizes = np.diff(piece.places).tolist()
            room = _room(split, piece, max_tokens)
            found = strides(sizes, room, overlap=0) if piece.num_words else []
            slices += [(int(piece.places[a]), int(piece.places[b])) for a, b in found]
        return _windows(split, slices)

    def likely(
        self, split: TokenizedSplit, scores: FloatArray, max_tokens: int, count: int
    ) -> Windows:
        """At most `count` windows a question, of at most `max_tokens`, that have most of what
        (num_words, 1) scores, log-odds of the words against no answer, say together."""
        slices: list[tuple[int, int]] = []
        for pieces, own in zip(split.pieces, question_logits(split, scores), strict=True):
            rooms = [_room(split, piece, max_tokens) for piece in pieces]
            for number, start, stop in _likeliest(pieces, own[:, 0], rooms, count):
                places = pieces[number].places
                slices.append((int(places[start]), int(places[stop])))
        return _windows(split, slices)

    def inside(self, num_words: int, predictions: Sequence[Predictions]) -> Predictions:
        """The student's (num_words, 2) logits from those for words in windows; −∞ elsewhere."""
        found: dict[str, FloatArray] = {}
        for mode in ("student", "student_alone"):
            said = [(own.words, getattr(own, mode)) for own in predictions]
            if any(own is not None for _, own in said):
                found[mode] = np.full((num_words, 2), -np.inf, dtype=np.float32)
                for words, own in said:
                    found[mode][words] = own
        return Predictions(np.arange(num_words), **found)

    def complete(
        self,
        teacher: FloatArray,
        predictions: Sequence[Predictions],
        joint_weights: Sequence[float],
    ) -> Predictions:
        """Predictions for all words: the student's are −∞ outside the windows, and `joint` is the
        weighted mean of both models' logits, that is of their log-odds against no answer.

        Args:
            teacher: (num_words, 2) logits of the teacher.
            predictions: of the ranks, for words in windows.
            joint_weights: of the teacher, in `joint`.
        """
        nowhere = np.full_like(teacher, -np.inf)
        own = self.inside(len(teacher), predictions)
        student = nowhere if own.student is None else own.student
        alone = nowhere if own.student_alone is None else own.student_alone
        weights: FloatArray = np.array(joint_weights, dtype=np.float32).reshape(-1, 1, 1)
        inside = np.isfinite(student).all(-1)
        joint = np.full((len(weights), *teacher.shape), -np.inf, dtype=np.float32)
        joint[:, inside] = weights * teacher[inside] + (1 - weights) * student[inside]
        return Predictions(np.arange(len(teacher)), teacher, student, alone, joint)


def _likeliest(
    pieces: Sequence[Piece], scores: FloatArray, rooms: Sequence[int], count: int
) -> list[tuple[int, int, int]]:
    """(piece, start, stop) in words of the windows with the largest sums of exp(`scores`), one
    after another, each beside those before."""
    starts = np.cumsum([0, *(piece.num_words for piece in pieces)])
    odds = np.exp(scores.astype(np.float64) - scores.max(initial=-np.inf))
    sums = [np.cumsum([0.0, *odds[a:b]]) for a, b in itertools.pairwise(starts)]
    stops = [_filled_stops(piece, room) for piece, room in zip(pieces, rooms, strict=True)]
    chosen: list[tuple[int, int, int]] = []
    while len(chosen) < count:
        held = [own[stop] - own[:-1] for own, stop in zip(sums, stops, strict=True)]
        best = [float(own.max(initial=0.0)) for own in held]
        number = int(np.argmax(best)) if best else 0
        if not best or best[number] <= 0:
            break
        start = int(np.argmax(held[number]))
        own = stops[number]
        stop = int(own[start])
        chosen.append((number, start, stop))
        own[:start] = np.minimum(own[:start], start)
        own[start:stop] = np.arange(start, stop)  # nothing is left of them
    return chosen


def _filled_stops(piece: Piece, room: int) -> IntArray:
    """(words,) where a window stops that starts at each word and has `room` for tokens."""
    places = piece.places
    stops: IntArray = np.searchsorted(places, places[:-1] + room, side="right") - 1
    return stops


def _room(split: TokenizedSplit, piece: Piece, max_tokens: int) -> int:
    """Tokens of a piece that a window has beside the question: of any word, and half as many as the
    question has, more than `max_tokens` where these are too few."""
    start, stop = split.lead_before(int(piece.places[0])).tolist()
    longest = int(np.diff(piece.places).max(initial=1))
    return max(int(max_tokens - (stop - start)), int(stop - start) // 2, longest)


def _windows(split: TokenizedSplit, slices: list[tuple[int, int]]) -> Windows:
    """Windows in order of the contexts that they are behind, or in."""
    ordered = np.array(sorted(slices), dtype=np.int64).reshape(-1, 2)
    return Windows(ordered, np.searchsorted(ordered[:, 0], split.context_offsets))


def _choose(
    pieces: Sequence[Piece], spans: Sequence[SpanCandidate], rooms: Sequence[int], count: int
) -> list[list[tuple[int, int]]]:
    """Windows, as words [start, stop), of each piece: around the best span, then around the next
    one that touches no window so far, and so on."""
    chosen: list[list[tuple[int, int]]] = [[] for _ in pieces]
    for span in spans:
        if sum(map(len, chosen)) == count:
            break
        own = chosen[span.piece]
        if all(span.last < start or span.first >= stop for start, stop in own):
            piece = pieces[span.piece]
            lowest = max((stop for _, stop in own if stop <= span.first), default=0)
            highest = min((start for start, _ in own if start > span.last), default=piece.num_words)
            own.append(_centred(piece, (span.first, span.last), lowest, highest, rooms[span.piece]))
    return chosen


def _centred(
    piece: Piece, span: tuple[int, int], lowest: int, highest: int, room: int
) -> tuple[int, int]:
    """Words [start, stop) of the window with a span in its middle, or what of it fits between the
    words `lowest` and `highest`."""
    first, last = span[0] - lowest, span[1] - lowest
    places = piece.places[lowest : highest + 1]
    while places[last + 1] - places[first] > room:
        last -= 1
    middle = int(places[first] + places[last + 1]) // 2
    start, stop = window_of(places, (first, last), middle - room // 2, room)
    return start + lowest, stop + lowest
