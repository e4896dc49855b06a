"""Targets that finished runs give for the rows of another one's training split
(`distillation.from_run`): what their teachers, which read what is asked, say of every word.

They are computed once and kept in the cache; every rank reads them there, or computes the same.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tsarch.blueprint import Blueprint, resolve
from tsarch.config import DataConfig
from tsarch.config_loading import load_config
from tsarch.data.cache import cache_root, code_digest, store_arrays, stored_arrays
from tsarch.data.layouts import PackingSpec
from tsarch.data.row_digest import rows_digest
from tsarch.errors import Mistake, UserError, one_line
from tsarch.model_folder import (
    TaskFile,
    files_digest,
    load_table,
    load_task,
    load_weights,
    saved_config,
)
from tsarch.records import FloatArray, IntArray, TokenizedSplit
from tsarch.tasks.registry import make_task, row_reader
from tsarch.tasks.votes import row_means
from tsarch.timings import TIMINGS

_NEVER = -1e4
"""Log-probability of a word that the run has not read."""
_LEAST = 1e-9
"""Least probability of a label."""
_WEIGHTS = ("teacher.safetensors", "embedding.safetensors")
"""Files of a run's `model/` that targets come from."""
_WHOLE = "Name the folder of a finished run, copied whole."
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
    runs: Sequence[TeachingRun],
    data: DataConfig,
    train: TokenizedSplit,
    labels: Sequence[str],
    spec_of: Spec,
) -> Taught | None:
    """The targets that runs give for a training split, of several the mean of their probabilities,
    in whatever order they are named; None: there are none.

    Raises:
        UserError: the weights of one can't be read.
    """
    if not runs:
        return None
    by_revision = sorted(((_revision(run.folder), run) for run in runs), key=lambda own: own[0])
    targets = []
    for revision, run in by_revision:
        kept = _place(data, run, revision, train, labels)
        found = None if kept is None else stored_arrays(kept)
        if found is None or set(found) != {"targets"}:
            found = {"targets": _targets(run, train, labels, spec_of)}
            if kept is not None:
                store_arrays(kept, found)
        targets.append(found["targets"])
    return Taught("+".join(revision for revision, _ in by_revision), mean_of(targets))


@dataclass(frozen=True)
class TeachingRun:
    """A run that teaches, as its own folder says."""

    folder: Path
    source: Blueprint
    task_file: TaskFile


def teaching_runs(blueprint: Blueprint, labels: Sequence[str] | None = None) -> list[TeachingRun]:
    """The runs of `distillation.from_run`; none are read but for what they say of themselves.

    Args:
        labels: of the run that learns; None: they aren't known yet.

    Raises:
        UserError: names all that can't teach this run, and why.
    """
    runs: list[TeachingRun] = []
    mistakes: list[Mistake] = []
    for name in blueprint.distillation.teaching_runs:
        try:
            runs.append(_opened(Path(name), blueprint, labels))
        except UserError as error:
            mistakes += error.mistakes
    if mistakes:
        raise UserError(mistakes)
    return runs


def mean_of(targets: Sequence[FloatArray]) -> FloatArray:
    """Log-probabilities of the mean of several runs' probabilities."""
    if len(targets) == 1:
        return targets[0]
    total = targets[0].astype(np.float64)
    for own in targets[1:]:
        total = np.logaddexp(total, own.astype(np.float64))
    mean: FloatArray = np.maximum(total - np.log(len(targets)), _NEVER).astype(np.float32)
    return mean


def _opened(folder: Path, blueprint: Blueprint, labels: Sequence[str] | None) -> TeachingRun:
    """The run that teaches, built from its own folder.

    Raises:
        UserError: it can't teach this one.
    """
    where = _where(folder)
    if (folder / "current.json").exists():
        what = "was refitted, so it has several weights."
        raise UserError.single(where, what, "Name one of its versions: RUN/versions/NAME.")
    try:
        task_file = load_task(folder / "model")
        config = load_config(folder / "config.yaml", base=Path.cwd())
        source = resolve(saved_config(config, folder / "model"))
    except (OSError, ValueError, KeyError) as error:
        raise UserError.single(where, f"can't be read: {one_line(error)}.", _WHOLE) from None
    if task_file.task != blueprint.task.name:
        what = f"was trained for {task_file.task}, this run is for {blueprint.task.name}."
        raise UserError.single(where, what)
    if "teacher" not in source.modes:
        what = "has no teacher that reads what is asked."
        raise UserError.single(where, what, "Take a run with a teacher and task.query: both.")
    for name in _WEIGHTS:
        if not (folder / "model" / name).is_file():
            raise UserError.single(where, f"has no weights (model/{name} is missing).", _WHOLE)
    own = set(task_file.labels)
    if labels is not None and blueprint.task.name != "qa" and own != set(labels):
        unlike = ", ".join(sorted(own ^ set(labels))[:3])
        raise UserError.single(where, f"has other labels than this run's data ({unlike}).")
    return TeachingRun(folder, source, task_file)


def _revision(folder: Path) -> str:
    """Hexadecimal digest of the teacher's weights and the table."""
    return files_digest(folder / "model" / name for name in (*_WEIGHTS, "task.json"))


def _where(folder: Path) -> str:
    """For messages."""
    return f"distillation.from_run: {folder}"


def _place(
    data: DataConfig,
    run: TeachingRun,
    revision: str,
    train: TokenizedSplit,
    labels: Sequence[str],
) -> Path | None:
    """File in the cache, named by all that the targets hang on: how the run, which tokenises the
    rows itself, reads them, and to which places of `train` that is carried over; None: nothing is
    kept."""
    if not data.cache:
        return None
    code = code_digest("data", "tasks", "models")
    files = [own for own in sorted((run.folder / "model").rglob("*")) if own.suffix == ".json"]
    reads = files_digest([run.folder / "config.yaml", *files], rows_digest(train.rows))
    digest = hashlib.sha256(f"{revision} {code} {reads} {list(labels)}".encode())
    for own in (train.token_ids, train.words, train.labels):
        digest.update(own.tobytes())
    folder = cache_root(data.cache_folder) / "targets"
    folder.mkdir(exist_ok=True)
    return folder / f"{digest.hexdigest()}.npz"


def _targets(
    run: TeachingRun, train: TokenizedSplit, labels: Sequence[str], spec_of: Spec
) -> FloatArray:
    """(num_words, outputs) what a run says of the rows of `train`."""
    from tsarch.pair.answering import Answering
    from tsarch.stage.build import build_pair
    from tsarch.tasks.base import is_answering, num_outputs

    folder, source, task_file = run.folder, run.source, run.task_file
    task = make_task(task_file.task, task_file.labels, source.task)
    assert is_answering(task)
    teachers = [stage for stage in source.stages if stage.reads == "contexts"]
    try:
        pair = build_pair(
            source,
            num_outputs(task, len(task_file.labels)),
            {stage: load_weights(folder / "model", stage) for stage in teachers},
            load_table(folder / "model").clone(),
            stages=teachers,
        )
    except Exception as error:  # libraries raise what they like for damaged files
        what = f"its weights can't be read: {one_line(error)}."
        raise UserError.single(_where(folder), what, _WHOLE) from None
    layout = row_reader(source.task.name, source.data).layout(spec_of(source), task_file.labels)
    read = layout.pack(train.rows)
    scores = Answering(pair, task, source.window_tokens).scores(read, "teacher")
    if source.task.name == "qa":
        return span_targets(read, scores, train)
    order = [task_file.labels.index(label) for label in labels]
    said = label_targets(read, scores[:, order], train)
    logs: FloatArray = np.log(np.maximum(said, _LEAST)).astype(np.float32)
    return logs


def label_targets(read: TokenizedSplit, scores: FloatArray, train: TokenizedSplit) -> FloatArray:
    """(num_words of `train`, labels) probabilities from those of (num_words of `read`) the same
    rows, place by place. Of a row with one label that has other places in `read` (another
    tokenizer, other contexts, a model that has its label elsewhere) each has the mean over these.
    Of a question with choices, whose start may be left out, the last places are the same; those
    that weren't read count as the first that was, which is no choice either.
    """
    own, wanted = np.diff(read.sentence_offsets), np.diff(train.sentence_offsets)
    if np.array_equal(own, wanted):
        return scores
    if not all(hasattr(row, "label") for row in train.rows):
        parts = itertools.pairwise(read.sentence_offsets.tolist())
        rows = [scores[start:stop] for start, stop in parts]
        lasts = [np.arange(-size, 0).clip(min=-len(row)) for row, size in zip(rows, wanted)]
        return np.concatenate([row[last] for row, last in zip(rows, lasts, strict=True)])
    means = row_means(read, scores).astype(np.float32)
    found: FloatArray = np.repeat(means, wanted, axis=0)
    alike = own == wanted
    found[np.repeat(alike, wanted)] = scores[np.repeat(alike, own)]
    return found


def span_targets(read: TokenizedSplit, logits: FloatArray, train: TokenizedSplit) -> FloatArray:
    """(num_words of `train`, 2) log-probabilities of start and end over all of each row's passage,
    from (num_words of `read`, 2) logits against no answer of the same rows, whose contexts and
    tokens may be others. A word that several contexts have counts as the one that is surest of it.
    What starts or ends at a word of `read` does so at the one of `train` that has its first or last
    character."""
    targets = np.full((train.num_words, 2), _NEVER, dtype=np.float32)
    for row, (own, other) in enumerate(zip(read.pieces, train.pieces, strict=True)):
        start = int(read.sentence_offsets[row])
        bounds = np.concatenate([piece.bounds for piece in own])
        said = logits[start : start + len(bounds)].astype(np.float64)
        known, which = np.unique(bounds, axis=0, return_inverse=True)
        best = np.full((len(known), 2), -np.inf)
        np.maximum.at(best, which, said)
        logs = best - np.logaddexp(0.0, np.logaddexp.reduce(best, axis=0))
        places = np.concatenate([piece.bounds for piece in other])
        words, at = np.unique(places, axis=0, return_inverse=True)
        first = int(train.sentence_offsets[row])
        targets[first : first + len(places)] = _carried(known, logs, words)[at]
    return np.maximum(targets, _NEVER)


def _carried(known: IntArray, logs: FloatArray, words: IntArray) -> FloatArray:
    """(words, 2) log-probabilities of start and end, from those of other words of the same text;
    both (words, 2) characters [start, stop), in order."""
    begins, stops = words.T
    found = np.full(words.shape, -np.inf)
    last = np.searchsorted(begins, known[:, 0], side="right") - 1
    ends = np.searchsorted(stops, known[:, 1]).clip(max=len(words) - 1)
    for column, at, character in ((0, last.clip(min=0), known[:, 0]), (1, ends, known[:, 1] - 1)):
        there = (begins[at] <= character) & (character < stops[at])
        np.logaddexp.at(found[:, column], at[there], logs[there, column])
    return found
