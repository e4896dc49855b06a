"""Bytes of weights, gradients and optimizer state on each rank against the formula.

Ranks of one stage, at ZeRO 0 to 3 with 1 to 3 replicas in fp32 and bf16, train two micro-batches
of random embeddings on the CPU; the storages behind parameters, gradients and optimizer state are
then counted, each once. Padding, small parameters that ZeRO 3 keeps whole, and gradients that
ZeRO 1 drops early are counted on their own, since they are what the formula does not know.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from tsarch.blueprint import Blueprint, resolve
from tsarch.config_loading import parse_config
from tsarch.parallel.groups import Address, MeetingPoint, set_stage_environment, use_interface_of
from tsarch.planning.memory import Precision, StageSize, States, zero_states
from tsarch.specs import OptimizerSpec
from tsarch.stage.build import build_model
from tsarch.stage.deepspeed_engine import DeepSpeedEngine, start_stage_world
from tsarch.topology import Stage

RESULTS = Path("benchmarks/results")
HOST = "127.0.0.1"
MICRO_BATCHES = 2
TIMEOUT_S = 240.0
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Held:
    """What one rank holds in one case, in bytes."""

    rank: int
    weights: int
    optimizer: int
    gradients_between_micro_batches: int
    gradients_at_the_step: int
    weights_kept_whole: int
    """Part of `weights`: parameters that ZeRO 3 gathers and keeps (`param_persistence_threshold`),
    beside their shard."""

    @property
    def gradients(self) -> int:
        """The most that is held at either of the two moments."""
        return max(self.gradients_between_micro_batches, self.gradients_at_the_step)

    @property
    def total(self) -> int:
        """All three."""
        return self.weights + self.gradients + self.optimizer


@dataclass(frozen=True)
class Case:
    """A precision, a ZeRO stage and a number of replicas, with what the ranks hold."""

    precision: Precision
    zero_stage: int
    replicas: int
    parameters: int
    formula: States
    ranks: tuple[Held, ...]

    @property
    def largest(self) -> Held:
        """The rank that holds most."""
        return max(self.ranks, key=lambda held: held.total)


def model_blueprint() -> Blueprint:
    """A teacher of 4 M parameters whose matrices are large enough for ZeRO 3 to shard them."""
    config = parse_config(
        {
            "data": {"train": "-", "validation": "-", "test": "-"},
            "teacher": {
                "config": {
                    "model_type": "bert",
                    "vocab_size": 100,
                    "hidden_size": 384,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 6,
                    "intermediate_size": 1536,
                }
            },
            "student": {"layers": [0]},
        },
        "memory",
    )
    return resolve(config)


def storage_bytes(tensors: Iterable[Tensor | None]) -> int:
    """Bytes of the storages behind tensors, each storage once."""
    storages = [t.untyped_storage() for t in tensors if t is not None and t.device == _CPU]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


def gradients(engine: DeepSpeedEngine) -> Iterator[Tensor | None]:
    """Where DeepSpeed 0.19.8 holds gradients: at the parameters, as lists of this rank's slices
    (ZeRO 1 and 2: `all_grad_tensors` between micro-batches, `averaged_gradients` at the step), or
    in one buffer (ZeRO 3)."""
    optimizer = engine._engine.optimizer
    yield from (p.grad for p in engine.module.parameters())
    yield getattr(optimizer, "grad_partitions_flat_buffer", None)
    for name in ("all_grad_tensors", "averaged_gradients"):
        for slices in getattr(optimizer, name, {}).values():
            yield from slices or ()


def optimizer_tensors(engine: DeepSpeedEngine) -> Iterator[Tensor]:
    """The state of torch's optimizer, and the fp32 copy that it steps in place of the weights."""
    outer = engine._engine.optimizer
    own = {id(p) for p in engine.module.parameters()}
    for parameter, state in getattr(outer, "optimizer", outer).state.items():
        if id(parameter) not in own:
            yield parameter.detach()
        yield from (v for v in state.values() if isinstance(v, Tensor) and v.ndim > 0)


def hold(module: nn.Module, spec: OptimizerSpec, case: StageSize, rank: int) -> Held:
    """Train two steps and count. Every rank of the stage calls it."""
    engine = DeepSpeedEngine(
        module, spec, case.precision, case.zero_stage, case.replicas, MICRO_BATCHES, _CPU
    )
    engine.train(True)
    embeds = torch.randn(2, 16, 384, dtype=engine.compute_dtype)
    mask = torch.ones(2, 16, dtype=torch.int64)
    held: list[int] = []
    for _ in range(2):
        for micro_batch in range(MICRO_BATCHES):
            hidden, logits = engine.forward(embeds, mask)
            loss = hidden.float().pow(2).mean() + logits.float().pow(2).mean()
            engine.backward(loss, last=micro_batch == MICRO_BATCHES - 1)
            held.append(storage_bytes(gradients(engine)))
        engine.step(1.0)
    parameters = list(module.parameters())
    shards = [getattr(p, "ds_tensor", None) for p in parameters]
    whole = storage_bytes(p.detach() for p in parameters) if case.zero_stage == 3 else 0
    return Held(
        rank,
        storage_bytes([*(p.detach() for p in parameters), *shards]),
        storage_bytes(optimizer_tensors(engine)),
        held[-MICRO_BATCHES],
        held[-1],
        whole,
    )


def _run(rank: int, replicas: int, address: Address, results: Any) -> None:
    """All cases of one number of replicas, on one rank."""
    torch.set_num_threads(1)
    use_interface_of(HOST)
    set_stage_environment(address, rank, replicas)
    start_stage_world(_CPU, TIMEOUT_S)
    blueprint = model_blueprint()
    spec = blueprint.stages[Stage.TEACHER].optimizer
    for precision in ("fp32", "bf16"):
        for zero_stage in range(4):
            module = build_model(blueprint, Stage.TEACHER, num_outputs=9).module
            count = sum(p.numel() for p in module.parameters())
            size = StageSize(count, count, replicas, zero_stage, precision, num_moments=2)
            results.put((size, hold(module, spec, size, rank)))
    results.close()
    results.join_thread()


def measure(replicas: int) -> list[Case]:
    """All cases of one number of replicas; ends only the processes that it started."""
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    meeting_point = MeetingPoint(HOST)
    processes = [
        context.Process(target=_run, args=(rank, replicas, meeting_point.address, results))
        for rank in range(replicas)
    ]
    for process in processes:
        process.start()
    held: dict[StageSize, list[Held]] = {}
    try:
        for _ in range(8 * replicas):
            size, own = results.get(timeout=TIMEOUT_S)
            held.setdefault(size, []).append(own)
        for process in processes:
            process.join(30)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
    return [
        Case(
            size.precision,
            size.zero_stage,
            size.replicas,
            size.parameters,
            zero_states(size),
            tuple(sorted(own, key=lambda h: h.rank)),
        )
        for size, own in held.items()
    ]


def markdown(cases: list[Case]) -> str:
    """A row per case: bytes per parameter of the rank that holds most, and the ratio."""
    lines = [
        "Bytes per parameter on the rank that holds most, measured / formula:",
        "",
        "| precision | ZeRO | replicas | weights | gradients | optimizer state | all | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        held, formula = case.largest, case.formula
        pairs = [
            (held.weights, formula.weights),
            (held.gradients, formula.gradients),
            (held.optimizer, formula.optimizer),
            (held.total, formula.total),
        ]
        cells = [f"{a / case.parameters:.3f} / {b / case.parameters:.3f}" for a, b in pairs]
        head = f"| {case.precision} | {case.zero_stage} | {case.replicas} | "
        lines.append(f"{head}{' | '.join(cells)} | {held.total / formula.total:.3f} |")
    return "\n".join([*lines, "", *_remarks(cases)]) + "\n"


def _remarks(cases: list[Case]) -> Iterator[str]:
    """What the formula leaves out, in numbers."""
    whole = max(c.largest.weights_kept_whole / c.largest.weights for c in cases)
    early = [c for c in cases if c.zero_stage == 1 and c.replicas > 1]
    shares = [
        c.largest.gradients_at_the_step / c.largest.gradients_between_micro_batches for c in early
    ]
    yield f"- {cases[0].parameters:,} parameters, AdamW, {MICRO_BATCHES} micro-batches a step, CPU."
    yield (
        "- Gradients are those between micro-batches or at the step, whichever is more. At the "
        "step ZeRO 1 holds only this rank's slice: "
        f"{min(shares):.0%} to {max(shares):.0%} of what it held before."
    )
    split = max(c.largest.gradients / c.formula.gradients for c in cases if c.zero_stage == 2)
    yield (
        "- ZeRO 2 holds this rank's gradients, but that of a parameter split between ranks "
        f"whole on each of them: at most {split:.2f} times an even share."
    )
    yield (
        "- ZeRO 3 keeps parameters below `param_persistence_threshold` whole beside their shards: "
        f"at most {whole:.1%} of a rank's weights here."
    )
    yield (
        "- In fp32, ZeRO 1 to 3 step a copy of this rank's slice of the weights, which the paper "
        "does not count; the formula here does (4 bytes × parameters / replicas)."
    )
    yield (
        "- Not counted: DeepSpeed's communication buckets (`reduce_bucket_size`, 5 × 10⁸ values by "
        "default), which ZeRO 3 reserves at the start and CPUs only map when written."
    )


def main(
    replicas: Annotated[list[int], typer.Option(help="Numbers of replicas.")] = [1, 2, 3],  # noqa: B006 - typer reads the default, nobody changes it
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = RESULTS,
) -> None:
    """Measure, print the table, and write JSON and Markdown."""
    cases = sorted(
        (case for count in replicas for case in measure(count)),
        key=lambda c: (c.precision != "fp32", c.zero_stage, c.replicas),
    )
    output.mkdir(parents=True, exist_ok=True)
    text = json.dumps([asdict(case) for case in cases], indent=2)
    (output / "memory.json").write_text(text + "\n")
    (output / "memory.md").write_text(markdown(cases))
    print(markdown(cases))


if __name__ == "__main__":
    typer.run(main)
