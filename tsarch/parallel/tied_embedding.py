"""The tied embedding: one table, replicated on every rank of both stages, outside the engines.

A stage looks up the rows that its step touches as a leaf tensor; autograd leaves their gradient
there. The gradients of all ranks of both stages are summed over a group of its own, and every
replica steps the same optimizer on the same sum, so that all replicas stay bitwise equal.
(Inside ZeRO a tied weight would be partitioned within one stage and lost to the other.)
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from tsarch.checkpoint.host_copies import Keep
from tsarch.checkpoint.optimizer_state import OPTIMIZER_STATE, state_tensors
from tsarch.errors import ReplicaDriftError
from tsarch.parallel.gradient_norm import clip_by_global_norm
from tsarch.parallel.groups import ProcessGroup
from tsarch.parallel.lifeline import Lifeline
from tsarch.parallel.table import Table
from tsarch.records import IntArray
from tsarch.topology import Topology

ExchangeKind = Literal["auto", "rows", "dense"]
_BLOCK_ELEMENTS = 1 << 20
"""Of a table that are compared at one time: whole copies of a large one take much."""


@dataclass
class TouchedRows:
    """Rows of the table that one stage looks up in one step."""

    token_ids: IntArray
    """(rows,) sorted distinct tokens."""
    leaf: Tensor
    """(rows, width) fp32 rows, a copy if they are trained; its `grad` collects the step's
    gradient."""

    def lookup(self, places: Tensor, dtype: torch.dtype) -> Tensor:
        """(…) places in `token_ids` → (…, width) embeddings in the compute dtype."""
        return nn.functional.embedding(places, self.leaf).to(dtype)

    def every_row(self) -> Tensor:
        """The rows: the whole table where losses are over the vocabulary."""
        return self.leaf


@dataclass
class _Exchange:
    touched: IntArray | None
    """Sorted tokens that `buffer` has a row for; None: all."""
    buffer: Tensor
    learning_rate_factor: float
    num_started: int = 0
    work: Any = None


@dataclass(frozen=True)
class _Shards:
    """Which of the trained rows each rank has the optimizer state of."""

    of_rank: tuple[slice, ...]
    """Slots by rank; a single entry: every rank has the state of all of them."""
    own: slice

    @classmethod
    def of(cls, table: Table, group: ProcessGroup | None) -> Self:
        """Equal shares over the ranks of `group`; without one the whole."""
        num_ranks = 1 if group is None else int(group.size())
        bounds = [table.num_trained * rank // num_ranks for rank in range(num_ranks + 1)]
        shards = tuple(slice(a, b) for a, b in itertools.pairwise(bounds))
        return cls(shards, shards[0 if group is None else int(group.rank())])


class TiedEmbedding:
    """This process's replica of the table, its optimizer, and the exchange of its gradient.

    Args:
        table: this process's replica.
        make_optimizer: plain AdamW or SGD over the one parameter it is given; None: frozen.
        learning_rate: peak learning rate.
        clip_norm: largest norm of the summed gradient; 0: no clipping.
        exchange: what travels, see `exchanged_rows`.
        shard_optimizer: every rank keeps optimizer state for its share of the trained rows only,
            steps those and sends them to the others (ZeRO 1 for the table, Rajbhandari et al.
            2020, section 5.1). The optimizers work element by element, so the result is bitwise
            that of the whole state on every rank.
        group: over all ranks of both stages; None in one process.
        num_local_stages: stages in this process that take part in each exchange.
        lifeline: what happens when another rank is gone.
    """

    def __init__(
        self,
        table: Table,
        make_optimizer: Callable[[nn.Parameter], torch.optim.Optimizer] | None,
        learning_rate: float,
        clip_norm: float,
        exchange: ExchangeKind,
        group: ProcessGroup | None,
        topology: Topology,
        num_local_stages: int,
        shard_optimizer: bool = False,
        lifeline: Lifeline | None = None,
    ) -> None:
        self.table = table
        self._lifeline = lifeline or Lifeline()
        self.bytes_exchanged = 0
        self.wait_s = 0.0
        """Seconds spent waiting for other ranks so far."""
        self._learning_rate = learning_rate
        self._clip_norm = clip_norm
        self._kind = exchange
        self._group = group
        self._topology = topology
        self._num_local_stages = num_local_stages
        self._exchanges: dict[int, _Exchange] = {}
        self._finished: dict[int, tuple[int, bool]] = {}
        self._shards = _Shards.of(table, group if shard_optimizer else None)
        self._optimizer = None
        if make_optimizer is not None:
            self._own = nn.Parameter(table.storage[self._shards.own])
            self._own.grad = torch.zeros_like(self._own)
            self._optimizer = make_optimizer(self._own)

    def broadcast(self, source_rank: int) -> None:
        """Copy the table of one rank to all others. Every rank of both stages calls it."""
        if self._group is not None:
            self._group.broadcast(self.table.storage, source_rank).wait()

    def touch(self, token_ids: IntArray, requires_grad: bool) -> TouchedRows:
        """Take the rows of `token_ids` out of the table, for one stage's step."""
        trained = requires_grad and self._optimizer is not None
        if not trained and len(token_ids) == len(self.table):  # a large table twice is too much
            return TouchedRows(token_ids, self.table.values())
        return TouchedRows(token_ids, self.table.rows(token_ids).requires_grad_(trained))

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
            zeros = self.table.storage.new_zeros(num_rows, self.table.storage.shape[1])
            state = _Exchange(rows, zeros, learning_rate_factor)
            self._exchanges[exchange] = state
        if contribution is not None and contribution.leaf.grad is not None:
            ids = contribution.token_ids
            if state.touched is None:
                places = self.table.slots(ids)
            else:
                places = np.searchsorted(state.touched, ids)
            index = torch.from_numpy(places).to(state.buffer.device)
            state.buffer.index_add_(0, index, contribution.leaf.grad, alpha=grad_scale)
        state.num_started += 1
        if state.num_started == self._num_local_stages and self._group is not None:
            self._lifeline.attempt(lambda: self._start_sum(state))
            self.bytes_exchanged += state.buffer.nbytes

    def _start_sum(self, state: _Exchange) -> None:
        assert self._group is not None
        state.work = self._group.allreduce(state.buffer)

    def is_started(self, exchange: int) -> bool:
        """Whether all local stages have started the exchange."""
        state = self._exchanges.get(exchange)
        return state is None or state.num_started == self._num_local_stages

    def finish(self, exchange: int) -> bool:
        """Wait for the sum and update the table; the last local stage's call cleans up.

        Returns:
            Whether the table was updated. It is not if the sum, which all ranks of both stages
            have alike, is not finite.
        """
        finished, updated = self._finished.pop(exchange, (0, True))
        if finished == 0:
            state = self._exchanges.pop(exchange)
            if state.work is not None:
                self._wait(state.work)
            updated = self._lifeline.error is None and self._step(state)
            if updated:
                self._lifeline.attempt(self._publish)
        if finished + 1 < self._num_local_stages:
            self._finished[exchange] = finished + 1, updated
        return updated

    def _step(self, state: _Exchange) -> bool:
        """One optimizer step on the summed gradient (the dense one, whatever travelled), if that
        is finite."""
        assert self._optimizer is not None
        assert self._own.grad is not None
        if not math.isfinite(clip_by_global_norm([state.buffer], self._clip_norm)):
            return False
        own = self._shards.own
        places: Tensor | slice = slice(None)
        gradient = state.buffer[own]
        if state.touched is not None:
            slots = self.table.slots(state.touched)
            mine = np.flatnonzero((slots >= own.start) & (slots < own.stop))
            places = torch.from_numpy(slots[mine] - own.start).to(gradient.device)
            gradient = state.buffer[torch.from_numpy(mine).to(gradient.device)]
        self._own.grad[places] = gradient
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate * state.learning_rate_factor
        self._optimizer.step()
        self._own.grad[places] = 0.0
        return True

    def keep_state(self, keep: Keep) -> None:
        """Hand this rank's share of the rows and of their optimizer state to `keep`, each kind of
        rows with its tokens. All ranks' shares together are the whole table, whether the optimizer
        is sharded or not; nothing if it is frozen, since the model's files have it."""
        if self._optimizer is None:
            return
        share = _Shards.of(self.table, self._group).own
        keep("trained/tokens", torch.from_numpy(self.table.tokens(share)))
        keep("trained/value", self.table.storage[share])
        start = self._shards.own.start
        for name, value in state_tensors(self._optimizer, self._own).items():
            if value.dim() == 0:
                keep(name, value)
            else:
                keep(f"trained/{name}", value[share.start - start : share.stop - start])
        if self._group is None or self._group.rank() == 0:
            rest = slice(self.table.num_trained, len(self.table))
            keep("rest/tokens", torch.from_numpy(self.table.tokens(rest)))
            keep("rest/value", self.table.storage[rest])

    def restore_state(self, shares: Sequence[Mapping[str, Tensor]]) -> None:
        """Put in what the ranks of some run, this one's or another's, have given to `keep`."""
        for share in shares:
            for kind in ("trained", "rest"):
                if f"{kind}/tokens" in share:
                    self.table.put(share[f"{kind}/tokens"].numpy(), share[f"{kind}/value"])
        names = {name.removeprefix("trained/") for share in shares for name in share}
        names &= set(OPTIMIZER_STATE)
        if self._optimizer is None or not names:
            return
        state = self._optimizer.state[self._own]
        for name in sorted(names):
            if name == "step":
                state[name] = shares[0][name].clone().to(self._own.device)
                continue
            state[name] = torch.zeros_like(self._own)
            for share in shares:
                slots = self.table.slots(share["trained/tokens"].numpy())
                own = self._shards.own
                mine = np.flatnonzero((slots >= own.start) & (slots < own.stop))
                places = torch.from_numpy(slots[mine] - own.start).to(self._own.device)
                values = share[f"trained/{name}"][torch.from_numpy(mine)]
                state[name][places] = values.to(self._own.device)

    def _publish(self) -> None:
        """With sharded optimizer state: every rank sends the rows that it has updated."""
        if self._group is None or len(self._shards.of_rank) == 1:
            return
        rows = [self.table.storage[shard] for shard in self._shards.of_rank]
        works = [self._group.broadcast(r, rank) for rank, r in enumerate(rows) if r.numel()]
        for work in works:
            self._wait(work)
        self.bytes_exchanged += rows[self._group.rank()].nbytes

    def _wait(self, work: Any) -> None:
        started = time.perf_counter()
        self._lifeline.attempt(work.wait)
        self.wait_s += time.perf_counter() - started

    def check_replicas(self, step: int) -> None:
        """Compare checksums of all replicas. Every rank of both stages calls it.

        Raises:
            ReplicaDriftError: names the ranks that differ from most of the others.
        """
        group = self._group
        if group is None:
            return
        own = checksum(self.table.storage)
        sums = torch.zeros(self._topology.num_ranks, dtype=torch.int64, device=own.device)
        sums[group.rank()] = own
        if not self._lifeline.attempt(lambda: group.allreduce(sums).wait()):
            return
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
        options = torch.distributed.AllreduceOptions()
        options.reduceOp = torch.distributed.ReduceOp(torch.distributed.ReduceOp.MAX)
        found = []
        for part in torch.split(self.table.storage.flatten(), _BLOCK_ELEMENTS):
            largest, smallest = part.clone(), -part
            self._group.allreduce([largest], options).wait()
            self._group.allreduce([smallest], options).wait()
            found.append((largest + smallest).max())
        return float(torch.stack(found).max())


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
    total = torch.zeros((), dtype=torch.int64, device=table.device)
    first = 1
    for part in torch.split(table.contiguous().view(torch.int32).flatten(), _BLOCK_ELEMENTS):
        places = torch.arange(first, first + len(part), device=part.device)
        total += (part.to(torch.int64) * (places * 2654435761)).sum()
        first += len(part)
    return total
