"""`tsarch submit`, `jobs`, `attach`, `stop`: runs as jobs on a Ray cluster, checked here first."""

from __future__ import annotations

import os
import secrets
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsarch.config import Config
from tsarch.config_loading import load_config
from tsarch.errors import Mistake, UserError

if TYPE_CHECKING:
    from tsarch.cluster.jobs import JobEnd, Jobs
    from tsarch.cluster.working_folder import WorkingFolder

_DEFAULT_ADDRESS = "http://127.0.0.1:8265"
_SCRIPT = Path("launch", "train.py")
_MAKES_CHECKPOINTS = "tsarch"
"""Metadata of jobs that are waited for when they are stopped."""
_INTERRUPTED = 130
_DATA = ("train", "validation", "test", "unlabelled")
"""Keys of `data` that name files."""


@dataclass(frozen=True)
class Target:
    """Where jobs go: a cluster file of `ray up`, or the address of a job server; neither: the
    environment's, as for `ray job submit`."""

    cluster: Path | None
    address: str | None


@dataclass(frozen=True)
class Submission:
    """What is to be run, in which folder."""

    config: Path
    overrides: Sequence[str]
    folder: Path
    resume: bool
    stop_wait_s: int
    follows: bool


def submit_run(what: Submission, target: Target) -> int:
    """Check, send, start and follow a run; the exit status.

    Raises:
        UserError: mistakes in the config, or something that it needs would not be sent.
    """
    from tsarch.cluster.working_folder import WorkingFolder

    config = load_config(what.config, list(what.overrides))
    folder = WorkingFolder.look(what.folder)
    _require(_mistakes(what, config, folder))
    _say(f"{len(folder.sizes):,} files of {folder.path} are sent: {folder.num_bytes / 1e6:.1f} MB")
    for note in _notes(config, folder):
        _say(f"note: {note}")
    with _jobs(target) as jobs:
        name = jobs.submit(
            f"{config.run.name}-{secrets.token_hex(3)}",
            _command(what, folder),
            folder.path,
            {_MAKES_CHECKPOINTS: "run", "run": config.run.name, "folder": config.run_folder},
            what.stop_wait_s,
        )
        _say(f"job {name} is submitted; it goes on without this computer")
        if not what.follows:
            _say(f"to follow it: {_call('attach', name, target)}")
            return 0
        return _follow(jobs, name, target)


def attach_to(name: str, target: Target) -> int:
    """Write a job's log from its start until it ends; the exit status."""
    with _jobs(target) as jobs:
        return _follow(jobs, str(jobs.find(name).submission_id), target)


def stop_job(name: str, target: Target, now: bool) -> int:
    """Let a job save a checkpoint and end, and write its log meanwhile; the exit status.

    Raises:
        UserError: Ray would kill it before it could save, and not `now` is asked for.
    """
    with _jobs(target) as jobs:
        job = jobs.find(name)
        name = str(job.submission_id)
        if not (job.metadata or {}).get(_MAKES_CHECKPOINTS) and not now:
            raise UserError.single(
                f"job {name}",
                "was not started by `tsarch submit`, so Ray kills it 3 s after it asks it to end, "
                "which is no time for a checkpoint: what was done since its last one would be "
                "lost.",
                "Stop it all the same with --now.",
            )
        start = jobs.stop(name)
        _say(f"job {name} is asked to end")
        end = jobs.follow(name, _write, _say, start)
        _say(f"job {name}: {end.status}")
        return 0 if end.status in ("STOPPED", "SUCCEEDED") else end.exit_status


def show_jobs(target: Target) -> None:
    """A line for each job, the newest first."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("job", "status", "started", "lasted", "what"):
        table.add_column(heading, overflow="fold")
    with _jobs(target) as jobs:
        for job in jobs.all():
            started, lasted = _times(job.start_time, job.end_time)
            table.add_row(str(job.submission_id), str(job.status), started, lasted, job.entrypoint)
    Console(highlight=False, markup=False, emoji=False).print(table)


def _times(start_ms: int | None, end_ms: int | None) -> tuple[str, str]:
    if not start_ms:
        return "–", "–"
    seconds = int((end_ms / 1000 if end_ms else time.time()) - start_ms / 1000)
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(start_ms / 1000))
    return started, f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


@contextmanager
def _jobs(target: Target) -> Iterator[Jobs]:
    """Within: the job server that is meant."""
    from tsarch.cluster.jobs import Jobs
    from tsarch.cluster.tunnel import tunnel

    if target.cluster is not None and target.address is not None:
        raise UserError.single("--cluster, --address", "give one or the other.")
    if target.cluster is not None:
        with tunnel(target.cluster) as address:
            yield Jobs(address)
        return
    named = target.address or os.environ.get("RAY_API_SERVER_ADDRESS") or _DEFAULT_ADDRESS
    # Ray's client would take an address from the environment before the one that is given.
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        os.environ.pop(name, None)
    if not named.startswith(("http://", "https://")):
        what = "is no address of a job server: that is http://HOST:PORT, with 8265 for the port."
        raise UserError.single(f"--address {named}", what)
    yield Jobs(named)


def _follow(jobs: Jobs, name: str, target: Target) -> int:
    try:
        end = jobs.follow(name, _write, _say)
    except KeyboardInterrupt:
        _say(f"the job goes on. To follow it: {_call('attach', name, target)}")
        _say(f"To end it with a checkpoint: {_call('stop', name, target)}")
        return _INTERRUPTED
    _say(f"job {name}: {end.status}" + _reason(end))
    return end.exit_status


def _reason(end: JobEnd) -> str:
    lines = end.message.strip().splitlines()
    return f" ({lines[0].rstrip(', :.')})" if lines and end.exit_status else ""


def _call(command: str, name: str, target: Target) -> str:
    """What to type for another command on the same job."""
    where = [] if target.address is None else ["--address", target.address]
    where = where if target.cluster is None else ["--cluster", str(target.cluster)]
    return shlex.join(["tsarch", command, name, *where])


def _command(what: Submission, folder: WorkingFolder) -> str:
    """What the job runs: the folder's own script, or that of the hosts' installation."""
    has_script = folder.holds(folder.path / _SCRIPT)
    script = [str(_SCRIPT)] if has_script else ["-m", "tsarch.launch.train"]
    config = str(what.config.absolute().relative_to(folder.path))
    settings = [part for own in what.overrides for part in ("--set", own)]
    return shlex.join(["python", *script, config, *settings, *(["--resume"] * what.resume)])


def _mistakes(what: Submission, config: Config, folder: WorkingFolder) -> Iterator[Mistake]:
    """All that would keep the run from finding what it needs, or from leaving what it makes."""
    if not what.config.absolute().is_relative_to(folder.path):
        hint = "Give the folder that has it, and the data: --working-dir FOLDER."
        yield Mistake(str(what.config), f"is not in the working folder {folder.path}.", hint)
    elif not folder.holds(what.config.absolute()):
        yield _hidden(folder, str(what.config), what.config.absolute())
    for key, path in _needed(config, folder):
        files = [path] if path.exists() else [Path(own) for own in sorted(glob(str(path)))]
        if not files:
            yield Mistake(f"{key}: {path}", "is not there.")
        for own in files:
            if not folder.holds(own):
                yield _hidden(folder, f"{key}: {own}", own)
    if not Path(config.run_folder).expanduser().is_absolute():
        yield Mistake(
            f"run.folder: {config.run_folder}",
            "is relative, and a job's own folder is removed some time after its end, and with it "
            "the run.",
            f"Name a folder that all hosts share: --set run.folder=/shared/runs/{config.run.name}.",
        )
    if (large := folder.too_large()) is not None:
        yield large


def _hidden(folder: WorkingFolder, where: str, path: Path) -> Mistake:
    what = f"is not sent with the job: it is hidden by {folder.why_hidden(path)}."
    hint = "Take it out of there; or put it where all hosts find it, and give its absolute path."
    return Mistake(where, what, hint)


def _needed(config: Config, folder: WorkingFolder) -> Iterator[tuple[str, Path]]:
    """(key, path) of all files and folders that the config names inside the working folder."""
    for key, value in _named(config):
        path = Path(os.path.abspath(Path(value).expanduser()))
        if path.is_relative_to(folder.path):
            yield key, path


def _named(config: Config) -> Iterator[tuple[str, str]]:
    """(key, path) of all that the config names, here or elsewhere; names of the hub and URLs are
    none."""
    named = {f"data.{key}": getattr(config.data, key) for key in _DATA}
    named["distillation.from_run"] = config.distillation.from_run
    for key, value in named.items():
        for own in value if isinstance(value, list) else [value]:
            if own is not None and "://" not in own:
                yield key, own
    if config.data.tokenizer is not None and Path(config.data.tokenizer).exists():
        yield "data.tokenizer", config.data.tokenizer
    for section in ("teacher", "student"):
        model = getattr(getattr(config, section), "model", None)
        if model is not None and Path(model).exists():
            yield f"{section}.model", model
    if config.run.start_from is not None:
        yield "run.start_from", config.run.start_from


def _notes(config: Config, folder: WorkingFolder) -> Iterator[str]:
    for key, value in _named(config):
        if not Path(os.path.abspath(Path(value).expanduser())).is_relative_to(folder.path):
            yield f"{key}: {value} is not in the working folder: the hosts must have it there"
    if config.topology.runner != "ray":
        yield f"topology.runner: {config.topology.runner}: the run uses the head's host alone"


def _require(mistakes: Iterable[Mistake]) -> None:
    found = list(mistakes)
    if found:
        raise UserError(found)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _say(text: Any) -> None:
    print(f"tsarch: {text}", file=sys.stderr, flush=True)
