"""The driver's part of checkpoints: when to cut, putting the parts together, deleting old ones."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from tsarch.checkpoint.cut import Cut, Stall, Written
from tsarch.checkpoint.driver_state import CONFIG, PROGRESS, DriverState
from tsarch.checkpoint.manifest import FileEntry, Manifest
from tsarch.checkpoint.retention import superseded
from tsarch.checkpoint.store import Store
from tsarch.config import CheckpointConfig
from tsarch.errors import one_line
from tsarch.rank.crew import Crew
from tsarch.run.interrupt import Interrupt


class Capture(Protocol):
    """Tells what the driver knows now."""

    def __call__(self, epoch: int, tick: int, epoch_done: bool) -> DriverState:
        """For a cut before `tick`."""


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


@dataclass
class _UnderWay:
    """A checkpoint that ranks are writing."""

    cut: Cut
    progress: DriverState | None = None
    score: float | None = None
    stalls: list[Stall] = field(default_factory=list)


class CheckpointKeeper:
    """Is the `Cuts` of a crew. One checkpoint is under way at a time; the last step of making it,
    hashing and manifest, is done in a thread."""

    def __init__(
        self,
        config: CheckpointConfig,
        store: Store,
        crew: Crew,
        interrupt: Interrupt,
        capture: Capture,
        config_text: str,
        model_folder: Path,
        say: Callable[[str], None],
    ) -> None:
        self.costs = Costs()
        self.last: int | None = None
        """Step of the last complete checkpoint."""
        self.stopping = False
        self._config = config
        self._store = store
        self._crew = crew
        self._interrupt = interrupt
        self._capture = capture
        self._config_text = config_text
        self._model_folder = model_folder
        self._say = say
        self._epoch, self._start, self._stop = 0, 0, 0
        self._last_cut = -1
        self._soon = False
        self._last_cut_s = time.monotonic()
        self._under_way: _UnderWay | None = None
        self._threads = ThreadPoolExecutor(1, "checkpoint")
        self._committing: Future[None] | None = None

    def resumed_at(self, step: int) -> None:
        """The run goes on from the complete checkpoint of `step`."""
        self.last = self._last_cut = step

    def begin_epoch(self, epoch: int, start: int, stop: int) -> None:
        """The ticks that follow are those of `epoch`, from `start` on."""
        self._epoch, self._start, self._stop = epoch, start, stop

    # The protocol `Cuts`.

    def ticks_until(self, tick: int) -> int:
        """Up to the next checkpoint that is due by steps."""
        every = self._config.every_steps
        return self._stop if every is None else every - tick % every

    def due(self, tick: int) -> Cut | None:
        """The cut before `tick`. The end of an epoch has its own (`end_epoch`)."""
        if self.stopping or tick >= self._stop:
            return None
        if self._interrupt.signal is not None:
            self.stopping = True
            return None if tick == self._last_cut else self._begin(tick)
        if tick > self._start and self._is_due(tick):
            return self._begin(tick)
        return None

    def taken(self, tick: int, stalls: list[Stall]) -> None:
        """Note what the driver knows at the cut."""
        assert self._under_way is not None
        self._under_way.progress = self._capture(self._epoch, tick, epoch_done=False)
        self._under_way.stalls = stalls

    def save_soon(self, reason: str) -> None:
        """A checkpoint is due at the next tick between two chunks."""
        self._say(f"{reason}: saving a checkpoint")
        self._soon = True

    # Between the ticks.

    def end_epoch(self, score: float | None) -> None:
        """The epoch is over; `score` is that of its validation, if there was one."""
        self.stopping = self._interrupt.signal is not None
        tick = self._stop
        if tick == self._last_cut:
            return
        if self.stopping or self._config.at_epochs or self._is_due(tick):
            cut = self._begin(tick)
            if cut is None:
                return
            assert self._under_way is not None
            self._under_way.score = score
            self._under_way.stalls = self._crew.take_checkpoint(cut)
            self._under_way.progress = self._capture(self._epoch, tick, epoch_done=True)

    def tend(self) -> None:
        """See whether the checkpoint under way is written; never waits."""
        if self._committing is not None and self._committing.done():
            self._end_commit()
        if self._under_way is not None and self._under_way.progress is not None:
            written = self._crew.checkpoint_written(wait=False)
            if written is not None:
                self._commit(written)

    def finish(self) -> None:
        """Wait until all is written."""
        if self._under_way is not None and self._under_way.progress is not None:
            written = self._crew.checkpoint_written(wait=True)
            assert written is not None
            self._commit(written)
        if self._committing is not None:
            self._end_commit()

    def close(self) -> None:
        """Wait for the thread; what ranks have not written is lost."""
        self._threads.shutdown()

    def _is_due(self, tick: int) -> bool:
        every_steps, every_s = self._config.every_steps, self._config.every_s
        if self._soon:
            return True
        if every_steps is not None and tick % every_steps == 0:
            return True
        # By the clock, a slow disk is given time.
        waited_s = time.monotonic() - self._last_cut_s
        idle = self._under_way is None and self._committing is None
        return every_s is not None and waited_s >= every_s and idle

    def _begin(self, step: int) -> Cut | None:
        """Start a checkpoint once the one before is complete; None: there is no place for it."""
        self.finish()
        self._last_cut, self._last_cut_s = step, time.monotonic()
        self._soon = False
        try:
            self._store.begin(step)
        except Exception as error:  # as in `_complete`
            self._warn(step, error)
            return None
        cut = Cut(self._store.url, step)
        self._under_way = _UnderWay(cut)
        return cut

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
        step = done.cut.step
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
        assert done.progress is not None
        texts = {PROGRESS: done.progress.model_dump_json(indent=1), CONFIG: self._config_text}
        files = {
            name: self._store.put(step, name, partial(_write_text, text))
            for name, text in texts.items()
        }
        if done.progress.best is not None:
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


def _write_text(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for a file that nobody changes, or a copy on another disk."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
