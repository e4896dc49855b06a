"""Loads the pair of a finished run."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from tsarch.config import Mode
from tsarch.errors import UserError
from tsarch.prediction.hub import run_folder
from tsarch.prediction.remote import local_run
from tsarch.run.versions import current_folder
from tsarch.topology import READS, Reads

if TYPE_CHECKING:
    from tsarch.blueprint import Blueprint
    from tsarch.model_folder import TaskFile
    from tsarch.pair.pair import Pair
    from tsarch.prediction.answers import Answers
    from tsarch.prediction.trained_pair import TrainedPair

_HALVES_OF: dict[Mode, tuple[Reads, ...]] = {
    "teacher": ("contexts",),
    "student_alone": ("windows",),
}
Precision = Literal["fp32", "bf16", "int8"]
Backend = Literal["torch", "onnx"]


def load(
    run: str | os.PathLike[str],
    device: str = "auto",
    precision: Precision = "fp32",
    batch_tokens: int = 4096,
    backend: Backend = "torch",
    overlap: bool = True,
    compile: bool = False,
    modes: Collection[Mode] | Mode | None = None,
    store: str | os.PathLike[str] | None = None,
    depth: int | None = None,
) -> TrainedPair:
    """The pair of a run's best weights, of its current version, from its folder alone.

    Args:
        run: the run's folder, one that was exported, a name of such a one on the hub, or an fsspec
            URL, such as `s3://bucket/run`: what predictions need is then copied to
            `~/.cache/tsarch`, again whenever it has changed.
        device: `auto` (a GPU if there is one), `cpu` or `cuda`.
        precision: of the arithmetic: `fp32`, `bf16` (of torch) or `int8` (of onnx).
        batch_tokens: padded tokens that are read at a time.
        backend: who computes: `torch`, or `onnx` (onnxruntime, of a folder that was exported with
            ONNX models; torch isn't imported).
        overlap: parts of a sentence that a window or a context has no room for overlap by
            `data.overlap_tokens`, so that no word is read at a cut. False: they don't, as in
            training and evaluation.
        compile: compile the models (`torch.compile`), which takes up to some minutes; of tasks
            whose answers aren't texts.
        modes: who will be asked; None: all. A model that none of them needs isn't loaded:
            `["student_alone"]` leaves out the teacher.
        store: folder of `tsarch read`, with the teacher's states of documents: it doesn't read
            those again.
        depth: layers of the student, one of `student.depths`; None: all.

    Raises:
        UserError: the folder is not a complete run, its files or the store's are damaged, the store
            is another pair's, an option is none, or there is no such mode.
    """
    check_options(device, precision, batch_tokens, backend)
    modes = (modes,) if isinstance(modes, str) else modes
    folder = folder_of(run, backend)
    if depth is not None:
        from tsarch.run.depths import at_depth

        folder = at_depth(folder, depth)
    pair = _pair(folder, device, precision, batch_tokens, backend, overlap, compile, modes)
    if store is not None:
        pair.take_states(store)
    return pair


def _pair(
    folder: Path,
    device: str,
    precision: Precision,
    batch_tokens: int,
    backend: Backend,
    overlap: bool,
    compile: bool,
    modes: Collection[Mode] | None,
) -> TrainedPair:
    """See `load`."""
    if backend == "onnx":
        from tsarch.prediction.onnx_loading import load_graphs

        if compile:
            raise UserError.single("compile", "is torch's, not for onnx.", "Leave it out.")
        graphs = load_graphs(folder, device, precision, batch_tokens, overlap)
        return graphs.with_modes(modes)
    with _imports(compile):
        from tsarch.run.saved_run import open_run

        run = open_run(folder)
        halves = READS if modes is None else _needed(*run, modes)
        pair = _loaded(folder, run, halves, device, precision, batch_tokens, overlap, compile)
    return pair.with_modes(modes)


def _needed(
    blueprint: Blueprint, task_file: TaskFile, modes: Collection[Mode]
) -> Collection[Reads]:
    """The halves that modes need, where the student alone finds its windows by itself."""
    from tsarch.prediction.modes import known_mode
    from tsarch.tasks.registry import make_task

    for mode in modes:
        known_mode(mode, blueprint.modes)
    if make_task(task_file.task, task_file.labels).window_choice is not None:
        return READS
    wanted = {half for mode in modes for half in _HALVES_OF.get(mode, READS)}
    return [half for half in READS if half in wanted]


def folder_of(run: str | os.PathLike[str], backend: Backend = "torch") -> Path:
    """Where the pair of a run is read: its current version's folder, on this machine; see `load`.

    Raises:
        UserError: there is none.
    """
    return current_folder(home_of(run, backend))


def home_of(run: str | os.PathLike[str], backend: Backend = "torch") -> Path:
    """The run's own folder, with all its versions, on this machine; see `load`.

    Raises:
        UserError: there is none.
    """
    return run_folder(local_run(run), backend)


def without_models(run: str, options: Mapping[str, Any]) -> TrainedPair:
    """The pair, to be asked what it is; `options`: of `load`, which says what it raises."""
    if options["backend"] == "onnx":  # which reads its graphs when they are needed
        return load(run, **options)
    pair = load_halves(folder_of(run), ())
    if options["store"] is not None:
        pair.take_states(options["store"])
    return pair


def opened(
    folder: Path, backend: Backend, overrides: Sequence[str] = ()
) -> tuple[Blueprint, TaskFile]:
    """What a run's or a version's own folder says, of which a backend may be without some files;
    `overrides`: see `open_run`.

    Raises:
        UserError: the folder is not complete, or an override is a mistake.
    """
    if backend == "onnx":
        from tsarch.prediction.onnx_loading import open_export

        return open_export(folder, overrides)
    from tsarch.run.saved_run import open_run

    return open_run(folder, overrides)


def check_options(device: str, precision: str, batch_tokens: int, backend: str) -> None:
    """Check options of `load`, before anything is read.

    Raises:
        UserError: one is none, or they don't go together.
    """
    for name, value, known in (
        ("device", device, ("auto", "cpu", "cuda")),
        ("precision", precision, get_args(Precision)),
        ("backend", backend, get_args(Backend)),
    ):
        if value not in known:
            hint = f"It is {', '.join(known[:-1])} or {known[-1]}."
            raise UserError.single(f"{name} {value}", "is unknown.", hint)
    if precision == "int8" and backend != "onnx":
        hint = "It is onnx's, of a folder of `tsarch export --int8`: take the backend onnx."
        raise UserError.single("precision int8", "is not torch's here.", hint)
    if precision == "bf16" and backend == "onnx":
        hint = "With onnx there are fp32 and int8."
        raise UserError.single("precision bf16", "is torch's.", hint)
    if not isinstance(batch_tokens, int) or batch_tokens < 1:
        raise UserError.single(f"batch_tokens {batch_tokens}", "is no whole number above 0.")


def load_halves(
    folder: Path,
    halves: Collection[Reads],
    device: str = "auto",
    precision: Precision = "fp32",
    batch_tokens: int = 4096,
    overlap: bool = True,
    compile: bool = False,
) -> TrainedPair:
    """As `load`, of a run's or a version's own folder, with some of the models: whoever has the
    student alone may be given the teacher's states; without any, inputs can be prepared."""
    with _imports(compile):
        from tsarch.run.saved_run import open_run

        run = open_run(folder)
        return _loaded(folder, run, halves, device, precision, batch_tokens, overlap, compile)


def _imports(compile: bool) -> AbstractContextManager[None]:
    """Lean ones, but of what is compiled: torch looks through it, and must find the real things."""
    from tsarch.models.lean_imports import lean_imports

    return nullcontext() if compile else lean_imports()


def _loaded(
    folder: Path,
    opened: tuple[Blueprint, TaskFile],
    halves: Collection[Reads],
    device: str,
    precision: Precision,
    batch_tokens: int,
    overlap: bool,
    compile: bool,
) -> TrainedPair:
    """See `load_halves`."""
    import torch

    from tsarch.prediction.packed import Layouts
    from tsarch.prediction.trained_pair import TrainedPair
    from tsarch.prepare import packing_spec
    from tsarch.run.saved_run import saved_pair
    from tsarch.tasks.registry import is_generative, row_reader

    assert precision != "int8", "no precision of torch: see check_options"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError.single("device cuda", "is not there: torch sees no GPU.", "Use cpu.")
    blueprint, task_file = opened
    if compile and is_generative(task_file.task):
        what = f"is not for {task_file.task}, whose texts grow by one token at a time."
        raise UserError.single("compile", what, "Leave it out.")
    pair = None if not halves else saved_pair(folder, device, precision, halves, opened)
    if compile and pair is not None:
        pair.compile()
    reader = row_reader(task_file.task, blueprint.data, labelled=False)
    spec = packing_spec(blueprint, keep_tokens=False, overlaps=overlap)
    layouts = Layouts.of(reader, spec, task_file.labels)
    answering = _answering(blueprint, task_file, pair, batch_tokens)
    return TrainedPair(
        task_file.task,
        task_file.labels,
        blueprint.modes,
        reader,
        layouts,
        answering,
        folder,
        query=blueprint.task.query,
    )


def _answering(
    blueprint: Blueprint, task_file: TaskFile, pair: Pair | None, batch_tokens: int
) -> Answers:
    """What makes answers of a split, as the task's are."""
    from tsarch.data.tokenizer import end_token
    from tsarch.pair.answering import Answering
    from tsarch.pair.writing import Writing
    from tsarch.prediction.answers import NoAnswers, WritingAnswers
    from tsarch.rank.generation_spec import writing_spec
    from tsarch.tasks.base import is_answering, is_writing
    from tsarch.tasks.registry import make_task

    if pair is None:
        return NoAnswers(blueprint.window_tokens)
    task = make_task(task_file.task, task_file.labels, blueprint.task)
    weight = task_file.joint_weight
    if is_writing(task):
        tokenizer = blueprint.tokenizer()
        spec = writing_spec(blueprint, end_token(tokenizer))
        writing = Writing(pair.halves(blueprint.window_tokens), spec, weight)
        return WritingAnswers(writing, task, tokenizer)
    assert is_answering(task)
    num_windows = blueprint.evaluation.windows
    halves = [stage.reads for stage in blueprint.stages]
    return Answering(
        pair,
        task,
        blueprint.asked_window_tokens,
        num_windows,
        weight,
        batch_tokens,
        halves,
        is_scored=blueprint.scorer is not None,
    )
