"""A pair computes what its stages compute in a run, and answers rows that have no labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers import tiny_config
from tests.test_classification_and_relation import tiny_task
from tests.test_qa import tiny_qa
from tests.test_roles import solo_raw
from tsarch.blueprint import resolve
from tsarch.config import Config
from tsarch.config_loading import parse_config
from tsarch.data.partition import context_tokens
from tsarch.launch.training import run_training
from tsarch.pair.answering import Answering
from tsarch.pair.states import Window
from tsarch.prepare import Prepared, prepare_data
from tsarch.records import IGNORED, TokenizedSplit
from tsarch.run.saved_run import open_run, saved_pair
from tsarch.stage.build import build_pair
from tsarch.tasks.answers import Entity, Label, NoAnswer, Relation, Relevance, SpanAnswer
from tsarch.tasks.registry import make_task
from tsarch.topology import READS

KINDS = {
    "ner": Entity,
    "classification": Label,
    "relation": Relation,
    "ranking": Relevance,
    "qa": SpanAnswer | NoAnswer,
}


def run_of(folder: Path, task: str) -> Config:
    """A short run of a task in one process."""
    sections: dict[str, dict[str, object]] = {
        "run": {"folder": str(folder / "run")},
        "topology": {"runner": "local", "threads": 1},
        "evaluation": {"before": False},
        "schedule": {"max_steps": 3},
    }
    match task:
        case "ner":
            return tiny_config(folder, **sections)
        case "qa":
            return tiny_qa(folder, **sections)
    return tiny_task(folder, task, **sections)


def answering(config: Config, folder: Path) -> tuple[Answering, Prepared]:
    """The pair that a run left, ready to answer, and the run's data."""
    blueprint, task_file = open_run(folder)
    task = make_task(task_file.task, task_file.labels)
    own = Answering(
        saved_pair(folder),
        task,
        blueprint.window_tokens,
        blueprint.evaluation.windows,
        task_file.joint_weight,
        batch_tokens=200,
    )
    return own, prepare_data(resolve(config))


def without_labels(split: TokenizedSplit) -> TokenizedSplit:
    """The same rows as if nobody had labelled them."""
    return replace(split, labels=np.full_like(split.labels, IGNORED))


@pytest.mark.parametrize(
    "task",
    [
        pytest.param(own, marks=pytest.mark.slow) if own in ("relation", "ranking") else own
        for own in KINDS
    ],
)
def test_a_saved_pair_answers_as_its_run_measured(tmp_path, task):
    config = run_of(tmp_path, task)
    summary = run_training(config)
    own, prepared = answering(config, tmp_path / "run")
    split = prepared.splits["test"]
    measured = make_task(task, prepared.labels)
    for mode, metrics in summary["after"].items():
        scores = own.scores(without_labels(split), mode)
        decided = measured.decided(scores)
        assert measured.metrics(split, decided) == pytest.approx(metrics, abs=1e-6), mode
        answers = own.answers(split, mode)
        assert len(answers) == len(split.rows)
        assert all(isinstance(a, KINDS[task]) for row in answers for a in row)


def test_contexts_read_together_are_read_as_by_themselves(tmp_path):
    blueprint = resolve(tiny_config(tmp_path))
    prepared = prepare_data(blueprint)
    pair = build_pair(blueprint, dict.fromkeys(READS, len(prepared.labels)))
    split = prepared.splits["test"]
    contexts = [split.token_ids[context_tokens(split, c)] for c in range(3)]
    together = pair.encode(contexts)
    for ids, states in zip(contexts, together, strict=True):
        (own,) = pair.encode([ids])
        assert own.hidden.shape == states.hidden.shape == (len(ids), blueprint.teacher_width)
        assert torch.allclose(own.hidden, states.hidden, atol=1e-5)
        assert torch.allclose(own.predictions, states.predictions, atol=1e-5)


def test_a_window_is_read_with_the_teachers_states_or_without(tmp_path):
    blueprint = resolve(tiny_config(tmp_path))
    prepared = prepare_data(blueprint)
    pair = build_pair(blueprint, dict.fromkeys(READS, len(prepared.labels)))
    ids = prepared.splits["test"].token_ids[:9]
    (states,) = pair.encode([ids])
    fed, alone = pair.read([Window(ids[2:7], states.hidden[2:7]), Window(ids[2:7])])
    assert fed.shape == alone.shape == (5, len(prepared.labels))
    assert not torch.equal(fed, alone)
    (again,) = pair.read([Window(ids[2:7])])
    assert torch.allclose(again, alone, atol=1e-6)
    assert not any(p.requires_grad and p.grad is not None for p in (fed, alone))


@pytest.mark.parametrize("stage", ["teacher", "student"])
def test_one_model_by_itself_answers_too(tmp_path, stage):
    config = parse_config(solo_raw(tmp_path, stage), "solo")
    summary = run_training(config)
    own, prepared = answering(config, tmp_path / "run")
    split = prepared.splits["test"]
    (mode,) = summary["after"]
    found = make_task("ner", prepared.labels).metrics(split, own.scores(split, mode).argmax(-1))
    assert found == pytest.approx(summary["after"][mode], abs=1e-6)
    with pytest.raises(AssertionError, match="no mode joint"):
        own.scores(split, "joint")
