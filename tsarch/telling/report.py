"""The run's report: `report.html`, one file that needs nothing else, made from the run folder.

Everything comes from the folder's own files, and each file is written whole or not at all, so a
run that ends early has its metrics and no report.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from tsarch.blueprint import Blueprint, resolve
from tsarch.config_changes import changed_keys, shown
from tsarch.config_loading import load_config
from tsarch.tasks.registry import table_metrics
from tsarch.telling.drawing import Series, curves_svg, save_timeline_png, timeline_svg
from tsarch.telling.error_tables import (
    SHOWN_AT_ONCE,
    agreement_matrix,
    differences,
    heat_map,
    label_table,
)
from tsarch.telling.pages import environment
from tsarch.telling.predictions import Errors, read_errors
from tsarch.telling.profile_table import rank_table, read_profiles
from tsarch.telling.run_folder import write_atomically
from tsarch.telling.run_rows import evaluation_rows, step_rows
from tsarch.telling.seats import by_node, read_seats
from tsarch.telling.step_table import show_metric
from tsarch.telling.timeline import MAX_LANES, Timeline, make_timeline
from tsarch.telling.trace import read_middle

_TRACE_BYTES = 8_000_000
"""How much of a trace the timeline is chosen from: its middle."""

Summary = Mapping[str, Any]


@dataclass(frozen=True)
class ModeRow:
    """A row of the table of metrics."""

    mode: str
    cells: tuple[tuple[float | None, float, float | None], ...]
    """(before, after, difference) of each metric; None: not measured before."""


def write_report(folder: Path) -> Path:
    """Write `report.html` (and `timeline.png`, if the run was traced); returns the report's path.

    `folder` is that of a finished run: `config.yaml`, `summary.json`, `metrics.jsonl`,
    `evaluations.jsonl` and perhaps `errors.json` and `trace.json`.
    """
    config = load_config(folder / "config.yaml")
    blueprint = resolve(config)
    summary: Summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    timeline = _timeline(folder / "trace.json", blueprint)
    if timeline is not None:
        title = f"{blueprint.run.name}: {_stretch_name(timeline)}, {summary['schedule']}"
        save_timeline_png(timeline, title, folder / "timeline.png")
    measured = next(iter(summary["after"].values()))
    metric_names = tuple(name for name in table_metrics(summary["task"]) if name in measured)
    best, best_value = best_mode(summary)
    page = environment().get_template("report.html.jinja").render(
        name=blueprint.run.name,
        blueprint=blueprint,
        summary=summary,
        stages=[stage.name for stage in blueprint.stages],
        hosts=by_node(read_seats(folder / "logs")),
        verdict=verdict(summary),
        best_mode=best,
        best_value=best_value,
        lower_is_better=summary["lower_is_better"],
        samples=summary["samples"],
        metric_names=metric_names,
        mode_rows=mode_rows(summary, metric_names),
        models={
            s.name: model_name(summary[s.name]["model"], blueprint.run.start_from is not None)
            for s in blueprint.stages
        },
        curves=_curves(folder, summary),
        changes={key: tuple(map(shown, own)) for key, own in changed_keys(config).items()},
        profiles=[rank_table(own) for own in read_profiles(folder)],
        timeline=timeline,
        timeline_picture=None if timeline is None else Markup(timeline_svg(timeline)),
        stretch="" if timeline is None else _stretch_name(timeline),
        max_lanes=MAX_LANES,
        **_error_tables(read_errors(folder)),
    )  # fmt: skip
    path = folder / "report.html"
    write_atomically(path, page)
    return path


def verdict(summary: Summary) -> str:
    """The run in one line."""
    name = summary["main_metric"]
    best, value = best_mode(summary)
    text = f"{best} reached a test {name} of {show_metric(value)}"
    if summary["before"] is not None:
        text += f" ({show_metric(summary['before'][best][name])} before training)"
    busy = (1.0 - summary["bubble_fraction"]) * 100
    speed = f"{summary['tokens_per_s']:,.0f} tokens/s"
    return f"{text}, at {speed} with ranks busy {busy:.0f}\u00a0% of the time."


def best_mode(summary: Summary) -> tuple[str, float]:
    """The mode with the best main metric after training, and its value."""
    after = {mode: values[summary["main_metric"]] for mode, values in summary["after"].items()}
    pick = min if summary["lower_is_better"] else max
    return pick(after.items(), key=lambda item: item[1])


def mode_rows(summary: Summary, metric_names: Sequence[str]) -> list[ModeRow]:
    """Metrics of every mode on the test split."""
    rows = []
    for mode in summary["after"]:
        cells = []
        for name in metric_names:
            after = summary["after"][mode][name]
            before = None if summary["before"] is None else summary["before"][mode][name]
            cells.append((before, after, None if before is None else after - before))
        rows.append(ModeRow(mode, tuple(cells)))
    return rows


def model_name(model: Any, is_started: bool = False) -> str:
    """A model as the summary has it: a name, a config with random weights, or layers; `is_started`:
    it has the weights of another run (`run.start_from`)."""
    if isinstance(model, str):
        return model
    if "layers_of_teacher" in model:
        return f"layers {', '.join(map(str, model['layers_of_teacher']))} of the teacher"
    sizes = [
        f"{model[key]} {word}"
        for key, word in (("num_hidden_layers", "layers"), ("hidden_size", "wide"))
        if key in model
    ]
    origin = "another run's" if is_started else "random"
    return f"{origin} {model.get('model_type', 'model')}" + (
        f" ({', '.join(sizes)})" if sizes else ""
    )


def _error_tables(errors: Errors | None) -> dict[str, Any]:
    """What the template shows of mistakes; `errors` None: nothing is known of them."""
    if errors is None:
        return {"errors": None}
    kinds = dict.fromkeys(kind for own in errors["kinds"].values() for kind in own)
    counts = errors["counts"].items()
    table = label_table(errors["scores"])
    return {
        "errors": errors,
        "kinds": list(kinds),
        "are_texts": table.name == "texts",
        "score_name": table.columns[0].removeprefix("mean ") if table.columns else "",
        "graded": table.name != "label",
        "heat_maps": {mode: heat_map(own) for mode, own in counts if own is not None},
        "labels": table,
        "matrix": agreement_matrix(errors),
        "differing": differences(errors),
        "shown_at_once": SHOWN_AT_ONCE,
    }


def _timeline(trace: Path, blueprint: Blueprint) -> Timeline | None:
    if not blueprint.run.trace:
        return None
    events, partial = read_middle(trace, _TRACE_BYTES)
    return make_timeline(events, blueprint.topology, blueprint.schedule.name == "joint", partial)


def _stretch_name(timeline: Timeline) -> str:
    first, last = timeline.steps
    return f"step {first}" if first == last else f"steps {first} to {last}"


def _curves(folder: Path, summary: Summary) -> dict[str, Markup]:
    """Title → figure."""
    rows, evaluations = step_rows(folder), evaluation_rows(folder)
    metric = summary["main_metric"]
    validation = [
        Series(
            mode,
            [e["step"] for e in evaluations if e["split"] == "validation"],
            [e["metrics"][mode][metric] for e in evaluations if e["split"] == "validation"],
        )
        for mode in summary["after"]
    ]
    return {
        "Losses in training": Markup(curves_svg(_losses(rows), "loss")),
        "Validation": Markup(curves_svg(validation, metric)),
        "Throughput": Markup(curves_svg([_series(rows, "tokens_per_s")], "tokens/s")),
    }


def _losses(rows: Sequence[Mapping[str, Any]]) -> list[Series]:
    """Every loss term that the rows have, in the order in which they come."""
    names = dict.fromkeys(n for row in rows for n in row if n.startswith("loss_"))
    return [_series(rows, name) for name in names]


def _series(rows: Sequence[Mapping[str, Any]], name: str) -> Series:
    """A number of the rows that have it."""
    own = [row for row in rows if row.get(name) is not None]
    shown_name = name.removeprefix("loss_")
    return Series(shown_name, [row["step"] for row in own], [row[name] for row in own])
