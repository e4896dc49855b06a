"""The comparison that justifies the architecture: the teacher, the small model, and ours.

Training runs are processes of one thread, two at a time. A finished run is one JSON file in the
study's folder and is not done again, so a study that was interrupted goes on where it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.processes import SideError, run_module
from benchmarks.study_cost import measure
from benchmarks.study_plan import METHODS, Results, RunKey, StudyTask, chosen_runs, ready_runs
from benchmarks.study_run import read_results, result_file, run_config
from benchmarks.study_table import TaskSummary, markdown, plot, summarise
from benchmarks.study_tasks import TASKS

RESULTS = Path("benchmarks/results")
RUNS = Path("runs/study")
ALL_TASKS = ",".join(task.name for task in TASKS)
NUM_PROCESSES = 2
TIMEOUT_S = 3600.0
"""For one training run."""


def run_process(folder: Path, key: RunKey) -> None:
    """Do a run in a process of one thread; its output is beside its result.

    Raises:
        SideError: it failed; the message has the end of its output.
    """
    log = result_file(folder, key).with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    arguments = [key.model_dump_json(), "--folder", str(folder)]
    run_module("benchmarks.study_run", arguments, log, TIMEOUT_S, threads=1)


def do_runs(
    folder: Path,
    tasks: Sequence[StudyTask],
    run: Callable[[Path, RunKey], None],
    say: Callable[[str], None],
    num_processes: int = NUM_PROCESSES,
) -> Results:
    """Do all runs that have no result yet, several at a time; `run` writes a run's result.

    A run that fails ends the study after the runs that are under way.
    """
    under_way: dict[Future[None], RunKey] = {}
    with ThreadPoolExecutor(num_processes) as pool:
        while True:
            results = read_results(folder, tasks)
            ready = ready_runs(results, [task.name for task in tasks])
            ready = [key for key in ready if key not in under_way.values()]
            for key in ready[: num_processes - len(under_way)]:
                under_way[pool.submit(run, folder, key)] = key
            if not under_way:
                return results
            finished, _ = wait(under_way, return_when=FIRST_COMPLETED)
            for future in finished:
                key = under_way.pop(future)
                future.result()
                done = read_results(folder, tasks)[key]
                say(f"{key.name}: {done.score:.4f} on validation, {done.train_s:.0f} s of training")


def summaries(folder: Path, results: Results, tasks: Sequence[StudyTask]) -> dict[str, TaskSummary]:
    """The summaries of tasks for which every method has a run; measures what answering costs."""
    found = {}
    for task in tasks:
        runs = {method: chosen_runs(results, task.name, method) for method in METHODS}
        if not all(runs.values()):
            continue
        config = run_config(task, folder, runs["ours"][0].key)
        cost = measure(config)
        parameters = {
            "teacher": runs["teacher"][0].parameters,
            "student_alone": runs["small"][0].parameters,
        }
        found[task.name] = summarise(results, task.name, parameters, cost)
    return found


def earlier_summaries(output: Path) -> dict[str, TaskSummary]:
    """What an earlier study left in `output`: tasks that aren't run keep their tables."""
    file = output / "study.json"
    raw = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return {name: TaskSummary.model_validate(summary) for name, summary in raw.items()}


def main(
    tasks: Annotated[str, typer.Option(help="Tasks, with commas between.")] = ALL_TASKS,
    folder: Annotated[Path, typer.Option(help="Folder of the runs' results.")] = RUNS,
    tables_only: Annotated[bool, typer.Option(help="Do no runs: tables of those done.")] = False,
    processes: Annotated[int, typer.Option(help="Runs at a time, a thread each.")] = NUM_PROCESSES,
    output: Annotated[Path, typer.Option(help="Folder of study.json, .md and .png.")] = RESULTS,
) -> None:
    """Do what is left of the study, print its tables, and write JSON, Markdown and the plot."""
    console = Console(stderr=True, highlight=False)
    chosen = [task for task in TASKS if task.name in tasks.split(",")]
    started_s = time.monotonic()

    def say(text: str) -> None:
        console.print(f"{(time.monotonic() - started_s) / 60:5.1f} min  {text}")

    try:
        if tables_only:
            results: Results = read_results(folder, chosen)
        else:
            results = do_runs(folder, chosen, run_process, say, processes)
    except SideError as error:
        say(f"a run failed; the others are kept: {error}")
        raise typer.Exit(1) from None
    say("measuring what answering costs")
    output.mkdir(parents=True, exist_ok=True)
    found = earlier_summaries(output) | summaries(folder, results, chosen)
    found = {task.name: found[task.name] for task in TASKS if task.name in found}
    raw = {name: summary.model_dump() for name, summary in found.items()}
    (output / "study.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    text = markdown(found)
    (output / "study.md").write_text(text, encoding="utf-8")
    plot(found, output / "study.png")
    print(text)


if __name__ == "__main__":
    typer.run(main)
