"""Plans of teachers of 7 B, 70 B and 405 B on 8 to 1,024 GPUs, without weights, data and GPUs.

Each is the fastest way of the schedule `overlapped` that a search finds, with activation
checkpointing of the teacher, of both stages or of none. Nothing of it was run.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from tsarch.config_loading import parse_config
from tsarch.launch.plan import PlanRequest, plan_ways
from tsarch.planning.capacity import Feeding
from tsarch.planning.plan_search import Option, Planner, search

RESULTS = Path("benchmarks/results")
TEACHERS = {
    "7 B": ("meta-llama/Llama-2-7b-hf", (0, 10, 20, 31)),
    "70 B": ("meta-llama/Llama-3.1-70B", (0, 20, 40, 60, 79)),
    "405 B": ("meta-llama/Llama-3.1-405B", (0, 30, 60, 90, 125)),
}
"""Name → model, and the layers that make the student."""
DEVICES = (8, 64, 256, 1024)
TOKENS = 4096
"""Of a context."""
CONTEXTS_A_DEVICE = 2
CHECKPOINTING = ((), ("teacher",), ("teacher", "student"))
"""Stages that compute activations anew."""
NETWORK = "3200Gbit"
"""Of a node of 8 GPUs with 400 Gbit/s each, as such clusters have it."""


def planner_of(model: str, layers: tuple[int, ...], gpu: str, network: str) -> Planner:
    """Of a run on eight devices."""
    raw = {
        "run": {"name": "large"},
        "task": {"name": "summarization"},
        "data": {
            **dict.fromkeys(("train", "validation", "test"), "-"),
            "batch_tokens": 8 * CONTEXTS_A_DEVICE * TOKENS,
        },
        "teacher": {"model": model, "max_tokens": TOKENS},
        "student": {"layers": list(layers), "max_tokens": 512},
        "precision": "bf16",
        "embedding": {"shard_optimizer": True},
        "schedule": {"max_steps": 1000},
        "topology": {
            "device": "cuda",
            "teacher": {"replicas": 7, "zero_stage": 3},
            "student": {"replicas": 1, "zero_stage": 1},
        },
    }
    return plan_ways(parse_config(raw, "large"), PlanRequest(gpu=gpu, network=network, full=True))


def fastest(planner: Planner, num_devices: int) -> tuple[Option | None, Sequence[str]]:
    """The fastest way on so many devices, and which stages checkpoint activations in it."""
    tokens = num_devices * CONTEXTS_A_DEVICE * TOKENS
    found: list[tuple[Option, Sequence[str]]] = []
    for stages in CHECKPOINTING:
        sections: dict[str, Any] = {own: {"activation_checkpointing": True} for own in stages}
        blueprint = planner.blueprint.altered(data={"batch_tokens": tokens}, **sections)
        own = replace(
            planner,
            blueprint=blueprint,
            work=replace(planner.work, batch_tokens=tokens),
            feeding=Feeding.full(blueprint),
        )
        options = search(own, num_devices)
        found += [(o, stages) for o in options if o.changes[0].endswith("overlapped")]
    return min(found, key=lambda one: one[0].plan.step_s, default=(None, ()))


def row(teacher: str, num_devices: int, option: Option | None, checkpointing: Sequence[str]) -> str:
    """A line of the table."""
    if option is None:
        return f"| {teacher} | {num_devices:,} | does not fit | | | | | |"
    plan = option.plan
    own, student = plan.ranks.values()
    flops = sum(rank.flops * rank.need.replicas for rank in plan.ranks.values())
    gpu_hours = plan.step_s * plan.num_ranks / 3600
    tokens = num_devices * CONTEXTS_A_DEVICE * TOKENS
    share = flops / plan.step_s / (plan.num_ranks * plan.hardware.bf16_flops_s)
    zero = [change.partition("=")[2] for change in option.changes if "zero_stage" in change]
    way = f"{own.need.replicas} + {student.need.replicas}, ZeRO {' and '.join(zero)}"
    way += f", checkpointing: {' and '.join(checkpointing)}" if checkpointing else ""
    return (
        f"| {teacher} | {num_devices:,} | {way} | {own.on_device / 1e9:.0f} GB | "
        f"{plan.step_s:.2f} s | {plan.idle_share:.0%} | {share:.0%} | "
        f"{gpu_hours / tokens * 1e9:,.0f} |"
    )


def main(
    gpu: Annotated[str, typer.Option(help="GPU type.")] = "h100",
    network: Annotated[str, typer.Option(help="Between nodes.")] = NETWORK,
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = RESULTS,
) -> None:
    """Plan all, print the table and write it."""
    lines = [
        f"| teacher | {gpu}s | ranks | a teacher rank | step | idle | of the peak | "
        "GPU hours a billion tokens |",
        "|---|---|---|---|---|---|---|---|",
    ]
    began = time.process_time()
    for teacher, (model, layers) in TEACHERS.items():
        planner = planner_of(model, layers, gpu, network)
        lines += [row(teacher, number, *fastest(planner, number)) for number in DEVICES]
    print(f"{time.process_time() - began:.0f} s of CPU time")
    output.mkdir(parents=True, exist_ok=True)
    (output / "plan-large.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    typer.run(main)
