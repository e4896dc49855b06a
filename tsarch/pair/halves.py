"""The two models behind one table, each as a function from tokens to numbers.

A half looks tokens up in a table that isn't its own, runs its module on the embeddings, and knows
nothing of how the module is run: by itself, or inside an engine that trains it. Neither losses nor
messages are known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tsarch.models.casting import cast
from tsarch.models.decoding_cache import DecodingCache
from tsarch.models.drafter_model import DrafterModel
from tsarch.models.fast_path import Stack, fast_stack
from tsarch.models.few_rows import FewRows
from tsarch.models.heads import token_logits
from tsarch.models.output_head import OutputHead
from tsarch.models.sequence_parallel import Slice
from tsarch.models.student_model import StudentModel
from tsarch.models.teacher_model import TeacherModel
from tsarch.pair.states import States, Tokens
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
        self._module = cast(module, device, dtype).eval()

    def compile(self) -> None:
        """Have it compiled when it is first run, for inputs of any length."""
        self._module.compile(dynamic=True)

    def forward(self, *inputs: Any) -> Any:
        """Run it."""
        with torch.inference_mode():
            return self._module(*inputs)


class Lookup(Protocol):
    """Gives embeddings: rows of the table that a step touches, or the whole of it."""

    def lookup(self, places: Tensor, dtype: torch.dtype) -> Tensor:
        """(…) places of rows → (…, table_width) embeddings in `dtype`."""

    def every_row(self) -> Tensor:
        """(rows, table_width) all rows, in the order of their places."""


class TableLookup:
    """The whole table: places are tokens."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._in_order: dict[torch.dtype, Tensor] = {}

    def lookup(self, places: Tensor, dtype: torch.dtype) -> Tensor:
        """Embeddings of tokens."""
        rows = self._table.rows(places.cpu().numpy().ravel()).to(dtype)
        return rows.view(*places.shape, -1)

    def every_row(self) -> Tensor:
        """The whole table."""
        return self._table.values()

    def rows_in(self, dtype: torch.dtype) -> Tensor:
        """The whole table in another dtype, kept for when it is asked for again."""
        if dtype not in self._in_order:
            self._in_order[dtype] = self._table.values().to(dtype)
        return self._in_order[dtype]


class TeacherHalf:
    """Reads contexts, with a module that is `runs`'s."""

    def __init__(self, runs: Runs, module: TeacherModel) -> None:
        self.runs = runs
        self.is_seq2seq = module.is_seq2seq
        self.hidden_width = module.hidden_width
        self.keeps_values = module.decoding.keeps_values
        self.output = _Output(module.head)
        self.prepared = _Generating(runs, module.backbone, module.taps).prepared

    def embed(self, table: Lookup, places: IntArray) -> Tensor:
        """(…) places → (…, table_width) embeddings as the module takes them."""
        return _embedded(self.runs, table, places)

    def encode(
        self,
        table: Lookup,
        tokens: Tokens,
        starts: IntArray | None = None,
        chosen: Tensor | None = None,
        own: Slice | None = None,
        whole: bool = False,
    ) -> States:
        """Hidden states and predictions of whole contexts.

        Args:
            starts: (batch,) where each target starts, for sequence-to-sequence models alone.
            chosen: (batch, tokens) bool, where predictions are wanted of a model that gives logits
                itself; None: everywhere.
            own: the tokens are a slice of contexts that other ranks read too.
            whole: hidden states are all that `predict` needs of them.
        """
        embeds = self.embed(table, tokens.places)
        mask = torch.from_numpy(tokens.mask).to(embeds.device)
        begins = None
        if self.is_seq2seq:
            assert starts is not None
            begins = torch.from_numpy(starts).to(embeds.device)
        given: tuple[Any, ...] = (embeds, mask, begins)
        if self.output.gives_logits:
            given = (*given, None, None, chosen, self.output.rows(table))
        elif (types := _on(tokens.types, embeds.device)) is not None:
            given = (*given, None, None, None, None, types)
        if own is not None:
            given = (*given, *[None] * (9 - len(given)), own)
        if whole:
            given = (*given, *[None] * (10 - len(given)), True)
        return States(*self.runs.forward(*given))

    def predict(
        self, table: Lookup, hidden: Tensor, mask: IntArray, chosen: Tensor | None = None
    ) -> States:
        """What the head says of (batch, tokens, width) hidden states, whole ones, beside those of
        them that leave; otherwise as `encode`."""
        given = [hidden, torch.from_numpy(mask).to(hidden.device), None, None, None]
        rows = self.output.rows(table) if self.output.gives_logits else None
        return States(*self.runs.forward(*given, chosen, rows, None, True))

    def read_on(
        self,
        embeds: Tensor,
        mask: Tensor,
        starts: Tensor | None,
        positions: Tensor | None,
        cache: DecodingCache,
        chosen: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> States:
        """The next tokens of texts that grow: (texts, tokens, table_width) embeddings; `mask`
        covers what `cache` has too.

        Args:
            chosen: as in `encode`.
            rows: see `output`.
        """
        if not self.output.gives_logits:
            return States(*self.runs.forward(embeds, mask, starts, positions, cache))
        return States(*self.runs.forward(embeds, mask, starts, positions, cache, chosen, rows))


class StudentHalf:
    """Reads windows, with a teacher's hidden states or without, with a module that is `runs`'s."""

    def __init__(self, runs: Runs, module: StudentModel | DrafterModel) -> None:
        self.runs = runs
        self.drafter = module if isinstance(module, DrafterModel) else None
        """Its module, if it proposes; None: it answers."""
        self.teacher_width = module.teacher_width
        self.keeps_values = module.decoding.keeps_values
        self.output = _Output(module.head)
        self.prepared = _Generating(runs, module.backbone).prepared

    def embed(self, table: Lookup, places: IntArray) -> Tensor:
        """(…) places → (…, table_width) embeddings as the module takes them."""
        return _embedded(self.runs, table, places)

    def read(
        self,
        table: Lookup,
        windows: Sequence[Tokens],
        boundary: Tensor,
        fed_by: Sequence[IntArray],
        chosen: Sequence[Tensor] | None = None,
        survey: bool = False,
    ) -> list[Tensor]:
        """(windows, tokens, outputs) predictions of each batch of windows, and what else the module
        gives while it trains (`StudentModel.forward`, `DrafterModel.forward`).

        Args:
            boundary: (states, teacher_width) hidden states, at least one row (which nobody need
                read).
            fed_by: per batch (windows, tokens) row of `boundary`; −1: without the teacher.
            chosen: per batch (windows, tokens) bool, where predictions are wanted of a model that
                gives logits itself; None: everywhere.
            survey: in place of predictions (windows, tokens) scores, see `SliceScorer`.
        """
        embeds = [self.embed(table, own.places) for own in windows]
        device = self.runs.device
        masks = [torch.from_numpy(own.mask).to(device) for own in windows]
        rows = [torch.from_numpy(own).to(device) for own in fed_by]
        given: tuple[Any, ...] = (embeds, masks, boundary, rows)
        if self.output.gives_logits:
            given = (*given, None, None, chosen, self.output.rows(table))
        types = [_on(own.types, device) for own in windows]
        if any(own is not None for own in types):
            given = (*given, *[None] * (8 - len(given)), types)
        if survey:
            given = (*given, *[None] * (9 - len(given)), True)
        found: list[Tensor] = self.runs.forward(*given)
        return found

    def read_on(
        self,
        embeds: Tensor,
        mask: Tensor,
        boundary: Tensor,
        fed_by: Tensor,
        positions: Tensor | None,
        cache: DecodingCache,
        chosen: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """The next tokens of texts that grow → (texts, tokens, outputs); as `read`, on embeddings
        (texts, tokens, table_width). Of a model that gives logits itself (n, vocabulary) of the
        `chosen` positions (`rows`: see `output`)."""
        given = [embeds], [mask], boundary, [fed_by], positions, cache
        found: list[Tensor]
        if self.output.gives_logits:
            found = self.runs.forward(*given, None if chosen is None else [chosen], rows)
        else:
            found = self.runs.forward(*given)
        return found[0]


@dataclass(frozen=True)
class Prepared:
    """What a half generates with, beside its module."""

    stack: Stack | None
    """The fast path of its layers; None: they have none."""
    rows: Tensor
    """(vocabulary, table_width) the table in the dtype of the arithmetic."""

    def logits(self, vectors: Tensor) -> Tensor:
        """(…, table_width) → (…, vocabulary) fp32."""
        if vectors.dtype != self.rows.dtype:  # of an engine that gives fp32 back
            return token_logits(vectors, self.rows)
        return self._output(vectors).float()

    @cached_property
    def _output(self) -> FewRows:
        return FewRows(self.rows)


class _Generating:
    """Prepares a model for generating."""

    def __init__(self, runs: Runs, backbone: nn.Module, taps: tuple[int, ...] = ()) -> None:
        self._runs = runs
        self._backbone = backbone
        self._taps = taps
        self._made: list[Stack | None] = []

    def prepared(self, table: TableLookup) -> Prepared:
        """For texts that are generated now: what is trained is copied as it is."""
        is_fixed = isinstance(self._runs, Plain)
        dtype = self._runs.compute_dtype
        if not self._made or not is_fixed:
            self._made = [fast_stack(self._backbone, dtype, is_fixed, self._taps)]
        stack = self._made[0] if is_fixed else self._made.pop()
        return Prepared(stack, table.rows_in(dtype))


class _Output:
    """Whether a model gives logits itself, and whether it needs the table's rows for that."""

    def __init__(self, head: nn.Module) -> None:
        self.gives_logits = isinstance(head, OutputHead)
        self.reads_table = isinstance(head, OutputHead) and head.reads_table

    def rows(self, table: Lookup) -> Tensor | None:
        """(vocabulary, table_width) if it needs them."""
        return table.every_row() if self.reads_table else None


def _on(types: IntArray | None, device: torch.device) -> Tensor | None:
    return None if types is None else torch.from_numpy(types).to(device)


def _embedded(runs: Runs, table: Lookup, places: IntArray) -> Tensor:
    return table.lookup(torch.from_numpy(places).to(runs.device), runs.compute_dtype)
