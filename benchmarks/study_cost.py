"""What answering costs: CPU time of a context, of a fed window and of a window alone.

    python -m benchmarks.study_cost CONFIG [--set key=value]…   prints it for a config

Measured on one thread, one context or one window a call, with untrained heads: weights don't change
the time. The fed student is given the hidden states; what they cost is the teacher's context.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from pydantic import BaseModel

from tsarch.blueprint import resolve
from tsarch.config import Config
from tsarch.config_loading import load_config
from tsarch.data.partition import context_tokens, context_windows
from tsarch.pair.states import Window
from tsarch.prepare import prepare_data
from tsarch.stage.build import build_pair
from tsarch.topology import READS

SERVED = (1, 4, 16, 64)
"""Windows or queries that one context may serve."""


class InferenceCost(BaseModel):
    """Means over contexts and windows of the test split, in CPU milliseconds of one thread."""

    context_tokens: float
    window_tokens: float
    """Of the windows in the measured contexts."""
    windows_per_context: float
    """Mean over the whole split."""
    contexts_per_document: float
    teacher_context_ms: float
    """The teacher reads one context."""
    fed_window_ms: float
    """The student reads one window, given the teacher's hidden states of it."""
    alone_window_ms: float
    """The student's model reads one window by itself."""

    @property
    def windows_per_document(self) -> float:
        """Mean over the test split."""
        return self.windows_per_context * self.contexts_per_document

    def fed_ms(self, num_windows: int) -> float:
        """A window's cost for the fed student where one context, read once, serves several."""
        return self.teacher_context_ms / num_windows + self.fed_window_ms

    def document_ms(self, mode: str) -> float:
        """All windows of a document, one a call."""
        windows = self.windows_per_document
        contexts = self.teacher_context_ms * self.contexts_per_document
        costs = {
            "teacher": contexts,
            "student": contexts + windows * self.fed_window_ms,
            "student_alone": windows * self.alone_window_ms,
        }
        return costs[mode]


def measure(config: Config, num_contexts: int = 24) -> InferenceCost:
    """Time a config's models on contexts drawn from its test split, and on all their windows."""
    torch.set_num_threads(1)
    blueprint = resolve(config)
    prepared = prepare_data(blueprint)
    split = prepared.splits["test"]
    num_documents = len({row.origin.doc_id for row in split.rows})
    pair = build_pair(blueprint, dict.fromkeys(READS, len(prepared.labels)))
    drawn = np.random.default_rng(0).permutation(split.num_contexts)[:num_contexts]
    times: dict[str, list[float]] = {"context": [], "fed": [], "alone": []}
    lengths: dict[str, list[int]] = {"context": [], "window": []}
    for context in drawn.tolist():
        ids = split.token_ids[context_tokens(split, context)]
        (states,) = pair.encode([ids])
        times["context"].append(best_ms(partial(pair.encode, [ids])))
        lengths["context"].append(len(ids))
        first = int(split.context_offsets[context])
        for number in context_windows(split, context):
            start, stop = (split.windows[number] - first).tolist()
            fed = Window(ids[start:stop], states.hidden[start:stop])
            times["fed"].append(best_ms(partial(pair.read, [fed])))
            times["alone"].append(best_ms(partial(pair.read, [Window(ids[start:stop])])))
            lengths["window"].append(stop - start)
    return InferenceCost(
        context_tokens=statistics.mean(lengths["context"]),
        window_tokens=statistics.mean(lengths["window"]),
        windows_per_context=len(split.windows) / split.num_contexts,
        contexts_per_document=split.num_contexts / num_documents,
        teacher_context_ms=_mean(times["context"]),
        fed_window_ms=_mean(times["fed"]),
        alone_window_ms=_mean(times["alone"]),
    )


def _mean(values: Sequence[float]) -> float:
    return statistics.mean(values)


def best_ms(call: Callable[[], object], repeats: int = 3) -> float:
    """Least CPU time of some calls: other work on the machine only adds to it."""
    found = []
    for _ in range(repeats):
        started_s = time.process_time()
        call()
        found.append(time.process_time() - started_s)
    return 1000 * min(found)


def main(
    config: Annotated[Path, typer.Argument(help="A config file.")],
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value.")] = None,
) -> None:
    """Measure and print."""
    overrides = ["topology.device=cpu", *(settings or ())]
    print(measure(load_config(config, overrides)).model_dump_json(indent=2))


if __name__ == "__main__":
    typer.run(main)
