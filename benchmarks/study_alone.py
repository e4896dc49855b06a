"""`make study-alone`: what makes `student_alone` better: today's settings, and with one more term.

    python -m benchmarks.study_alone [--data FOLDER] [--only TASK]… [--variant NAME]… [--rows N]

Each variant is a task's shipped config with a few other keys; `small` is the student's model by
itself, trained plainly on its windows. (The usual distillation is in `make study`.) `--data` adds
the tasks whose data lie in FOLDER, `--rows` draws so many training rows, and the others are what
`text` learns from without their labels (all rows of `ner`: other sets in FOLDER). Runs are
processes of one thread, one at a time, all variants of a seed before the next; finished ones are in
runs/study-alone and aren't done again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal

import typer

from benchmarks.common import DEFAULT_MODEL
from benchmarks.parity_trainer import REST, SPLITS, DataSet, part
from benchmarks.processes import SideError, run_module

RUNS = Path("runs/study-alone")
OUTPUT = Path("benchmarks/results/study-alone.json")
TIMEOUT_S = 7200.0
"""For one run."""


@dataclass(frozen=True)
class StudyTask:
    """A config and the data that it is trained on here."""

    config: str
    data: str
    metric: str
    folder: str = ""
    """Of the data in that of `--data`; empty: it comes with the config."""
    settings: tuple[str, ...] = ()
    """Keys of the config that differ in all variants."""
    text: tuple[str, ...] = ()
    """Folders in that of `--data` whose training rows are text without labels."""


TASKS: Mapping[str, StudyTask] = {
    "ner": StudyTask(
        "quickstart",
        "wikigold",
        "f1",
        text=("ner/redocred", "ner/uner_en_ewt", "ner/wnut17", "ner/litbank"),
    ),
    "classification": StudyTask("classification", "csabstruct", "f1_macro"),
    "relation": StudyTask("relation", "semeval", "f1_micro"),
    "intents": StudyTask(
        "classification", "banking77", "f1_macro", "classification", ("schedule.epochs=10",)
    ),
}
"""`intents`: of 77 classes, so that few rows need more epochs than the config's."""
_ALONE = "distillation.match_passes=alone"
_ALONE_MODE = "student_alone"
VARIANTS: Mapping[str, tuple[str, ...]] = {
    "today": (),
    "hidden": ("distillation.hidden_weight=1.0", _ALONE),
    "layers": ("distillation.hidden_weight=1.0", "distillation.hidden_layers=uniform", _ALONE),
    "values": ("distillation.relation_weight=1.0", _ALONE),
    "relations": (
        "distillation.relation_weight=1.0",
        "distillation.relations=[values, attention]",
        _ALONE,
    ),
    "text": ("data.unlabelled={rest}",),
    "text twice": ("data.unlabelled={rest}", "unlabelled.ratio=2"),
    "chosen layers": ("student.layers=auto", "student.num_layers=3"),
    "depths": ("student.layers=[0, 2, 4, 5]", "student.depths=[2, 3, 4]"),
    "two layers": ("student.layers=[0, 2]",),
    "two layers, text twice": (
        "student.layers=[0, 2]",
        "data.unlabelled={rest}",
        "unlabelled.ratio=2",
    ),
    "three layers": ("student.layers=[0, 2, 4]",),
    "four layers": ("student.layers=[0, 2, 4, 5]",),
    "small": (
        "teacher=null",
        f"student.model={DEFAULT_MODEL}",
        "student.shortcut=false",
        "student.alone_weight=0.0",
        "student.bridge_scale=1.0",
        "student.fed_weight=1.0",
        f"data.tokenizer={DEFAULT_MODEL}",
        "distillation.weight=0.0",
        "evaluation.monitor=student_alone",
    ),
}
"""Name → keys of the task's config that differ; `{rest}`: the rows that weren't drawn, or the text
of a task's other sets.
`two layers`, `three layers` and `four layers` are the students that `depths` has inside, each
trained for that depth alone."""
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Outcome:
    """Of one run, on the test split."""

    task: str
    variant: str
    rows: int
    """Training rows."""
    seed: int
    scores: dict[str, float]
    """Mode → the task's metric."""
    train_s: float
    precision: Precision = "fp32"


@dataclass(frozen=True)
class Conditions:
    """What all runs of a call have in common."""

    data: Path | None = None
    """Folder of the data that come with no config."""
    num_rows: int | None = None
    """Training rows; None: all."""
    precision: Precision = "fp32"


def measure(task: str, variant: str, seed: int, given: Conditions) -> Outcome:
    """A run's scores, from its folder if it is finished.

    Raises:
        SideError: it failed.
    """
    own = TASKS[task]
    source = Path("configs") if not own.folder else (given.data or Path()) / own.folder
    folder, rows = part(DataSet(own.folder or task, own.data, source / own.data), given.num_rows)
    name = f"{task}-{rows}-{variant.replace(' ', '-')}-{given.precision}-seed{seed}"
    run, metric = RUNS / name, own.metric
    if not (run / "summary.json").exists():
        settings = [f"run.seed={seed}", f"run.folder={run}", "topology.runner=local"]
        settings += ["topology.threads=1", "evaluation.before=false"]
        settings += [f"data.{split}={(folder / split).resolve()}.jsonl" for split in SPLITS]
        settings += [f"precision={given.precision}", *own.settings]
        rest = _rest(own, folder, given)
        settings += [key.format(rest=rest) for key in VARIANTS[variant]]
        arguments = [f"configs/{own.config}.yaml"]
        arguments += ["--resume"] * bool(list(run.glob("checkpoints/step-*")))
        arguments += [word for setting in settings for word in ("--set", setting)]
        RUNS.mkdir(parents=True, exist_ok=True)
        log = run.with_name(f"{run.name}.log")
        run_module("tsarch.launch.train", arguments, log, TIMEOUT_S, threads=1)
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    scores = {mode: float(own[metric]) for mode, own in summary["after"].items()}
    for depth, modes in summary.get("depths", {}).items():
        scores[f"{_ALONE_MODE}, depth {depth}"] = float(modes["student_alone"][metric])
    return Outcome(task, variant, rows, seed, scores, float(summary["train_s"]), given.precision)


def _rest(own: StudyTask, folder: Path, given: Conditions) -> str:
    """Files of text without labels, as YAML; `[]`: there are none."""
    files = [folder / REST] if given.num_rows is not None else _texts(own, given)
    return json.dumps([str(file.resolve()) for file in files])


def _texts(own: StudyTask, given: Conditions) -> list[Path]:
    """Of a task's other sets."""
    return [] if given.data is None else [given.data / name / "train.jsonl" for name in own.text]


def earlier() -> list[Outcome]:
    """Of the table that is there now."""
    raw = json.loads(OUTPUT.read_text(encoding="utf-8")) if OUTPUT.exists() else []
    return [Outcome(**row) for row in raw]


def merged(old: Sequence[Outcome], new: Sequence[Outcome]) -> list[Outcome]:
    """What is new in the places of what was there."""
    order = list(VARIANTS)
    keyed = {(o.task, o.rows, o.precision, order.index(o.variant), o.seed): o for o in (*old, *new)}
    return [keyed[key] for key in sorted(keyed)]


def markdown(outcomes: Sequence[Outcome]) -> str:
    """The table: a row for each variant of a task, and for each depth that isn't the whole student,
    with the share that `student_alone` has of the teacher of the same runs."""
    lines = [
        "Test split, mean of the seeds (least–most), one thread.",
        "",
        "| task | training rows | precision | variant | seeds | teacher | `student_alone` | of the "
        "teacher |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key in dict.fromkeys((o.task, o.rows, o.precision, o.variant) for o in outcomes):
        own = [o for o in outcomes if (o.task, o.rows, o.precision, o.variant) == key]
        teacher = [o.scores["teacher"] for o in own if "teacher" in o.scores]
        for mode in _modes(own):
            alone = [o.scores[mode] for o in own]
            share = f"{fmean(alone) / fmean(teacher):.1%}" if teacher and fmean(teacher) else "–"
            variant = key[3] + mode.removeprefix(_ALONE_MODE)
            cells = [key[0], str(key[1]), key[2], variant, str(len(own))]
            cells += [_cell(teacher), _cell(alone), share]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _modes(outcomes: Sequence[Outcome]) -> list[str]:
    """The student alone, whole and at each depth."""
    names = outcomes[0].scores
    return sorted(name for name in names if name.startswith(_ALONE_MODE))


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "–"
    spread = "" if len(values) == 1 else f" ({min(values):.4f}–{max(values):.4f})"
    return f"{fmean(values):.4f}{spread}"


def wanted(
    tasks: Sequence[str], variants: Sequence[str], num_seeds: int, given: Conditions
) -> Iterator[tuple[int, str, str]]:
    """(seed, task, variant) in their order, but for those whose data there aren't: no folder of
    them, or no rows that weren't drawn."""
    for seed in range(num_seeds):
        for task in tasks:
            for variant in variants:
                has_rest = given.num_rows is not None or bool(_texts(TASKS[task], given))
                needs_rest = any("{rest}" in key for key in VARIANTS[variant])
                if (given.data or not TASKS[task].folder) and (has_rest or not needs_rest):
                    yield seed, task, variant


def main(
    data: Annotated[
        Path | None, typer.Option(help="Folder with classification/SET, for `intents`.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Task. Default: all.")] = None,
    variant: Annotated[list[str] | None, typer.Option(help="Variant. Default: all.")] = None,
    rows: Annotated[int | None, typer.Option(help="Training rows, to whole documents.")] = None,
    seeds: Annotated[int, typer.Option(help="How many.")] = 3,
    precision: Precision = "fp32",
) -> None:
    """Do what is left, and write the table."""
    tasks, any_failed = [task for task in TASKS if only is None or task in only], False
    names = [name for name in VARIANTS if variant is None or name in variant]
    given = Conditions(data, rows, precision)
    found: list[Outcome] = []
    for seed, task, name in wanted(tasks, names, seeds, given):
        try:
            found.append(measure(task, name, seed, given))
            print(f"{task}, {name}, seed {seed}: {found[-1].scores}", flush=True)
        except SideError as error:
            print(f"{task}, {name}, seed {seed} failed: {error}", flush=True)
            any_failed = True
        outcomes = merged(earlier(), found)
        text = json.dumps([asdict(o) for o in outcomes], indent=1)
        OUTPUT.write_text(text + "\n", encoding="utf-8")
        OUTPUT.with_suffix(".md").write_text(markdown(outcomes), encoding="utf-8")
    print(markdown(merged(earlier(), found)))
    if any_failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
