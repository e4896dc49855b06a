"""A comparison of runs as one page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from tsarch.telling.compared_runs import ComparedRun
from tsarch.telling.comparison import Comparison, Curve, step_curves, validation_curves
from tsarch.telling.drawing import Series, curves_svg, line_look
from tsarch.telling.pages import environment
from tsarch.telling.run_folder import write_atomically

_BORDERS = {"-": "solid", "--": "dashed", ":": "dotted"}
"""Style of a line → the same in CSS."""


@dataclass(frozen=True)
class Look:
    """How a run's curves are drawn."""

    run: str
    colour: str
    border: str
    """The style, as CSS names it."""


def write_comparison(path: Path, found: Comparison, runs: Sequence[ComparedRun]) -> None:
    """Write the page.

    Raises:
        OSError: it can't be written.
    """
    looks = {run.label: line_look(number) for number, run in enumerate(runs)}
    page = environment().get_template("compare.html.jinja").render(
        found=found,
        looks=[Look(run, colour, _BORDERS[style]) for run, (colour, style) in looks.items()],
        curves=_figures(runs),
    )  # fmt: skip
    write_atomically(path, page)


def _figures(runs: Sequence[ComparedRun]) -> dict[str, Markup]:
    """Title → figure."""
    figures = {}
    for over_time, over in ((False, "step"), (True, "seconds of training")):
        for (mode, metric), curves in validation_curves(runs, over_time).items():
            figures[f"Validation of {mode}, {metric}, by {over}"] = _figure(
                runs, curves, metric, over
            )
    for name, curves in step_curves(runs).items():
        label = name.removeprefix("loss_")
        title = "Tokens a second" if name == "tokens_per_s" else f"Loss: {label}"
        figures[title] = _figure(runs, curves, label)
    return figures


def _figure(
    runs: Sequence[ComparedRun], curves: Sequence[Curve], label: str, over: str = "step"
) -> Markup:
    """All runs in their order, so that each has the same look in all figures."""
    by_run: Mapping[str, Curve] = {curve.run: curve for curve in curves}
    none = Curve("", (), ())
    own = (by_run.get(run.label, none) for run in runs)
    series = [Series(curve.run, curve.places, curve.values) for curve in own]
    return Markup(curves_svg(series, label, over, has_legend=False))
