"""Examples in the OpenAPI document: requests that the runs which are served can answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tsarch.serving.engine import RunInfo


def with_examples(document: dict[str, Any], runs: Sequence[RunInfo]) -> dict[str, Any]:
    """The document with an example of each run and mode."""
    content = document["paths"]["/predict"]["post"]["requestBody"]["content"]
    content["application/json"]["examples"] = {
        f"{run.name} {mode}".replace(" ", "_"): {
            "summary": f"{run.task}: {run.name}, answered by {mode}",
            "value": {"run": run.name, "inputs": list(run.examples[:1]), "mode": mode},
        }
        for run in runs
        if run.examples
        for mode in run.modes
    }
    return document
