"""What ranks find out about themselves before anything is built, and the driver's comparison."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from sys import version_info
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol

import psutil
import ray

from tsarch.blueprint import Blueprint
from tsarch.cluster.agreement import NO_GPU, Clock, Facts, RankFacts, disagreements
from tsarch.data.tokenizer import resolve_model_path
from tsarch.errors import UserError, one_line
from tsarch.rank.api import ProcessApi
from tsarch.rank.status import note_file, says_nothing
from tsarch.telling.seats import Seat
from tsarch.timings import TIMINGS
from tsarch.topology import Stage, Topology

if TYPE_CHECKING:
    from tsarch.cluster.ray_crew import RayCrew
    from tsarch.planning.capacity import RankNeed

_LIBRARIES = ("torch", "deepspeed", "ray", "transformers")


@dataclass(frozen=True)
class Request:
    """What a rank is to look at."""

    device: str
    """`topology.device`."""
    marks: Mapping[str, str]
    """File that the driver has written into a shared folder → what is in it."""
    names: tuple[str, ...]
    """Files and models that every rank reads, as the config has them."""


class ActorApi(ProcessApi, Protocol):
    """What a driver asks of ranks that may be on several hosts."""

    def probe(self, request: Request) -> Facts:
        """What this process and its host are (nothing is built yet)."""

    def wall_clock(self) -> float:
        """Seconds since 1970 by this host's clock."""


@TIMINGS.during("ranks import and agree")
def check_ranks(
    crew: RayCrew, blueprint: Blueprint, log_folder: Path, needs: Mapping[Stage, RankNeed] | None
) -> list[Seat]:
    """Ask all ranks, and compare; where they are.

    Args:
        needs: memory of a rank of each stage; None: not checked.

    Raises:
        UserError: names all disagreements, and the nodes and ranks that have them.
    """
    names = tuple(name for name in named_files(blueprint) if _size(name) is not None)
    with marks_in(_shared_folders(blueprint, log_folder)) as marks:
        facts = crew.ask(ActorApi.probe, Request(blueprint.runner.device, marks, names))
    clocks = _clocks(crew)
    topology = blueprint.topology
    ranks = [
        RankFacts(rank, topology.place(rank)[0], own, clock)
        for rank, (own, clock) in enumerate(zip(facts, clocks, strict=True))
    ]
    mistakes = disagreements(ranks, gather_facts(Request("cpu", {}, names)), needs or {})
    if mistakes:
        _tidy(log_folder)
        raise UserError(mistakes)
    return [_seat(topology, own) for own in ranks]


def _seat(topology: Topology, own: RankFacts) -> Seat:
    facts, slices = own.facts, topology.num_slices(own.stage)
    group = topology.place(own.rank)[1] // slices if slices > 1 else None
    return Seat(own.rank, own.stage.name, facts.node, facts.gpu_ids, facts.niceness, group)


def gather_facts(request: Request) -> Facts:
    """What this process is. Torch is imported for GPUs only."""
    own = _Device("cpu") if request.device == "cpu" else _find_device(request.device)
    return Facts(
        node=str(ray.util.get_node_ip_address()),
        versions={**library_versions(), **own.versions},
        device=own.kind,
        device_name=own.name,
        free_host_bytes=int(psutil.virtual_memory().available),
        free_device_bytes=own.free_bytes,
        folders=folder_problems(request.marks),
        sizes={path: _size(path) for path in request.names},
        gpu_ids=_gpu_ids(),
        niceness=os.getpriority(os.PRIO_PROCESS, 0),
    )


def _gpu_ids() -> tuple[str, ...]:
    """The GPUs that Ray gave this process. To ask outside of a Ray would start one."""
    if not ray.is_initialized():
        return ()
    return tuple(ray.get_runtime_context().get_accelerator_ids().get("GPU", ()))


class _Device(NamedTuple):
    kind: str
    name: str = ""
    free_bytes: int | None = None
    versions: Mapping[str, str] = MappingProxyType({})


def _find_device(wanted: str) -> _Device:
    """The GPU that is visible to this process, if it is to have one."""
    import torch

    if not torch.cuda.is_available():
        return _Device(NO_GPU if wanted == "cuda" else "cpu")
    nccl = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
    versions = {"CUDA": str(torch.version.cuda), "NCCL": ".".join(map(str, nccl))}
    free_bytes = int(torch.cuda.mem_get_info(0)[0])
    return _Device("cuda", torch.cuda.get_device_name(0), free_bytes, versions)


def library_versions() -> dict[str, str]:
    """Of Python and of the libraries that must agree on all hosts."""
    found = {"Python": f"{version_info.major}.{version_info.minor}"}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return {**found, "tsarch (hash of its files)": source_hash()}


@cache
def source_hash() -> str:
    """Twelve digits that change with any file of the code that ranks run."""
    return hash_of_package(Path(__file__).parent.parent)


def hash_of_package(package: Path) -> str:
    """The same for a checkout, where `cluster` is a link, and for what is installed or packed from
    it. Ranks don't run `launch`."""
    digest = hashlib.sha256()
    for path in sorted(
        Path(folder, name)
        for folder, _, names in os.walk(package, followlinks=True)
        for name in names
        if name.endswith(".py")
    ):
        inside = path.relative_to(package)
        if inside.parts[0] != "launch":
            digest.update(inside.as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def named_files(blueprint: Blueprint) -> Iterator[str]:
    """Data files, tokenizer, models and runs that teach, in so far as they are files."""
    data = blueprint.data
    given = [data.tokenizer]
    for own in (data.train, data.validation, data.test, data.unlabelled):
        given += own if isinstance(own, list) else [own]
    models = [own.architecture.model for own in blueprint.stages.values()]
    models.append(blueprint.run.start_from)
    models += [str(Path(run, "model")) for run in blueprint.distillation.teaching_runs]
    for name in dict.fromkeys((*given, *models)):
        if name is not None:
            yield name


def _size(name: str) -> int | None:
    """Bytes of a file, or of a model's files; None: there is none that can be read."""
    try:
        path = Path(resolve_model_path(name))
        files = [p for p in path.iterdir() if p.is_file()] if path.is_dir() else [path]
        if not all(os.access(file, os.R_OK) for file in files):
            return None
        return sum(file.stat().st_size for file in files)
    except (OSError, UserError):
        return None


def _shared_folders(blueprint: Blueprint, log_folder: Path) -> list[Path]:
    """What all ranks write into or read from: the run folder; checkpoints that lie elsewhere."""
    from tsarch.checkpoint.store import Store  # ranks don't need what it imports here

    folders = [log_folder]
    if blueprint.checkpoint.folder is not None:
        local = Store(blueprint.checkpoint.folder).local_folder
        folders += [local] if local is not None else []
    return folders


@contextmanager
def marks_in(folders: Sequence[Path]) -> Iterator[dict[str, str]]:
    """A small file in each folder, with random content, while ranks look for it.

    Its name is new each time: an NFS client remembers for a while that a file was not there.
    """
    marks: dict[str, str] = {}
    try:
        for folder in folders:
            path = folder / f".seen-{secrets.token_hex(8)}"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                marks[str(path)] = secrets.token_hex(8)
                path.write_text(marks[str(path)])
            except OSError as error:
                raise UserError.single(
                    str(folder), f"can't be written: {one_line(error)}"
                ) from None
        yield marks
    finally:
        for name in marks:
            Path(name).unlink(missing_ok=True)


def folder_problems(marks: Mapping[str, str]) -> dict[str, str]:
    """Folder → what is wrong with it on this host."""
    problems = {}
    for name, content in marks.items():
        folder = Path(name).parent
        try:
            seen = Path(name).read_text() == content
        except OSError:
            seen = False
        if not seen:
            problems[str(folder)] = "is not the driver's folder"
        elif not os.access(folder, os.W_OK):
            problems[str(folder)] = "can't be written"
    return problems


def _clocks(crew: RayCrew) -> list[Clock]:
    """How far the ranks' clocks are ahead of this one's. A call of its own: that to `probe` takes
    as long as importing torch, which would leave too much open."""
    sent_s = time.time()
    times = crew.ask(ActorApi.wall_clock)
    received_s = time.time()
    return [Clock(own - received_s, own - sent_s) for own in times]


def _tidy(log_folder: Path) -> None:
    """Leave no trace of a run that has not started, so that its folder can be used again."""
    for path in log_folder.glob("rank-*.log"):
        note_file(path).unlink(missing_ok=True)
        if says_nothing(path):
            path.unlink()
    levels = 3 if log_folder.name == "auto" else 2  # RUN/logs/auto, RUN/logs
    for folder in (log_folder, *log_folder.parents)[:levels]:
        try:
            folder.rmdir()
        except OSError:  # it holds something
            return
