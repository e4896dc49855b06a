"""What a checkpoint costs: seconds in which a rank does not train, and seconds of writing.

The quickstart's models on its two ranks, a checkpoint every few steps, and then cuts that are only
kept in memory (`checkpoint.in_memory_every_steps`). The stall is the copy to host memory, measured
on the ranks, the longest of all ranks; the first includes making the memory. Writing goes on beside
the training.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from tsarch.blueprint import resolve
from tsarch.checkpoint.cut import Cut, Stall
from tsarch.checkpoint.manifest import Manifest
from tsarch.checkpoint.store import Store
from tsarch.clock import now_s
from tsarch.cluster.ray_crew import RayCrew
from tsarch.config_loading import load_config
from tsarch.prepare import prepare_data
from tsarch.rank.crew import Crew, CutTaken, Reports, drive
from tsarch.rank.local_crew import LocalCrew
from tsarch.rank.pacer import CutRules, Pacer, Situation
from tsarch.rank.process_crew import ProcessCrew
from tsarch.telling.step_table import StepRecord, StepTable

LIMIT_S = 0.2
LIMIT_SHARE = 0.05
IN_MEMORY_LIMIT_SHARE = 0.03
"""Of the steps from one cut in memory to the next."""


@dataclass(frozen=True)
class Costs:
    """Figures of one run."""

    runner: str
    num_checkpoints: int
    bytes: int
    """Of all ranks' files of one checkpoint."""
    step_s: float
    """Median of the steps."""
    first_stall_s: float
    median_stall_s: float
    max_stall_s: float
    """Without the first."""
    median_write_s: float | None
    """Of the rank that writes longest: files, sync, hashes; None: nothing was written."""
    every_steps: int

    @property
    def limit_s(self) -> float:
        """What a stall may be: 5 % of a step or 0.2 s, whichever is larger."""
        return max(LIMIT_S, LIMIT_SHARE * self.step_s)

    @property
    def share(self) -> float:
        """Part of the training time that the stalls take."""
        return self.median_stall_s / (self.every_steps * self.step_s)


class _Checkpoints:
    """Completes each checkpoint when the next begins, and deletes it."""

    def __init__(self, crew: Crew, url: str) -> None:
        self._crew = crew
        self._store = Store(url)
        self._open: int | None = None
        self.writes_s: list[float] = []

    def begin(self, cut: Cut) -> bool:
        """Make its place; one in memory needs none."""
        if cut.url is None:
            return True
        self.finish()
        self._store.begin(cut.step)
        self._open = cut.step
        return True

    def finish(self) -> None:
        """Complete the open checkpoint and delete it."""
        if self._open is None:
            return
        written = self._crew.checkpoint_written(wait=True)
        assert written is not None
        assert all(own.error is None for own in written), written
        files = {name: entry for own in written for name, entry in own.files.items()}
        self._store.commit(Manifest(self._open, files))
        self._store.delete(self._open)
        self.writes_s.append(max(own.write_s for own in written))
        self._open = None


def measure(crew: Crew, folder: Path, num: int, every: int, in_memory: bool = False) -> Costs:
    """Train with `num` checkpoints, or so many cuts that are only kept in memory."""
    url = str(folder / "checkpoints")
    checkpoints = _Checkpoints(crew, url)
    table = StepTable(crew.topology)
    table.start_span(now_s())
    rows: list[StepRecord] = []
    stalls: list[list[Stall]] = []
    num_steps = num * every + 1
    rules = CutRules(url, every_steps=every)
    if in_memory:
        rules = CutRules(url, in_memory_every_steps=every)
    pacer = Pacer(crew.pace, rules)
    pacer.begin(0, 0, num_steps, crew.begin(0, num_steps))
    for event in drive(crew, pacer, Situation, checkpoints.begin):
        match event:
            case Reports():
                rows += table.add(event.reports, 0)
            case CutTaken():
                stalls.append(event.stalls)
    checkpoints.finish()
    stalls_s = [max(own.stall_s for own in taken) for taken in stalls]
    return Costs(
        runner=crew.blueprint.runner.name,
        num_checkpoints=len(stalls_s),
        bytes=sum(own.nbytes for own in stalls[-1]),
        step_s=statistics.median(float(row["wall_s"] or 0) for row in rows),
        first_stall_s=stalls_s[0],
        median_stall_s=statistics.median(stalls_s[1:]),
        max_stall_s=max(stalls_s[1:]),
        median_write_s=statistics.median(checkpoints.writes_s) if checkpoints.writes_s else None,
        every_steps=every,
    )


def main(
    config: Annotated[Path, typer.Option(help="Config to measure.")] = Path(
        "configs/quickstart.yaml"
    ),
    runner: Annotated[str, typer.Option(help="ray, processes or local.")] = "ray",
    checkpoints: Annotated[int, typer.Option(help="Number of checkpoints.")] = 8,
    every: Annotated[int, typer.Option(help="Steps between two.")] = 5,
    output: Annotated[Path, typer.Option(help="Folder of checkpoints.json.")] = Path(
        "benchmarks/results"
    ),
) -> None:
    """Measure, print and write the figures."""
    blueprint = resolve(load_config(config, [f"topology.runner={runner}"]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        crew: Crew
        if blueprint.runner.is_one_process:
            crew = LocalCrew(blueprint, prepare_data(blueprint))
        elif blueprint.runner.name == "processes":
            crew = ProcessCrew.start(blueprint, folder / "logs", print)
        else:
            crew = RayCrew.start(blueprint, None, folder / "logs", print)
        try:
            costs = measure(crew, folder, checkpoints, every)
            kept = measure(crew, folder, checkpoints, every, in_memory=True)
        finally:
            crew.close()
    print(
        f"{costs.runner}: {costs.num_checkpoints} checkpoints of {costs.bytes / 1e6:.0f} MB, "
        f"steps of {costs.step_s:.2f} s. Stall: first {costs.first_stall_s:.3f} s, then median "
        f"{costs.median_stall_s:.3f} s, longest {costs.max_stall_s:.3f} s (limit "
        f"{costs.limit_s:.2f} s). Writing beside the training: {costs.median_write_s:.2f} s."
    )
    print(
        f"in memory, every {kept.every_steps} steps of {kept.step_s:.2f} s: stall median "
        f"{kept.median_stall_s:.3f} s, longest {kept.max_stall_s:.3f} s, {kept.share:.1%} of the "
        f"time (limit {IN_MEMORY_LIMIT_SHARE:.0%})."
    )
    output.mkdir(parents=True, exist_ok=True)
    rows = {"written": asdict(costs), "in_memory": {**asdict(kept), "share": kept.share}}
    (output / "checkpoints.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
