"""`make parity-trainer`: the teacher within the pair against `transformers.Trainer`, set by set.

    python -m benchmarks.parity_trainer [--data FOLDER] [--only SET]… [--rows N] [--set KEY=VALUE]…

Both sides have the same backbone, training rows, epochs and seeds, and keep the weights that are
best on validation. The pair has the settings of one shipped config for NER (`quickstart.yaml`) and
of one for classification, whatever the set. Runs are processes of one thread, one at a time;
finished ones are in runs/parity-trainer and aren't done again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, groupby
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.processes import SideError, run_module

CONFIGS = {"ner": "quickstart", "classification": "classification"}
EPOCHS = {"ner": 5, "classification": 3}
METRICS = {"ner": "f1", "classification": "f1_macro"}
"""Task → what is compared: strict entity F1, macro F1."""
SHIPPED = {"ner": "wikigold", "classification": "csabstruct"}
RUNS = Path("runs/parity-trainer")
OUTPUT = Path("benchmarks/results/parity-trainer.json")
TIMEOUT_S = 7200.0
"""For one run."""
SPLITS = ("train", "validation", "test")
REST = "rest.jsonl"
"""The training rows that weren't drawn."""


@dataclass(frozen=True)
class DataSet:
    """A data set of three JSON Lines files."""

    task: str
    name: str
    folder: Path


@dataclass(frozen=True)
class Score:
    """Of one run, on the test split."""

    task: str
    data: str
    variant: str
    """`trainer`, `pair`, or a name for a run of tsarch with other settings."""
    rows: int
    """Training rows."""
    epochs: int
    seed: int
    score: float


def data_sets(data: Path | None) -> list[DataSet]:
    """Those of the configs, and all in the folders `ner` and `classification` of `data`."""
    found = {
        (task, name): DataSet(task, name, Path("configs") / name) for task, name in SHIPPED.items()
    }
    for task in CONFIGS:
        for folder in sorted((data / task).iterdir()) if data is not None else ():
            if (folder / "train.jsonl").exists():
                found.setdefault((task, folder.name), DataSet(task, folder.name, folder))
    return list(found.values())


def part(own: DataSet, num_rows: int | None) -> tuple[Path, int]:
    """A folder with the set's files, of train about `num_rows` rows: whole documents, drawn at
    random once, in their order in the file. A row without a document is one. `REST` has the
    others."""
    lines = (own.folder / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    if num_rows is None or num_rows >= len(lines):
        return own.folder, len(lines)
    kept, rest = _drawn(_documents(lines), num_rows)
    folder = RUNS / "data" / f"{own.task}-{own.name}-{num_rows}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.jsonl").write_text("".join(kept), encoding="utf-8")
    (folder / REST).write_text("".join(rest), encoding="utf-8")
    for split in SPLITS[1:]:
        text = (own.folder / f"{split}.jsonl").read_text(encoding="utf-8")
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return folder, len(kept)


def _documents(lines: Sequence[str]) -> list[list[str]]:
    """Rows by document, as they follow one another."""
    names = [json.loads(line).get("doc_id") for line in lines]
    own = [n if name is None else name for n, name in enumerate(names)]
    groups = groupby(zip(own, lines, strict=True), key=lambda pair: pair[0])
    return [[line for _, line in group] for _, group in groups]


def _drawn(documents: Sequence[Sequence[str]], num_rows: int) -> tuple[list[str], list[str]]:
    """Rows of documents that have `num_rows` together, or a little more, and all others."""
    order = np.random.default_rng(0).permutation(len(documents)).tolist()
    sizes = accumulate(len(documents[place]) for place in order)
    number = next(n for n, rows in enumerate(sizes, 1) if rows >= num_rows)
    kept, rest = (
        [line for place in sorted(own) for line in documents[place]]
        for own in (order[:number], order[number:])
    )
    return kept, rest


def trainer_score(own: DataSet, data: Path, seed: int, file: Path) -> float:
    """The score of `transformers.Trainer`."""
    module = "benchmarks.hf_trainer" if own.task == "ner" else "benchmarks.hf_classifier"
    output = file.with_suffix(".trainer.json")
    arguments = ["--data", str(data), "--max-epochs", str(EPOCHS[own.task]), "--seed", str(seed)]
    arguments += ["--threads", "1", "--output", str(output)]
    run_module(module, arguments, file.with_suffix(".log"), TIMEOUT_S, threads=1)
    return float(json.loads(output.read_text(encoding="utf-8"))["after"]["test"]["f1"])


def pair_score(own: DataSet, data: Path, seed: int, file: Path, overrides: Sequence[str]) -> float:
    """The score of the teacher that was trained within the pair."""
    folder = file.with_suffix("")
    settings = [f"run.seed={seed}", f"run.folder={folder}", "topology.runner=local"]
    settings += ["topology.threads=1", f"schedule.epochs={EPOCHS[own.task]}"]
    settings += ["evaluation.before=false"]
    settings += [f"data.{split}={(data / split).resolve()}.jsonl" for split in SPLITS]
    arguments = [f"configs/{CONFIGS[own.task]}.yaml"]
    arguments += ["--resume"] * bool(list(folder.glob("checkpoints/step-*")))
    arguments += [word for s in (*settings, *overrides) for word in ("--set", s)]
    run_module("tsarch.launch.train", arguments, file.with_suffix(".log"), TIMEOUT_S, threads=1)
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return float(summary["after"]["teacher"][METRICS[own.task]])


def measure(
    own: DataSet, variant: str, seed: int, num_rows: int | None, overrides: Sequence[str]
) -> Score:
    """A run's score, from its file if it is finished.

    Raises:
        SideError: it failed.
    """
    data, rows = part(own, num_rows)
    name = variant.replace(", ", "-").replace(" ", "-")
    file = RUNS / f"{own.task}-{own.name}-{rows}-{name}-seed{seed}.json"
    if not file.exists():
        RUNS.mkdir(parents=True, exist_ok=True)
        is_trainer = variant == "trainer"
        score = (
            trainer_score(own, data, seed, file)
            if is_trainer
            else pair_score(own, data, seed, file, overrides)
        )
        found = Score(own.task, own.name, variant, rows, EPOCHS[own.task], seed, score)
        file.write_text(json.dumps(asdict(found)) + "\n", encoding="utf-8")
    return Score(**json.loads(file.read_text(encoding="utf-8")))


def finished() -> list[Score]:
    """Of all runs that are in the folder, and of the table where they aren't."""
    raw = json.loads(OUTPUT.read_text(encoding="utf-8")) if OUTPUT.exists() else []
    own = [json.loads(f.read_text("utf-8")) for f in sorted(RUNS.glob("*-seed?.json"))]
    scores = [Score(**row) for row in (*raw, *own)]
    keyed = {(s.task, s.data, s.variant, s.rows, s.epochs, s.seed): s for s in scores}
    return [keyed[key] for key in sorted(keyed)]


def markdown(scores: Sequence[Score]) -> str:
    """The table: a row for each set, a column for each variant."""
    variants = list(dict.fromkeys(["trainer", "pair", *(s.variant for s in scores)]))
    names = {"trainer": "`Trainer`", "pair": "teacher within the pair"}
    lines = [
        "Test split, mean of the seeds (least–most), one thread; NER: strict entity F1, "
        "classification: macro F1.",
        "",
        "| task | set | training rows | epochs | "
        + " | ".join(names.get(v, v) for v in variants)
        + " |",
        "|---" * (4 + len(variants)) + "|",
    ]
    for key in dict.fromkeys((s.task, s.data, s.rows, s.epochs) for s in scores):
        own = [s for s in scores if (s.task, s.data, s.rows, s.epochs) == key]
        cells = [_cell([s.score for s in own if s.variant == v]) for v in variants]
        lines.append("| " + " | ".join([*map(str, key), *cells]) + " |")
    return "\n".join([*lines, ""])


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "–"
    if len(values) == 1:
        return f"{values[0]:.4f} (one seed)"
    return f"{fmean(values):.4f} ({min(values):.4f}–{max(values):.4f}, {len(values)} seeds)"


def wanted(
    sets: Sequence[DataSet], variants: Sequence[str], num_seeds: int
) -> Iterator[tuple[DataSet, str, int]]:
    """Runs in their order: all sets with one seed, then with the next."""
    for seed in range(num_seeds):
        for own in sets:
            for variant in variants:
                yield own, variant, seed


def main(
    data: Annotated[
        Path | None, typer.Option(help="Folder with ner/SET, classification/SET.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Name of a set. Default: all.")] = None,
    rows: Annotated[int | None, typer.Option(help="Training rows, to whole documents.")] = None,
    seeds: Annotated[int, typer.Option(help="How many.")] = 3,
    name: Annotated[
        str, typer.Option(help="Name of the run of tsarch with the settings of --set.")
    ] = "pair",
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value.")] = None,
) -> None:
    """Do what is left, and write the table."""
    sets = [own for own in data_sets(data) if only is None or own.name in only]
    any_failed = False
    for own, variant, seed in wanted(sets, ("trainer", name), seeds):
        try:
            found = measure(own, variant, seed, rows, settings or ())
            print(f"{own.name}, {variant}, seed {seed}: {found.score:.4f}", flush=True)
        except SideError as error:
            print(f"{own.name}, {variant}, seed {seed} failed: {error}", flush=True)
            any_failed = True
    scores = finished()
    OUTPUT.write_text(json.dumps([asdict(s) for s in scores], indent=1) + "\n", encoding="utf-8")
    OUTPUT.with_suffix(".md").write_text(markdown(scores), encoding="utf-8")
    print(markdown(scores))
    if any_failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
