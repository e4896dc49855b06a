"""A split measured and marked at once: the answers that metrics are of are those that are shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tsarch.blueprint import Blueprint
from tsarch.config import Mode
from tsarch.marking.marked import Marked, mark, mark_generated
from tsarch.prepare import Prepared
from tsarch.rank.crew import Crew
from tsarch.rank.generate import chosen_contexts
from tsarch.records import TokenizedSplit
from tsarch.run.evaluate import Evaluation, evaluate_modes, predict, scores_and_metrics
from tsarch.run.texts import Sample, with_texts
from tsarch.tasks.base import GenerativeTask, Task, is_answering, is_writing
from tsarch.written import Passes


@dataclass(frozen=True)
class Examined:
    """What all modes make of a split."""

    evaluation: Evaluation
    samples: list[Sample]
    """Generated texts."""
    marked: Marked | None
    """None: it wasn't wanted, or the task has no answers that could be marked."""
    passes: dict[Mode, Passes] = field(default_factory=dict)
    """Mode → what its texts took."""


def examine(
    crew: Crew,
    blueprint: Blueprint,
    prepared: Prepared,
    task: Task,
    name: str,
    joint_weight: float,
    marks: bool,
    modes: Iterable[Mode] | None = None,
) -> Examined:
    """Measure the split called `name`.

    Args:
        marks: mark the answers too. The metrics are the same.
        modes: that generate texts; None: all.
    """
    split = prepared.splits[name]
    evaluation, marked = _measured(crew, blueprint, task, name, split, joint_weight, marks)
    evaluation, samples, passes = with_texts(
        crew, blueprint, prepared, task, name, evaluation, modes
    )
    if marks and samples and is_writing(task):
        marked = _marked_texts(blueprint, task, split, samples)
    return Examined(evaluation, samples, marked, passes)


def _measured(
    crew: Crew,
    blueprint: Blueprint,
    task: Task,
    name: str,
    split: TokenizedSplit,
    joint_weight: float,
    marks: bool,
) -> tuple[Evaluation, Marked | None]:
    if not (marks and is_answering(task)):
        said = predict(blueprint, task, crew, name, split, [joint_weight])
        return evaluate_modes(task, split, said, joint_weight), None
    said = predict(blueprint, task, crew, name, split, [joint_weight], undecided=True)
    scores, evaluation = scores_and_metrics(task, split, said, joint_weight)
    return evaluation, mark(task, split, scores)


def _marked_texts(
    blueprint: Blueprint, task: GenerativeTask, split: TokenizedSplit, samples: Sequence[Sample]
) -> Marked:
    rows = [split.rows[own] for own in chosen_contexts(split, blueprint.decoding.max_texts)]
    modes = samples[0].generated
    texts = {mode: [sample.generated[mode] for sample in samples] for mode in modes}
    return mark_generated(task, rows, texts)
