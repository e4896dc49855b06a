"""`topology.runner: processes` with ranks that `torchrun` has started:

    torchrun --nproc-per-node 2 -m tsarch.launch.torchrun configs/quickstart.yaml

Arguments are those of `tsarch train`. There must be as many processes as the config has ranks. The
first also drives the run, from a process beside its rank; it finds the others through torchrun's
store (MASTER_ADDR, MASTER_PORT), and they talk over connections that need a key.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tsarch.errors import UserError
from tsarch.launch.cli import run_command
from tsarch.launchers import forget_launchers

if TYPE_CHECKING:
    from tsarch.blueprint import Blueprint
    from tsarch.config import Config
    from tsarch.rank.members import Member
    from tsarch.rank.serving import Start

_PLACE = "tsarch/driver"
"""Key of the driver's address in the store."""
_PATIENCE = timedelta(days=30)
"""The driver checks the config and reads the data before it needs ranks; torchrun ends all if one
fails."""
_NEEDED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Place:
    """What torchrun says of this process."""

    rank: int
    local_rank: int
    num_ranks: int
    host: str
    port: int

    @classmethod
    def from_environment(cls) -> Place:
        """Of this process.

        Raises:
            UserError: torchrun hasn't started it.
        """
        missing = [name for name in _NEEDED if name not in os.environ]
        if missing:
            raise UserError.single(
                "tsarch.launch.torchrun",
                f"the environment has no {', '.join(missing)}.",
                "Start it with torchrun, or use `tsarch train` with topology.runner: processes.",
            )
        rank, local_rank, num_ranks, host, port = (os.environ[name] for name in _NEEDED)
        if os.environ.get("LOCAL_WORLD_SIZE", num_ranks) != num_ranks:
            raise UserError.single(
                "torchrun",
                "has started processes on several hosts.",
                "All ranks of topology.runner: processes must be on one; on several use Ray.",
            )
        return cls(int(rank), int(local_rank), int(num_ranks), host, int(port))

    def store(self) -> Any:
        """torchrun's store; the first rank has it, if torchrun hasn't."""
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        has_one = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        return TCPStore(
            self.host,
            self.port,
            is_master=self.rank == 0 and not has_one,
            wait_for_workers=False,
            timeout=_PATIENCE,
        )


class Found:
    """The `Launch` that takes the ranks that torchrun has started."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __call__(self, starts: Sequence[Start]) -> list[Member]:
        """Start the first rank beside this process, and wait for the others."""
        from tsarch.rank.lines import Line
        from tsarch.rank.members import Member, spawn
        from tsarch.rank.process_crew import HOST

        key = secrets.token_bytes(32)
        found: dict[tuple[int, str], Any] = {}
        with Listener((HOST, 0), authkey=key) as listener:
            port = listener.address[1]
            self._store.set(_PLACE, f"{port} {key.hex()}")
            members = spawn(starts[:1])
            while len(found) < 2 * (len(starts) - 1):
                try:
                    connection = listener.accept()
                except AuthenticationError:  # somebody else
                    continue
                rank, what = connection.recv()
                found[rank, what] = connection
        for start in starts[1:]:
            commands, watch = (found[start.rank, what] for what in ("commands", "watch"))
            commands.send(replace(start, gpu=None))
            members.append(Member(Line(commands), Line(watch), None))
        return members

    def give_up(self) -> None:
        """Tell the other ranks that there is nothing to do."""
        self._store.set(_PLACE, "")


def check_number(blueprint: Blueprint, num_ranks: int) -> None:
    """Whether the run has as many ranks as there are processes.

    Raises:
        UserError: it hasn't.
    """
    topology = blueprint.topology
    wanted = topology.num_ranks
    counts = " + ".join(f"{topology.replicas(stage)} {stage}" for stage in topology.stages)
    if wanted != num_ranks:
        raise UserError.single(
            "torchrun",
            f"has started {num_ranks} processes, but {counts} replicas are {wanted} ranks.",
            f"Use --nproc-per-node {wanted}, or other replicas.",
        )


def serve_driver(place: Place, store: Any) -> None:
    """Be a rank until the driver ends."""
    from tsarch.rank.process_crew import HOST, gpu_name
    from tsarch.rank.serving import serve

    found = store.get(_PLACE).decode().split()
    if not found:
        sys.exit(2)
    port, key = found
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu_name(place.local_rank)
    connections = []
    for what in ("commands", "watch"):
        connection = Client((HOST, int(port)), authkey=bytes.fromhex(key))
        connection.send((place.rank, what))
        connections.append(connection)
    start = connections[0].recv()
    serve(start, connections[0], connections[1])


def drive(config: Config, resume: bool, found: Found, place: Place) -> None:
    """Train with the ranks that are there."""
    from tsarch.blueprint import resolve
    from tsarch.launch.training import run_training

    try:
        # Ranks that have ended can't be started again here: torchrun does that, with --resume.
        blueprint = resolve(config).altered(
            topology={"runner": "processes"}, failure={"max_restarts": 0}
        )
        check_number(blueprint, place.num_ranks)
        run_training(blueprint.config, resume=resume, launch=found)
    except UserError:
        found.give_up()
        raise


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML file of the run.")],
    overrides: Annotated[
        list[str], typer.Option("--set", help="Change a key: --set schedule.epochs=3.")
    ] = [],  # noqa: B006 - typer reads the default, nobody changes it
    trace: Annotated[bool, typer.Option("--trace", help="Write trace.json.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")
    ] = False,
) -> None:
    """Train with the processes that torchrun has started as ranks."""
    from tsarch.launch.cli import load_run

    place = Place.from_environment()
    store = place.store()
    forget_launchers()
    if place.rank > 0:
        serve_driver(place, store)
    found = Found(store)
    try:
        loaded = load_run(config, overrides, trace, resume)
    except UserError:
        found.give_up()
        raise
    drive(loaded, resume, found, place)


if __name__ == "__main__":
    run_command(app)
