"""What answering costs, and how good the answers are: tsarch's modes and their neighbours.

    make bench-inference     (or: python -m benchmarks.inference [RUN])

Each side is a process of its own (`inference_child.py`), in turns, one after the other. The run is
the quickstart's (of `ner`), and the sentences are those of its test split. Writes
`benchmarks/results/inference.json` and the section "Inference" of `docs/results.md`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.inference_plan import Plan, SideSpec, missing_sides, sides
from benchmarks.inference_table import entity_f1, markdown, summarized
from benchmarks.sections import write_section
from tsarch.data.partition import context_tokens
from tsarch.errors import UserError
from tsarch.launch.training import quieten
from tsarch.prepare import prepare_split
from tsarch.records import TokenizedSplit
from tsarch.run.saved_run import open_run
from tsarch.run.versions import current_folder
from tsarch.tasks.ner import entities

_RESULTS = Path("benchmarks/results/inference.json")
_PAGE = Path("docs/results.md")
_LONGEST_S = 180.0


def main(
    run: Annotated[Path, typer.Argument(help="Finished run of `ner`.")] = Path("runs/quickstart"),
    turns: Annotated[int, typer.Option(min=1, help="Processes of each side.")] = 3,
    seconds: Annotated[float, typer.Option(help="Of each of the three measurements.")] = 1.2,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of a process.")] = 2,
    only: Annotated[str, typer.Option(help="Sides, with commas. Default: all.")] = "",
    page: Annotated[bool, typer.Option(help="Write the files.")] = True,
) -> None:
    """Measure all sides and write the table."""
    quieten()
    rows, gold = _rows(run)
    names = tuple(only.split(",")) if only else ()
    plan = Plan(run, Path("runs/inference"), threads, names)
    wanted = sides(plan, _say)
    results: dict[str, list[dict[str, Any]]] = {own.name: [] for own in wanted}
    failed: dict[str, str] = dict(missing_sides())
    for turn in range(turns):
        for own in wanted if turn % 2 == 0 else wanted[::-1]:
            if own.name in failed:
                continue
            try:
                found = _measure(own, rows, seconds, threads)
            except RuntimeError as error:
                failed[own.name] = str(error)
                _say(f"{own.name}: {error}")
                continue
            found["f1"] = entity_f1(gold, found.pop("entities"))
            results[own.name].append(found)
            _say(f"turn {turn + 1}: {own.name} {found['rows_per_s']:.0f} rows/s")
    summary = summarized({name: own for name, own in results.items() if own}, failed)
    text = markdown(summary, wanted, turns, threads, len(rows))
    typer.echo(text)
    if page and not only:
        _RESULTS.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        write_section(_PAGE, "inference", text)


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _rows(run: Path) -> tuple[list[dict[str, Any]], list[list[tuple[str, int, int]]]]:
    """The test split's sentences and their entities.

    Raises:
        UserError: it is no finished run of `ner`.
    """
    blueprint, task_file = open_run(current_folder(run))
    if task_file.task != "ner":
        raise UserError.single(str(run), f"is of {task_file.task}; this measures `ner`.")
    split = prepare_split(blueprint, "test", task_file.labels).splits["test"]
    together = _rows_together(split)
    rows = [
        {"doc_id": row.origin.doc_id, "tokens": list(row.words), "context": together[number]}
        for number, row in enumerate(split.rows)
    ]
    return rows, [entities(row.tags) for row in split.rows]


def _rows_together(split: TokenizedSplit) -> list[list[int]]:
    """For each row the rows that the teacher reads at the same time."""
    found: list[list[int]] = [[number] for number in range(len(split.rows))]
    for context in range(split.num_contexts):
        words = split.words[context_tokens(split, context)]
        numbers = np.searchsorted(split.sentence_offsets, words[words >= 0], side="right") - 1
        own = np.unique(numbers).tolist()
        for number in own:
            found[number] = own
    return found


def _measure(
    side: SideSpec, rows: list[dict[str, Any]], seconds: float, threads: int
) -> dict[str, Any]:
    """One process of a side.

    Raises:
        RuntimeError: it failed; has the end of what it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        output, job = Path(folder, "result.json"), Path(folder, "job.json")
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
        }
        about = {**side.job, "rows": rows, "seconds": seconds, "output": str(output)}
        job.write_text(json.dumps({**about, "started_s": time.time()}))
        done = subprocess.run(
            [side.python or sys.executable, "-m", "benchmarks.inference_child", str(job)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=_LONGEST_S,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1][:200])
        found: dict[str, Any] = json.loads(output.read_text())
    return found


if __name__ == "__main__":
    typer.run(main)
