"""`tsarch doctor`: whether this host, or a cluster, can train, and what mends what can't."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tsarch.cluster.doctor_facts import Findings, HostFacts

_SICK = 1
_GB = 1e9


def report(found: Findings, as_json: bool) -> int:
    """Print what was found; the exit status."""
    from tsarch.cluster.doctor_checks import notes, symptoms

    wrong = symptoms(found)
    if as_json:
        told: dict[str, Any] = {
            "healthy": not wrong,
            "symptoms": [asdict(mistake) for mistake in wrong],
            "notes": notes(found),
            "hosts": [asdict(own) for own in found.hosts],
            "links": [
                {"source": a, "target": b, "bytes_s": rate}
                for (a, b), rate in (found.rates.links.items() if found.rates else ())
            ],
            "collective_bytes_s": found.rates.collective if found.rates else None,
        }
        typer.echo(json.dumps(told, indent=2))
        return _SICK if wrong else 0
    for own in found.hosts:
        typer.echo(_host_line(own))
    if found.rates is not None:
        for (source, target), rate in found.rates.links.items():
            typer.echo(f"link {source} → {target}: {rate / 1e6:,.0f} MB/s")
        typer.echo(f"sum over {len(found.hosts)} hosts: {found.rates.collective / 1e6:,.0f} MB/s")
    for note in notes(found):
        typer.echo(f"note: {note}")
    for mistake in wrong:
        typer.echo(f"wrong: {mistake}")
    typer.echo(f"{len(wrong)} things are wrong" if wrong else "all is well")
    return _SICK if wrong else 0


def _host_line(own: HostFacts) -> str:
    gpus = f"{len(own.gpus)} × {own.gpus[0]}" if own.gpus else "no GPU"
    versions = ", ".join(f"{name} {own.versions[name]}" for name in ("Python", "torch", "ray"))
    free = ", ".join(f"{folder} {size / _GB:,.0f} GB" for folder, size in own.free_bytes.items())
    return (
        f"host {own.node}: {own.cpus:g} CPUs, {own.memory_bytes / _GB:,.0f} GB, {gpus}; "
        f"{versions}; free: {free}; /dev/shm {own.shm_bytes / _GB:,.1f} GB; "
        f"clock {own.clock.middle_s:+.2f} s"
    )


def doctor(
    address: Annotated[
        str | None,
        typer.Option(
            help="Ray cluster to look at (`auto` or HOST:PORT). Default: that of RAY_ADDRESS, "
            "else this host alone."
        ),
    ] = None,
    folder: Annotated[
        str, typer.Option(help="Folder of runs, which all hosts should share.")
    ] = "runs",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Whether this host, or all hosts of a cluster, can train together; what mends what can't.

    Exit status 1: something is wrong.
    """
    from tsarch.launch.training import cluster_address, quieten

    quieten()
    from tsarch.cluster.doctor import examine_cluster, examine_here

    joined = cluster_address(address)
    found = examine_here(folder) if joined is None else examine_cluster(joined, folder)
    raise typer.Exit(report(found, as_json))
