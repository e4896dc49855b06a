"""The two models behind one table, each as a function from tokens to numbers.

A half looks tokens up in a table that isn't its own, runs its module on the embeddings, and knows
nothing of how the module is run: by itself, or inside an engine that trains it. Neither losses nor
messages are known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from tsarch.models.decoding_cache import DecodingCache
from tsarch.models.student_model import StudentModel
from tsarch.models.teacher_model import TeacherModel
from tsarch.parallel.table import Table
from tsarch.records import IntArray


class Runs(Protocol):
    """Runs a module: an engine, or `Plain`."""

    device: torch.device
    compute_dtype: torch.dtype
    """Dtype of activations that enter and leave the module."""

    def forward(self, *inputs: Any) -> Any:
        """Run the module."""


class Plain:
    """A module by itself, without gradients and dropout."""

    def __init__(self, module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.compute_dtype = dtype
        self._module = module.to(device, dtype).eval()

    def forward(self, *inputs: Any) -> Any:
        """Run it."""
        with torch.inference_mode():
            return self._module(*inputs)


class Lookup(Protocol):
    """Gives embeddings: rows of the table that a step touches, or the whole of it."""

    def lookup(self, places: Tensor, dtype: torch.dtype) -> Tensor:
        """(…) places of rows → (…, table_width) embeddings in `dtype`."""


class TableLookup:
    """The whole table: places are tokens."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def lookup(self, places: Tensor, dtype: torch.dtype) -> Tensor:
        """Embeddings of tokens."""
        rows = self._table.rows(places.cpu().numpy().ravel()).to(dtype)
        return rows.view(*places.shape, -1)


@dataclass(frozen=True)
class Tokens:
    """Sequences of tokens, padded on the right to the longest."""

    places: IntArray
    """(batch, tokens) places of their rows, see `Lookup`."""
    mask: IntArray
    """(batch, tokens) 1 at tokens, 0 at padding."""

    @classmethod
    def padded(cls, sequences: Sequence[IntArray]) -> Tokens:
        """Of one array a sequence."""
        shape = len(sequences), max(map(len, sequences))
        places, mask = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        for row, own in enumerate(sequences):
            places[row, : len(own)] = own
            mask[row, : len(own)] = 1
        return cls(places, mask)


@dataclass(frozen=True)
class States:
    """What a teacher makes of contexts."""

    hidden: Tensor
    """(batch, tokens, teacher_width)."""
    predictions: Tensor
    """(batch, tokens, outputs) the teacher's own."""


class TeacherHalf:
    """Reads contexts, with a module that is `runs`'s."""

    def __init__(self, runs: Runs, module: TeacherModel) -> None:
        self.runs = runs
        self.is_seq2seq = module.is_seq2seq
        self.keeps_values = module.decoding.keeps_values

    def embed(self, table: Lookup, places: IntArray) -> Tensor:
        """(…) places → (…, table_width) embeddings as the module takes them."""
        return _embedded(self.runs, table, places)

    def encode(self, table: Lookup, tokens: Tokens, starts: IntArray | None = None) -> States:
        """Hidden states and predictions of whole contexts.

        Args:
            starts: (batch,) where each target starts, for sequence-to-sequence models alone.
        """
        embeds = self.embed(table, tokens.places)
        mask = torch.from_numpy(tokens.mask).to(embeds.device)
        begins = None
        if self.is_seq2seq:
            assert starts is not None
            begins = torch.from_numpy(starts).to(embeds.device)
        return States(*self.runs.forward(embeds, mask, begins))

    def read_on(
        self,
        embeds: Tensor,
        mask: Tensor,
        starts: Tensor | None,
        positions: Tensor | None,
        cache: DecodingCache,
    ) -> States:
        """The next tokens of texts that grow: (texts, tokens, table_width) embeddings; `mask`
        covers what `cache` has too."""
        return States(*self.runs.forward(embeds, mask, starts, positions, cache))


class StudentHalf:
    """Reads windows, with a teacher's hidden states or without, with a module that is `runs`'s."""

    def __init__(self, runs: Runs, module: StudentModel) -> None:
        self.runs = runs
        self.teacher_width = module.teacher_width
        self.keeps_values = module.decoding.keeps_values

    def embed(self, table: Lookup, places: IntArray) -> Tensor:
        """(…) places → (…, table_width) embeddings as the module takes them."""
        return _embedded(self.runs, table, places)

    def read(
        self,
        table: Lookup,
        windows: Sequence[Tokens],
        boundary: Tensor,
        fed_by: Sequence[IntArray],
    ) -> list[Tensor]:
        """(windows, tokens, outputs) predictions of each batch of windows, and what else the module
        gives while it trains (`StudentModel.forward`).

        Args:
            boundary: (states, teacher_width) hidden states, at least one row (which nobody need
                read).
            fed_by: per batch (windows, tokens) row of `boundary`; −1: without the teacher.
        """
        embeds = [self.embed(table, own.places) for own in windows]
        device = self.runs.device
        masks = [torch.from_numpy(own.mask).to(device) for own in windows]
        rows = [torch.from_numpy(own).to(device) for own in fed_by]
        predictions: list[Tensor] = self.runs.forward(embeds, masks, boundary, rows)
        return predictions

    def read_on(
        self,
        embeds: Tensor,
        mask: Tensor,
        boundary: Tensor,
        fed_by: Tensor,
        positions: Tensor | None,
        cache: DecodingCache,
    ) -> Tensor:
        """The next tokens of texts that grow → (texts, tokens, outputs); as `read`, on embeddings
        (texts, tokens, table_width)."""
        found: list[Tensor] = self.runs.forward(
            [embeds], [mask], boundary, [fed_by], positions, cache
        )
        return found[0]


def _embedded(runs: Runs, table: Lookup, places: IntArray) -> Tensor:
    return table.lookup(torch.from_numpy(places).to(runs.device), runs.compute_dtype)
