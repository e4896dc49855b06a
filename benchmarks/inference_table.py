"""The table of the inference benchmark, made of its results and of nothing else."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.inference_plan import SideSpec

Span = tuple[str, int, int]
_GOALS: tuple[tuple[str, str, str, str, float], ...] = (
    ("`student_alone`, rows/s", "student_alone", "pipeline", "rows_per_s", 2.5),
    ("`student_alone` int8, rows/s", "student_alone-int8", "pipeline", "rows_per_s", 6.0),
    ("`student_alone` bf16, rows/s", "student_alone-bf16", "pipeline", "rows_per_s", 6.0),
    ("`student` on kept states, windows/s", "keeping", "reading", "rows_per_s", 2.5),
)
"""What, of whom, against whom, by which number, and the goal."""
_MEMORY_GOALS = (("student_alone", "teacher"), ("student_alone-onnx", "teacher"))


def entity_f1(gold: Sequence[Sequence[Span]], said: Sequence[Sequence[Any]]) -> float:
    """Strict entity F1 (micro)."""
    right = num_said = 0
    for own, found in zip(gold, said, strict=True):
        answers = {tuple(each) for each in found}
        right += len(answers & {tuple(each) for each in own})
        num_said += len(answers)
    return 2 * right / max(num_said + sum(map(len, gold)), 1)


def summarized(
    results: Mapping[str, Sequence[Mapping[str, Any]]], failed: Mapping[str, str]
) -> dict[str, Any]:
    """Medians over the turns of every side."""
    found: dict[str, Any] = {}
    for name, turns in results.items():
        numbers = {
            key: statistics.median(own[key] for own in turns)
            for key, value in turns[0].items()
            if isinstance(value, float | int)
        }
        for key in ("alone_ms", "loaded_ms"):
            times = [ms for own in turns for ms in own[key]]
            numbers[f"{key}_p50"], numbers[f"{key}_p99"] = _percentiles(times)
        found[name] = {**numbers, "turns": len(turns)}
    return {"sides": found, "failed": dict(failed)}


def _percentiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return cuts[49], cuts[98]


def markdown(
    summary: Mapping[str, Any], sides: Sequence[SideSpec], turns: int, threads: int, rows: int
) -> str:
    """The table, the goals, and what there is no side of."""
    lines = [
        f"`make bench-inference`: the quickstart’s run, the {rows} sentences of its test split, "
        f"{threads} threads, medians of {turns} processes of each side in turns. F1: strict, by "
        "entity. All at once: all sentences in one call. ms: one sentence a call, median and 99th "
        "percentile; under load: four threads that ask at the same time. Memory: peak of the "
        "process. Start: from the start of Python to the first answer.",
        "",
        "| side | F1 | rows/s | CPU ms a row | ms, p50 / p99 | under load: rows/s, ms p50 / p99 "
        "| memory | start |",
        "|---|---|---|---|---|---|---|---|",
    ]
    found = summary["sides"]
    lines += [_row(own.shown, found[own.name]) for own in sides if own.name in found]
    lines += ["", *_goals(found), ""]
    lines += [f"- No {name}: {why}." for name, why in summary["failed"].items()]
    return "\n".join(lines).rstrip() + "\n"


def _row(shown: str, own: Mapping[str, float]) -> str:
    return (
        f"| {shown} | {own['f1']:.4f} | {own['rows_per_s']:,.0f} | {own['cpu_ms']:.1f} "
        f"| {own['alone_ms_p50']:.1f} / {own['alone_ms_p99']:.1f} "
        f"| {own['loaded_rows_per_s']:,.0f}, {own['loaded_ms_p50']:.1f} / "
        f"{own['loaded_ms_p99']:.1f} | {own['peak_bytes'] / 1e6:,.0f} MB "
        f"| {own['startup_s']:.1f} s |"
    )


def _goals(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Each goal with what came of it; where a side is missing, that."""
    lines = []
    for what, one, other, number, goal in _GOALS:
        if one not in found or other not in found:
            lines.append(f"- {what}: not available.")
            continue
        ratio = found[one][number] / found[other][number]
        cpu = found[other]["cpu_ms"] / found[one]["cpu_ms"]
        lines.append(f"- {what}: {ratio:.2f} × `{other}` (goal {goal:g}; by CPU time {cpu:.2f}).")
    for one, other in _MEMORY_GOALS:
        if one in found and other in found:
            share = found[one]["peak_bytes"] / found[other]["peak_bytes"]
            lines.append(f"- Memory of `{one}`: {share:.2f} × that of `{other}` (goal 0.5).")
    return lines
