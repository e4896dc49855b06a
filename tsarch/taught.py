"""Targets that finished runs give for the rows of another one's training split
(`distillation.from_run`): what their teachers, which read what is asked, say of every word.

They are computed once and kept in the cache; every rank reads them there, or computes the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tsarch.blueprint import Blueprint, resolve
from tsarch.config import DataConfig
from tsarch.config_loading import load_config
from tsarch.data.cache import cache_root, code_digest, store_arrays, stored_arrays
from tsarch.data.layouts import PackingSpec
from tsarch.errors import UserError, one_line
from tsarch.model_folder import (
    TaskFile,
    files_digest,
    load_table,
    load_task,
    load_weights,
    saved_config,
)
from tsarch.records import FloatArray, TokenizedSplit
from tsarch.tasks.registry import make_task, row_reader
from tsarch.timings import TIMINGS

_NEVER = -1e4
"""Log-probability of a word that the run has not read."""
_LEAST = 1e-9
"""Least probability of a label."""
Spec = Callable[[Blueprint], PackingSpec]
"""Gives what a run's contexts depend on (`prepare.packing_spec`)."""


@dataclass(frozen=True)
class Taught:
    """What finished runs say of a training split."""

    revision: str
    """Of the runs' weights."""
    targets: FloatArray
    """(num_words, outputs) log-probabilities: of an answer's start and end at each word of the
    passage, or of each label."""


@TIMINGS.during("reading what another run says")
def taught_by(
    blueprint: Blueprint, train: TokenizedSplit, labels: Sequence[str], spec_of: Spec
) -> Taught | None:
    """The targets of a run for its training split, of several runs the mean of their
    probabilities; None: it wants none.

    Raises:
        UserError: a run that gives them isn't there, or isn't one that can.
    """
    named = blueprint.distillation.from_run
    if named is None:
        return None
    folders = [Path(own) for own in ([named] if isinstance(named, str) else named)]
    opened = [_opened(folder, blueprint, labels) for folder in folders]
    revisions, targets = [], []
    for folder, own in zip(folders, opened, strict=True):
        revisions.append(_revision(folder))
        kept = _place(blueprint.data, revisions[-1], train)
        found = None if kept is None else stored_arrays(kept)
        if found is None or set(found) != {"targets"}:
            found = {"targets": _targets(folder, *own, train, labels, spec_of)}
            if kept is not None:
                store_arrays(kept, found)
        targets.append(found["targets"])
    return Taught("+".join(revisions), mean_of(targets))


def mean_of(targets: Sequence[FloatArray]) -> FloatArray:
    """Log-probabilities of the mean of several runs' probabilities."""
    if len(targets) == 1:
        return targets[0]
    total = targets[0].astype(np.float64)
    for own in targets[1:]:
        total = np.logaddexp(total, own.astype(np.float64))
    mean: FloatArray = np.maximum(total - np.log(len(targets)), _NEVER).astype(np.float32)
    return mean


def _opened(
    folder: Path, blueprint: Blueprint, labels: Sequence[str]
) -> tuple[Blueprint, TaskFile]:
    """The run that teaches, built from its own folder.

    Raises:
        UserError: it can't teach this one.
    """
    where = f"distillation.from_run: {folder}"
    if (folder / "current.json").exists():
        what = "was refitted, so it has several weights."
        raise UserError.single(where, what, "Name one of its versions: RUN/versions/NAME.")
    try:
        task_file = load_task(folder / "model")
        config = load_config(folder / "config.yaml", base=Path.cwd())
        source = resolve(saved_config(config, folder / "model"))
    except (OSError, ValueError, KeyError) as error:
        hint = "Name the folder of a finished run."
        raise UserError.single(where, f"can't be read: {one_line(error)}.", hint) from None
    if task_file.task != blueprint.task.name:
        what = f"was trained for {task_file.task}, this run is for {blueprint.task.name}."
        raise UserError.single(where, what)
    if "teacher" not in source.modes:
        what = "has no teacher that reads what is asked."
        raise UserError.single(where, what, "Take a run with a teacher and task.query: both.")
    if blueprint.task.name != "qa" and set(task_file.labels) != set(labels):
        unlike = ", ".join(sorted(set(task_file.labels) ^ set(labels))[:3])
        raise UserError.single(where, f"has other labels than this run's data ({unlike}).")
    return source, task_file


def _revision(folder: Path) -> str:
    """Hexadecimal digest of the teacher's weights and the table."""
    names = ("teacher.safetensors", "embedding.safetensors", "task.json")
    return files_digest(folder / "model" / name for name in names)


def _place(data: DataConfig, revision: str, train: TokenizedSplit) -> Path | None:
    """File in the cache; None: nothing is kept."""
    if not data.cache:
        return None
    digest = hashlib.sha256(f"{revision} {code_digest('data', 'tasks', 'models')}".encode())
    for own in (train.token_ids, train.words, train.labels):
        digest.update(own.tobytes())
    folder = cache_root(data.cache_folder) / "targets"
    folder.mkdir(exist_ok=True)
    return folder / f"{digest.hexdigest()}.npz"


def _targets(
    folder: Path,
    source: Blueprint,
    task_file: TaskFile,
    train: TokenizedSplit,
    labels: Sequence[str],
    spec_of: Spec,
) -> FloatArray:
    """(num_words, outputs) what the run in `folder` says of the rows of `train`."""
    from tsarch.pair.answering import Answering
    from tsarch.stage.build import build_pair
    from tsarch.tasks.base import is_answering, num_outputs

    task = make_task(task_file.task, task_file.labels, source.task)
    assert is_answering(task)
    teachers = [stage for stage in source.stages if stage.reads == "contexts"]
    pair = build_pair(
        source,
        num_outputs(task, len(task_file.labels)),
        {stage: load_weights(folder / "model", stage) for stage in teachers},
        load_table(folder / "model").clone(),
        stages=teachers,
    )
    layout = row_reader(source.task.name, source.data).layout(spec_of(source), task_file.labels)
    read = layout.pack(train.rows)
    scores = Answering(pair, task, source.window_tokens).scores(read, "teacher")
    if source.task.name == "qa":
        return span_targets(read, scores, train)
    if not np.array_equal(read.sentence_offsets, train.sentence_offsets):
        what = "reads its rows at other places."
        hint = "Give both runs the same teacher.max_tokens and student.max_tokens."
        raise UserError.single(f"distillation.from_run: {folder}", what, hint)
    order = [task_file.labels.index(label) for label in labels]
    logs: FloatArray = np.log(np.maximum(scores[:, order], _LEAST))
    return logs


def span_targets(read: TokenizedSplit, logits: FloatArray, train: TokenizedSplit) -> FloatArray:
    """(num_words of `train`, 2) log-probabilities of start and end over all of each row's passage,
    from (num_words of `read`, 2) logits against no answer of the same rows, whose contexts may be
    others. A word that several contexts have counts as the one that is surest of it."""
    targets = np.full((train.num_words, 2), _NEVER, dtype=np.float32)
    for row, (own, other) in enumerate(zip(read.pieces, train.pieces, strict=True)):
        start, places = int(read.sentence_offsets[row]), []
        for piece in own:
            places.append(piece.bounds[:, 0])
        begins = np.concatenate(places)
        said = logits[start : start + len(begins)].astype(np.float64)
        known, which = np.unique(begins, return_inverse=True)
        best = np.full((len(known), 2), -np.inf)
        np.maximum.at(best, which, said)
        logs = best - np.logaddexp(0.0, np.logaddexp.reduce(best, axis=0))
        wanted = np.concatenate([piece.bounds[:, 0] for piece in other])
        at = np.searchsorted(known, wanted).clip(max=len(known) - 1)
        is_known = (known[at] == wanted)[:, None]
        first = int(train.sentence_offsets[row])
        targets[first : first + len(wanted)] = np.where(is_known, logs[at], _NEVER)
    return np.maximum(targets, _NEVER)
