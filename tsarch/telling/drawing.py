"""All that is drawn with matplotlib: curves and the timeline, as SVG for HTML or as PNG.

The one file that imports it; the report imports this file when it is written, not before. Colours
of text, grid and background become CSS variables in the SVG, so that figures follow the page's
light or dark theme.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from tsarch.telling.timeline import Kind, Timeline

_INK, _GRID, _IDLE, _WAIT, _HATCH = "#1d2432", "#d9dde5", "#eef0f4", "#dfe3ea", "#98a2b2"
_VARIABLES = {_INK: "ink", _GRID: "grid", _IDLE: "idle", _WAIT: "wait", _HATCH: "hatch"}

COLOURS: dict[Kind, str] = {
    "forward": "#4285d6",
    "backward": "#6a51b8",
    "step": "#2c9c6a",
    "link": "#ee9b2d",
    "tied": "#d4497a",
    "wait": _WAIT,
}
_NAMES: dict[Kind, str] = {
    "forward": "forward",
    "backward": "backward",
    "step": "optimizer step",
    "link": "link: send, receive",
    "tied": "tied exchange",
    "wait": "waiting for other ranks",
}
SERIES_COLOURS = ("#4285d6", "#e07b39", "#2c9c6a", "#8a63d2", "#c2417c", "#7d8797")
LINE_STYLES = ("-", "--", ":")

_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9.0,
    "svg.fonttype": "none",
    "svg.hashsalt": "tsarch",
    "text.color": _INK,
    "text.parse_math": False,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "hatch.color": _HATCH,
    "hatch.linewidth": 0.7,
    "legend.frameon": False,
}
_MAX_POINTS = 400
_MIN_SMOOTHED = 40


@dataclass(frozen=True)
class Series:
    """A curve."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]


def line_look(number: int) -> tuple[str, str]:
    """Colour and style (`-`, `--`, `:`) of a figure's curve of that number, from 0 on."""
    turn, place = divmod(number, len(SERIES_COLOURS))
    return SERIES_COLOURS[place], LINE_STYLES[turn % len(LINE_STYLES)]


def curves_svg(
    series: Sequence[Series], label: str, over: str = "step", has_legend: bool = True
) -> str:
    """Curves over steps (or what else `over` names); long ones as a faint line of means with their
    moving average over it."""
    with _style():
        figure = Figure(figsize=(5.4, 3.0), layout="constrained")
        axes = figure.add_subplot()
        for number, one in enumerate(series):
            _draw_series(axes, one, *line_look(number))
        axes.set_xlabel(over)
        axes.set_ylabel(label)
        axes.grid(axis="y")
        axes.tick_params(length=0)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if has_legend:
            axes.legend(ncols=min(len(series), 4), loc="lower left", bbox_to_anchor=(0, 1))
        return _svg(figure)


def timeline_svg(timeline: Timeline) -> str:
    """The timeline for a page."""
    with _style():
        return _svg(_timeline_figure(timeline))


def save_timeline_png(timeline: Timeline, title: str, path: Path) -> None:
    """The timeline as a picture of its own, light; written whole or not at all."""
    aside = path.with_name(path.name + ".tmp")
    with _style():
        figure = _timeline_figure(timeline)
        figure.suptitle(title, x=0.01, ha="left", fontsize=9.5)
        FigureCanvasAgg(figure)
        figure.savefig(aside, format="png", dpi=150, facecolor="white")
    aside.replace(path)


@contextmanager
def _style() -> Iterator[None]:
    """Our settings, whatever the user's matplotlibrc says."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def _draw_series(axes: Axes, series: Series, colour: str, style: str) -> None:
    steps = np.asarray(series.steps, dtype=float)
    values = np.asarray(series.values, dtype=float)
    look: dict[str, Any] = {"color": colour, "linestyle": style, "label": series.name}
    if len(values) < _MIN_SMOOTHED:
        axes.plot(steps, values, marker="o", markersize=2.5, **look)
        return
    axes.plot(*_thinned(steps, values), color=colour, alpha=0.25, linewidth=0.9)
    smooth = _moving_average(values, max(len(values) // 25, 3))
    axes.plot(*_thinned(steps, smooth), linewidth=1.6, **look)


def _thinned(
    steps: NDArray[np.float64], values: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means over equal numbers of points, so that at most `_MAX_POINTS` are left."""
    size = -(-len(values) // _MAX_POINTS)
    starts = np.arange(0, len(values), size)
    counts = np.diff(np.append(starts, len(values)))
    return np.add.reduceat(steps, starts) / counts, np.add.reduceat(values, starts) / counts


def _moving_average(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Mean of the up to `width` values around each."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    first = np.maximum(places - width // 2, 0)
    last = np.minimum(places + width // 2 + 1, len(values))
    return np.asarray((sums[last] - sums[first]) / (last - first))


def _timeline_figure(timeline: Timeline) -> Figure:
    num_lanes = len(timeline.lanes)
    lane_inches = 0.42 if num_lanes <= 8 else 0.26
    figure = Figure(figsize=(11.0, 1.15 + lane_inches * num_lanes), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlim(0, timeline.duration_ms)
    axes.set_ylim(num_lanes - 0.5 + _GAP, -0.5)
    for lane in range(num_lanes):
        y = _y(timeline, lane)
        axes.barh(y, timeline.duration_ms, height=_HEIGHT, color=_IDLE, linewidth=0)
    for kind in COLOURS:
        _draw_blocks(axes, timeline, kind)
    _draw_numbers(axes, timeline)
    axes.set_yticks([_y(timeline, lane) for lane in range(num_lanes)], timeline.lanes)
    axes.set_xlabel("ms")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.legend(
        handles=_legend(), ncols=7, loc="lower left", bbox_to_anchor=(0, 1), handlelength=1.2,
        columnspacing=1.3,
    )  # fmt: skip
    return figure


_HEIGHT = 0.78
_GAP = 0.35
"""Space between teacher and student lanes, in lanes."""


def _y(timeline: Timeline, lane: int) -> float:
    return lane + (_GAP if lane >= timeline.num_teacher_lanes else 0.0)


def _draw_blocks(axes: Axes, timeline: Timeline, kind: Kind) -> None:
    shapes = []
    for block in timeline.blocks:
        if block.kind == kind:
            y = _y(timeline, block.lane)
            low, high = y - _HEIGHT / 2, y + _HEIGHT / 2
            left, right = block.start_ms, block.end_ms
            shapes.append([(left, low), (right, low), (right, high), (left, high)])
    hatch = "////" if kind == "wait" else None
    axes.add_collection(
        PolyCollection(shapes, facecolors=COLOURS[kind], linewidths=0, hatch=hatch), autolim=False
    )


def _draw_numbers(axes: Axes, timeline: Timeline) -> None:
    """Numbers of steps or micro-batches, where they fit: a digit takes about 0.6 % of the width."""
    for block in timeline.blocks:
        width = (block.end_ms - block.start_ms) / timeline.duration_ms
        if block.label and width > 0.006 * (len(block.label) + 1):
            middle_ms = (block.start_ms + block.end_ms) / 2
            y = _y(timeline, block.lane)
            place: dict[str, Any] = {"ha": "center", "va": "center_baseline"}
            text = axes.text(middle_ms, y, block.label, color="#ffffff", size=7.5, **place)
            text.set_in_layout(False)  # measuring thousands of them takes seconds


def _legend() -> list[Patch]:
    kinds = [
        Patch(facecolor=COLOURS[k], label=_NAMES[k], hatch="////" if k == "wait" else None)
        for k in COLOURS
    ]
    return [*kinds, Patch(facecolor=_IDLE, label="idle")]


def _svg(figure: Figure) -> str:
    """The figure as an element of a page: transparent, with the page's font and theme colours."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"font-family: [^;]*; ?", "", text)
    # Its size is the page's business: the viewBox gives the shape.
    text = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", text, count=1)
    # Attributes don't take CSS variables, styles do.
    text = re.sub(r'fill="(#[0-9a-f]{6})"', r'style="fill: \1"', text)
    for colour, name in _VARIABLES.items():
        text = text.replace(colour, f"var(--{name})")
    return text
