"""How a run computes: precision and attention, as its config says or as this machine measures them.

The choice is one for all ranks, made before they start, and stays on `--resume`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from tsarch.blueprint import Blueprint, Precision, StageBlueprint
from tsarch.models.measures import head_shape
from tsarch.parallel.groups import choose_device
from tsarch.planning.attention_trial import fastest_up_to
from tsarch.planning.capacity import host_memory, rank_needs
from tsarch.planning.measured import remembered
from tsarch.planning.precision_trial import NUM_STEPS, Trial, choose, in_one_process, try_steps
from tsarch.planning.threads import num_threads
from tsarch.prepare import Prepared
from tsarch.topology import Stage

Say = Callable[[str], None]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_TRIED = {"data", "task", "teacher", "student", "distillation", "loss", "embedding", "optimizer"}
_TRIED |= {"schedule", "topology"}
"""Sections that a trial of both precisions depends on."""


def multiplies_bf16() -> bool:
    """Whether this machine's CPU has instructions for it (AVX512-BF16, AMX, SVE's); without, torch
    converts number by number."""
    return any(bool(has) for name, has in torch.cpu.get_capabilities().items() if "bf16" in name)


def possible(blueprint: Blueprint, say: Say) -> Blueprint:
    """The run in fp32, if it asks for bf16 of a CPU that has none."""
    if blueprint.precision != "bf16" or _is_on_gpus(blueprint) or multiplies_bf16():
        return blueprint
    say("note: precision is fp32, since this CPU can't multiply bf16 (AVX512-BF16 or AMX)")
    return blueprint.altered(precision="fp32")


def computing_like(blueprint: Blueprint, other: Blueprint) -> Blueprint:
    """The run with another one's choice of what is open in this one."""
    if blueprint.is_open.precision:
        blueprint = blueprint.altered(precision=other.precision)
    if blueprint.is_open.attention:
        blueprint = blueprint.altered(attention={"products_up_to": other.products_up_to})
    if blueprint.is_open.layers:
        layers = other.stages[Stage.STUDENT].architecture.layers
        blueprint = blueprint.altered(student={"layers": list(layers or ())})
    return blueprint


def settle(blueprint: Blueprint, prepared: Prepared, say: Say) -> Blueprint:
    """The run with what its config leaves open."""
    if blueprint.is_open.precision:
        blueprint = blueprint.altered(precision=_precision(blueprint, prepared, say))
    return _with_attention(blueprint)


def computing_on(blueprint: Blueprint, gpus: bool, say: Say) -> Blueprint:
    """The run as it will compute on GPUs, or on CPUs like this machine's, without training to find
    out: what only a trial of both precisions tells stays fp32."""
    if gpus:
        if blueprint.is_open.precision:
            blueprint = blueprint.altered(precision="bf16")
        return blueprint.altered(attention={"products_up_to": 0})
    if blueprint.is_open.precision:
        say("precision: auto is found out by training some steps; planned as fp32")
        blueprint = blueprint.altered(precision="fp32")
    return _with_attention(possible(blueprint, say))


def _is_on_gpus(blueprint: Blueprint) -> bool:
    return choose_device(blueprint.runner.device).type == "cuda"


def _with_attention(blueprint: Blueprint) -> Blueprint:
    """The run with products wherever they are faster in all of its models."""
    if not blueprint.is_open.attention:
        return blueprint
    found = 0
    if not _is_on_gpus(blueprint):
        found = min(_products_up_to(blueprint, own) for own in blueprint.stages.values())
    return blueprint.altered(attention={"products_up_to": found})


def _products_up_to(blueprint: Blueprint, stage: StageBlueprint) -> int:
    hf, precision = stage.architecture.config, blueprint.precision
    heads, width = head_shape(hf)
    most_tokens = max(own.max_tokens for own in blueprint.stages.values())

    def measure() -> int:
        with num_threads(stage.threads):
            return fastest_up_to(heads, width, _DTYPES[precision], most_tokens)

    about = [heads, width, precision, stage.threads, most_tokens]
    return int(remembered(blueprint.data, "attention", about, measure))


def _precision(blueprint: Blueprint, prepared: Prepared, say: Say) -> Precision:
    if _is_on_gpus(blueprint):
        able = torch.cuda.is_bf16_supported(including_emulation=False)
        say(f"precision: auto: {'bf16' if able else 'fp32'}, as this GPU multiplies it or not")
        return "bf16" if able else "fp32"
    if not multiplies_bf16():
        say("precision: auto: fp32, since this CPU can't multiply bf16 (AVX512-BF16 or AMX)")
        return "fp32"

    alone = in_one_process(blueprint)
    if sum(need.total for need in rank_needs(alone, prepared).values()) > host_memory():
        say("precision: auto: fp32, since this machine has no memory to try both in one process")
        return "fp32"

    def measure() -> dict[str, Any]:
        say(f"precision: auto: trying {NUM_STEPS} steps in fp32 and in bf16")
        trials = {}
        for precision in _DTYPES:
            own = _with_attention(alone.altered(precision=precision))
            trials[precision] = asdict(try_steps(own, prepared))
        return trials

    about = blueprint.config.model_dump(mode="json", include=_TRIED)
    found = remembered(blueprint.data, "precision", about, measure)
    trials = {name: Trial(tuple(own["losses"]), own["step_cpu_s"]) for name, own in found.items()}
    choice = choose(trials["fp32"], trials["bf16"])
    say(f"precision: auto: {choice}")
    return choice.precision
