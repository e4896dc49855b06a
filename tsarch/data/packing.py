"""Tokenised sentences, and rows with one label, to teacher contexts and student windows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tsarch.records import IntArray, TokenizedSplit

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
    """Word that the row's one label stands before; None: before the first, and at several."""


@dataclass
class _Packer:
    """Grows the flat arrays of a `TokenizedSplit`."""

    prefix: list[int]
    suffix: list[int]
    teacher_max_tokens: int
    student_max_tokens: int
    """At most what a context has room for."""
    token_ids: list[int] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    context_offsets: list[int] = field(default_factory=lambda: [0])
    windows: list[tuple[int, int]] = field(default_factory=list)
    window_offsets: list[int] = field(default_factory=lambda: [0])
    num_cut_tokens: int = 0
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
        token_ids, words = self.cut_words(token_ids, words)
        whole = self.teacher_max_tokens - len(self.prefix) - len(self.suffix)
        for ids, starts in _pieces(token_ids, words, whole):
            self._make_room(len(ids))
            for window_ids, window_words in _pieces(ids, starts, self.student_max_tokens):
                begin = len(self.token_ids)
                self._append(window_ids, window_words)
                self.windows.append((begin, len(self.token_ids)))

    def add_row(self, token_ids: list[int], labelled: list[int], place: int) -> None:
        """Add a row whose one window is the row, or what fits of it from the token `place` on.

        Args:
            labelled: tokens that carry the row's label, all inside the window.
        """
        self._make_room(len(token_ids))
        start = 0 if len(token_ids) <= self.student_max_tokens else place
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

    def cut_words(
        self, token_ids: list[int], words: list[int], spare: int = 0
    ) -> tuple[list[int], list[int]]:
        """Shorten words that alone exceed a window less `spare` tokens."""
        limit = self.student_max_tokens - spare
        if len(token_ids) <= limit:
            return token_ids, words
        kept = []
        first = 0
        for place, word in enumerate(words):
            first = place if word >= 0 else first
            if place - first < limit:
                kept.append(place)
        self.num_cut_tokens += len(words) - len(kept)
        return [token_ids[place] for place in kept], [words[place] for place in kept]


def _pieces(
    token_ids: list[int], words: list[int], limit: int
) -> list[tuple[list[int], list[int]]]:
    """Cut at word boundaries into pieces of at most `limit` tokens, of about equal length."""
    if len(token_ids) <= limit:
        return [(token_ids, words)]
    begins = [*(place for place, word in enumerate(words) if word >= 0), len(words)]
    sizes = [end - begin for begin, end in itertools.pairwise(begins)]
    ends = itertools.accumulate(_even_fill(sizes, limit), initial=0)
    cuts = [slice(begins[first], begins[last]) for first, last in itertools.pairwise(ends)]
    return [(token_ids[cut], words[cut]) for cut in cuts]


def _even_fill(sizes: Sequence[int], limit: int) -> list[int]:
    """Words of each piece: as few pieces as `limit` allows, the longest as short as can be."""
    num_pieces = len(_fill(sizes, limit))
    low, high = max(sizes), limit
    while low < high:
        middle = (low + high) // 2
        if len(_fill(sizes, middle)) <= num_pieces:
            high = middle
        else:
            low = middle + 1
    return _fill(sizes, low)


def _fill(sizes: Sequence[int], limit: int) -> list[int]:
    """Words of each piece if every piece takes words until the next exceeds `limit`."""
    counts: list[int] = []
    room = 0
    for size in sizes:
        if not counts or size > room:
            counts.append(0)
            room = limit
        counts[-1] += 1
        room -= size
    return counts


def pack(
    sentences: Sequence[Sentence],
    labels: Sequence[Sequence[int]],
    prefix: list[int],
    suffix: list[int],
    teacher_max_tokens: int,
    student_max_tokens: int,
) -> TokenizedSplit:
    """Sentences of a document in order to contexts, cut at sentence boundaries; every sentence
    to one window, or to several of about equal length if it exceeds `student_max_tokens`.

    A sentence longer than a context becomes several contexts, cut at word boundaries; a word
    longer than a window is cut, and counted. Special tokens belong to no window.
    """
    limit = min(student_max_tokens, teacher_max_tokens - len(prefix) - len(suffix))
    packer = _Packer(prefix, suffix, teacher_max_tokens, limit)
    num_words, document = 0, None
    for sentence, own in zip(sentences, labels, strict=True):
        if sentence.document != document:
            packer.close()
            document = sentence.document
        packer.add(sentence.token_ids, [num_words + w if w >= 0 else -1 for w in sentence.starts])
        num_words += len(own)
    packer.close()
    return _split(packer, labels)


def pack_rows(
    rows: Sequence[Sentence],
    labels: Sequence[int],
    label_token: int,
    prefix: list[int],
    suffix: list[int],
    teacher_max_tokens: int,
    student_max_tokens: int,
) -> TokenizedSplit:
    """Rows of a document in order to contexts, cut between rows; every row has one label, at a
    `label_token` put before its word `focus`, and one window, the row, or what fits of it from
    there on. Without a `focus` the label also stands at `NUM_VOTES` words of the window, or all
    if it has fewer, at their first tokens: they vote (`row_votes`).

    A row longer than a context is cut at word boundaries into several, each with labels and a
    window of its own, which vote too. With a `focus` only the piece that has it is kept.
    What is left out, and of words longer than a window, is counted in `num_cut_tokens`.
    """
    room = teacher_max_tokens - len(prefix) - len(suffix)
    packer = _Packer(prefix, suffix, teacher_max_tokens, min(student_max_tokens, room))
    packed: list[list[int]] = []
    document = None
    for row, label in zip(rows, labels, strict=True):
        if row.document != document:
            packer.close()
            document = row.document
        pieces = _pieces(*packer.cut_words(row.token_ids, row.starts, spare=1), room - 1)
        if row.focus is not None and len(pieces) > 1:
            kept = [piece for piece in pieces if row.focus in piece[1]]
            packer.num_cut_tokens += sum(len(ids) for ids, _ in pieces)
            packer.num_cut_tokens -= sum(len(ids) for ids, _ in kept)
            pieces = kept
        before = packer.num_labels
        for ids, starts in pieces:
            place = 0 if row.focus is None else starts.index(row.focus)
            labelled = [place]
            if row.focus is None:
                window = starts[: packer.student_max_tokens - 1]
                labelled += _spread([n for n, word in enumerate(window, 1) if word >= 0], NUM_VOTES)
            row_ids = [*ids[:place], label_token, *ids[place:]]
            packer.add_row(row_ids, labelled, place)
        packed.append([label] * (packer.num_labels - before))
    packer.close()
    return _split(packer, packed)


def _spread(values: Sequence[int], most: int) -> list[int]:
    """At most so many of the values, at even distances, the first one among them."""
    size = min(len(values), most)
    return [values[number * len(values) // size] for number in range(size)]


def _split(packer: _Packer, labels: Sequence[Sequence[int]]) -> TokenizedSplit:
    """What a closed packer has, with the labels of every row."""
    return TokenizedSplit(
        token_ids=_array(packer.token_ids),
        words=_array(packer.words),
        context_offsets=_array(packer.context_offsets),
        windows=_array(packer.windows).reshape(-1, 2),
        window_offsets=_array(packer.window_offsets),
        labels=_array([label for own in labels for label in own]),
        sentence_offsets=_array([0, *itertools.accumulate(len(own) for own in labels)]),
        num_cut_tokens=packer.num_cut_tokens,
    )


def _array(values: Sequence[Any]) -> IntArray:
    return np.array(values, dtype=np.int64)
