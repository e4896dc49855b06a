"""The commands that run on a cluster from elsewhere: `submit`, `jobs`, `attach`, `stop`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Cluster = Annotated[
    Path | None,
    typer.Option(help="Cluster file that was given to `ray up`; its head is reached by ssh."),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="Job server of the cluster, http://HOST:PORT. Default: that of "
        "RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265."
    ),
]
Job = Annotated[str, typer.Argument(help="The job's name, or how it begins.")]


def submit(
    config: Annotated[Path, typer.Argument(help="YAML file of the run.")],
    overrides: Annotated[
        list[str], typer.Option("--set", help="Change a key: --set run.folder=/shared/runs/a.")
    ] = [],  # noqa: B006 - typer reads the default, nobody changes it
    cluster: Cluster = None,
    address: Address = None,
    working_dir: Annotated[
        Path, typer.Option(help="Folder that is sent with the job; the config must be in it.")
    ] = Path(),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")
    ] = False,
    follow: Annotated[bool, typer.Option(help="Write the job's log until it ends.")] = True,
    stop_wait_s: Annotated[
        int, typer.Option(min=1, help="Seconds that `tsarch stop` gives it for its checkpoint.")
    ] = 600,
) -> None:
    """Train on a Ray cluster, as a job that goes on when this computer is switched off."""
    from tsarch.launch.submit import Submission, Target, submit_run

    what = Submission(config, overrides, working_dir, resume, stop_wait_s, follow)
    raise typer.Exit(submit_run(what, Target(cluster, address)))


def jobs(cluster: Cluster = None, address: Address = None) -> None:
    """List the jobs of a cluster, the newest first."""
    from tsarch.launch.submit import Target, show_jobs

    show_jobs(Target(cluster, address))


def attach(job: Job, cluster: Cluster = None, address: Address = None) -> None:
    """Follow a job: its log from the start, until it ends. Exit status: the job's."""
    from tsarch.launch.submit import Target, attach_to

    raise typer.Exit(attach_to(job, Target(cluster, address)))


def stop(
    job: Job,
    cluster: Cluster = None,
    address: Address = None,
    now: Annotated[
        bool, typer.Option("--now", help="Also if Ray leaves it no time for a checkpoint.")
    ] = False,
) -> None:
    """Let a job save a checkpoint and end."""
    from tsarch.launch.submit import Target, stop_job

    raise typer.Exit(stop_job(job, Target(cluster, address), now))


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (submit, jobs, attach, stop):
        app.command()(command)
