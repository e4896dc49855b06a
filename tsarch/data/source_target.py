"""Sources and targets to contexts of a causal or a sequence-to-sequence teacher, and windows."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from tsarch.data.cuts import Cutting
from tsarch.data.rows import Origin
from tsarch.data.words import num_words
from tsarch.records import IGNORED, TokenizedSplit

_LONG_SOURCES = {
    False: "ends of sources longer than a context has room for (teacher.max_tokens)",
    True: "starts of sources longer than a context has room for (teacher.max_tokens)",
}
"""By `TargetFrame.keep_last`."""
LEAST_SOURCE_TOKENS = 8
"""Tokens that contexts must have for sources."""
_LONG_TARGETS = "ends of targets longer than task.max_target_tokens"


@dataclass(frozen=True)
class TargetFrame:
    """Tokens around a source and its target, and how many of each a context takes."""

    prefix: tuple[int, ...]
    """Before the source."""
    separator: int
    """Between parts of the source, such as the turns of a dialogue."""
    suffix: tuple[int, ...]
    """After the source."""
    start: int
    """First token of the target side: its prediction is the target's first token."""
    end: int
    """Predicted after the target's last token."""
    teacher_max_tokens: int
    student_max_tokens: int
    max_target_tokens: int
    """Predicted tokens of a target at most, its end included."""
    keep_last: bool
    """Of a source that is too long the end is kept (a dialogue's latest turns), not the start."""
    student_reads_source: bool
    """Whether the student may read the last part of a source; the hidden states of a
    sequence-to-sequence teacher that travel are its decoder's alone."""

    @property
    def max_source_tokens(self) -> int:
        """Tokens that a context has for the source, its separators included: as many while
        training as while generating, when the target's length isn't known yet."""
        around = len(self.prefix) + len(self.suffix)
        return self.teacher_max_tokens - around - self.max_target_tokens


@dataclass(frozen=True, slots=True)
class SourceTarget:
    """A source and the target that is generated from it."""

    origin: Origin = field(repr=False)
    parts: tuple[str, ...]
    """The source, such as one text, or the turns of a dialogue."""
    target: str | None
    """None: not known."""
    references: tuple[str, ...]
    """Further targets that a generated text is compared with too."""
    reads_last: bool = False
    """The student reads the last part of the source too, not only the target."""
    control: str | None = None
    """What is asked of the target; None: nothing."""

    @property
    def source(self) -> str:
        """All parts, a line each."""
        return "\n".join(self.parts)

    @property
    def targets(self) -> tuple[str, ...]:
        """All that a generated text is compared with."""
        return () if self.target is None else (self.target, *self.references)

    @property
    def num_words(self) -> int:
        """Of the source and all targets."""
        return num_words(*self.parts, *self.targets)

    @property
    def num_labels(self) -> int:
        """The targets."""
        return len(self.targets)


@dataclass(frozen=True)
class SourceTargetTokens:
    """A tokenised row."""

    source: list[list[int]]
    """Tokens of each part."""
    target: list[int] | None
    """None: not known."""
    reads_last: bool = False
    """See `SourceTarget`."""
    control: Sequence[int] = ()
    """Of what stands before the source, and is never cut."""


@dataclass
class _Packed:
    token_ids: list[int] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    context_offsets: list[int] = field(default_factory=lambda: [0])
    windows: list[tuple[int, int]] = field(default_factory=list)
    window_offsets: list[int] = field(default_factory=lambda: [0])
    sentence_offsets: list[int] = field(default_factory=lambda: [0])
    cutting: Cutting = field(default_factory=Cutting)


def pack_targets(rows: Iterable[SourceTargetTokens], frame: TargetFrame) -> TokenizedSplit:
    """One context a row: source, start, target. Its labelled positions are the start and the
    target's tokens; the label is the token that comes next, `frame.end` at last. A
    row without a target ends with the start, whose label is `IGNORED`.

    The student's windows are blocks of `student_max_tokens` from the start token on, or, with
    `reads_last`, from the source's last part on, if that leaves them at least half a block.
    Sources and targets that are too long are cut and counted.
    """
    packed = _Packed()
    for number, row in enumerate(rows):
        _add(packed, number, row, frame)
    return TokenizedSplit(
        token_ids=np.array(packed.token_ids, dtype=np.int64),
        words=np.array(packed.words, dtype=np.int64),
        context_offsets=np.array(packed.context_offsets, dtype=np.int64),
        windows=np.array(packed.windows, dtype=np.int64).reshape(-1, 2),
        window_offsets=np.array(packed.window_offsets, dtype=np.int64),
        labels=np.array(packed.labels, dtype=np.int64),
        sentence_offsets=np.array(packed.sentence_offsets, dtype=np.int64),
        cuts=packed.cutting.cuts(),
    )


def _add(packed: _Packed, number: int, row: SourceTargetTokens, frame: TargetFrame) -> None:
    source = list(itertools.chain(*((*part, frame.separator) for part in row.source)))[:-1]
    room = frame.max_source_tokens - len(row.control)
    num_cut = len(source) - room
    left = (0, num_cut) if frame.keep_last else (room, len(source))
    packed.cutting.add(_LONG_SOURCES[frame.keep_last], number, num_cut, spans=[left], of="source")
    source = source[-room:] if frame.keep_last else source[:room]
    labels = [IGNORED] if row.target is None else [*row.target, frame.end]
    packed.cutting.add(_LONG_TARGETS, number, len(labels) - frame.max_target_tokens)
    labels = labels[: frame.max_target_tokens]
    before = [*frame.prefix, *row.control, *source, *frame.suffix]
    begin = len(packed.token_ids)
    first = begin + len(before)
    packed.token_ids += [*before, frame.start, *labels[:-1]]
    num_words = len(packed.labels)
    packed.words += [-1] * len(before)
    packed.words += range(num_words, num_words + len(labels))
    packed.labels += labels
    last_part = len(row.source[-1]) + len(frame.suffix)
    reads_last = row.reads_last and frame.student_reads_source
    if reads_last and 2 * last_part <= frame.student_max_tokens and len(source) >= last_part:
        first -= last_part
    stop = len(packed.token_ids)
    bounds = [*range(first, stop, frame.student_max_tokens), stop]
    packed.windows += itertools.pairwise(bounds)
    packed.context_offsets.append(stop)
    packed.window_offsets.append(len(packed.windows))
    packed.sentence_offsets.append(len(packed.labels))
