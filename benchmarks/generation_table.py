"""The rows of `benchmarks.generation` as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_HEAD = (
    "task, batch | arm | ms a token | × `generate` | × its prompt lookup | × plain | "
    "with the prompt: × `generate` | × plain | tokens a pass | texts as plain\n"
    "---|---|---|---|---|---|---|---|---|---"
)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: speeds are medians of the ratios of single prompts, or batches of them."""
    settings = sorted({_settings(row) for row in rows})
    lines = [f"<!-- {line} -->" for line in settings]
    lines += ["", *(f"| {line} |" for line in _HEAD.split("\n"))]
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def _settings(row: Mapping[str, Any]) -> str:
    return (
        f"{row['task']}: {row['model']}, {row['precision']}, {row['threads']} thread(s), "
        f"{row['prompts']} prompts, {row['new_tokens']} tokens at most"
    )


def _cells(row: Mapping[str, Any]) -> list[str]:
    against, whole = row["against"], row["against_with_prompt"]
    passes = row["tokens_a_pass"]
    return [
        f"{row['task']}, {row['batch']}",
        row["arm"],
        f"{row['ms_a_token']:.1f}",
        _ratio(against, "generate"),
        _ratio(against, "generate, prompt lookup"),
        _ratio(against, "plain"),
        _ratio(whole, "generate"),
        _ratio(whole, "plain"),
        "" if passes is None else f"{passes:.2f}",
        f"{row['same_texts']}/{row['texts']}",
    ]


def _ratio(against: Mapping[str, float], name: str) -> str:
    return f"{against[name]:.2f}" if name in against else ""
