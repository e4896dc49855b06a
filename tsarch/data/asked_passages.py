"""Passages that the teacher reads alone, each once, and questions that the student asks of them.

A context is `[CLS] passage [SEP]`, a window `[CLS] question [SEP]` and a slice of the passage: the
slice is fed with the context's states, the tokens before it stand in the window alone.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tsarch.data.passage_packer import Answers, PassagePacker, check_room, rarity, span_label
from tsarch.data.passages import Limits, PairTypes, PassageTokens, Specials, WordSpan, strides
from tsarch.records import IGNORED, IntArray, Piece, Queries, TokenizedSplit
from tsarch.seeding import generator


@dataclass(frozen=True)
class PassageFrame:
    """What stands around passages and questions."""

    alone: tuple[list[int], list[int]]
    """Tokens before and after a passage."""
    pair: Specials
    types: PairTypes | None


def pack_asked_passages(
    rows: Sequence[PassageTokens],
    groups: Sequence[Sequence[int]],
    spans: Sequence[Answers],
    frame: PassageFrame,
    limits: Limits,
    seed: int,
) -> TokenizedSplit:
    """Every passage to one context, or to several that overlap, and all its questions to windows
    of these, the same as where both models read the question (`passage_packer.pack_passages`).

    Of a context's words the teacher learns at which an answer to any of the questions starts, and
    at which one ends (bits as those of the questions' own labels).

    Args:
        groups: the rows that have the same passage.
        spans: the answers of each row.

    Raises:
        UserError: contexts or windows are too short for any question.
    """
    room = limits.window - len(frame.pair.before + frame.pair.between)
    context_room = limits.context - sum(map(len, frame.alone))
    check_room(min(room, context_room))
    packer = _Packer(
        PassagePacker(frame.pair, limits, room, rarity(rows), frame.types),
        frame.alone,
        min(context_room, room - room // 2),
    )
    for group in groups:
        packer.add([(number, rows[number], spans[number]) for number in group], seed)
    return packer.split(len(rows))


def grouped(keys: Sequence[Hashable], most: int) -> list[list[int]]:
    """Places of equal keys, at most so many together, in order of appearance."""
    groups: dict[Hashable, list[int]] = {}
    for place, key in enumerate(keys):
        groups.setdefault(key, []).append(place)
    return [own[at : at + most] for own in groups.values() for at in range(0, len(own), most)]


@dataclass
class _Asked:
    """A question while its passage is added."""

    number: int
    """Of its row."""
    question: list[int]
    answers: Answers
    rng: np.random.Generator
    words: list[list[int]]
    """Of its passage."""
    has_window: bool = False
    """Whether a window has its answer."""


@dataclass
class _Packer:
    """Grows contexts, and behind each what is asked of it."""

    readings: PassagePacker
    alone: tuple[list[int], list[int]]
    most_word_tokens: int
    sources: list[int] = field(default_factory=list)
    context_labels: list[int] = field(default_factory=list)
    context_stops: list[int] = field(default_factory=list)
    pieces: dict[int, list[tuple[Piece, int]]] = field(default_factory=dict)
    """Row → its pieces and the number of the first word of each, in order of adding."""

    def add(self, group: Sequence[tuple[int, PassageTokens, Answers]], seed: int) -> None:
        """Add a passage and the rows about it, with their numbers and answers."""
        own, limit = self.readings, self.most_word_tokens
        asked = [
            _Asked(
                number,
                own.question(number, row.question),
                answers,
                generator(seed, "windows", number),
                own.words_of(number, row.words, limit),
            )
            for number, row, answers in group
        ]
        words, bounds = asked[0].words, group[0][1].bounds
        learned = [each.answers[:1] for each in asked if each.answers is not None]
        spans = [span for each in learned for span in each] if learned else None
        room = own.limits.context - sum(map(len, self.alone))
        for part in strides([len(word) for word in words], room, own.limits.overlap):
            first = self._add_context(words, part, spans)
            for each in asked:
                self._ask(each, first, bounds, part)
            own.end_context(())
        for each in asked:
            own.count_answer(each.number, words, each.answers, each.has_window)

    def split(self, num_rows: int) -> TokenizedSplit:
        """All that was added, words numbered in the order of the rows."""
        packed = self.readings.split()
        pieces = [self.pieces[row] for row in range(num_rows)]
        sizes = [sum(piece.num_words for piece, _ in own) for own in pieces]
        order = np.concatenate(
            [first + np.arange(piece.num_words) for own in pieces for piece, first in own]
        )
        numbers = np.full(len(order) + 1, -1)  # the last for tokens without a word
        numbers[order] = np.arange(len(order))
        return replace(
            packed,
            words=numbers[packed.words],
            labels=packed.labels[order],
            sentence_offsets=np.concatenate([[0], np.cumsum(sizes)]),
            pieces=tuple(tuple(piece for piece, _ in own) for own in pieces),
            queries=Queries(
                np.array(self.context_stops, dtype=np.int64),
                np.array(self.sources, dtype=np.int64),
                np.array(self.context_labels, dtype=np.int64),
            ),
        )

    def _add_context(
        self, words: Sequence[list[int]], part: tuple[int, int], spans: Sequence[WordSpan] | None
    ) -> int:
        """Add what the teacher reads, and learns with the answers `spans` → place of the first
        word."""
        own, (before, after) = self.readings, self.alone
        start = len(own.token_ids)
        labels = [IGNORED] * len(before)
        tokens = list(before)
        for number in range(*part):
            tokens += words[number]
            labels += [span_label(number, spans), *[IGNORED] * (len(words[number]) - 1)]
        tokens += after
        labels += [IGNORED] * len(after)
        own.token_ids += tokens
        own.words += [-1] * len(tokens)
        if own.types is not None:
            num_behind = len(tokens) - len(before)
            own.token_types += [*[0] * len(before), *[own.types.passage] * num_behind]
        self.context_labels += labels
        self.sources += range(start, start + len(tokens))
        self.context_stops.append(start + len(tokens))
        return start + len(before)

    def _ask(self, asked: _Asked, first: int, bounds: IntArray, part: tuple[int, int]) -> None:
        """Add what the student reads of a question and a context whose first word is at `first`."""
        own = self.readings
        begin, first_word = len(own.token_ids), len(own.labels)
        piece, has_window = own.add_reading(
            asked.question, asked.words, bounds, part, asked.answers, asked.rng
        )
        asked.has_window |= has_window
        start, stop = int(piece.places[0]), int(piece.places[-1])
        self.sources += [*[-1] * (start - begin), *range(first, first + stop - start)]
        self.context_labels += [IGNORED] * (stop - begin)
        self.pieces.setdefault(asked.number, []).append((piece, first_word))
