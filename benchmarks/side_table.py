"""The Markdown table of the speed benchmark, made of its summary and of nothing else."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.bench_job import JOINT_MICRO_BATCHES
from benchmarks.sides import CORES, pipeline_figures

Summary = Mapping[str, Mapping[str, Any]]

NAMES = {
    "overlapped": "**`overlapped`**, two ranks",
    "joint": f"**`joint`**, two ranks, {JOINT_MICRO_BATCHES} micro-batches",
    "sequential": "**`sequential`**, two ranks",
    "local": "**`local`** (`sequential` in one process)",
    "pipeline": "DeepSpeed `PipelineModule`, `TiedLayerSpec`, ZeRO 1, two ranks "
    f"(the job of `joint`, {JOINT_MICRO_BATCHES} micro-batches)",
    "accelerate": "`accelerate` + DeepSpeed ZeRO 2, both models on each of two ranks",
    "trainer": "`Trainer`: the teacher, then the student (not fed by it), one process",
    "article": "the article's loop, one process",
}
_FACTORS = {
    "cores": "cores at work",
    "work": "positions a core-second",
    "padding": "tokens a position",
}
_BF16 = (
    " Peers in their own best way: DeepSpeed's bf16 engine or torch's autocast, and transformers' "
    "`eager` attention, which is faster here than its `sdpa`."
)
_NOTABLE = 0.03
"""Ratios nearer to 1 than this are left out of the last column: noise."""


def markdown(
    summary: Summary,
    repeats: int,
    steps: int,
    precision: str,
    peaks: Sequence[float],
    flops_per_token: float,
) -> str:
    """The table of a precision, and below it how near the schedules come to their bounds.

    `peaks`: operations a second of plain matrix products, turn by turn.
    """
    lines = [
        f"Medians of {repeats} turns of {steps} optimizer steps, {precision}, {CORES} threads in "
        "all. "
        "Tokens are real ones; one that both models read counts once. tokens/s = cores at work × "
        "positions a core-second × tokens a position: the last column has the ratio of each, in "
        "the same turn, to `overlapped`. Peak: share of what the machine can do in nothing but "
        f"matrix products ({statistics.median(peaks) / 1e9:,.0f} GFLOP/s, measured before each "
        f"turn), of which a token needs {flops_per_token / 1e9:.3f} GFLOP."
        + (_BF16 if precision == "bf16" else ""),
        "",
        "| side | tokens/s | × `overlapped` | peak | step | tokens a step | idle | padding "
        "| busy T / S | what makes the difference |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_row(side, values) for side, values in summary.items()]
    figures = pipeline_figures(summary, JOINT_MICRO_BATCHES)
    if figures:
        lines += ["", *_figures(figures)]
    return "\n".join(lines) + "\n"


def _row(side: str, values: Mapping[str, Any]) -> str:
    name = NAMES[side]
    if "error" in values:
        last_line = values["error"].strip().splitlines()[-1]
        return f"| {name} | failed | – | – | – | – | – | – | – | {last_line.replace('|', '/')} |"
    share = values["busy_share"]
    busy = " / ".join(f"{own:.0%}" for own in share.values()) if share else "–"
    ratio = values.get("speed_ratio")
    return (
        f"| {name} | {values['tokens_per_s']:,.0f} "
        f"| {'–' if ratio is None else format(ratio, '.2f')} | {values['peak_share']:.0%} "
        f"| {values['step_s']:.2f} s "
        f"| {values['tokens_per_step']:,.0f} | {values['idle_share']:.0%} "
        f"| {values['padded_share']:.0%} | {busy} | {reasons(values)} |"
    )


def reasons(values: Mapping[str, Any]) -> str:
    """The measured ratios to the reference that make a side slower or faster, largest first."""
    factors = values.get("factors", {})
    notable = [(abs(f - 1.0), name, f) for name, f in factors.items() if abs(f - 1.0) >= _NOTABLE]
    texts = [f"{f:.2f} × {_FACTORS[name]}" for _, name, f in sorted(notable, reverse=True)]
    return "; ".join(texts) or "–"


def _figures(figures: Mapping[str, float]) -> list[str]:
    f = figures
    return [
        f"- The stages alone, on the same batches (busy seconds of `sequential`, in which only one "
        f"works at a time): teacher {f['teacher_own_s']:.2f} s, student {f['student_own_s']:.2f} s "
        f"a step; balanced within {f['balance'] - 1:.0%}.",
        f"- `overlapped` / `sequential`: {f['overlapped_over_sequential']:.2f}; the stages' own "
        f"times allow {f['bound']:.2f}.",
        f"- Wall time of a step of `overlapped` / the slower stage's own time: "
        f"{f['overlapped_step_over_slower_stage']:.2f}.",
        f"- Idle share of `joint`: {f['joint_idle_share']:.1%}, "
        f"{f['joint_idle_over_ideal']:.2f} × (p−1)/(m+p−1) = {f['joint_ideal_idle_share']:.1%}.",
        "- Idle: share of the two cores' time in which a rank waits (busy seconds of tsarch's "
        "ranks, CPU seconds of others'; a process of two threads counts as never idle).",
    ]
