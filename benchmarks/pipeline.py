"""The quickstart's speed, all sides in one run: `overlapped`, `sequential`, the article's loop.

`overlapped` and `sequential` train the same batches on the same two ranks. The bound on their
ratio follows from the stages' own times, as `sequential` measures them without contention:
(t_T + t_S) / max(t_T, t_S).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from cluster.group import RayCrew
from tsarch.config import Config
from tsarch.config_loading import load_config
from tsarch.run.clock import now_s
from tsarch.run.metrics import StepTable
from tsarch.topology import Stage

RESULTS = Path("benchmarks/results")
_WARM_UP_STEPS = 3


@dataclass(frozen=True)
class Timing:
    """One repeat of one side."""

    tokens_per_s: float
    """Real (non-padding) training tokens per second; a token that both models read counts once."""
    step_s: float
    busy_s: dict[str, float]
    """Seconds of work per step, by stage."""
    busy_share: dict[str, float]


def time_schedule(
    crew: RayCrew, config: Config, name: Literal["sequential", "overlapped"], steps: int
) -> Timing:
    """Train the same steps under a schedule, after a few steps that don't count."""
    schedule = config.schedule.model_copy(update={"name": name})
    crew.build(config.model_copy(update={"schedule": schedule}))
    for _ in crew.train(0, _WARM_UP_STEPS):
        pass
    table = StepTable(crew.topology)
    table.start_span(now_s())
    for reports in crew.train(_WARM_UP_STEPS, _WARM_UP_STEPS + steps):
        table.add(reports, 0)
    totals = table.totals
    return Timing(
        totals.tokens_per_s,
        totals.train_s / steps,
        {s.value: totals.busy_s[s] / steps for s in Stage},
        {s.value: totals.busy_share(s, crew.topology) for s in Stage},
    )


def time_article_loop(steps: int) -> float:
    """Real tokens per second of the article's loop, in a process of its own with two threads."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        command = [sys.executable, "-m", "benchmarks.article_loop", "--threads", "2"]
        command += ["--steps", str(steps), "--output", str(output)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=600)
        return float(json.loads(output.read_text())["tokens_per_s"])


def measure(config: Config, repeats: int, steps: int, article_steps: int) -> dict[str, Any]:
    """All sides, turn by turn, so that the machine's moods meet all of them."""
    overlapped: list[Timing] = []
    sequential: list[Timing] = []
    article: list[float] = []
    console = Console(stderr=True, highlight=False)
    with tempfile.TemporaryDirectory() as logs:
        crew = RayCrew.start(config, None, Path(logs), console.print)
        try:
            for repeat in range(repeats):
                sequential.append(time_schedule(crew, config, "sequential", steps))
                overlapped.append(time_schedule(crew, config, "overlapped", steps))
                article.append(time_article_loop(article_steps))
                console.print(
                    f"{repeat + 1}/{repeats}: sequential {sequential[-1].tokens_per_s:.0f}, "
                    f"overlapped {overlapped[-1].tokens_per_s:.0f}, "
                    f"article {article[-1]:.0f} tokens/s"
                )
        finally:
            crew.close()
    return summarise(overlapped, sequential, article)


def summarise(
    overlapped: list[Timing], sequential: list[Timing], article: list[float]
) -> dict[str, Any]:
    """Medians over the repeats, their ratios, and the raw repeats."""
    own_s = {s.value: statistics.median(t.busy_s[s] for t in sequential) for s in Stage}
    pairs = list(zip(overlapped, sequential, article, strict=True))
    return {
        "tokens_per_s": {
            "overlapped": statistics.median(t.tokens_per_s for t in overlapped),
            "sequential": statistics.median(t.tokens_per_s for t in sequential),
            "article_loop": statistics.median(article),
        },
        "busy_share": {
            name: {s.value: statistics.median(t.busy_share[s] for t in own) for s in Stage}
            for name, own in (("overlapped", overlapped), ("sequential", sequential))
        },
        "stage_own_s_per_step": own_s,
        "overlapped_s_per_step": statistics.median(t.step_s for t in overlapped),
        "overlapped_over_sequential": statistics.median(
            o.tokens_per_s / s.tokens_per_s for o, s, _ in pairs
        ),
        "bound_of_the_stages_own_times": sum(own_s.values()) / max(own_s.values()),
        "overlapped_over_article_loop": statistics.median(o.tokens_per_s / a for o, _, a in pairs),
        "repeats": {
            "overlapped": [asdict(t) for t in overlapped],
            "sequential": [asdict(t) for t in sequential],
            "article_loop": article,
        },
    }


def markdown(result: dict[str, Any]) -> str:
    """The result as the table of the README."""
    speed, share = result["tokens_per_s"], result["busy_share"]
    lines = ["| side | real tokens/s | busy teacher | busy student |", "|---|---|---|---|"]
    for name in ("overlapped", "sequential"):
        own = share[name]
        lines.append(
            f"| `{name}`, two ranks of one thread | {speed[name]:,.0f} "
            f"| {own['teacher']:.0%} | {own['student']:.0%} |"
        )
    lines.append(f"| the article's loop, two threads | {speed['article_loop']:,.0f} | – | – |")
    own_s = result["stage_own_s_per_step"]
    lines += [
        "",
        f"`overlapped` / `sequential`: {result['overlapped_over_sequential']:.2f} (bound by the "
        f"stages' own {own_s['teacher']:.2f} s and {own_s['student']:.2f} s a step: "
        f"{result['bound_of_the_stages_own_times']:.2f}); `overlapped` / the article's loop: "
        f"{result['overlapped_over_article_loop']:.2f}.",
    ]
    return "\n".join(lines) + "\n"


def main(
    config: Annotated[Path, typer.Option(help="Config to measure.")] = Path(
        "configs/quickstart.yaml"
    ),
    repeats: Annotated[int, typer.Option(help="Repeats of every side.")] = 3,
    steps: Annotated[int, typer.Option(help="Timed steps of a schedule.")] = 40,
    article_steps: Annotated[int, typer.Option(help="Timed steps of the article's loop.")] = 12,
) -> None:
    """Measure, print the table, and write JSON and Markdown to benchmarks/results/."""
    result = measure(load_config(config), repeats, steps, article_steps)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "pipeline.json").write_text(json.dumps(result, indent=2) + "\n")
    (RESULTS / "pipeline.md").write_text(markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    typer.run(main)
