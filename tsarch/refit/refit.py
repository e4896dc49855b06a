"""Goes on with a run on new data, measures the old version and the new one, and takes the better.

Every step may be the last: what is written first says what is to be done, a step that is done is
seen to be, and the same call made again does the rest.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tsarch.blueprint import Blueprint
from tsarch.config import Config
from tsarch.errors import UserError
from tsarch.refit.judging import HELD_OUT as NEW
from tsarch.refit.judging import TEST, Pair, judge
from tsarch.refit.lineage import FIRST, Lineage, remove_folder
from tsarch.refit.mixing import Mix, OldRows, mix
from tsarch.refit.reading import (
    HELD_OUT,
    NEW_TRAIN,
    NEW_VALIDATION,
    NewDataError,
    NewRows,
    read_beside,
    read_new,
    read_old,
    run_labels,
)
from tsarch.refit.records import Record, utc_now
from tsarch.refit.rows import UNLABELLED, PlainRows, plain_data
from tsarch.refit.settings import Request, Sources, refit_blueprint, sources
from tsarch.run.evaluate import Evaluation
from tsarch.run.saved_run import evaluate_run
from tsarch.tasks.registry import make_task

Say = Callable[[str], None]
Train = Callable[[Config, bool], Any]
"""Trains a run; True: goes on with it from its last checkpoint."""


@dataclass(frozen=True)
class Known:
    """Data that was given before."""

    record: Record


class Refit:
    """One refit of a run, whose lock is held."""

    def __init__(self, lineage: Lineage, request: Request, train: Train, say: Say) -> None:
        self._lineage = lineage
        self._request = request
        self._train = train
        self._say = say

    def run(
        self, data: Sequence[str], again: bool = False, source: str | None = None
    ) -> Record | Known:
        """Make a version of new data, and take it or not.

        Args:
            data: files of the new rows.
            again: also if the same rows were given before.
            source: what the record calls the data; None: its files.

        Raises:
            NewDataError: the data can't be used; nothing was trained.
            UserError: so with the request or the run.
        """
        lineage = self._lineage
        found = sources(lineage.run, self._request, data)
        unfinished = [own for own in lineage.records() if own.accepted is None]
        name = lineage.next_name()
        new = self._read(found, name)
        new = new if source is None else replace(new, source=source)
        for record in lineage.records():
            if record.fingerprint == new.fingerprint and record.accepted is not None and not again:
                return Known(record)
        for note in new.notes:
            self._say(f"note: {note}")
        for record in unfinished:
            if self._is_same(record, new):
                self._say(f"going on with {record.version}, which was interrupted")
                return self._finish(record, found.new)
            self._say(f"{record.version} of {record.source} was never finished: discarded")
            lineage.discard(record.version)
        return self._finish(self._begin(name, new, found), found.new)

    def _read(self, found: Sources, name: str) -> NewRows:
        labels = run_labels(self._lineage)
        try:
            return read_new(found.new, labels, name)
        except UserError as error:
            raise NewDataError(error.mistakes) from None

    def _is_same(self, record: Record, new: NewRows) -> bool:
        """Whether an unfinished refit is of the same call."""
        same = (new.fingerprint, self._lineage.current, self._request.as_json())
        return (record.fingerprint, record.parent, record.request) == same

    def _begin(self, name: str, new: NewRows, found: Sources) -> Record:
        """Lay out the rows of a version, and its record."""
        lineage, request = self._lineage, self._request
        plain = PlainRows(found.old.task.name)
        old, notes = read_old(found.old, lineage, plain, request.replay > 0)
        seed = f"{found.new.seed} {name}"
        shares = request.held_out, request.replay
        try:
            own = mix(new.documents, old, plain, *shares, seed, new.source)
        except UserError as error:
            raise NewDataError(error.mistakes) from None
        for note in (*notes, *own.notes):
            self._say(f"note: {note}")
        beside = read_beside(found, request.sets("data.unlabelled"))
        folder = lineage.refit_folder(name)
        lineage.discard(name)
        if lineage.current == FIRST:
            lineage.adopt()
        folder.mkdir(parents=True)
        rows = self._write_rows(folder, plain, own, old)
        if beside:
            plain.write(folder / UNLABELLED, beside)
        self._say(", ".join(f"{kind.replace('_', ' ')}: {n:,} rows" for kind, n in rows.items()))
        record = Record(
            name,
            lineage.current,
            utc_now(),
            new.source,
            new.fingerprint,
            request.as_json(),
            rows,
        )
        record.write(folder)
        return record

    def _write_rows(self, folder: Path, plain: PlainRows, own: Mix, old: OldRows) -> dict[str, int]:
        """Write the files of a refit; how many rows are for what."""
        validation = (*old.validation, *own.new_validation)
        if not validation:
            what = "there is no row to validate on: the run's own are gone, and none of the new is."
            raise UserError.single("data.validation", what, "Set data.validation, or --held-out.")
        files = {
            NEW_TRAIN: own.new_train,
            NEW_VALIDATION: own.new_validation,
            HELD_OUT: own.held_out,
            "train.jsonl": (*own.new_train, *own.replayed),
            "validation.jsonl": validation,
            "test.jsonl": tuple(old.test),
        }
        for file, documents in files.items():
            plain.write(folder / file, documents)
        counted = {
            "new": own.new_train,
            "replayed": own.replayed,
            "validation": validation,
            "held_out": own.held_out,
            "test": tuple(old.test),
        }
        return {kind: sum(len(d.rows) for d in found) for kind, found in counted.items()}

    def _finish(self, record: Record, new: Blueprint) -> Record:
        """Train what isn't trained yet, measure, decide, and switch."""
        lineage = self._lineage
        folder, rows = lineage.folder(record.version), lineage.refit_folder(record.version)
        parent = lineage.folder(record.parent)
        started = time.monotonic()
        blueprint = refit_blueprint(new, self._request, parent, rows, folder)
        self._train_once(folder, blueprint.config)
        trained = time.monotonic()
        measured = self._measure(record, blueprint, parent, folder)
        task = make_task(blueprint.task.name, run_labels(lineage), blueprint.task)
        verdict = judge(task, blueprint.monitor, measured, self._request.margin)
        seconds = {"train": trained - started, "evaluate": time.monotonic() - trained}
        record = replace(
            record,
            decided=utc_now(),
            accepted=verdict.accepted,
            reason=verdict.reason,
            metric=f"{task.main_metric} ({blueprint.monitor})",
            scores=verdict.scores,
            metrics={name: _as_json(pair) for name, pair in measured.items()},
            seconds=seconds,
        )
        record.write(rows)
        if record.accepted:
            lineage.make_current(record.version, record.reason)
        for name in lineage.prune(self._request.keep):
            self._say(f"the weights of {name} are removed (--keep {self._request.keep})")
        return record

    def _train_once(self, folder: Path, config: Config) -> None:
        """Train a version, or go on where that was interrupted."""
        if (folder / "summary.json").is_file():
            json.loads((folder / "summary.json").read_text(encoding="utf-8"))
            return
        if any(folder.glob("checkpoints/step-*/manifest.json")):
            self._train(config, True)
            return
        remove_folder(folder)
        self._train(config, False)

    def _measure(
        self, record: Record, blueprint: Blueprint, parent: Path, folder: Path
    ) -> dict[str, Pair]:
        """Both versions on the old test set and on what is held out."""
        rows = self._lineage.refit_folder(record.version)
        files = {TEST: rows / "test.jsonl", NEW: rows / HELD_OUT}
        overrides = [own for own in self._request.overrides if own.startswith("topology.device")]

        def measure(run: Path, file: Path) -> Evaluation:
            data = plain_data(blueprint.task.name, test=str(file))
            return evaluate_run(run, "test", None, overrides, data, texts=False).evaluation

        measured = {}
        for name, file in files.items():
            if name == TEST or record.rows["held_out"]:
                self._say(f"measuring {record.parent} and {record.version}: {file.name}")
                measured[name] = Pair(measure(parent, file), measure(folder, file))
        return measured


def _as_json(pair: Pair) -> Mapping[str, Mapping[str, Any]]:
    old, new = (dict[str, Any](own.metrics.items()) for own in (pair.old, pair.new))
    return {"old": old, "new": new}
