"""What answering costs: CPU time of a context, of a fed window and of a window alone.

    python -m benchmarks.study_cost CONFIG [--set key=value]…   prints it for a config

Measured on one thread, one context or one window a call, with untrained heads: weights don't change
the time. The fed student is given the hidden states; what they cost is the teacher's context.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
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
from tsarch.models.student_model import StudentModel
from tsarch.prepare import prepare_data
from tsarch.stage.build import build_model
from tsarch.topology import Stage

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
    teacher = build_model(blueprint, Stage.TEACHER, len(prepared.labels))
    student = build_model(blueprint, Stage.STUDENT, len(prepared.labels)).module
    assert teacher.table is not None
    assert isinstance(student, StudentModel)
    table = teacher.table
    encoder = teacher.module.eval()
    student.eval()
    drawn = np.random.default_rng(0).permutation(split.num_contexts)[:num_contexts]
    times: dict[str, list[float]] = {"context": [], "fed": [], "alone": []}
    lengths: dict[str, list[int]] = {"context": [], "window": []}
    with torch.inference_mode():
        for context in drawn.tolist():
            ids = torch.from_numpy(split.token_ids[context_tokens(split, context)])
            hidden = encoder(table[ids].unsqueeze(0), torch.ones(1, len(ids)))[0][0]
            times["context"].append(_teacher_ms(encoder, table, ids))
            lengths["context"].append(len(ids))
            first = int(split.context_offsets[context])
            for window in context_windows(split, context):
                start, stop = (split.windows[window] - first).tolist()
                own, rows = ids[start:stop], hidden[start:stop]
                fed = torch.arange(stop - start).unsqueeze(0)
                times["fed"].append(_student_ms(student, table, own, rows, fed))
                times["alone"].append(
                    _student_ms(student, table, own, rows[:1], torch.full_like(fed, -1))
                )
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


def _teacher_ms(encoder: torch.nn.Module, table: torch.Tensor, ids: torch.Tensor) -> float:
    mask = torch.ones(1, len(ids))
    return _best_ms(lambda: encoder(table[ids].unsqueeze(0), mask))


def _student_ms(
    student: StudentModel,
    table: torch.Tensor,
    ids: torch.Tensor,
    rows: torch.Tensor,
    places: torch.Tensor,
) -> float:
    mask = torch.ones(1, len(ids))
    return _best_ms(lambda: student([table[ids].unsqueeze(0)], [mask], rows, [places]))


def _best_ms(call: Callable[[], object], repeats: int = 3) -> float:
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
