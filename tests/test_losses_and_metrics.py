"""Losses against torch's own; entity metrics against seqeval and a case counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.helpers import random_split
from tsarch.losses.token import cross_entropy, distillation
from tsarch.rank.learning_rate import learning_rate_factor
from tsarch.records import IGNORED, LossParts, Predictions, TickReport, TokenizedSplit
from tsarch.run.evaluate import JOINT_WEIGHTS, choose_and_evaluate
from tsarch.tasks.ner import NerTask
from tsarch.telling.step_table import StepTable
from tsarch.topology import STAGES, Stage, Topology

LABELS = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")


def split_of(sentences: list[list[str]]) -> TokenizedSplit:
    labels = np.array([LABELS.index(tag) for tags in sentences for tag in tags])
    empty = np.zeros(1, dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum([len(s) for s in sentences])])
    return TokenizedSplit(empty, empty, empty, empty, empty, labels, offsets)


def ids(sentences: list[list[str]]) -> np.ndarray:
    return np.array([LABELS.index(tag) for tags in sentences for tag in tags])


def test_cross_entropy_is_torchs_and_skips_ignored():
    logits, labels = torch.randn(2, 3, 4), torch.tensor([[0, IGNORED, 2], [3, 1, IGNORED]])
    losses = cross_entropy(logits, labels)
    assert losses[0, 1] == losses[1, 2] == 0
    kept = labels != IGNORED
    torch.testing.assert_close(
        losses[kept], F.cross_entropy(logits[kept], labels[kept], reduction="none")
    )


def test_distillation_is_the_scaled_kl():
    student, teacher = torch.randn(1, 2, 5), torch.randn(1, 2, 5)
    labels = torch.tensor([[1, IGNORED]])
    value = distillation(student, teacher, labels, temperature=3.0)
    p, q = (torch.softmax(x[0, 0].double() / 3, -1) for x in (teacher, student))
    torch.testing.assert_close(value[0, 0], 9 * (p * (p / q).log()).sum())
    assert value[0, 1] == 0
    assert distillation(teacher, teacher, labels, 2.0)[0, 0] == pytest.approx(0, abs=1e-12)


def test_entities_count_only_whole_and_of_the_right_type():
    gold = [["B-PER", "I-PER", "O", "B-LOC"], ["B-LOC", "B-LOC", "O"]]
    # right: the first LOC and the second sentence's second; wrong end; wrong type
    guess = [["B-PER", "O", "O", "B-LOC"], ["B-PER", "B-LOC", "O"]]
    metrics = NerTask(LABELS).metrics(split_of(gold), ids(guess))
    assert metrics["precision"] == 2 / 4
    assert metrics["recall"] == 2 / 4
    assert metrics["f1"] == 2 / 4
    assert metrics["accuracy"] == 5 / 7


def test_metrics_are_seqevals_strict_ones():
    from seqeval.metrics import classification_report
    from seqeval.scheme import IOB2

    rng = np.random.default_rng(0)
    gold = [[LABELS[i] for i in rng.integers(0, 5, 8)] for _ in range(40)]
    guess = [[t if rng.random() < 0.7 else LABELS[rng.integers(5)] for t in s] for s in gold]
    report = classification_report(
        gold, guess, mode="strict", scheme=IOB2, output_dict=True, zero_division=0
    )["micro avg"]
    ours = NerTask(LABELS).metrics(split_of(gold), ids(guess))
    wanted = (report["precision"], report["recall"], report["f1-score"])
    assert (ours["precision"], ours["recall"], ours["f1"]) == wanted
    lenient = classification_report(gold, guess, output_dict=True, zero_division=0)["micro avg"]
    assert ours["f1_conlleval"] == lenient["f1-score"] != ours["f1"]


def test_an_entity_that_begins_with_an_i_tag_counts_for_conlleval_alone():
    gold = [["B-PER", "I-PER", "O", "B-LOC"]]
    metrics = NerTask(LABELS).metrics(split_of(gold), ids([["I-PER", "I-PER", "O", "B-LOC"]]))
    assert metrics["f1"] == pytest.approx(2 / 3)  # one of one found, of two
    assert metrics["f1_conlleval"] == 1.0
    whole = NerTask(LABELS).metrics(split_of(gold), ids(gold))
    assert whole["f1"] == whole["f1_conlleval"] == 1.0


def test_the_joint_weight_is_the_best_on_validation():
    gold = [["B-PER", "O", "B-LOC", "I-LOC"]]
    split, right = split_of(gold), ids(gold)
    wrong = np.zeros_like(right)
    joint = np.stack([right if w in (0.6, 0.7) else wrong for w in JOINT_WEIGHTS])
    share = Predictions(np.arange(4), right, wrong, wrong, joint)
    evaluation = choose_and_evaluate(NerTask(LABELS), split, [share])
    assert evaluation.joint_weight == 0.6
    assert [evaluation.metrics[m]["f1"] for m in evaluation.metrics] == [1.0, 0.0, 1.0, 0.0]


def test_learning_rate_rises_and_falls():
    for decay in ("linear", "cosine", "constant"):
        factors = [learning_rate_factor(k, 100, 0.1, decay) for k in range(100)]
        assert all(0 < f <= 1 for f in factors)
        assert factors[:10] == sorted(factors[:10])
        assert max(factors) == factors[10] == 1.0
        assert factors[10:] == sorted(factors[10:], reverse=True)
    assert learning_rate_factor(99, 100, 0.0, "linear") == pytest.approx(0.01)


def test_rows_wait_for_all_ranks_and_add_their_shares():
    table = StepTable(Topology.pair(2, 1))
    table.start_span(100.0)

    def report(stage, replica, step, loss, ended):
        parts = LossParts({stage.value: loss})
        times = {"busy_s": 1.0, "started_s": 100.5, "ended_s": ended}
        return TickReport(stage.value, replica, step, step, parts, 50, **times)

    assert table.add([report(Stage.TEACHER, 0, 0, 0.25, 101.0)], 0) == []
    assert table.add([report(Stage.TEACHER, 1, 0, 0.5, 102.0)], 0) == []
    (row,) = table.add([report(Stage.STUDENT, 0, 0, 0.125, 104.0)], 0)
    assert (row["loss_teacher"], row["loss_student"]) == (0.75, 0.125)
    assert (row["wall_s"], row["tokens_per_s"]) == (4.0, 12.5)
    assert (row["busy_teacher_s"], row["busy_student_s"]) == (1.0, 1.0)
    # From the first instruction on: 3.5 s of 3 ranks, of which they worked 3 s.
    assert table.totals.pipeline_s == 3.5
    assert table.totals.bubble_fraction(Topology.pair(2, 1)) == pytest.approx(1 - 3 / 10.5)


def test_the_time_between_spans_is_not_idle_time():
    table = StepTable(Topology.pair(1, 1))
    for start in (10.0, 50.0):
        table.start_span(start)
        for stage in STAGES:
            times = {"busy_s": 2.0, "started_s": start + 1.0, "ended_s": start + 5.0}
            table.add([TickReport(stage.value, 0, 0, 0, **times)], 0)
    totals = table.totals
    assert (totals.pipeline_s, totals.train_s) == (8.0, 10.0)
    assert totals.bubble_fraction(Topology.pair(1, 1)) == pytest.approx(0.5)
    assert totals.busy_share(Stage.STUDENT, Topology.pair(1, 1)) == pytest.approx(0.5)


def test_random_splits_have_every_word_once():
    split = random_split(3)
    assert sorted(split.words[split.words >= 0].tolist()) == list(range(split.num_words))
