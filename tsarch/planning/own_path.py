"""What a stage computes of short rows, by the table, backbone and head that ranks have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tsarch.blueprint import Blueprint
from tsarch.models.construction import num_elements
from tsarch.models.heads import token_logits
from tsarch.models.student_model import StudentModel
from tsarch.models.teacher_model import TeacherModel
from tsarch.pair.generation import Keeping, Prompt, StudentGeneration, TeacherGeneration
from tsarch.pair.halves import Lookup, Plain, Runs, StudentHalf, TableLookup, TeacherHalf
from tsarch.pair.states import Tokens
from tsarch.parallel.table import Table
from tsarch.planning.reference import Row
from tsarch.stage.build import build_model, unpad
from tsarch.topology import Stage

_CPU = torch.device("cpu")


class OwnPath:
    """A stage by itself, over the table of its own weights, in fp32 without dropout.

    Args:
        has_head: its numbers are log-probabilities of tokens; otherwise hidden states.
    """

    def __init__(self, blueprint: Blueprint, stage: Stage, has_head: bool) -> None:
        alone = blueprint.altered(embedding={"init": stage.value})
        made = build_model(alone, stage, None if has_head else 1)
        assert made.table is not None
        module = made.module
        assert isinstance(module, TeacherModel | StudentModel)
        self._module, self._values, self._has_head = module, made.table, has_head
        if not has_head:
            module.head = nn.Identity()
        if isinstance(module, StudentModel):
            module.shortcut = None
        elif module.exit is not None:
            module.exit.first_position = 0  # as in what it is compared with
        self._table = Table(made.table)
        self._lookup = TableLookup(self._table)
        self._max_tokens = blueprint.stages[stage].max_tokens
        unpad(blueprint, stage, module)
        self._unpadded, module.unpadded = module.unpadded, None
        self._half = _half_of(module, Plain(module, _CPU, torch.float32))

    @property
    def num_parameters(self) -> int:
        """Of the model, without the table."""
        return num_elements(self._module)

    def read(self, rows: Sequence[Row]) -> list[Tensor]:
        """Per row (tokens, outputs) numbers, of the target alone if it has one; all rows are
        padded to the longest."""
        return [
            self._numbers(own[row.first : len(row.token_ids)])
            for own, row in zip(self._read(self._half, self._lookup, rows), rows, strict=True)
        ]

    @property
    def has_unpadded(self) -> bool:
        """Whether batches are read without padding in training."""
        return self._unpadded is not None

    def read_unpadded(self, rows: Sequence[Row]) -> list[Tensor]:
        """As `read`, without padding."""
        self._module.unpadded = self._unpadded
        try:
            return self.read(rows)
        finally:
            self._module.unpadded = None

    def step(self, rows: Sequence[Row]) -> list[Tensor]:
        """Per row (1, outputs) numbers of the token that is generated upon the others: they are
        read first, and their keys and values kept."""
        prompts = [Prompt(row.token_ids[: row.generated], 0) for row in rows]
        last = np.array([row.token_ids[row.generated] for row in rows])
        texts = np.arange(len(rows))
        if isinstance(self._half, TeacherHalf):
            teacher = TeacherGeneration(self._half, self._lookup, Keeping())
            teacher.start(prompts)
            read = teacher.step(texts, last)[:, self._width :]
        else:
            student = StudentGeneration(self._half, self._lookup, self._max_tokens, Keeping())
            student.start(prompts, None)
            read = student.step(texts, last, None)
        return [self._numbers(own).unsqueeze(0) for own in read]

    def train(self, row: Row) -> None:
        """Forward and backward of a row, as in training."""
        half = _half_of(self._module, _Training(self._module))
        self._module.train()
        try:
            self._read(half, _LearnedRows(self._table), [row]).float().sum().backward()  # type: ignore[no-untyped-call]
        finally:
            self._module.eval().zero_grad(set_to_none=True)

    @staticmethod
    def _read(half: TeacherHalf | StudentHalf, lookup: Lookup, rows: Sequence[Row]) -> Tensor:
        tokens = Tokens.padded([row.token_ids for row in rows])
        if isinstance(half, TeacherHalf):
            starts = np.array([row.first for row in rows])
            found: Tensor = half.encode(lookup, tokens, starts).predictions
            return found
        nobody = np.full(tokens.places.shape, -1, dtype=np.int64)
        return half.read(lookup, [tokens], torch.zeros(1, half.teacher_width), [nobody])[0]

    def _numbers(self, predictions: Tensor) -> Tensor:
        if not self._has_head:
            return predictions
        if self._half.output.gives_logits:
            return predictions.float().log_softmax(-1)
        return token_logits(predictions, self._values).log_softmax(-1)

    @property
    def _width(self) -> int:
        """Of a teacher's hidden states."""
        assert isinstance(self._module, TeacherModel)
        return self._module.hidden_width


class _Training:
    """Runs a module with its gradients."""

    device = _CPU
    compute_dtype = torch.float32

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def forward(self, *inputs: Any) -> Any:
        """Run it."""
        return self._module(*inputs)


class _LearnedRows(TableLookup):
    """Embeddings that have a gradient, whatever else is frozen."""

    def lookup(self, places: Tensor, dtype: torch.dtype) -> Tensor:
        """Embeddings of tokens."""
        return super().lookup(places, dtype).requires_grad_(True)


def _half_of(module: TeacherModel | StudentModel, runs: Runs) -> TeacherHalf | StudentHalf:
    if isinstance(module, TeacherModel):
        return TeacherHalf(runs, module)
    return StudentHalf(runs, module)
