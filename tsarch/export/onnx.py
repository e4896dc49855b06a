"""The ONNX part of an exported folder: graphs, weights of 8 bits by option, and how well they say
what the run says."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from tsarch.clock import now_s
from tsarch.config import Mode
from tsarch.data.plain_tokenizer import plain_tokenizer_ids
from tsarch.errors import UserError
from tsarch.export.graphs import Fed, graph_of, write_graph
from tsarch.export.models import TrainedModels
from tsarch.export.sample import Sample
from tsarch.pair.answering import Answering
from tsarch.pair.states import Reads
from tsarch.prediction.onnx_pair import DESCRIPTION, OnnxPair, Weights
from tsarch.prepare import packing_spec
from tsarch.records import FloatArray
from tsarch.run.saved_run import saved_pair
from tsarch.tasks.base import AnsweringTask, is_answering
from tsarch.tasks.registry import make_task

_TOLERANCE = 1e-3
"""Of scores, between the fp32 graphs and the run."""
_LOSS = 0.01
"""Of the main metric, by weights of 8 bits, that goes without a warning."""


def write_onnx(models: TrainedModels, folder: Path, int8: bool) -> None:
    """Write the graphs of all modes and `pair.json`.

    Raises:
        UserError: they can't be made, or can't be equal.
    """
    check_onnx(models)
    folder.mkdir()
    typed = models.task_file.task == "qa" and _has_types(models)
    blueprint = models.blueprint
    context, window = blueprint.batches.context_tokens, blueprint.window_tokens
    names: dict[str, str] = {}
    if models.teacher is not None:
        graph = graph_of(models.teacher, models.table, "none", typed, context)
        write_graph(graph, folder / "teacher.onnx")
        names["teacher"] = "teacher.onnx"
    if models.student is not None:
        fed_ways: tuple[Fed, ...] = ("none",)
        if models.teacher is not None:
            fed_ways = ("all" if blueprint.task.query == "both" else "some", "none")
        for fed in fed_ways:
            name = "student_alone" if fed == "none" else "student"
            graph = graph_of(models.student, models.table, fed, typed, window)
            write_graph(graph, folder / f"{name}.onnx")
            names[name] = f"{name}.onnx"
    files = {"fp32": names}
    if int8:
        files["int8"] = {name: _quantised(folder / own) for name, own in names.items()}
    spec = packing_spec(blueprint, keep_tokens=False)
    saved = Path(blueprint.data.tokenizer or "")
    about = {
        "label_last": spec.label_last,
        "decoder_start": spec.decoder_start,
        "plain_tokenizer": plain_tokenizer_ids(spec.tokens.tokenizer, saved),
        "files": files,
    }
    text = json.dumps(about, indent=2) + "\n"
    (folder / DESCRIPTION).write_text(text, encoding="utf-8")


def check_onnx(models: TrainedModels) -> None:
    """Check that a run can have an ONNX part.

    Raises:
        UserError: it can't.
    """
    task = models.task_file.task
    if models.is_generative:
        what = "writes texts token by token, which is not exported to ONNX."
        raise UserError.single(task, what, "Use the pair, or its ordinary models.")
    if find_spec("onnxruntime") is None or find_spec("onnx") is None:
        hint = "Install it: pip install 'tsarch[onnx]'"
        raise UserError.single("onnx", "is not installed.", hint)


def _has_types(models: TrainedModels) -> bool:
    """Whether a model is told what is question and what passage."""
    from tsarch.data.passages import pair_specials

    return pair_specials(models.blueprint.tokenizer())[1] is not None


def _quantised(file: Path) -> str:
    """Write a graph with weights of 8 bits beside it (activations are rounded as they come)."""
    from onnxruntime.quantization import (  # type: ignore[import-untyped]
        QuantType,
        quantize_dynamic,
    )

    new = file.with_suffix(".int8.onnx")
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        quantize_dynamic(str(file), str(new), per_channel=True, weight_type=QuantType.QInt8)
    finally:
        logger.setLevel(level)
    return new.name


@dataclass(frozen=True)
class Compared:
    """What a mode says of a sample, beside what the run says."""

    mode: Mode
    same: float
    """Share of equal answers."""
    gap: float
    """Largest difference of scores."""
    metric: str
    run_value: float | None
    own_value: float | None
    run_s: float
    own_s: float

    def told(self, num_rows: int) -> str:
        """In words."""
        text = f"{self.mode}: {self.same:.2%} of answers equal, scores within {self.gap:.1g}"
        if self.run_value is not None and self.own_value is not None:
            text += f", {self.metric} {self.own_value:.4f} (run: {self.run_value:.4f})"
        speed, runs = num_rows / max(self.own_s, 1e-9), num_rows / max(self.run_s, 1e-9)
        return f"{text}, {speed:,.0f} rows/s (torch: {runs:,.0f})"


def check_graphs(
    models: TrainedModels, folder: Path, sample: Sample, precisions: tuple[Weights, ...]
) -> dict[str, list[Compared]]:
    """Compare graphs with the run on a sample: precision → what each mode says.

    Raises:
        UserError: graphs in fp32 say something else, of the same windows.
    """
    own_pair, modes = saved_pair(models.folder), models.blueprint.modes
    run = {mode: _scored(models, own_pair, sample, mode) for mode in modes}
    answers = run
    if models.blueprint.scorer is not None:  # which graphs haven't: they read all windows
        answers = {mode: _scored(models, own_pair, sample, mode, True) for mode in modes}
    found: dict[str, list[Compared]] = {}
    for precision in precisions:
        pair = OnnxPair(folder, precision)
        pair.open()
        graphs = {mode: _scored(models, pair, sample, mode) for mode in modes}
        for mode in modes if precision == "fp32" else ():
            gap = _gap(graphs[mode][0], run[mode][0])
            if not gap <= _TOLERANCE:
                what = f"ONNX graphs say something else in {mode} (scores differ by {gap:.1g})."
                raise UserError.single(str(models.folder), what)
        found[precision] = [
            _compared(models, sample, mode, answers[mode], graphs[mode]) for mode in modes
        ]
    return found


def _task(models: TrainedModels) -> AnsweringTask:
    task = make_task(models.task_file.task, models.task_file.labels, models.blueprint.task)
    assert is_answering(task)
    return task


def _scored(
    models: TrainedModels, pair: Reads, sample: Sample, mode: Mode, is_scored: bool = False
) -> tuple[FloatArray, float]:
    """Scores of a mode, and the seconds that they took; `is_scored`: of the windows that the run's
    scorer chooses."""
    blueprint = models.blueprint
    answering = Answering(
        pair,
        _task(models),
        blueprint.asked_window_tokens,
        blueprint.evaluation.windows,
        models.task_file.joint_weight,
        is_scored=is_scored,
    )
    started = now_s()
    scores = answering.scores(sample.split, mode)
    return scores, now_s() - started


def _compared(
    models: TrainedModels,
    sample: Sample,
    mode: Mode,
    run: tuple[FloatArray, float],
    own: tuple[FloatArray, float],
) -> Compared:
    task = _task(models)
    decided = task.decided(own[0]), task.decided(run[0])
    said = [_names(task.answers(sample.split, scores)) for scores in (own[0], run[0])]
    gap = _gap(own[0], run[0])
    values: list[float | None] = [None, None]
    if sample.is_labelled:
        values = [float(task.metrics(sample.split, each)[task.main_metric]) for each in decided]
    same = sum(a == b for a, b in zip(*said, strict=True)) / len(said[0])
    return Compared(mode, same, gap, task.main_metric, values[1], values[0], run[1], own[1])


def _gap(first: FloatArray, second: FloatArray) -> float:
    """Largest difference where both say something."""
    both = np.isfinite(first) & np.isfinite(second)
    return float(np.abs(first[both] - second[both]).max(initial=0.0))


def _names(answers: object) -> list[object]:
    """Answers without their scores."""
    kept = ("type", "first", "stop", "name", "start", "text")
    assert isinstance(answers, list)
    return [
        [(type(own).__name__, *(getattr(own, name, None) for name in kept)) for own in row]
        for row in answers
    ]


def losses_by_rounding(found: Mapping[str, list[Compared]]) -> list[str]:
    """Modes that weights of 8 bits make more than one point worse, in words."""
    return [
        f"int8 loses {own.run_value - own.own_value:.4f} of {own.metric} in {own.mode}"
        for own in found.get("int8", ())
        if own.run_value is not None
        and own.own_value is not None
        and own.run_value - own.own_value > _LOSS
    ]
