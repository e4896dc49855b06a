"""A pair writes texts: token by token, in any mode, in one process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tsarch.config import Mode
from tsarch.models.heads import token_logits
from tsarch.pair.generation import Prompt, StudentGeneration, TeacherGeneration
from tsarch.pair.pair import Pair
from tsarch.records import IntArray
from tsarch.seeding import generator
from tsarch.tasks.decoding import Decoder, DecodingSpec


@dataclass(frozen=True)
class Written:
    """A text that was written."""

    tokens: list[int]
    """Without the one that ends it."""
    score: float
    """Log-probability, see `Decoder.best_score`."""


class Writing:
    """Writes texts with a pair.

    Args:
        window_tokens: of the student's windows at most.
        use_cache: keep what models computed of earlier tokens.
        joint_weight: weight of the teacher's probabilities in `joint`.
        batch: texts at a time.
        seed: of sampling; each text draws for itself, by its place.
    """

    def __init__(
        self,
        pair: Pair,
        decoding: DecodingSpec,
        window_tokens: int,
        use_cache: bool,
        joint_weight: float,
        batch: int,
        seed: int,
    ) -> None:
        self._pair = pair
        self._decoding = decoding
        self.window_tokens = window_tokens
        self._use_cache = use_cache
        self._joint_weight = joint_weight
        self._batch = batch
        self._seed = seed

    def write(self, prompts: Sequence[Prompt], mode: Mode) -> list[Written]:
        """What follows each prompt."""
        decoders = [
            Decoder(self._decoding, generator(self._seed, "decoding", place))
            for place in range(len(prompts))
        ]
        with torch.inference_mode():
            for first in range(0, len(prompts), self._batch):
                own = slice(first, first + self._batch)
                self._write(prompts[own], decoders[own], mode)
        return [Written(own.best, own.best_score) for own in decoders]

    def _write(self, prompts: Sequence[Prompt], decoders: Sequence[Decoder], mode: Mode) -> None:
        """Let the decoders choose until all are done."""
        round_of = _Rounds(self._pair, self.window_tokens, self._use_cache, mode)
        scores = self._mixed(round_of.start(prompts), mode)
        live = list(range(len(prompts)))
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
            live, num_rows = going_on, self._decoding.num_beams
            if live:
                scores = self._mixed(round_of.step(np.array(parents), np.array(tokens)), mode)

    def _mixed(self, said: list[Tensor], mode: Mode) -> Tensor:
        """(texts, vocabulary) log-probabilities of a mode, from the logits of those who predict."""
        logs = [torch.log_softmax(own, dim=-1) for own in said]
        return mixed(logs[0], logs[1], self._joint_weight) if mode == "joint" else logs[0]


class _Rounds:
    """Both models' part in some texts, round by round: logits (texts, vocabulary) of the newest
    tokens, the teacher's first where both predict."""

    def __init__(self, pair: Pair, window_tokens: int, use_cache: bool, mode: Mode) -> None:
        self._pair = pair
        self._mode = mode
        self._teacher, self._student = None, None
        if mode != "student_alone":
            self._teacher = TeacherGeneration(pair.teacher, pair.lookup, use_cache)
        if mode != "teacher":
            self._student = StudentGeneration(pair.student, pair.lookup, window_tokens, use_cache)

    def start(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        """Read the prompts."""
        states = None if self._teacher is None else self._teacher.start(prompts)
        hidden = None if states is None else [self._split(own)[0] for own in states]
        said = None if states is None else torch.stack([own[-1] for own in states])
        student = None if self._student is None else self._student.start(prompts, hidden)
        return self._logits(said, student)

    def step(self, parents: IntArray, tokens: IntArray) -> list[Tensor]:
        """Go on with texts `parents` and their next tokens."""
        states = None if self._teacher is None else self._teacher.step(parents, tokens)
        hidden = None if states is None else self._split(states)[0]
        student = None if self._student is None else self._student.step(parents, tokens, hidden)
        return self._logits(states, student)

    def _split(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states, and predictions or logits beside them."""
        width = self._pair.teacher.hidden_width
        return states[..., :width], states[..., width:]

    def _logits(self, teacher: Tensor | None, student: Tensor | None) -> list[Tensor]:
        found = []
        if teacher is not None and self._mode in ("teacher", "joint"):
            said = self._split(teacher)[1]
            found.append(self._spread(said, self._pair.teacher.output.gives_logits))
        if student is not None:
            found.append(self._spread(student, self._pair.student.output.gives_logits))
        return found

    def _spread(self, said: Tensor, are_logits: bool) -> Tensor:
        return said.float() if are_logits else token_logits(said, self._pair.table.values())


def mixed(teacher: Tensor, student: Tensor, weight: float) -> Tensor:
    """log(w·p_teacher + (1 − w)·p_student) from log-probabilities."""
    if weight in (0.0, 1.0):
        return teacher if weight else student
    return torch.logaddexp(teacher + math.log(weight), student + math.log1p(-weight))
