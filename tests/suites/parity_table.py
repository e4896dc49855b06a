"""The table of architectures, in Markdown: of the sweep's results and of the site."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_TASKS = {"ner": "labels", "translation": "texts"}


def table(result: dict[str, Any]) -> str:
    """A row per text architecture, then those that read no text or can't be built small."""
    built = [kind for kind in result["kinds"] if kind["outcomes"]]
    rest = [kind for kind in result["kinds"] if not kind["outcomes"]]
    lines = [
        f"transformers {result['transformers']}; {len(built)} architectures built small.",
        "",
        "| architecture | labels | texts | what is refused |",
        "|---|---|---|---|",
    ]
    for kind in built:
        cells = [_cell(kind, task) for task in _TASKS]
        lines.append(f"| {kind['name']} | {' | '.join(cells)} | {_refusals(kind)} |")
    lines += ["", "Not built:", ""]
    no_text = [kind["name"] for kind in rest if "isn't one of a text model" in kind["not_built"]]
    lines += [f"- {k['name']}: {k['not_built']}" for k in rest if k["name"] not in no_text]
    lines.append(f"- no text model by themselves: {', '.join(no_text)}")
    return "\n".join(lines) + "\n"


def _cell(kind: dict[str, Any], task: str) -> str:
    own = [o for o in kind["outcomes"] if o["task"] == task and o["status"] != "impossible"]
    if not own:
        return "–"
    good = [o["difference"] for o in own if o["status"] == "supported"]
    bad = [o for o in own if o["status"] != "supported"]
    if any(o["status"] == "wrong" for o in own):
        return "**wrong**"
    if not good:
        return "refused"
    partly = f", {len(bad)} of {len(own)} refused" if bad else ""
    return f"{max(good):.0e}{partly}"


def _refusals(kind: dict[str, Any]) -> str:
    return "; ".join(dict.fromkeys(_refusal(o) for o in kind["outcomes"] if _is_bad(o)))


def _is_bad(outcome: dict[str, Any]) -> bool:
    return outcome["status"] in ("refused", "probe", "wrong")


def _refusal(outcome: dict[str, Any]) -> str:
    said = re.sub(r"^teacher(\.model)?: ", "", outcome["text"]).partition(". ")[0]
    variant = f" ({outcome['variant']})" if outcome["variant"] else ""
    return f"{_TASKS[outcome['task']]}{variant}: {said}".replace("|", "\\|").replace("\n", " ")


def left_over(result: dict[str, Any]) -> Iterator[str]:
    """A line for each way that only the probe refuses, or nothing does."""
    for kind in result["kinds"]:
        for outcome in kind["outcomes"]:
            if outcome["status"] in ("probe", "wrong"):
                yield f"- {kind['name']} {outcome['status']}: {_refusal(outcome)}"
