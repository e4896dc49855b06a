"""What the pages that tsarch writes have in common: templates, their filters, numbers as texts."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined

from tsarch.telling.predictions import file_name
from tsarch.telling.seats import cell
from tsarch.telling.step_table import show_metric


def environment() -> Environment:
    """Autoescape: whatever stands in a config or a label is shown and never run."""
    made = Environment(
        loader=PackageLoader("tsarch.telling", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["metric"] = show_metric
    made.filters["shortened"] = shortened
    made.filters["file_name"] = file_name
    made.filters["seats"] = cell
    made.filters["bytes"] = show_bytes
    made.filters["seconds"] = show_seconds
    made.filters["count"] = show_count
    return made


def shortened(text: str, length: int = 300) -> str:
    """Its start, if it is longer."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def show_bytes(value: float) -> str:
    """`1.4 MB`, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} TB"


def show_seconds(value: float) -> str:
    """`42 ms`, `3.1 s`, `12 min 5 s` or `3 h 20 min`."""
    if value < 1:
        return f"{value * 1000:.3g} ms"
    if value < 120:
        return f"{value:.3g} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 120:
        return f"{minutes} min {seconds} s"
    return f"{minutes // 60} h {minutes % 60} min"


def show_count(value: float) -> str:
    """`334.1 M`, `28.9 k` or `97`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:,.1f} {unit}"
    return f"{value:,.0f}"
