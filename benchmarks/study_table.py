"""The study's summary, Markdown and plot, made of its results and of nothing else."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel

from benchmarks.study_cost import SERVED, InferenceCost
from benchmarks.study_plan import (
    METHODS,
    OWN_MODE,
    Method,
    Results,
    chosen_runs,
    tried_runs,
)
from tsarch.config import MEAN_MODES, MODES, Mode
from tsarch.tasks.registry import table_metrics


class Spread(BaseModel):
    """A figure over seeds."""

    mean: float
    least: float
    most: float
    values: list[float]
    """In the order of the line's seeds."""

    def text(self) -> str:
        """`.6543 (.6501–.6602)`."""
        return f"{short(self.mean)} ({short(self.least)}–{short(self.most)})"


class Line(BaseModel):
    """One way to predict."""

    method: Method
    mode: Mode
    rates: tuple[float, ...]
    """Of the teacher, of the student."""
    seeds: list[int]
    metrics: dict[str, Spread]
    """On the test split, by metric."""
    validation: Spread
    """Main metric."""
    parameters: int
    """Of what answers, table included."""
    train_s: Spread
    """CPU seconds on one thread, with the teacher's of the same seed where one is needed first."""

    @property
    def name(self) -> str:
        """What the table and the plot call it."""
        if self.method == "ours":
            return f"ours: `{self.mode}`"
        return _NAMES[self.method]

    def by_seed(self, metric: str) -> dict[int, float]:
        """Seed → a metric on test."""
        return dict(zip(self.seeds, self.metrics[metric].values, strict=True))


_NAMES: Mapping[Method, str] = {
    "teacher": "teacher alone",
    "small": "small model alone",
    "distilled": "small model, distilled",
    "ours": "ours",
}


class TaskSummary(BaseModel):
    """All of one task."""

    main_metric: str
    steps: int
    lines: list[Line]
    tried: dict[str, dict[str, float]]
    """Method → its student's learning rate, or else its teacher's → score with the first seed."""
    cost: InferenceCost


def short(value: float) -> str:
    """A fraction with four digits, without the zero before the point."""
    return f"{value:.4f}".removeprefix("0")


def spread(values: Sequence[float]) -> Spread:
    """Mean, extremes and all."""
    return Spread(
        mean=statistics.mean(values), least=min(values), most=max(values), values=list(values)
    )


def summarise(
    results: Results, task: str, parameters: Mapping[str, int], cost: InferenceCost
) -> TaskSummary:
    """The lines of a task from its finished runs.

    Args:
        parameters: of `teacher` and `student_alone`, table included; `ours` has more: the bridge.
    """
    lines = []
    for method in METHODS:
        runs = chosen_runs(results, task, method)
        if not runs:
            continue
        teachers = {run.key.seed: run.train_s for run in chosen_runs(results, task, "teacher")}
        before = teachers if method == "distilled" else {}
        modes = MODES if method == "ours" else (OWN_MODE[method],)
        for mode in modes:
            metrics = {
                name: spread([run.test[mode][name] for run in runs]) for name in runs[0].test[mode]
            }
            lines.append(
                Line(
                    method=method,
                    mode=mode,
                    rates=runs[0].key.rates,
                    seeds=[run.key.seed for run in runs],
                    metrics=metrics,
                    validation=spread([run.validation[mode][run.main_metric] for run in runs]),
                    parameters=parameters.get(mode, runs[0].parameters),
                    train_s=spread([run.train_s + before.get(run.key.seed, 0.0) for run in runs]),
                )
            )
    tried = {
        _NAMES[method]: {f"{r.key.rates[-1]:g}": r.score for r in tried_runs(results, task, method)}
        for method in METHODS
    }
    first = chosen_runs(results, task, "teacher")[0]
    return TaskSummary(
        main_metric=first.main_metric,
        steps=first.steps,
        lines=lines,
        tried=tried,
        cost=cost,
    )


def line_of(summary: TaskSummary, method: Method, mode: Mode) -> Line:
    """The line of a method's mode."""
    return next(line for line in summary.lines if (line.method, line.mode) == (method, mode))


def gap_recovered(summary: TaskSummary, metric: str) -> float | None:
    """Share of the gap between the small model alone and the teacher alone that the fed student
    recovers, by the means of a metric on test; None where the teacher isn't better."""
    low, high, fed = (line_of(summary, method, mode).metrics[metric].mean for method, mode in _GAP)
    return (fed - low) / (high - low) if high > low else None


_GAP: tuple[tuple[Method, Mode], ...] = (
    ("small", "student_alone"),
    ("teacher", "teacher"),
    ("ours", "student"),
)


def differences(summary: TaskSummary, metric: str) -> dict[str, list[float]]:
    """What is compared → differences of a metric on test, by seed that both have: training data,
    its order and what is drawn at the start are the same there."""
    found = {}
    for mode, method, other_mode in _COMPARED:
        ours, other = line_of(summary, "ours", mode), line_of(summary, method, other_mode)
        theirs = other.by_seed(metric)
        found[f"{ours.name} − {other.name}"] = [
            value - theirs[seed] for seed, value in ours.by_seed(metric).items() if seed in theirs
        ]
    return found


_COMPARED: tuple[tuple[Mode, Method, Mode], ...] = (
    ("student", "teacher", "teacher"),
    ("joint", "teacher", "teacher"),
    ("student_alone", "small", "student_alone"),
    ("student_alone", "distilled", "student_alone"),
)


def markdown(summaries: Mapping[str, TaskSummary]) -> str:
    """The tables of all tasks."""
    return "\n".join(
        text for name, summary in summaries.items() for text in _section(name, summary)
    )


def _section(name: str, summary: TaskSummary) -> list[str]:
    metrics = [own for own in table_metrics(name) if own in summary.lines[0].metrics]
    shares = {metric: gap_recovered(summary, metric) for metric in metrics}
    recovered = ", ".join(
        f"{metric} – (the teacher isn't better)" if share is None else f"{metric} {share:.0%}"
        for metric, share in shares.items()
    )
    compared = {metric: differences(summary, metric) for metric in metrics}
    pairs = [
        [name, *(_points(compared[metric][name]) for metric in metrics)]
        for name in compared[metrics[0]]
    ]
    tried = "; ".join(
        f"{method} " + ", ".join(f"{rate}: {short(score)}" for rate, score in rates.items())
        for method, rates in summary.tried.items()
    )
    return [
        f"## {name}",
        "",
        *_lines(summary, metrics),
        "",
        f"Test split, mean (least–most) over seeds, {summary.steps} steps. Of the gap between the "
        f"small model alone and the teacher alone the fed student recovers: {recovered}.",
        "",
        "Points between lines with the same seed, seed by seed, and their mean:",
        "",
        *_table(["", *metrics], pairs),
        "",
        "Learning rates tried (of the student where there is one), "
        f"{summary.main_metric} on validation (ours: mean of {' and '.join(MEAN_MODES)}): {tried}.",
        "",
        *_costs(summary.cost),
        "",
    ]


def _lines(summary: TaskSummary, metrics: Sequence[str]) -> list[str]:
    """The table of all methods."""
    head = ["", *metrics, "parameters", "training, CPU s", "seeds", "rates"]
    rows = [
        [
            line.name,
            *(line.metrics[metric].text() for metric in metrics),
            f"{line.parameters / 1e6:.1f} M",
            f"{line.train_s.mean:,.0f}",
            str(len(line.seeds)),
            ", ".join(f"{rate:g}" for rate in line.rates),
        ]
        for line in summary.lines
    ]
    return _table(head, rows)


def _costs(cost: InferenceCost) -> list[str]:
    """What answering costs: a window, and a document."""
    reading_ms = cost.teacher_context_ms
    served = [
        [
            "fed student: context read once, kept",
            *(f"{cost.fed_ms(count):.1f}" for count in SERVED),
        ],
        ["teacher reads the context again", *(f"{reading_ms:.1f}" for _ in SERVED)],
        ["teacher, all windows in one reading", *(f"{reading_ms / n:.1f}" for n in SERVED)],
        ["student alone", *(f"{cost.alone_window_ms:.1f}" for _ in SERVED)],
    ]
    named = {
        "teacher": "teacher",
        "teacher and fed student": "student",
        "student alone": "student_alone",
    }
    document = ", ".join(f"{label} {cost.document_ms(mode):.0f}" for label, mode in named.items())
    return [
        "CPU ms a window (one thread, one window a call; "
        f"{cost.window_tokens:.0f} tokens in contexts of {cost.context_tokens:.0f}), where one "
        "context serves so many windows:",
        "",
        *_table(["windows of a context", *(str(count) for count in SERVED)], served),
        "",
        f"CPU ms a document ({cost.windows_per_document:.1f} windows in "
        f"{cost.contexts_per_document:.1f} contexts): {document}.",
    ]


def _points(values: Sequence[float]) -> str:
    """`+1.2, −0.4: +0.4`."""
    each = ", ".join(f"{100 * value:+.1f}" for value in values)
    return f"{each}: {100 * statistics.mean(values):+.1f}".replace("-", "−")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def plot(summaries: Mapping[str, TaskSummary], file: Path) -> None:
    """Quality of every way to predict, a panel a task: the mean, and a line from least to most."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(summaries), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(summaries), squeeze=False)[0]
    for axes, (name, summary) in zip(panels, summaries.items(), strict=True):
        lines = list(reversed(summary.lines))
        found = [line.metrics[summary.main_metric] for line in lines]
        colours = ["#4285d6" if line.method == "ours" else "#7d8797" for line in lines]
        places = range(len(lines))
        axes.hlines(places, [f.least for f in found], [f.most for f in found], colours, linewidth=2)
        axes.scatter([f.mean for f in found], places, c=colours, zorder=3)
        axes.set_yticks(places, [line.name.replace("`", "") for line in lines])
        axes.set_title(name)
        axes.set_xlabel(f"{summary.main_metric}, test")
        axes.grid(axis="x", color="#d9dde5")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=130)
