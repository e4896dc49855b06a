"""Both halves read texts that grow, in any mode: logits of what comes after every token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from tsarch.config import Mode
from tsarch.models.causal_stack import CausalStack
from tsarch.pair.drafting import Drafts
from tsarch.pair.generation import Keeping, Prompt, StudentGeneration, TeacherGeneration
from tsarch.pair.halves import Prepared, StudentHalf, TableLookup, TeacherHalf
from tsarch.records import IntArray


@dataclass(frozen=True)
class Halves:
    """What writes texts: one half, or both, over a table."""

    teacher: TeacherHalf | None
    student: StudentHalf | None
    lookup: TableLookup
    window_tokens: int
    """Of the student's windows at most."""


class ReadPrompts:
    """Prompts that texts of several modes go on from, one mode after another: the teacher reads
    them for the first that needs it."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self.prompts = prompts
        self._known: tuple[TeacherGeneration, list[Tensor]] | None = None

    def by(self, teacher: TeacherGeneration) -> tuple[TeacherGeneration, list[Tensor]]:
        """The teacher with the prompts read, and what `TeacherGeneration.start` gives."""
        if self._known is not None:
            teacher, states = self._known
            return teacher.again(), states
        states = teacher.start(self.prompts)
        if teacher.can_begin_again:
            self._known = teacher.again(), states
        return teacher, states


class Reader:
    """Opens batches of texts.

    Args:
        joint_weight: weight of the teacher's probabilities in `joint`.
    """

    def __init__(self, halves: Halves, joint_weight: float) -> None:
        self.halves = halves
        self.joint_weight = joint_weight

    @cached_property
    def teacher(self) -> Prepared | None:
        """The teacher, prepared when a mode first needs it."""
        own = self.halves.teacher
        return None if own is None else own.prepared(self.halves.lookup)

    @cached_property
    def student(self) -> Prepared | None:
        """As `teacher`."""
        own = self.halves.student
        return None if own is None else own.prepared(self.halves.lookup)

    def is_fast(self, mode: Mode) -> bool:
        """Whether all that reads in a mode has a fast path."""
        needed = []
        if mode != "student_alone":
            needed.append(self.teacher)
        if mode != "teacher":
            needed.append(self.student)
        return all(own is not None and own.stack is not None for own in needed)

    def has_drafter(self, mode: Mode) -> bool:
        """Whether there is a student that proposes what is written in a mode."""
        own = self.halves.student
        if mode != "teacher" or own is None or own.drafter is None or not self.is_fast(mode):
            return False
        assert self.student is not None
        return isinstance(self.student.stack, CausalStack)

    def drafts(self, states: Sequence[Tensor], room: int) -> Drafts:
        """What it has of some texts that have just been opened: per text (window_tokens,
        teacher_width) states."""
        assert self.halves.student is not None
        assert self.student is not None
        return Drafts(self.halves.student, self.student, states, self.halves.window_tokens, room)

    def open(self, mode: Mode, keeping: Keeping) -> ReadTexts:
        """Nothing read so far."""
        return ReadTexts(self, mode, keeping)


class ReadTexts:
    """A batch of texts as both models read them in a mode."""

    def __init__(self, reader: Reader, mode: Mode, keeping: Keeping) -> None:
        own = reader.halves
        self._mode = mode
        self._joint_weight = reader.joint_weight
        self._reader = reader
        self._teacher, self._student = None, None
        self.prompt_states: list[Tensor] = []
        """(window_tokens, teacher_width) of each text that was started, where there is a teacher.
        """
        self.states: Tensor | None = None
        """(texts, tokens, teacher_width) of the tokens that were read last."""
        if mode != "student_alone":
            assert own.teacher is not None
            self._teacher = TeacherGeneration(own.teacher, own.lookup, keeping, reader.teacher)
            self._width = own.teacher.hidden_width
        if mode != "teacher":
            assert own.student is not None
            self._student = StudentGeneration(
                own.student, own.lookup, own.window_tokens, keeping, reader.student
            )

    @property
    def is_ragged(self) -> bool:
        """Whether texts may keep unlike numbers of tokens; known once they are started."""
        return all(own.is_ragged for own in (self._teacher, self._student) if own is not None)

    def room(self, num_texts: int) -> IntArray:
        """(texts,) tokens that each can read now."""
        if self._student is None:
            return np.full(num_texts, np.iinfo(np.int64).max)
        return self._student.room

    def start(self, read: ReadPrompts) -> list[Tensor]:
        """Read the prompts → (texts, vocabulary) logits of those who predict, see `read`."""
        prompts = read.prompts
        states = None
        if self._teacher is not None:
            self._teacher, states = read.by(self._teacher)
        hidden = None if states is None else [own[:, : self._width] for own in states]
        self.prompt_states = hidden or []
        said = None if states is None else torch.stack([own[-1] for own in states])
        student = None if self._student is None else self._student.start(prompts, hidden)
        return self._logits(said, student)

    def step(self, parents: IntArray, tokens: IntArray) -> list[Tensor]:
        """Go on with texts `parents` and their next tokens (texts,) → (texts, vocabulary) logits of
        those who predict."""
        self.reorder(parents)
        one = np.ones(len(tokens), dtype=np.int64)
        found = self.read(tokens[:, None], one)
        self.keep(one)
        return [own[:, 0] for own in found]

    def read(self, tokens: IntArray, counts: IntArray) -> list[Tensor]:
        """Read (texts, tokens) next tokens, the first `counts` (texts,) of each text → (texts,
        tokens, vocabulary) fp32 logits, the teacher's first where both predict."""
        states = None if self._teacher is None else self._teacher.read(tokens, counts)
        hidden = self.states = None if states is None else states[..., : self._width]
        student = None if self._student is None else self._student.read(tokens, counts, hidden)
        return self._logits(states, student)

    def keep(self, counts: IntArray) -> None:
        """Keep the first `counts` (texts,) of the tokens that were just read."""
        for own in (self._teacher, self._student):
            if own is not None:
                own.keep(counts)

    def reorder(self, parents: IntArray) -> None:
        """Go on with the texts `parents`, in their order."""
        for own in (self._teacher, self._student):
            if own is not None:
                own.reorder(parents)

    def log_probabilities(self, logits: Sequence[Tensor]) -> Tensor:
        """(…, vocabulary) of the mode, from the logits of those who predict."""
        logs = [torch.log_softmax(own, dim=-1) for own in logits]
        return logs[0] if len(logs) == 1 else mixed(logs[0], logs[1], self._joint_weight)

    def _logits(self, teacher: Tensor | None, student: Tensor | None) -> list[Tensor]:
        own, found = self._reader, []
        if teacher is not None and self._mode in ("teacher", "joint"):
            found.append(_spread(teacher[..., self._width :], own.halves.teacher, own.teacher))
        if student is not None:
            found.append(_spread(student, own.halves.student, own.student))
        return found


def _spread(
    said: Tensor, half: TeacherHalf | StudentHalf | None, prepared: Prepared | None
) -> Tensor:
    """(…, outputs) → (…, vocabulary) fp32 logits."""
    assert half is not None
    assert prepared is not None
    return said.float() if half.output.gives_logits else prepared.logits(said)


def mixed(teacher: Tensor, student: Tensor, weight: float) -> Tensor:
    """log(w·p_teacher + (1 − w)·p_student) from log-probabilities."""
    if weight in (0.0, 1.0):
        return teacher if weight else student
    return torch.logaddexp(teacher + math.log(weight), student + math.log1p(-weight))
