"""The tied embedding: one table, replicated on every rank of both stages, outside the engines.

A stage looks up the rows that its step touches as a leaf tensor; autograd leaves their gradient
there. The gradients of all ranks of both stages are summed over a group of its own, and every
replica steps the same optimizer on the same sum, so that all replicas stay bitwise equal.
(Inside ZeRO a tied weight would be partitioned within one stage and lost to the other.)
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from tsarch.errors import ReplicaDriftError
from tsarch.parallel.groups import ProcessGroup
from tsarch.records import IntArray
from tsarch.topology import Topology

ExchangeKind = Literal["auto", "rows", "dense"]


@dataclass
class TouchedRows:
    """Rows of the table that one stage looks up in one step."""

    token_ids: IntArray
    """(rows,) sorted distinct tokens."""
    leaf: Tensor
    """(rows, width) fp32 copy of the rows; its `grad` collects the step's gradient."""

    def lookup(self, places: Tensor, dtype: torch.dtype) -> Tensor:
        """(…) places in `token_ids` → (…, width) embeddings in the compute dtype."""
        return nn.functional.embedding(places, self.leaf).to(dtype)


@dataclass
class _Exchange:
    touched: IntArray | None
    """Sorted tokens that `buffer` has a row for; None: all."""
    buffer: Tensor
    learning_rate_factor: float
    num_started: int = 0
    work: object | None = None


class TiedEmbedding:
    """This process's replica of the table, its optimizer, and the exchange of its gradient.

    Args:
        table: (vocabulary, width) fp32.
        optimizer: over the one parameter `table`; plain AdamW or SGD.
        learning_rate: peak learning rate.
        clip_norm: largest norm of the summed gradient; 0: no clipping.
        exchange: what travels, see `exchanged_rows`.
        group: over all ranks of both stages; None in one process.
        num_local_stages: stages in this process that take part in each exchange.
    """

    def __init__(
        self,
        table: nn.Parameter,
        optimizer: torch.optim.Optimizer | None,
        learning_rate: float,
        clip_norm: float,
        exchange: ExchangeKind,
        group: ProcessGroup | None,
        topology: Topology,
        num_local_stages: int,
    ) -> None:
        self.table = table
        self.bytes_exchanged = 0
        self.wait_s = 0.0
        """Seconds spent waiting for other ranks so far."""
        self._optimizer = optimizer
        self._learning_rate = learning_rate
        self._clip_norm = clip_norm
        self._kind = exchange
        self._group = group
        self._topology = topology
        self._num_local_stages = num_local_stages
        self._exchanges: dict[int, _Exchange] = {}
        self._finished: dict[int, int] = {}
        if optimizer is not None:
            table.grad = torch.zeros_like(table)

    def broadcast(self, source_rank: int) -> None:
        """Copy the table of one rank to all others. Every rank of both stages calls it."""
        if self._group is not None:
            self._group.broadcast(self.table.detach(), source_rank).wait()

    def touch(self, token_ids: IntArray, requires_grad: bool) -> TouchedRows:
        """Copy the rows of `token_ids` out of the table, for one stage's step."""
        index = torch.from_numpy(token_ids).to(self.table.device)
        leaf = self.table.detach()[index]
        trained = requires_grad and self._optimizer is not None
        return TouchedRows(token_ids, leaf.requires_grad_(trained))

    def start(
        self,
        exchange: int,
        touched: IntArray,
        contribution: TouchedRows | None,
        grad_scale: float,
        learning_rate_factor: float,
    ) -> None:
        """Add a local stage's gradient × `grad_scale`; once all have, start the sum over ranks.

        All ranks of both stages call it for the same exchanges in the same order, with the same
        `touched`: the sorted distinct tokens of all contributions (known from the plan, so only
        values travel).
        """
        state = self._exchanges.get(exchange)
        if state is None:
            rows = exchanged_rows(self._kind, touched, len(self.table))
            num_rows = len(self.table) if rows is None else len(rows)
            zeros = self.table.new_zeros(num_rows, self.table.shape[1])
            state = _Exchange(rows, zeros, learning_rate_factor)
            self._exchanges[exchange] = state
        if contribution is not None and contribution.leaf.grad is not None:
            ids = contribution.token_ids
            places = ids if state.touched is None else np.searchsorted(state.touched, ids)
            index = torch.from_numpy(places).to(self.table.device)
            state.buffer.index_add_(0, index, contribution.leaf.grad, alpha=grad_scale)
        state.num_started += 1
        if state.num_started == self._num_local_stages and self._group is not None:
            state.work = self._group.allreduce(state.buffer)
            self.bytes_exchanged += state.buffer.nbytes

    def is_started(self, exchange: int) -> bool:
        """Whether all local stages have started the exchange."""
        state = self._exchanges.get(exchange)
        return state is None or state.num_started == self._num_local_stages

    def finish(self, exchange: int) -> None:
        """Wait for the sum and update the table; the last local stage's call cleans up."""
        finished = self._finished.pop(exchange, 0) + 1
        if finished < self._num_local_stages:
            self._finished[exchange] = finished
        if finished > 1:
            return
        state = self._exchanges.pop(exchange)
        if state.work is not None:
            started = time.perf_counter()
            state.work.wait()  # type: ignore[attr-defined]
            self.wait_s += time.perf_counter() - started
        self._step(state)

    def _step(self, state: _Exchange) -> None:
        """One optimizer step on the summed gradient (the dense one, whatever travelled)."""
        assert self._optimizer is not None
        assert self.table.grad is not None
        if self._clip_norm > 0:
            norm = torch.linalg.vector_norm(state.buffer)
            state.buffer.mul_((self._clip_norm / (norm + 1e-6)).clamp(max=1.0))
        if state.touched is None:
            self.table.grad.copy_(state.buffer)
        else:
            index = torch.from_numpy(state.touched).to(self.table.device)
            self.table.grad[index] = state.buffer
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate * state.learning_rate_factor
        self._optimizer.step()
        if state.touched is not None:
            self.table.grad[index] = 0.0

    def check_replicas(self, step: int) -> None:
        """Compare checksums of all replicas. Every rank of both stages calls it.

        Raises:
            ReplicaDriftError: names the ranks that differ from most of the others.
        """
        if self._group is None:
            return
        own = checksum(self.table.detach()).to(self.table.device)
        sums = torch.zeros(self._topology.num_ranks, dtype=torch.int64, device=own.device)
        sums[self._group.rank()] = own
        self._group.allreduce(sums).wait()
        values = sums.tolist()
        common = max(values, key=values.count)
        drifted = [rank for rank, value in enumerate(values) if value != common]
        if drifted and values.count(common) == 1:
            drifted = list(range(len(values)))
        if drifted:
            raise ReplicaDriftError(step, [self._topology.label(rank) for rank in drifted])

    def max_abs_diff(self) -> float:
        """Largest difference of any element between two replicas. Every rank calls it."""
        if self._group is None:
            return 0.0
        largest, smallest = self.table.detach().clone(), -self.table.detach()
        options = torch.distributed.AllreduceOptions()
        options.reduceOp = torch.distributed.ReduceOp(torch.distributed.ReduceOp.MAX)
        self._group.allreduce([largest], options).wait()
        self._group.allreduce([smallest], options).wait()
        return float((largest + smallest).max())


def exchanged_rows(kind: ExchangeKind, touched: IntArray, vocabulary: int) -> IntArray | None:
    """Tokens whose gradient rows travel; None for the dense gradient.

    `auto` takes the rows when they are fewer than the table's. The rows' numbers never travel,
    so rows cost len(touched) × width values against vocabulary × width.
    """
    if kind == "dense" or (kind == "auto" and len(touched) >= vocabulary):
        return None
    return touched


def checksum(table: Tensor) -> Tensor:
    """() int64 over the bits of an fp32 table, different if two elements are swapped too."""
    bits = table.contiguous().view(torch.int32).flatten().to(torch.int64)
    weights = torch.arange(1, len(bits) + 1, device=bits.device) * 2654435761
    return (bits * weights).sum()
