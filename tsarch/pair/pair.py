"""The pair M = (M_T, M_S): one table and two models that answer. It only computes: no engine,
optimizer, link, batch plan or loss is in it, and training wraps the same halves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from tsarch.data.replica_arrays import parts_by_length
from tsarch.errors import UserError, one_line
from tsarch.models.drafter_model import DrafterModel
from tsarch.models.student_model import StudentModel
from tsarch.models.teacher_model import TeacherModel
from tsarch.models.unpadded import Unpadded, is_exact
from tsarch.pair.halves import Plain, StudentHalf, TableLookup, TeacherHalf
from tsarch.pair.reading import Halves
from tsarch.pair.states import States, Tokens, Window
from tsarch.parallel.table import Table
from tsarch.records import FloatArray, IntArray


class Pair:
    """A teacher and a student over one table, ready to answer; a model by itself has no other half.

    Args:
        values: (vocabulary, table_width) the table.
        dtype: of the arithmetic.
    """

    def __init__(
        self,
        values: Tensor,
        teacher: nn.Module | None,
        student: nn.Module | None,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        device = device or torch.device("cpu")
        self.table = Table(values.to(device))
        self.lookup = TableLookup(self.table)
        self._teacher, self._student = None, None
        self._plain: list[Plain] = []
        if teacher is not None:
            assert isinstance(teacher, TeacherModel)
            if teacher.exit is not None:
                teacher.exit.is_end = True  # what it says itself is no answer
            self._plain.append(Plain(teacher, device, dtype))
            self._teacher = TeacherHalf(self._plain[-1], teacher)
        if student is not None:
            assert isinstance(student, StudentModel | DrafterModel)
            if (
                isinstance(student, StudentModel)
                and student.entrance is not None
                and is_exact(student.backbone.config)
            ):
                student.unpadded = Unpadded(student.backbone)  # else lower layers compute all
            self._plain.append(Plain(student, device, dtype))
            self._student = StudentHalf(self._plain[-1], student)

    @property
    def teacher(self) -> TeacherHalf:
        """The half that reads contexts."""
        assert self._teacher is not None, "this pair has no teacher"
        return self._teacher

    @property
    def student(self) -> StudentHalf:
        """The half that reads windows."""
        assert self._student is not None, "this pair has no student"
        return self._student

    def halves(self, window_tokens: int) -> Halves:
        """Those that there are, to write texts with."""
        return Halves(self._teacher, self._student, self.lookup, window_tokens)

    def compile(self) -> None:
        """Compile both models (`torch.compile`), now: of an encoder each, as both are tried on a
        few tokens.

        Raises:
            UserError: there is no compiler, or it can't.
        """
        for own in self._plain:
            own.compile()
        try:
            for length in (3, 5):  # the second is compiled for any length
                tokens = np.zeros(length, dtype=np.int64)
                states = self.encode([tokens] * 2)[0].hidden if self.has_teacher else None
                if self.has_student:
                    self.read([Window(tokens, hidden) for hidden in (None, states)])
        except Exception as error:  # compilers raise what they like
            hint = "Install one (g++ on CPUs, Triton on GPUs), or leave `compile` out."
            what = f"can't be done: {one_line(error)}."
            raise UserError.single("compile", what, hint) from None

    @property
    def has_teacher(self) -> bool:
        """Whether it can `encode`."""
        return self._teacher is not None

    @property
    def has_student(self) -> bool:
        """Whether it can `read`."""
        return self._student is not None

    def encode(
        self,
        contexts: Sequence[IntArray],
        starts: IntArray | None = None,
        types: Sequence[IntArray | None] | None = None,
    ) -> list[States]:
        """The teacher's states of each context of (tokens,) token ids, without padding.

        Args:
            starts: (contexts,) where each target starts, for a sequence-to-sequence teacher.
            types: (tokens,) types of each context's tokens, where they aren't all 0.
        """
        found = self.teacher.encode(self.lookup, Tokens.padded(contexts, types), starts)
        return [
            States(found.hidden[row, : len(own)], found.predictions[row, : len(own)])
            for row, own in enumerate(contexts)
        ]

    def own(self, states: States) -> States:
        """States as tensors."""
        return States(torch.as_tensor(states.hidden), torch.as_tensor(states.predictions))

    def read(self, windows: Sequence[Window]) -> list[Tensor]:
        """The student's (tokens, outputs) predictions of each window; those of like lengths are
        padded together."""
        return self._by_length(windows, survey=False)

    def survey(self, windows: Sequence[Window]) -> list[FloatArray]:
        """(tokens,) scores of each fed window, see `SliceScorer`."""
        return [own.cpu().numpy() for own in self._by_length(windows, survey=True)]

    def _by_length(self, windows: Sequence[Window], survey: bool) -> list[Tensor]:
        found: dict[int, Tensor] = {}
        lengths = np.array([len(own.token_ids) for own in windows], dtype=np.int64)
        for places in parts_by_length(lengths) if len(windows) else ():
            own = self._read([windows[place] for place in places], survey)
            found |= dict(zip(places, own, strict=True))
        return [found[place] for place in range(len(windows))]

    def _read(self, windows: Sequence[Window], survey: bool) -> list[Tensor]:
        student = self.student
        tokens = Tokens.padded([own.token_ids for own in windows], [own.types for own in windows])
        fed_by = np.full(tokens.places.shape, -1, dtype=np.int64)
        spare = torch.zeros(1, student.teacher_width)
        states = [spare.to(student.runs.device, student.runs.compute_dtype)]
        num_states = 1
        for row, own in enumerate(windows):
            if own.hidden is not None:
                fed_by[row, own.fed_places] = num_states + np.arange(len(own.hidden))
                num_states += len(own.hidden)
                states.append(own.hidden.to(states[0]))
        given = [tokens], torch.cat(states), [fed_by]
        (found,) = student.read(self.lookup, *given, survey=survey)
        return [found[row, : len(own.token_ids)] for row, own in enumerate(windows)]
