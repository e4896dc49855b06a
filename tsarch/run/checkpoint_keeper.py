"""The driver's part of checkpoints: putting the ranks' parts together, deleting old ones."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tsarch.blueprint import Blueprint
from tsarch.checkpoint.cut import Cut, Stall, Written
from tsarch.checkpoint.driver_state import CONFIG, PROGRESS, DriverState
from tsarch.checkpoint.manifest import FileEntry, Manifest
from tsarch.checkpoint.retention import superseded
from tsarch.checkpoint.store import Store
from tsarch.config import CheckpointConfig
from tsarch.errors import one_line
from tsarch.rank.crew import Crew
from tsarch.rank.pacer import CutRules, keeps_cuts


@dataclass
class Costs:
    """What checkpoints have cost so far."""

    stalls_s: list[float] = field(default_factory=list)
    """Longest wait of a rank, by checkpoint."""
    writes_s: list[float] = field(default_factory=list)
    """Longest time that a rank wrote in the background, by checkpoint."""
    nbytes: int = 0
    """Bytes of the last one."""
    failed: int = 0

    def summary(self) -> dict[str, Any]:
        """For `summary.json`."""
        count = len(self.writes_s)
        return {
            "count": count,
            "failed": self.failed,
            "max_stall_s": max(self.stalls_s, default=0.0),
            "mean_stall_s": sum(self.stalls_s) / max(len(self.stalls_s), 1),
            "mean_write_s": sum(self.writes_s) / max(count, 1),
            "bytes": self.nbytes,
        }


@dataclass(frozen=True)
class _UnderWay:
    """A checkpoint that ranks are writing."""

    step: int
    stalls: list[Stall]
    state: DriverState
    score: float | None


class CheckpointKeeper:
    """One checkpoint is under way at a time; the last step of making it, hashing and manifest, is
    done in a thread."""

    def __init__(
        self,
        config: CheckpointConfig,
        store: Store,
        crew: Crew,
        config_text: str,
        model_folder: Path,
        say: Callable[[str], None],
        last: int | None = None,
    ) -> None:
        self.costs = Costs()
        self.last = last
        """Step of the last complete checkpoint."""
        self._config = config
        self._store = store
        self._crew = crew
        self._config_text = config_text
        self._model_folder = model_folder
        self._say = say
        self._under_way: _UnderWay | None = None
        self._threads = ThreadPoolExecutor(1, "checkpoint")
        self._committing: Future[None] | None = None

    @property
    def is_writing(self) -> bool:
        """Whether a checkpoint is under way."""
        return self._under_way is not None or self._committing is not None

    def begin(self, cut: Cut) -> bool:
        """Make the place of a checkpoint, once the one before is complete; False: it can't be. A
        cut in memory needs none."""
        if cut.url is None:
            return True
        self.finish()
        try:
            self._store.begin(cut.step)
        except Exception as error:  # as in `_complete`
            self._warn(cut.step, error)
            return False
        return True

    def taken(
        self, cut: Cut, stalls: list[Stall], state: DriverState, score: float | None = None
    ) -> None:
        """The ranks have copied their state and are writing it; `state` is the driver's at the
        cut, `score` that of the epoch's validation if there was one."""
        self._under_way = _UnderWay(cut.step, stalls, state, score)

    def tend(self) -> None:
        """See whether the checkpoint under way is written; never waits."""
        if self._committing is not None and self._committing.done():
            self._end_commit()
        if self._under_way is not None:
            written = self._crew.checkpoint_written(wait=False)
            if written is not None:
                self._commit(written)

    def finish(self) -> None:
        """Wait until all is written."""
        if self._under_way is not None:
            written = self._crew.checkpoint_written(wait=True)
            assert written is not None
            self._commit(written)
        if self._committing is not None:
            self._end_commit()

    def close(self) -> None:
        """Wait for the thread; what ranks have not written is lost."""
        self._threads.shutdown()

    def _commit(self, written: list[Written]) -> None:
        """All ranks have written, or failed to: do the rest in the thread."""
        assert self._under_way is not None
        done, self._under_way = self._under_way, None
        self._committing = self._threads.submit(self._complete, done, written)

    def _end_commit(self) -> None:
        assert self._committing is not None
        committing, self._committing = self._committing, None
        committing.result()

    def _complete(self, done: _UnderWay, written: list[Written]) -> None:
        step = done.step
        try:
            for own in written:
                if own.error is not None:
                    raise OSError(own.error)
            started_s = time.perf_counter()
            files = {name: entry for own in written for name, entry in own.files.items()}
            files |= self._put_documents(step, done)
            self._store.commit(Manifest(step, files, done.score))
        except Exception as error:  # a full disk or lost store must not end the training
            self._warn(step, error)
            return
        self.last = step
        stall_s = max(stall.stall_s for stall in done.stalls)
        write_s = max(own.write_s for own in written) + time.perf_counter() - started_s
        nbytes = sum(entry.bytes for entry in files.values())
        self.costs.stalls_s.append(stall_s)
        self.costs.writes_s.append(write_s)
        self.costs.nbytes = nbytes
        self._say(
            f"checkpoint step-{step}: {nbytes / 1e6:.0f} MB, {stall_s:.2f} s of training, "
            f"written in {write_s:.1f} s"
        )
        try:
            self._delete_old()
        except Exception as error:  # there are too many then, which harms nobody
            self._say(f"warning: old checkpoints can't be deleted: {one_line(error)}")

    def _warn(self, step: int, error: Exception) -> None:
        self.costs.failed += 1
        last = "there is none yet" if self.last is None else f"the last one is step-{self.last}"
        self._say(f"warning: no checkpoint at step {step} ({one_line(error)}); {last}")

    def _put_documents(self, step: int, done: _UnderWay) -> dict[str, FileEntry]:
        texts = {PROGRESS: done.state.model_dump_json(indent=1), CONFIG: self._config_text}
        files = {
            name: self._store.put(step, name, partial(_write_text, text))
            for name, text in texts.items()
        }
        if done.state.best is not None:
            for path in sorted(self._model_folder.rglob("*")):
                if path.is_file():
                    name = f"model/{path.relative_to(self._model_folder).as_posix()}"
                    files[name] = self._store.put(step, name, partial(link_or_copy, path))
        return files

    def _delete_old(self) -> None:
        scores = {}
        for step in self._store.steps():
            try:
                scores[step] = self._store.manifest(step).score
            except ValueError:
                continue  # damaged: left for a person to look at
        for step in superseded(scores, self._config.keep_last, self._config.keep_best):
            self._store.delete(step)


def cut_rules(url: str, blueprint: Blueprint) -> CutRules:
    """When checkpoints are due, and where they go."""
    config = blueprint.checkpoint
    in_memory = config.in_memory_every_steps if keeps_cuts(blueprint) else None
    return CutRules(url, config.every_steps, config.every_s, config.at_epochs, in_memory)


def _write_text(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for a file that nobody changes, or a copy on another disk."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
