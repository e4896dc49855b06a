"""Whether a run fits: its states into the memory of the devices, its replicas into its batches.

Checked once the data is known and before Ray or any model starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import psutil
import torch

from tsarch.blueprint import Blueprint, StageBlueprint
from tsarch.errors import Mistake, UserError
from tsarch.feeds import batch_plan
from tsarch.models.construction import num_elements, num_trained
from tsarch.parallel.groups import choose_device
from tsarch.planning.memory import (
    StageSize,
    States,
    activation_bytes,
    copy_bytes,
    num_moments,
    table_states,
    zero_states,
)
from tsarch.planning.step_size import few_steps_notes
from tsarch.prepare import Prepared
from tsarch.rank.pacer import keeps_cuts
from tsarch.records import IntArray, TokenizedSplit
from tsarch.specs import EngineSpec, RunnerSpec
from tsarch.stage.build import outline_model
from tsarch.tasks.base import num_outputs
from tsarch.tasks.registry import make_task
from tsarch.topology import Stage

_GB = 1e9


def check_capacity(blueprint: Blueprint, prepared: Prepared, own_ray: bool) -> list[str]:
    """Refuse a run that can't fit; returns remarks for the user on one that can.

    Args:
        own_ray: the ranks run on this machine, not on a cluster whose memory is unknown here.

    Raises:
        UserError: the states alone exceed the memory, or no step feeds all replicas.
    """
    needs = list(rank_needs(blueprint, prepared).values())
    feeding = Feeding.of(blueprint, prepared.training)
    mistakes = list(feeding.mistakes())
    if own_ray:
        mistakes += exceeded(blueprint.runner, needs, device_memory(blueprint.runner.device))
    if mistakes:
        raise UserError(mistakes)
    few = few_steps_notes(blueprint, prepared.training, len(feeding.windows))
    return [describe(needs), *feeding.notes(), *few]


@dataclass(frozen=True)
class RankNeed:
    """Bytes of one rank of a stage."""

    stage: Stage
    replicas: int
    states: States
    table: States
    activations: int
    """Rough estimate, see `activation_bytes`."""
    copy: int
    """Copies in host memory that checkpoints are written from, and to which a run goes back after a
    failure: two in turn; see `copy_bytes`."""
    offloaded: int
    """What of the states is in host memory although the device is a GPU."""
    in_turn: int = 1
    """Copies that `copy` counts."""

    @property
    def one_copy(self) -> int:
        """Bytes of one of them."""
        return self.copy // self.in_turn

    @property
    def parts(self) -> dict[str, int]:
        """What each part of the states takes."""
        own = f"the {self.stage}'s"
        return {
            f"{own} weights": self.states.weights,
            f"{own} gradients": self.states.gradients,
            f"{own} optimizer state": self.states.optimizer,
            "the tied table": self.table.total,
        }

    @property
    def total(self) -> int:
        """All states; activations left out."""
        return self.states.total + self.table.total

    @property
    def on_gpu(self) -> int:
        """Bytes of a rank's GPU, if it has one."""
        return self.total - self.offloaded

    def on_host(self, device: str) -> int:
        """Bytes of its host's memory, with device `cpu` or `cuda`."""
        return self.copy + (self.offloaded if device == "cuda" else self.total)


def rank_needs(blueprint: Blueprint, prepared: Prepared) -> dict[Stage, RankNeed]:
    """What a rank of each stage will hold."""
    return {stage: rank_need(blueprint, stage, prepared) for stage in blueprint.stages}


def rank_need(blueprint: Blueprint, stage: Stage, prepared: Prepared) -> RankNeed:
    """What a rank of `stage` will hold, without building its weights."""
    return need_of(blueprint, stage, count(blueprint, stage, prepared))


@dataclass(frozen=True)
class Counts:
    """What a stage's states depend on beside how they are shared out."""

    parameters: int
    """Of the stage's model; the tied table is not one of them."""
    trainable: int
    trained_rows: int
    """Rows of the table that have optimizer state."""


def count(blueprint: Blueprint, stage: Stage, prepared: Prepared) -> Counts:
    """Counted on the model's outline."""
    task = make_task(blueprint.task.name, prepared.labels, blueprint.task)
    outputs = num_outputs(task, len(prepared.labels))
    model = outline_model(blueprint, stage, outputs[stage.reads])
    rows = _trained_rows(blueprint, prepared, task.objective.uses_table)
    return Counts(num_elements(model), num_trained(model), rows)


def need_of(blueprint: Blueprint, stage: Stage, counts: Counts) -> RankNeed:
    """What a rank of `stage` will hold, of so many parameters."""
    local, own = blueprint.runner.is_one_process, blueprint.stages[stage]
    replicas = blueprint.topology.replicas(stage)
    moments = num_moments(own.optimizer.name, own.optimizer.momentum)
    zero_stage = 0 if local else own.engine.zero_stage
    size = StageSize(
        counts.parameters,
        counts.trainable,
        replicas,
        zero_stage,
        blueprint.precision,
        moments,
        sums_in_fp32=local and blueprint.precision == "bf16",
    )
    vocabulary, width = blueprint.table.shape
    states = zero_states(size)
    ranks = blueprint.topology.num_ranks
    own_rows = -(-counts.trained_rows // (ranks if blueprint.table.shard_optimizer else 1))
    in_turn = 2 if keeps_cuts(blueprint) else 1
    return RankNeed(
        stage,
        replicas,
        states,
        table_states(vocabulary, width, own_rows, moments),
        _activations(blueprint, own, replicas),
        in_turn
        * copy_bytes(
            counts.trainable,
            replicas,
            0 if blueprint.table.frozen else vocabulary,  # one that is frozen isn't saved
            width,
            counts.trained_rows,
            moments,
            ranks,
        ),
        0 if local else _offloaded(own.engine, states),
        in_turn,
    )


def _trained_rows(blueprint: Blueprint, prepared: Prepared, uses_table: bool) -> int:
    """Rows of the table that have optimizer state."""
    if blueprint.table.frozen:
        return 0
    if uses_table:
        return blueprint.table.shape[0]
    return len(prepared.training.distinct_tokens)


def _activations(blueprint: Blueprint, own: StageBlueprint, replicas: int) -> int:
    schedule, hf = blueprint.schedule, own.architecture.built
    tokens = blueprint.batches.step_tokens // (replicas * schedule.micro_batches)
    if schedule.name == "joint" and own.bridge is None:
        tokens *= min(schedule.in_flight, schedule.micro_batches)
    return activation_bytes(
        int(hf.num_hidden_layers), int(hf.hidden_size), tokens, blueprint.precision
    )


def _offloaded(own: EngineSpec, states: States) -> int:
    optimizer = states.optimizer if own.offload_optimizer else 0
    return optimizer + (states.weights if own.offload_parameters else 0)


def device_memory(device: str) -> int:
    """Bytes that this machine has free (CPUs) or that its smallest GPU has in all."""
    if choose_device(device).type == "cuda":
        count = torch.cuda.device_count()
        return min(torch.cuda.get_device_properties(i).total_memory for i in range(count))
    return host_memory()


def host_memory() -> int:
    """Bytes of memory that this machine has free."""
    return int(psutil.virtual_memory().available)


def exceeded(runner: RunnerSpec, needs: list[RankNeed], available: int) -> Iterator[Mistake]:
    """Mistakes if the states can't fit: on CPUs all ranks share the memory, a GPU has one rank (or,
    with the local runner, both stages), and all ranks share the memory beside the GPUs."""
    on_gpu = choose_device(runner.device).type == "cuda"
    one_process = runner.is_one_process
    if on_gpu and not one_process:
        largest = max(needs, key=lambda need: need.on_gpu)
        total, who, parts = largest.on_gpu, f"a {largest.stage} rank needs", largest.parts
    else:
        total, parts = _sum_of_all(needs, one_process)
        who = f"{sum(n.replicas for n in needs)} ranks need"
        if not on_gpu:
            parts["the copies for checkpoints"] = sum(n.replicas * n.copy for n in needs)
            total += parts["the copies for checkpoints"]
    if total > available:
        part = max(parts, key=lambda name: parts[name])
        place = "the smallest GPU has" if on_gpu else "this machine has free"
        yield Mistake(
            "memory",
            f"{who} {total / _GB:,.1f} GB for weights, gradients, optimizer state and the tied "
            f"table{'' if on_gpu else ' and the copies for checkpoints'}, "
            f"{place} {available / _GB:,.1f} GB. The largest part is {part}, "
            f"{parts[part] / _GB:,.1f} GB.",
            _remedy(on_gpu),
        )
    if on_gpu:
        yield from _host_exceeded(needs, host_memory())


def _sum_of_all(needs: list[RankNeed], one_process: bool) -> tuple[int, dict[str, int]]:
    """Bytes of all ranks' states, and of each part of them."""
    parts = {part: n.replicas * b for n in needs for part, b in n.parts.items()}
    parts["the tied table"] = sum(n.replicas * n.table.total for n in needs)
    if one_process:  # both stages share one table
        parts["the tied table"] = needs[0].table.total
    return sum(parts.values()), parts


def _host_exceeded(needs: list[RankNeed], available: int) -> Iterator[Mistake]:
    """A mistake if what ranks on GPUs keep in the host's memory can't fit."""
    total = sum(n.replicas * n.on_host("cuda") for n in needs)
    if total > available:
        yield Mistake(
            "memory",
            f"{sum(n.replicas for n in needs)} ranks need {total / _GB:,.1f} GB of this machine's "
            "own memory for offloaded states and the copies that checkpoints are written from, it "
            f"has {available / _GB:,.1f} GB free.",
            "Use a machine with more memory, or offload less.",
        )


def describe(needs: list[RankNeed]) -> str:
    """One line about the memory of a rank of each stage."""
    ranks = ", ".join(
        f"{need.stage} {need.total / _GB:.2f} GB + about {need.activations / _GB:.2f} GB of "
        f"activations + {need.copy / _GB:.2f} GB (host) for checkpoints"
        for need in needs
    )
    return f"memory of a rank: {ranks}"


@dataclass(frozen=True)
class Feeding:
    """Contexts and windows of every step of an epoch, against what the replicas take."""

    blueprint: Blueprint
    contexts: IntArray
    """(steps,) contexts of each step."""
    windows: IntArray
    """(steps,) windows of each step."""

    @classmethod
    def of(cls, blueprint: Blueprint, train: TokenizedSplit) -> Feeding:
        """The first steps, up to `data.shuffled_contexts`; others are of contexts like these."""
        batches, starts = batch_plan(blueprint, train).block(0, 0), train.window_offsets
        contexts = np.array([len(batch) for batch in batches])
        windows = [int((starts[batch + 1] - starts[batch]).sum()) for batch in batches]
        return cls(blueprint, contexts, np.array(windows))

    @classmethod
    def full(cls, blueprint: Blueprint) -> Feeding:
        """A step of contexts and windows of full length."""
        batches = blueprint.batches
        windows = -(-batches.context_tokens // blueprint.window_tokens)
        contexts = batches.step_tokens // batches.context_tokens
        if batches.windows is not None:
            contexts = min(contexts, batches.windows // windows)
        contexts = max(contexts, 1)
        return cls(blueprint, np.array([contexts]), np.array([contexts * windows]))

    def shared(self, blueprint: Blueprint) -> Feeding:
        """The same steps, of a run that is shared out otherwise."""
        return replace(self, blueprint=blueprint)

    def lacks(self) -> dict[Stage, int]:
        """For each stage, contexts or windows that even the fullest step has too few of."""
        return {
            stage: max(self._needed(stage) - int(counts.max()), 0)
            for stage, _, counts in self._pairs()
        }

    def mistakes(self) -> Iterator[Mistake]:
        """For each stage that even the fullest step leaves replicas of without work."""
        micro_batches = self.blueprint.schedule.micro_batches
        for stage, what, counts in self._pairs():
            needed, most = self._needed(stage), int(counts.max())
            if most < needed:
                who = f"{needed // micro_batches} {self._who(stage)}"
                yield Mistake(
                    "data.batch_tokens",
                    f"a step of {self.blueprint.batches.step_tokens} tokens holds at most {most} "
                    f"{what} of this data, but {who} × {micro_batches} micro-batches need "
                    f"{needed}.",
                    f"Raise {self._limits}, or lower topology.{stage}.replicas or "
                    "schedule.micro_batches.",
                )

    def notes(self) -> Iterator[str]:
        """For each stage that some steps leave replicas of without work."""
        for stage, what, counts in self._pairs():
            share = float((counts < self._needed(stage)).mean())
            if share > 0:
                yield (
                    f"note: {share:.0%} of the steps hold fewer than {self._needed(stage)} {what}, "
                    f"so some {self._who(stage)} idle in a micro-batch of them; a larger "
                    f"{self._limits} or fewer schedule.micro_batches would feed them"
                )

    @property
    def _limits(self) -> str:
        """The keys that limit it."""
        limits = "data.batch_tokens"
        return limits if self.blueprint.batches.windows is None else f"{limits} and batch_windows"

    def _pairs(self) -> tuple[tuple[Stage, str, IntArray], ...]:
        counts = {"contexts": self.contexts, "windows": self.windows}
        return tuple(
            (stage, stage.reads, counts[stage.reads]) for stage in self.blueprint.topology.stages
        )

    def _needed(self, stage: Stage) -> int:
        groups = self.blueprint.topology.num_groups(stage)
        return groups * self.blueprint.schedule.micro_batches

    def _who(self, stage: Stage) -> str:
        """Those that have contexts or windows of their own."""
        number = self.blueprint.topology.num_slices(stage)
        return f"{stage} replicas" if number == 1 else f"groups of {number} {stage} replicas"


def _remedy(on_gpu: bool) -> str:
    if on_gpu:
        return (
            "Use more replicas of that stage at zero_stage 3, precision bf16, or a smaller model."
        )
    return (
        "Use zero_stage 3 (replicas then share the states), fewer replicas, one copy in place of "
        "two (`checkpoint.in_memory_every_steps: null`), a machine with more memory, or a smaller "
        "model."
    )
