"""`make faults`: things that go wrong with runs, done to real ones on two Ray nodes, and what came
of them.

    python -m tests.suites.faults [--only NAME]…   results: tests/suites/results/faults.{json,md}
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

import typer

from tests.suites.fault_cases import CASES, Case, kill_driver, terminate
from tests.suites.fault_cluster import FaultCluster
from tests.suites.observed_run import (
    EVERY_STEPS,
    FAULT_STEP,
    HANG_TIMEOUT_S,
    ObservedRun,
    losses_of,
    same_weights,
)

OUTPUT = Path("tests/suites/results/faults.json")
_GONE_LIMIT_S = 15.0
_DISK_BYTES = 2**25
_TRAINING = re.compile(r"dropout|epochs")
"""Overrides that make another run, even without a fault."""


@dataclass
class Outcome:
    """What came of a case."""

    name: str
    detected_s: float | None = None
    """From the fault to its being noticed."""
    down_s: float | None = None
    """From there to the end of the next training step."""
    repeated: int | None = None
    """Steps done twice."""
    same_weights: bool | None = None
    message: str = ""
    mistakes: list[str] = field(default_factory=list)
    """Why it isn't as it should be."""


def do(case: Case, cluster: FaultCluster, folder: Path, reference: Path | None) -> Outcome:
    """Let a case happen.

    Args:
        reference: folder of the run of its schedule without a fault.
    """
    settings = (f"schedule.name={case.schedule}", *case.overrides)
    run = ObservedRun(cluster, folder, case.fault, settings)
    outcome = Outcome(case.name)
    run.start()
    if case.act is not None:
        run.wait_for_step(FAULT_STEP)
        case.act(run)
    status = run.wait()
    if status != case.status:
        outcome.mistakes.append(f"exit status {status}, not {case.status}")
    if case.act in (terminate, kill_driver):
        _check_gone(run, outcome)
    if case.resume is not None:
        case.resume(run)
        run.start(resume=True)
        if (status := run.wait()) != 0:
            outcome.mistakes.append(f"exit status {status} of --resume")
    _check_message(case, run, outcome)
    _check_failures(case, run, outcome)
    _check_gone(run, outcome)
    if reference is not None and run.summary:
        _check_training(case, run, reference, outcome)
    return outcome


def _check_message(case: Case, run: ObservedRun, outcome: Outcome) -> None:
    match = re.search(case.culprit, run.text)
    if match is None:
        outcome.mistakes.append(f"nothing matches {case.culprit!r}")
    elif match.group():
        line = run.text[run.text.rfind("\n", 0, match.start()) + 1 :]
        outcome.message = re.sub(r"^ *[\d.]+ s +", "", line.splitlines()[0])
    if "Traceback" in run.text and not case.is_hang and "hangs" not in run.text:
        outcome.mistakes.append("a traceback was printed")


def _check_failures(case: Case, run: ObservedRun, outcome: Outcome) -> None:
    failures = run.summary.get("failures", [])
    if len(failures) != case.restarts:
        outcome.mistakes.append(f"{len(failures)} restarts, not {case.restarts}")
    if not failures:
        return
    failure, happened_s = failures[0], run.marker.stat().st_mtime
    outcome.detected_s = failure["noticed_s"] - happened_s
    outcome.down_s = failure["down_s"]
    outcome.repeated = failure["failed_at"] - failure["resumed_at"]
    limit_s = HANG_TIMEOUT_S + 5 if case.is_hang else case.detect_limit_s
    if outcome.detected_s > limit_s:
        outcome.mistakes.append(f"detected after more than {limit_s:g} s")
    if outcome.down_s > case.down_limit_s:
        outcome.mistakes.append(f"trains again after more than {case.down_limit_s:g} s")
    if outcome.repeated > case.repeat_limit and "disk" not in case.name:
        outcome.mistakes.append(f"more than {case.repeat_limit} steps repeated")


def _check_gone(run: ObservedRun, outcome: Outcome) -> None:
    """No rank may be left."""
    until_s = time.monotonic() + _GONE_LIMIT_S
    while (left := run.ranks()) and time.monotonic() < until_s:
        time.sleep(0.2)
    if left:
        outcome.mistakes.append(f"ranks are left: {left}")


def _check_training(case: Case, run: ObservedRun, reference: Path, outcome: Outcome) -> None:
    losses, expected = losses_of(run.run_folder), losses_of(reference)
    if case.same:
        on_disk = any("checkpoint.folder" in override for override in case.overrides)
        outcome.same_weights = same_weights(run.run_folder, reference, on_disk)
        if not outcome.same_weights:
            outcome.mistakes.append("other weights than without the fault")
        if losses != expected:
            outcome.mistakes.append("other losses than without the fault")
    elif not all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(losses, expected, strict=True)):
        outcome.mistakes.append("losses differ by more than 1e-4 from those without the fault")


def markdown(outcomes: Sequence[Outcome], unplugged: bool) -> str:
    """The table of the results."""
    lines = [
        "| what | detected after s | trains again after s | steps repeated | weights | said |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for o in outcomes:
        numbers = [_number(o.detected_s), _number(o.down_s), _number(o.repeated, "d")]
        same = {True: "same", False: "OTHER", None: "–"}[o.same_weights]
        said = o.message.replace("|", "/") + "".join(f" **{m}**" for m in o.mistakes)
        lines.append(f"| {o.name} | {' | '.join(numbers)} | {same} | {said} |")
    where = "in network namespaces" if unplugged else "on loopback"
    return "\n".join(
        [
            f"Two Ray nodes {where}, one teacher rank and two student ranks; a checkpoint every "
            f"{EVERY_STEPS} steps, `failure.hang_timeout_s: {HANG_TIMEOUT_S:g}`. `same`: weights "
            "and optimizer state are bitwise those of a run without the fault.",
            "",
            *lines,
            "",
        ]
    )


def _number(value: float | None, form: str = ".1f") -> str:
    return "–" if value is None else format(value, form)


def run_cases(cases: Sequence[Case], folder: Path) -> list[Outcome]:
    """Let cases happen one after the other on one cluster."""
    outcomes = []
    references: dict[tuple[str, ...], Path] = {}
    # Before the cluster: a network namespace sees the mounts that there were when it was made.
    with _small_disk(folder / "disk") as disk, FaultCluster(cpus=(2, 1)) as cluster:
        for case in cases:
            reason = _left_out(case, cluster)
            if reason is not None:
                print(f"{case.name}: left out, {reason}", flush=True)
                continue
            key = (case.schedule, *(o for o in case.overrides if _TRAINING.search(o)))
            if key not in references:
                plain = Case("reference", schedule=case.schedule, overrides=key[1:], restarts=0)
                references[key] = folder / f"reference-{len(references)}"
                references[key].mkdir()
                found = do(plain, cluster, references[key], None)
                assert not found.mistakes, found
            own = folder / case.name.replace(" ", "-")
            own.mkdir()
            overrides = tuple(override.format(disk=disk) for override in case.overrides)
            placed = replace(case, overrides=overrides)
            outcomes.append(do(placed, cluster, own, references[key] / "run"))
            print(_line(outcomes[-1]), flush=True)
    return outcomes


def _left_out(case: Case, cluster: FaultCluster) -> str | None:
    """Why a case can't happen here."""
    if case.needs_cable and not cluster.can_unplug:
        return "there is no cable"
    if case.needs_root and os.geteuid() != 0:
        return "only root can do it"
    return None


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path]:
    """A disk with place for two checkpoints and a half, if one can be made."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, check=False).returncode == 0
    try:
        yield folder / "checkpoints"
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _line(outcome: Outcome) -> str:
    numbers = f"detected {_number(outcome.detected_s)} s, again {_number(outcome.down_s)} s"
    repeated = f"repeated {_number(outcome.repeated, 'd')}, same weights {outcome.same_weights}"
    result = "; ".join(outcome.mistakes) or "as it should be"
    return f"{outcome.name}: {result} ({numbers}, {repeated})\n    {outcome.message}"


def write_results(outcomes: Sequence[Outcome], output: Path) -> None:
    """Write the results of some cases, beside those of others that are there."""
    found = {row["name"]: row for row in json.loads(output.read_text())} if output.exists() else {}
    found |= {outcome.name: asdict(outcome) for outcome in outcomes}
    rows = [found[case.name] for case in CASES if case.name in found]
    output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    unplugged = any(name.startswith("unplug") for name in found)
    table = markdown([Outcome(**row) for row in rows], unplugged)
    output.with_suffix(".md").write_text(table, encoding="utf-8")


def main(
    only: Annotated[list[str] | None, typer.Option(help="Name of a case. Default: all.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Folder for the runs, to look at.")] = None,
) -> None:
    """Let all cases happen and write the results."""
    cases = [case for case in CASES if only is None or case.name in only]
    folder = Path(tempfile.mkdtemp(prefix="tsarch-faults-")) if keep is None else keep
    folder.mkdir(parents=True, exist_ok=True)
    started_s = time.monotonic()
    outcomes = run_cases(cases, folder)
    if keep is None:
        shutil.rmtree(folder)
    bad = [outcome for outcome in outcomes if outcome.mistakes]
    print(
        f"{len(outcomes)} cases in {time.monotonic() - started_s:.0f} s, {len(bad)} not as wanted"
    )
    write_results(outcomes, OUTPUT)
    if bad:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
