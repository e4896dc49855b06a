"""Each split scored against itself: what not even a model that is always right can reach.

The metrics' own code measures labels against themselves and texts against themselves, so that a
tokenizer that doesn't know a script, an answer that no span of tokens is, or a target that is cut
are told before a run, not taken for the model's mistakes after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from tsarch.blueprint import Blueprint
from tsarch.data.row_digest import rows_digest
from tsarch.planning.passed import PassedChecks
from tsarch.prepare import Prepared
from tsarch.rank.generate import chosen_contexts
from tsarch.records import TokenizedSplit
from tsarch.tasks.base import GenerativeTask, Metrics, Task, is_writing
from tsarch.tasks.generative import OBEDIENCE
from tsarch.tasks.registry import is_generative, make_task
from tsarch.tasks.text_metrics import missing_tokenizer
from tsarch.telling.step_table import show_metric
from tsarch.timings import TIMINGS

_EVALUATED = ("validation", "test")
_MOST_ROWS = 5_000
"""Rows of a training split that is scored, which costs seconds."""
_ROUNDING = 1e-6
_SHOWN_ROWS = 5
_TOO_SHORT = "are too short for it, or have no word"
_WHY = {"valid_syntax": "aren't valid by themselves", OBEDIENCE: "aren't as their control asks"}
"""Why a text doesn't get full marks against itself, where it isn't `_TOO_SHORT`."""


def with_notes(
    blueprint: Blueprint, prepared: Prepared, passed: PassedChecks | None = None
) -> Prepared:
    """The data of a run, with remarks on the scores that its splits can have; `passed`: keeps what
    was found."""
    held = [name for name, split in prepared.splits.items() if split.rows]
    notes = score_notes(blueprint, prepared, held, passed)
    return replace(prepared, notes=(*prepared.notes, *notes))


@TIMINGS.during("checking which scores the data can have")
def score_notes(
    blueprint: Blueprint,
    prepared: Prepared,
    names: Sequence[str],
    passed: PassedChecks | None = None,
) -> list[str]:
    """Remarks on the scores that the splits called `names` can have; the texts of the last are
    measured."""
    check = partial(_score_notes, blueprint, prepared, names)
    if passed is None:
        return check()
    read = [prepared.labels, names]
    for name in names:
        split = prepared.splits[name]
        if _is_scored(name, split) or is_generative(blueprint.task.name):
            read += [rows_digest(split.rows), [str(row.origin.place) for row in split.rows]]
    return passed.run("scores", check, map(repr, read))


def _score_notes(blueprint: Blueprint, prepared: Prepared, names: Sequence[str]) -> list[str]:
    task = make_task(blueprint.task.name, prepared.labels, blueprint.task)
    splits = {name: prepared.splits[name] for name in names}
    notes = self_score_notes(task, splits)
    if is_writing(task):
        most = blueprint.decoding.max_texts
        for name, split in splits.items():
            learned = _learned_texts(task, split, most, blueprint.tokenizer(), prepared.end_token)
            notes += _text_notes(task, name, _scored_rows(split, most), learned)
        notes += _measured_by(task, names[-1], splits[names[-1]], most)
    return notes


def _is_scored(name: str, split: TokenizedSplit) -> bool:
    return name in _EVALUATED or len(split.rows) <= _MOST_ROWS


def can_tell(task: Task, split: TokenizedSplit) -> bool:
    """Whether a split's main metric can be better for one model than for another."""
    return _tells(task, task.metrics(split, task.perfect(split)))


def _tells(task: Task, best: Metrics) -> bool:
    """Whether any model can be better than the worst; `best`: of a model that is always right."""
    return task.lower_is_better or best[task.main_metric] > 0.0


def self_score_notes(task: Task, splits: Mapping[str, TokenizedSplit]) -> list[str]:
    """What a user should know of the scores that the splits can have."""
    notes = []
    for name, split in splits.items():
        if not _is_scored(name, split):
            continue
        best = task.metrics(split, task.perfect(split))
        tells = _tells(task, best)
        if name in _EVALUATED and (lacks := task.lacks(split)):
            means = "" if tells else f": {task.main_metric} is 0 there, whatever is predicted"
            is_run = "train" in splits
            kept = "; the last weights are kept" if name == "validation" and is_run else ""
            kept = "" if tells else kept
            notes.append(f"the {name} split {lacks}{means}{kept}")
        if tells and not task.lower_is_better:
            notes += _label_notes(task, name, split, best)
    return notes


def text_signatures(task: Task, split: TokenizedSplit, max_texts: int) -> dict[str, str]:
    """Metric → how it is computed of the texts of a split; of tasks that make none, nothing."""
    if not is_writing(task):
        return {}
    texts, references = _texts(task, _scored_rows(split, max_texts))
    return task.text_signatures(texts, references)


def _label_notes(task: Task, name: str, split: TokenizedSplit, best: Metrics) -> list[str]:
    short = _short(best, task.full_marks)
    if not short:
        return []
    rows = [split.rows[row] for row in task.missed(split, task.perfect(split))]
    what = "can't be answered as they are labelled (cut, too long, or not whole tokens)"
    return [f"{name}: at most {short} can be reached: {_counted(rows, split.rows)} {what}"]


def _text_notes(
    task: GenerativeTask, name: str, rows: Sequence[Any], learned: Sequence[str]
) -> list[str]:
    """What identical texts don't reach, and what is lost by the tokenizer or cut."""
    texts, _ = _texts(task, rows)
    marks = task.measured_marks
    scores = task.measured(texts, rows)
    if best := _short(scores, marks):
        alone = [task.measured([text], [row]) for text, row in zip(texts, rows)]
        bad = [row for row, own in zip(rows, alone) if _short(own, marks)]
        why = dict.fromkeys(_WHY.get(name, _TOO_SHORT) for name in _short_of(scores, marks))
        what = ", or ".join(why)
        return [f"{name}: at most {best} can be reached: {_counted(bad, rows)} {what}"]
    if best := _short(task.measured(learned, rows), marks):
        bad = [row for row, text, own in zip(rows, learned, texts) if text != own]
        what = "are cut (task.max_target_tokens) or not spelled by the tokenizer as they are"
        return [f"{name}: at most {best} can be reached: {_counted(bad, rows)} {what}"]
    return []


def _measured_by(
    task: GenerativeTask, name: str, split: TokenizedSplit, max_texts: int
) -> list[str]:
    """How the texts of a split are measured."""
    texts, references = _texts(task, _scored_rows(split, max_texts))
    signatures = task.text_signatures(texts, references).items()
    told = ", ".join(f"{metric} by {signature}" for metric, signature in signatures)
    missing = missing_tokenizer(references) if "bleu" in dict(signatures) else ""
    return [f"{name}: {told}{'; ' if missing else ''}{missing}"]


def _scored_rows(split: TokenizedSplit, max_texts: int) -> list[Any]:
    return [split.rows[context] for context in chosen_contexts(split, max_texts)]


def _texts(task: GenerativeTask, rows: Sequence[Any]) -> tuple[list[str], list[tuple[str, ...]]]:
    """The target of every row, and all its references."""
    return [task.as_written(row.target) for row in rows], [row.targets for row in rows]


def _learned_texts(
    task: GenerativeTask, split: TokenizedSplit, max_texts: int, tokenizer: Any, end: int | None
) -> list[str]:
    """What a model that is always right generates."""
    starts = split.sentence_offsets
    tokens = []
    for context in chosen_contexts(split, max_texts):
        own = split.labels[starts[context] : starts[context + 1]].tolist()
        tokens.append(own[:-1] if own[-1] == end else own)
    return task.spelled(tokens, tokenizer)


def _short(scores: Metrics, marks: Mapping[str, float]) -> str:
    """The scores that aren't full marks, in words; empty: all are."""
    return ", ".join(f"{name} {show_metric(scores[name])}" for name in _short_of(scores, marks))


def _short_of(scores: Metrics, marks: Mapping[str, float]) -> list[str]:
    """Metrics that were measured and haven't full marks."""
    known = {name: mark for name, mark in marks.items() if name in scores}
    return [name for name, mark in known.items() if scores[name] < mark * (1 - _ROUNDING)]


def _counted(rows: Sequence[Any], of: Sequence[Any]) -> str:
    """How many rows, and where the first of them are."""
    places = [str(row.origin.place) for row in rows[:_SHOWN_ROWS]]
    places = [*places[:1], *(place.rpartition(":")[2] for place in places[1:])]
    more = ", …" if len(rows) > _SHOWN_ROWS else ""
    where = f" ({', '.join(places)}{more})" if rows else ""
    return f"{len(rows):,} of {len(of):,} rows{where}"
