"""Finding where a run goes on, and whether it may: the newest whole checkpoint of the same run."""

from __future__ import annotations

import copy
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from tsarch.blueprint import Blueprint, resolve
from tsarch.checkpoint.cut import Cut, Resume
from tsarch.checkpoint.driver_state import (
    CONFIG,
    PROGRESS,
    DriverState,
    RanksRecord,
    parse_progress,
)
from tsarch.checkpoint.store import Store
from tsarch.config_changes import leaves
from tsarch.config_loading import parse_config
from tsarch.data.stored_split import StoredSplit
from tsarch.errors import Mistake, UserError, one_line
from tsarch.feeds import batch_plan, num_training_steps
from tsarch.model_folder import replace_folder
from tsarch.prepare import Prepared
from tsarch.redaction import is_redacted
from tsarch.run.checkpoint_keeper import link_or_copy
from tsarch.telling.step_table import StepTable
from tsarch.topology import Stage
from tsarch.yaml_text import read_yaml

# Keys, or sections, that change no loss beyond the order of sums, or only what is written.
_MAY_DIFFER = (
    "run.name",
    "run.folder",
    "run.trace",
    "run.profile_steps",
    "topology",
    "checkpoint",
    "failure",
    "tracking",
    "attention",
    "teacher.deepspeed",
    "student.deepspeed",
    "teacher.activation_checkpointing",
    "student.activation_checkpointing",
    "teacher.offload_activations",
    "student.offload_activations",
    "embedding.exchange",
    "embedding.shard_optimizer",
    "embedding.check_every",
    "schedule.in_flight",
    "evaluation.batch_tokens",
    "evaluation.patience",
    "evaluation.before",
    # What the data holds, in tokens, is compared, wherever it and the tokenizer lie.
    "data.train",
    "data.validation",
    "data.test",
    "data.unlabelled",
    "data.tokenizer",
    "data.cache",
    "distillation.from_run",  # its weights are compared
    # Weights are in checkpoints, and those that aren't are compared.
    "run.start_from",
    "teacher.model",
    "student.model",
)


@dataclass(frozen=True)
class ResumePoint:
    """A whole checkpoint, or a cut in memory."""

    store: Store
    step: int
    progress: DriverState
    blueprint: Blueprint
    """Of the run that wrote it."""
    places: Mapping[str, tuple[str, ...]] | None = None
    """Where ranks hold it in memory (see `Cut`); None: it is in the store."""

    def resume(self, blueprint: Blueprint) -> Resume | None:
        """What ranks need to know, for ranks as `blueprint` has them. An epoch that is over goes on
        with the first tick of the next."""
        tick = self.step if self.progress.epoch_done else self.progress.tick
        same_ranks = _are_alike(self.progress.ranks, ranks_record(blueprint))
        cut = Cut(self.store.url, self.step)
        if self.is_in_memory:
            cut = Cut(None, self.step, self.places or {})
        return Resume(cut, tick, same_ranks)

    @property
    def is_in_memory(self) -> bool:
        """Whether ranks hold it in memory."""
        return self.places is not None

    @property
    def place(self) -> str:
        """What to call it in messages."""
        return f"step {self.step} in memory" if self.is_in_memory else self.store.place(self.step)

    @property
    def saved_step(self) -> int | None:
        """Of the newest checkpoint in the store, from here back."""
        return max(self.store.steps(), default=None) if self.is_in_memory else self.step


def _are_alike(one: RanksRecord, other: RanksRecord) -> bool:
    """Whether each rank of one can go on where its like of the other was; who starts the processes
    doesn't matter."""
    local = [ranks.runner == "local" for ranks in (one, other)]
    counts = [
        (ranks.teacher_replicas, ranks.student_replicas, ranks.teacher_sequence_parallel)
        for ranks in (one, other)
    ]
    return local[0] == local[1] and counts[0] == counts[1]


def ranks_record(blueprint: Blueprint) -> RanksRecord:
    """Which ranks a run has."""
    topology = blueprint.topology
    return RanksRecord(
        runner=blueprint.runner.name,
        teacher_replicas=topology.replicas(Stage.TEACHER),
        student_replicas=topology.replicas(Stage.STUDENT),
        teacher_sequence_parallel=topology.num_slices(Stage.TEACHER),
    )


def checkpoint_url(blueprint: Blueprint, run_folder: Path) -> str:
    """Where a run's checkpoints are.

    Raises:
        UserError: the URL has lost its credentials, which no file of a run holds.
    """
    url = blueprint.checkpoint.folder or str(run_folder / "checkpoints")
    if is_redacted(url):
        raise UserError.single(
            f"checkpoint.folder: {url}",
            "has no credentials: a run's config.yaml is written without.",
            "Give the URL again (--set checkpoint.folder=URL), or keep them in the environment.",
        )
    return url


def find_resume_point(store: Store, say: Callable[[str], None]) -> ResumePoint:
    """The newest checkpoint that is whole; damaged ones are named and passed over.

    Raises:
        UserError: there is none.
    """
    steps = store.steps()
    for step in reversed(steps):
        damage = store.damage(step)
        if damage is None:
            try:
                progress = parse_progress(store.read_text(step, PROGRESS))
                raw = read_yaml(store.read_text(step, CONFIG))
                config = parse_config(raw, f"{store.place(step)}/{CONFIG}")
                _check_totals(progress)
                return ResumePoint(store, step, progress, resolve(config))
            except (OSError, ValueError) as error:
                damage = str(error)
        older = "trying the one before" if step != steps[0] else "there is none before it"
        say(f"warning: {store.place(step)} is damaged: {damage}; {older}")
    found = f"all {len(steps)} checkpoints there are damaged" if steps else "no checkpoint is there"
    raise UserError.single(
        f"--resume: {store.url}", f"nothing to resume: {found}.", "Start anew without --resume."
    )


def _check_totals(progress: DriverState) -> None:
    """Try what `Trainer` will do with it.

    Raises:
        ValueError: it can't.
    """
    topology = progress.ranks.topology
    try:
        StepTable(topology).restore(copy.deepcopy(progress.table), topology)
    except (LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"{PROGRESS}: `table` can't be read ({one_line(error)})") from None


def check_same_run(blueprint: Blueprint, saved: Blueprint) -> None:
    """Whether a run can go on where the one of `saved` was.

    Raises:
        UserError: names all keys that differ and may not.
    """
    now, before = (dict(leaves(own.config.model_dump())) for own in (blueprint, saved))
    mistakes = [
        Mistake(
            f"--resume: {key}",
            f"is {now.get(key)!r}, the checkpoint's run has {before.get(key)!r}.",
            "It must stay as it is to resume.",
        )
        for key in sorted({*now, *before})
        if now.get(key) != before.get(key) and not key.startswith(_MAY_DIFFER)
    ]
    if mistakes:
        raise UserError(mistakes)


def check_same_inputs(blueprint: Blueprint, prepared: Prepared, point: ResumePoint) -> None:
    """Whether the data, and the models that are read again, are still what they were.

    Raises:
        UserError: they aren't, or the checkpoint is of no place in the data.
    """
    known = point.progress.models
    if known and known != models_fingerprint(blueprint):
        raise UserError.single(
            "--resume: models",
            "aren't what they were: teacher.model, student.model or run.start_from have another "
            f"config than {point.store.place(point.step)} was trained with, or other weights of "
            "what is frozen.",
            "Give the same models, or start anew without --resume.",
        )
    if data_fingerprint(prepared) != point.progress.data:
        raise UserError.single(
            "--resume: data",
            f"is not what {point.store.place(point.step)} was trained on: texts, labels, the "
            "tokenizer or the weights of distillation.from_run have changed.",
            "Give the same data, or start anew without --resume.",
        )
    _check_place(prepared, point)


def _check_place(prepared: Prepared, point: ResumePoint) -> None:
    """Whether the checkpoint's place is one of its run.

    Raises:
        UserError: it isn't.
    """
    plan = batch_plan(point.blueprint, prepared.training)
    progress, num_steps = point.progress, num_training_steps(point.blueprint, plan)
    starts = [min(start, num_steps) for start in plan.epoch_starts]
    if progress.epoch < len(starts) - 1:
        start, stop = starts[progress.epoch : progress.epoch + 2]
        if point.step == stop if progress.epoch_done else start <= progress.tick < stop:
            return
    raise UserError.single(
        f"--resume: {point.store.place(point.step)}",
        f"is damaged: {PROGRESS} names a place that the run doesn't have (epoch {progress.epoch}, "
        f"tick {progress.tick}).",
        "Delete this checkpoint: the one before is taken then.",
    )


def models_fingerprint(blueprint: Blueprint) -> str:
    """A hash of the models' configs and, where a resumed run reads weights from them again (of what
    is frozen, of words that are near others in the first table), of these; empty: there are none.
    """
    from tsarch.models.weight_files import model_digest  # imports torch

    table, stages = blueprint.table, list(blueprint.stages.values())
    is_frozen = any(own.freeze != "none" or own.lora is not None for own in stages)
    again = is_frozen or table.frozen or blueprint.data.augmentation.mask > 0
    paths = [*(own.architecture.path for own in stages), table.architecture.path]
    digests = {path: model_digest(path, again) for path in set(paths) if path is not None}
    found = [digests[path] for path in paths if path is not None]
    if blueprint.run.start_from is not None:
        start = Path(blueprint.run.start_from)
        folders = [start, *sorted(own for own in start.iterdir() if own.is_dir())]
        found += [model_digest(str(own), again) for own in folders]
    return hashlib.sha256(repr(found).encode()).hexdigest() if found else ""


def data_fingerprint(prepared: Prepared) -> str:
    """A hash of all tokenised splits and labels, and of the weights that give further targets."""
    digest = hashlib.sha256(repr(prepared.labels).encode())
    if prepared.taught is not None:
        digest.update(prepared.taught.revision.encode())
    for name, split in sorted(prepared.held.items()):
        digest.update(name.encode())
        if isinstance(split, StoredSplit):
            digest.update(split.about.fingerprint.encode())
            continue
        for field in fields(split):
            value = getattr(split, field.name)
            digest.update(field.name.encode())
            is_array = isinstance(value, np.ndarray)
            digest.update(value.tobytes() if is_array else repr(value).encode())
    return digest.hexdigest()


def restore_model(point: ResumePoint, model: Path) -> None:
    """Put the best weights as they were at the cut into `model`. (After a cut in memory they may
    have changed at an epoch's end that comes again, and then they change in the same way.)"""
    if point.is_in_memory:
        return
    names = [n for n in point.store.manifest(point.step).files if n.startswith("model/")]
    if not names:
        shutil.rmtree(model, ignore_errors=True)
        return
    aside = model.with_name("model.new")
    shutil.rmtree(aside, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="tsarch-") as folder:
        for name, path in point.store.fetch(point.step, names, Path(folder)).items():
            target = aside / name.removeprefix("model/")
            target.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(path, target)
    replace_folder(aside, model)
