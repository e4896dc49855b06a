"""A pair writes texts, in any mode, in one process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from tsarch.config import Mode, ProposalSource
from tsarch.pair.generation import Keeping, Prompt
from tsarch.pair.proposing import MOST_PROPOSED, Pace
from tsarch.pair.reading import Halves, Reader, ReadPrompts
from tsarch.pair.text_loop import TextLoop
from tsarch.seeding import generator
from tsarch.tasks.decoding import Decoder, DecodingSpec
from tsarch.written import Passes


@dataclass(frozen=True)
class WritingSpec:
    """How texts are written. See `DecodingConfig`."""

    decoding: DecodingSpec
    use_cache: bool
    """Keep what models computed of earlier tokens."""
    batch: int
    """Texts at a time."""
    seed: int
    """Of sampling; each text draws for itself."""
    num_proposed: int = 0
    """Tokens that are proposed at most at a time; 0: none, −1: as many as are worth it."""
    exact: bool = False
    sources: tuple[ProposalSource, ...] = ("prompt",)
    """Of proposed tokens."""

    def pace(self) -> Pace | None:
        """That of a writer."""
        if not self.num_proposed:
            return None
        adapts = self.num_proposed < 0
        return Pace(MOST_PROPOSED if adapts else self.num_proposed, adapts)


@dataclass(frozen=True)
class Written:
    """A text that was written."""

    tokens: list[int]
    """Without the one that ends it."""
    score: float
    """Log-probability, see `Decoder.best_score`."""


@dataclass
class WrittenTexts:
    """Those of a mode."""

    texts: list[Written] = field(default_factory=list)
    passes: Passes = field(default_factory=Passes)
    """What it took, of texts of one hypothesis each."""


class Writing:
    """Writes texts.

    Args:
        halves: for models that are trained: as they are now.
        joint_weight: weight of the teacher's probabilities in `joint`.
    """

    def __init__(self, halves: Halves, spec: WritingSpec, joint_weight: float) -> None:
        self.window_tokens = halves.window_tokens
        self._halves = halves
        self._spec = spec
        self._joint_weight = joint_weight
        self._reader: Reader | None = None
        self._paces: dict[Mode, Pace | None] = {}
        self.passes = Passes()
        """What it took so far, of texts of one hypothesis each."""

    def write(
        self, prompts: Sequence[Prompt], mode: Mode, numbers: Sequence[int] | None = None
    ) -> list[Written]:
        """What follows each prompt.

        Args:
            numbers: of the texts, which sampling follows from; None: 0, 1, 2, …
        """
        return self.write_modes(prompts, [mode], numbers)[mode].texts

    def write_modes(
        self, prompts: Sequence[Prompt], modes: Sequence[Mode], numbers: Sequence[int] | None = None
    ) -> dict[Mode, WrittenTexts]:
        """The same of several modes; the teacher reads each prompt once for all of them."""
        spec = self._spec
        numbers = range(len(prompts)) if numbers is None else numbers
        if self._reader is None:
            self._reader = Reader(self._halves, self._joint_weight)
        found = {mode: WrittenTexts() for mode in modes}
        with torch.no_grad():  # models may keep tensors of a pass that training uses later
            for first in range(0, len(prompts), spec.batch):
                own = slice(first, first + spec.batch)
                read = ReadPrompts(prompts[own])
                for mode, written in found.items():
                    decoders = [_decoder(spec, number) for number in numbers[own]]
                    written.passes += self._write(self._reader, read, decoders, mode)
                    written.texts += [Written(own.best, own.best_score) for own in decoders]
        self.passes = sum((own.passes for own in found.values()), self.passes)
        return found

    def _write(
        self, reader: Reader, prompts: ReadPrompts, decoders: Sequence[Decoder], mode: Mode
    ) -> Passes:
        """Let the decoders choose until all are done; what it took."""
        spec = self._spec
        if spec.decoding.num_beams > 1:
            _write_beams(reader, prompts, decoders, mode, spec)
            return Passes()
        pace = self._paces.setdefault(mode, spec.pace())
        given = reader, spec.decoding, mode, spec.use_cache, pace, spec.exact
        loop = TextLoop(*given, spec.sources)
        loop.write(prompts, decoders)
        return loop.passes


def _decoder(spec: WritingSpec, number: int) -> Decoder:
    return Decoder(spec.decoding, generator(spec.seed, "decoding", number))


def _write_beams(
    reader: Reader,
    prompts: ReadPrompts,
    decoders: Sequence[Decoder],
    mode: Mode,
    spec: WritingSpec,
) -> None:
    """Several hypotheses of every text."""
    texts = reader.open(mode, Keeping(spec.use_cache, spec.decoding.max_tokens + 1))
    scores = texts.log_probabilities(texts.start(prompts))
    live = list(range(len(decoders)))
    num_rows = 1
    while live:
        parents: list[int] = []
        tokens: list[int] = []
        going_on = []
        for place, text in enumerate(live):
            own = scores[place * num_rows : (place + 1) * num_rows]
            chosen = decoders[text].choose(own)
            parents += [place * num_rows + parent for parent, _ in chosen]
            tokens += [token for _, token in chosen]
            going_on += [text] if chosen else []
        live, num_rows = going_on, spec.decoding.num_beams
        if live:
            scores = texts.log_probabilities(texts.step(np.array(parents), np.array(tokens)))
