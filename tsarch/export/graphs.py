"""ONNX graphs of a teacher, of a student fed by it, and of a student by itself.

Each graph takes tokens and holds its own embedding table, folded (`folded_table`). The tracing
exporter of torch is tried first, since it takes a seventh of the time; a graph is kept only if
onnxruntime says the same as torch for other numbers of sequences and tokens than it was traced
with, padded ones too. Where it doesn't, the exporter of torch.export is tried.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsarch.errors import UserError, one_line
from tsarch.export.models import folded_table, without_projection
from tsarch.models.student_model import StudentModel
from tsarch.models.teacher_model import TeacherModel
from tsarch.records import Array

_TOLERANCE = 1e-3
"""Of numbers of a graph and of torch, which are of the order of 1 to 10."""
_OPSET = 18
_TRACED = (2, 11)
"""Sequences and tokens that a graph is traced with."""
IDS, MASK, TYPES, STATES = "input_ids", "attention_mask", "token_type_ids", "hidden"
FED = "fed_mask"
"""1 at tokens that a state feeds, 0 at others, where there are any."""
PREDICTIONS = "predictions"
Fed = Literal["none", "all", "some"]


@dataclass(frozen=True)
class Graph:
    """A module of tokens, and the names of what goes in and out."""

    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    vocabulary: int
    state_width: int
    max_tokens: int


class _ByTokens(nn.Module):
    """A model that looks its tokens up by itself."""

    def __init__(self, model: nn.Module, rows: Tensor, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.table = nn.Parameter(rows, requires_grad=False)
        self._names = names

    def forward(self, *given: Tensor) -> Any:
        """Hidden states and predictions of a teacher; predictions of a student."""
        by_name = dict(zip(self._names, given, strict=True))
        embeds, mask = F.embedding(by_name[IDS], self.table), by_name[MASK]
        types, states = by_name.get(TYPES), by_name.get(STATES)
        if isinstance(self.model, TeacherModel):
            return self.model(embeds, mask, types=types)
        if states is None:
            boundary, places = embeds.new_zeros(1, 1), mask
        else:
            boundary = states.flatten(0, 1)
            places = torch.arange(boundary.shape[0]).view(mask.shape)
            if FED in by_name:
                places = torch.where(by_name[FED] > 0, places, -1)
        (predictions,) = self.model([embeds], [mask], boundary, [places], types=[types])
        return predictions


def graph_of(
    module: TeacherModel | StudentModel,
    table: Tensor,
    fed: Fed,
    typed: bool,
    max_tokens: int,
) -> Graph:
    """The graph of a model.

    Args:
        fed: which of a student's tokens get the teacher's states.
        typed: whether tokens have types.

    Raises:
        UserError: it can't be a graph.
    """
    if isinstance(module, TeacherModel) and module.is_seq2seq:
        what = "reads sources and targets apart, which is not exported to ONNX."
        raise UserError.single(type(module.backbone).__name__, what)
    alone = fed == "none"
    rows = folded_table(module, table, alone)
    own = without_projection(module, alone)
    further = {"none": (), "all": (STATES,), "some": (STATES, FED)}[fed]
    names = (IDS, MASK, *((TYPES,) if typed else ()), *further)
    outputs = (STATES, PREDICTIONS) if isinstance(module, TeacherModel) else (PREDICTIONS,)
    width = module.teacher_width if isinstance(module, StudentModel) else 0
    wrapped = _ByTokens(own, rows, names).eval()
    return Graph(wrapped, names, outputs, len(rows), width, max_tokens)


def write_graph(graph: Graph, file: Path) -> float:
    """Write a graph; the largest difference to torch that was seen.

    Raises:
        UserError: no exporter makes a graph that says what the model says.
    """
    found = []
    for export in (_traced, _exported):
        for old in file.parent.glob(f"{file.name}*"):
            old.unlink()
        try:
            with _quiet(), torch.no_grad():
                export(graph, file)
            gap = _difference(graph, file)
        except OSError:
            raise
        except Exception as error:  # exporters raise errors of many kinds
            found.append(one_line(error)[:160])
            continue
        if gap <= _TOLERANCE:
            return gap
        found.append(f"its numbers differ by {gap:.1g}")
    where = type(getattr(graph.module, "model").backbone).__name__  # noqa: B009 - a module's child
    raise UserError.single(where, f"can't be made an ONNX graph: {'; '.join(found)}.")


def _traced(graph: Graph, file: Path) -> None:
    torch.onnx.export(
        graph.module,
        _inputs(graph, *_TRACED),
        str(file),
        dynamo=False,
        input_names=list(graph.inputs),
        output_names=list(graph.outputs),
        dynamic_axes={n: {0: "batch", 1: "tokens"} for n in (*graph.inputs, *_named(graph))},
        opset_version=_OPSET,
    )


def _named(graph: Graph) -> tuple[str, ...]:
    return tuple(name for name in graph.outputs if name not in graph.inputs)


def _exported(graph: Graph, file: Path) -> None:
    dynamic = torch.export.Dim.DYNAMIC
    shape = {0: dynamic, 1: dynamic}
    torch.onnx.export(
        graph.module,
        _inputs(graph, *_TRACED),
        str(file),
        dynamo=True,
        input_names=list(graph.inputs),
        output_names=list(graph.outputs),
        dynamic_shapes={"given": tuple(shape for _ in graph.inputs)},
        external_data=False,
    )


def _inputs(graph: Graph, batch: int, tokens: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Sequences of random tokens; all but the first are padded."""
    rng = np.random.default_rng(seed)
    shape = (batch, tokens)
    lengths = [tokens, *rng.integers(1, tokens + 1, size=batch - 1).tolist()]
    mask = (np.arange(tokens) < np.array(lengths)[:, None]).astype(np.int64)
    made: dict[str, Array] = {
        IDS: rng.integers(0, graph.vocabulary, size=shape) * mask,
        MASK: mask,
        TYPES: (np.arange(tokens) > tokens // 2).astype(np.int64) * mask,
        FED: (np.arange(tokens) >= tokens // 3).astype(np.int64) * mask,
        STATES: rng.normal(size=(*shape, graph.state_width)).astype(np.float32),
    }
    return tuple(torch.from_numpy(made[name]) for name in graph.inputs)


def _difference(graph: Graph, file: Path) -> float:
    """Largest difference of a graph's numbers to torch's, for several shapes."""
    from tsarch.prediction.onnx_pair import open_session

    session = open_session(file, "cpu")
    worst = 0.0
    shapes = [(1, 1), (3, 7), (1, graph.max_tokens), (5, max(graph.max_tokens // 2, 1))]
    for seed, shape in enumerate(shapes):
        given = _inputs(graph, *shape, seed)
        with torch.no_grad():
            wanted = graph.module(*given)
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        by_name = dict(zip(graph.inputs, (own.numpy() for own in given), strict=True))
        inside = by_name[MASK].astype(bool)
        for own, said in zip(wanted, session.run(list(graph.outputs), by_name), strict=True):
            worst = max(worst, float(np.abs(own.numpy() - said)[inside].max()))
    return worst


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters print, log and warn of what the check of the graph finds out."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
