"""A finished run, read back from its folder alone: evaluation without Ray and DeepSpeed."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from glob import glob
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from tsarch.blueprint import Blueprint, resolve
from tsarch.config import Mode
from tsarch.config_loading import load_config
from tsarch.data.cache import cache_note
from tsarch.data.corpus import source_of
from tsarch.errors import Mistake, UserError, one_line
from tsarch.model_folder import TaskFile, load_table, load_task, load_weights, saved_config
from tsarch.pair.pair import Pair
from tsarch.parallel.groups import choose_device
from tsarch.planning.passed import PassedChecks
from tsarch.prepare import prepare_split
from tsarch.records import TokenizedSplit
from tsarch.run.versions import current_folder
from tsarch.stage.build import build_pair
from tsarch.tasks.base import num_outputs
from tsarch.tasks.registry import make_task
from tsarch.timings import TIMINGS
from tsarch.topology import Reads
from tsarch.written import Passes

if TYPE_CHECKING:
    from tsarch.marking.marked import Marked
    from tsarch.prepare import Prepared
    from tsarch.rank.local_crew import LocalCrew
    from tsarch.run.evaluate import Evaluation

_OPEN = (
    *("data.", "task.", "evaluation.", "decoding.", "precision", "topology.device"),
    *("topology.threads", "teacher.max_tokens", "student.max_tokens"),
)
"""Beginnings of the keys that a trained model leaves open."""
_TRAINED_WITH = ("data.tokenizer", "task.query")
"""Of these, those that it doesn't."""


@dataclass(frozen=True)
class SavedEvaluation:
    """What a finished run's best weights are worth on a split."""

    blueprint: Blueprint
    evaluation: Evaluation
    source: str
    """Where the rows come from."""
    digest: str
    """Of the rows."""
    own_digest: str | None
    """Of those that the run had in this split; None: its folder doesn't say."""
    remarks: tuple[str, ...] = ()
    """On how the rows were read."""
    marked: Marked | None = None
    """The answers beside what is right, if they were wanted."""
    passes: Mapping[Mode, Passes] = field(default_factory=dict)
    """Mode → what its texts took."""

    @property
    def is_own(self) -> bool | None:
        """Whether it is the data that the run had; None: nobody knows."""
        return None if self.own_digest is None else self.digest == self.own_digest

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the metrics must know of the data."""
        return self.remarks if self._note is None else (self._note, *self.remarks)

    @property
    def _note(self) -> str | None:
        if self.is_own:
            return None
        if self.is_own is None:
            return f"whether {self.source} is the run's own data isn't known: an older run"
        return (
            f"{self.source} is not the data that the run had: its rows differ. The metrics are not "
            "those of the run's summary"
        )

    def as_json(self, split: str, mode: Mode | None) -> dict[str, Any]:
        """For a file: of all modes, or of one."""
        from tsarch.run.texts import pass_figures

        metrics = self.evaluation.metrics.items()
        return {
            "split": split,
            "data": {
                "source": self.source,
                "digest": self.digest,
                "run_digest": self.own_digest,
                "is_run_data": self.is_own,
                "notes": self.notes,
            },
            "joint_weight": self.evaluation.joint_weight,
            "metrics": {own: values for own, values in metrics if mode in (None, own)},
            "generation": pass_figures(self.passes),
        }


@contextmanager
def _told(model: Path) -> Iterator[None]:
    """Whatever libraries raise for damaged files, as one message."""
    try:
        yield
    except (UserError, ImportError):
        raise
    except Exception as error:
        hint = "Copy the run folder whole, or resume or repeat the run."
        raise UserError.single(str(model), f"can't be read: {one_line(error)}.", hint) from None


def open_run(
    run: Path, overrides: Sequence[str] = (), data: Mapping[str, Any] | None = None
) -> tuple[Blueprint, TaskFile]:
    """A finished run (its current version), built from its own folder alone.

    Args:
        overrides: `key=value` of keys that a trained model leaves open; data files are relative to
            the current folder.
        data: keys of the section `data`, with their values.

    Raises:
        UserError: the folder is not a complete run, or an override is a mistake.
    """
    run = current_folder(run)
    model = run / "model"
    for needed in (run / "config.yaml", model / "task.json", model / "embedding.safetensors"):
        if not needed.is_file():
            raise UserError.single(
                str(run), f"is not a finished run ({needed.relative_to(run)} is missing)."
            )
    _check_open(overrides)
    config = load_config(run / "config.yaml", overrides, base=Path.cwd())
    with _told(model):
        task_file = load_task(model)
        blueprint = resolve(saved_config(config, model, data))
    if task_file.task != blueprint.task.name:
        raise UserError.single(
            str(run), f"was trained for {task_file.task}, its config says {blueprint.task.name}."
        )
    return blueprint, task_file


def _check_open(overrides: Sequence[str]) -> None:
    """Whether a trained model leaves the keys open.

    Raises:
        UserError: it doesn't; names all.
    """
    mistakes = [
        Mistake(
            f"--set {text}",
            "can't be changed any more: the run was trained with what it had.",
            f"Of a trained run can be set: {', '.join(f'{key}*' for key in _OPEN)}.",
        )
        for text in overrides
        if not text.strip().startswith(_OPEN) or text.strip().startswith(_TRAINED_WITH)
    ]
    if mistakes:
        raise UserError(mistakes)


def saved_pair(
    run: Path,
    device: str = "cpu",
    precision: Literal["fp32", "bf16"] = "fp32",
    halves: Collection[Reads] = ("contexts", "windows"),
    opened: tuple[Blueprint, TaskFile] | None = None,
) -> Pair:
    """The pair of a run's best weights, of its current version.

    Args:
        device: `auto`, `cpu` or `cuda`.
        precision: of the arithmetic.
        halves: those that are wanted, of those that there are.
        opened: what `open_run` gave for the folder, which is then the one to read.

    Raises:
        UserError: the folder is not a complete run, or its files are damaged.
    """
    run = run if opened else current_folder(run)
    blueprint, task_file = opened or open_run(run)
    _check(blueprint, task_file, PassedChecks(blueprint))
    task = make_task(task_file.task, task_file.labels, blueprint.task)
    wanted = [stage for stage in blueprint.stages if stage.reads in halves]
    with _told(run / "model"):
        return build_pair(
            blueprint,
            num_outputs(task, len(task_file.labels)),
            {stage: load_weights(run / "model", stage) for stage in wanted},
            load_table(run / "model").clone(),
            choose_device(device),
            torch.bfloat16 if precision == "bf16" else torch.float32,
            wanted,
        )


def evaluate_run(
    run: Path,
    split: str,
    mode: Mode | None = None,
    overrides: Sequence[str] = (),
    data: str | Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda _: None,
    marks: bool = False,
    texts: bool = True,
) -> SavedEvaluation:
    """Metrics of a run's best weights, of its current version, on a split; texts are only generated
    as `mode` predicts them, if it is given.

    Args:
        overrides: see `open_run`.
        data: file in place of the run's own, or keys of the section `data` with their values; no
            other file is read.
        say: is told what takes time.
        marks: mark the answers, too.
        texts: whether generative tasks generate, beside their perplexity.

    Raises:
        UserError: the folder is not a complete run, or the data holds mistakes.
    """
    # Not needed to predict, which should start at once.
    from tsarch.run.marked_split import examine
    from tsarch.run.self_score import score_notes

    run = current_folder(run)
    model = run / "model"
    blueprint, task_file = _open_split(run, split, mode, overrides, data)
    passed = PassedChecks(blueprint)
    _check(blueprint, task_file, passed, run_too=True)
    say(f"reading and tokenising the data ({cache_note(blueprint.data)})")
    prepared = prepare_split(blueprint, split, task_file.labels)
    crew = _loaded(model, blueprint, prepared)
    weight = task_file.joint_weight
    task = make_task(task_file.task, prepared.labels, blueprint.task)
    modes = (None if mode is None else (mode,)) if texts else ()
    with TIMINGS.during("measuring"):
        found = examine(crew, blueprint, prepared, task, split, weight, marks, modes)
    source, digest = source_of(split, blueprint.data), prepared.digests[split]
    own_digest = task_file.data.get(split)
    remarks = score_notes(blueprint, prepared, (split,), passed)
    notes = (*prepared.notes, *task.choices, *remarks)
    notes = (*notes, *_parts_notes(blueprint, split, prepared.splits[split]))
    return SavedEvaluation(
        blueprint, found.evaluation, source, digest, own_digest, notes, found.marked, found.passes
    )


def _parts_notes(blueprint: Blueprint, name: str, split: TokenizedSplit) -> tuple[str, ...]:
    """Where predictions read otherwise than what is measured, that they do."""
    if blueprint.task.name != "ner" or not blueprint.data.overlap_tokens:
        return ()
    first = [int(split.window_words(number).max()) for number in range(len(split.windows))]
    windows = np.bincount(np.searchsorted(split.sentence_offsets, first, side="right"))
    count = int((windows[1:] > 1).sum())  # at 0: windows without a word
    if not count:
        return ()
    return (
        f"{name}: {count:,} sentences are longer than a window and measured in parts that don't "
        "overlap, as in training; predictions overlap them (load(…, overlap=False) doesn't), so "
        "their tags may be others",
    )


@TIMINGS.during("building models")
def _loaded(model: Path, blueprint: Blueprint, prepared: Prepared) -> LocalCrew:
    """Both models here, with a run's best weights."""
    from tsarch.rank.api import RankApi
    from tsarch.rank.local_crew import LocalCrew

    with _told(model):
        crew = LocalCrew(blueprint, prepared)
        crew.ask(RankApi.load, model)
    return crew


@TIMINGS.during("checking the run")
def _open_split(
    run: Path,
    split: str,
    mode: Mode | None,
    overrides: Sequence[str],
    data: str | Mapping[str, Any] | None,
) -> tuple[Blueprint, TaskFile]:
    """A finished run that can measure a split; see `evaluate_run`.

    Raises:
        UserError: it can't.
    """
    path = str(Path(data).expanduser().absolute()) if isinstance(data, str) else None
    file = {"hub": None, split: path} if isinstance(data, str) else data
    blueprint, task_file = open_run(run, overrides, file)
    if mode is not None and mode not in blueprint.modes:
        raise UserError.single(
            f"--mode {mode}", f"{run} has no such mode.", f"It has {', '.join(blueprint.modes)}."
        )
    check_there(blueprint, split)
    return blueprint, task_file


@TIMINGS.during("checking the run")
def _check(
    blueprint: Blueprint, task_file: TaskFile, passed: PassedChecks, run_too: bool = False
) -> None:
    """Whether the models compute what transformers' own do, where they were compared with another
    version of it; `run_too`: whether the run can be repeated here, in any case.

    Raises:
        UserError: they don't, or it can't.
    """
    is_known = task_file.transformers == version("transformers")
    if is_known and not run_too:
        return
    from tsarch.planning.parity import check_parity
    from tsarch.planning.preflight import check_run

    check_run(blueprint, False, passed=passed)
    if not is_known:
        check_parity(blueprint)


def check_there(blueprint: Blueprint, split: str, hint: str | None = None) -> None:
    """Check that the files of a split are still where the run had them.

    Args:
        hint: what to do otherwise; None: give their place, as `tsarch evaluate` takes it.

    Raises:
        UserError: they aren't.
    """
    named = getattr(blueprint.data, split)
    files = named if isinstance(named, list) else [named]
    there = [file is not None and (os.path.exists(file) or bool(glob(file))) for file in files]
    if blueprint.data.hub is None and not all(there):
        hint = hint or (
            f"Give its place now, or another file: --data FILE (or --set data.{split}=FILE)."
        )
        raise UserError.single(source_of(split, blueprint.data), "is not there.", hint)
