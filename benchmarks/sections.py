"""Tables in pages of the docs that a benchmark writes."""

from __future__ import annotations

from pathlib import Path


def write_section(page: Path, name: str, text: str) -> None:
    """Put a benchmark's text into a page, between its marks, in place of the one before."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    old = page.read_text(encoding="utf-8")
    start, stop = old.index(begin) + len(begin), old.index(end)
    page.write_text(f"{old[:start]}\n{text}{old[stop:]}", encoding="utf-8")
