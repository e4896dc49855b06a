"""Windows that are chosen by the teacher's states, for questions that it hasn't read."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

import tsarch
from tests.helpers import local_crew, tiny_raw
from tests.test_qa import check_equal_evaluation
from tests.test_read_once import asked, questions_of, tiny_read_once, tiny_scored
from tsarch.blueprint import resolve
from tsarch.config_loading import parse_config
from tsarch.data.partition import context_tokens, context_windows
from tsarch.errors import UserError
from tsarch.launch.training import run_training
from tsarch.losses.spans import SpanObjective, region_losses
from tsarch.models.slice_scorer import SliceScorer
from tsarch.pair.pair import Pair
from tsarch.prepare import prepare_data
from tsarch.records import IGNORED, SPAN_END, SPAN_START
from tsarch.run.saved_run import evaluate_run
from tsarch.tasks.span_search import SpanWindows


@torch.no_grad()
def test_a_place_scores_by_what_near_it_is_most_like_each_word_of_the_question():
    """Against loops; padding, and windows that nothing feeds, change nothing."""
    torch.manual_seed(0)
    scorer = SliceScorer(8, 6, 4, seed=3)
    embeds, states = torch.randn(2, 50, 8), torch.randn(60, 6)
    places = torch.full((2, 50), -1)
    places[0, 3:48] = torch.arange(10, 55)
    mask = (torch.arange(50) < torch.tensor([[48], [20]])).long()
    found = scorer(embeds, mask, states, places)

    def normed(values: torch.Tensor) -> torch.Tensor:
        return (values - values.mean()) / (values.var(unbiased=False) + 1e-5).sqrt()

    for place in range(3, 48):
        near = range(max(place - 16, 3), min(place + 16, 47) + 1)
        most = [
            max(
                float(
                    scorer.question(normed(embeds[0, word])) @ scorer.state(normed(states[n + 7]))
                )
                for n in near
            )
            for word in range(3)
        ]
        assert float(found[0, place]) == pytest.approx(8 * sum(most) / 3 / 2 - 20, abs=1e-4)
    shorter = scorer(embeds[:1, :48], mask[:1, :48], states, places[:1, :48])
    torch.testing.assert_close(shorter[0, 3:], found[0, 3:48])
    assert found[1].isfinite().all()


def test_no_gradient_leaves_the_scorer():
    scorer = SliceScorer(8, 8, 4, seed=0)
    assert torch.equal(scorer.question.weight, scorer.state.weight)
    embeds, states = torch.randn(1, 5, 8, requires_grad=True), torch.randn(3, 8, requires_grad=True)
    places = torch.tensor([[-1, -1, 0, 1, 2]])
    scorer(embeds, torch.ones(1, 5, dtype=torch.long), states, places).sum().backward()
    assert embeds.grad is None
    assert states.grad is None
    assert all(own.grad is not None for own in scorer.parameters())


def test_the_loss_is_that_of_the_answers_words_together():
    """Of a span, of one word, of none, of one whose start isn't here; labels of questions are no
    words. A span of one word has half the loss of its start and end."""
    whole = SPAN_START | SPAN_END
    labels = torch.tensor(
        [
            [IGNORED, 0, SPAN_START, 0, SPAN_END, 0],
            [IGNORED, 0, 0, whole, 0, IGNORED],
            [IGNORED, 0, 0, 0, 0, 0],
            [IGNORED, 0, SPAN_END, 0, 0, 0],
        ]
    )
    scores = torch.randn(4, 6, dtype=torch.float64)
    found = region_losses(scores, labels)
    for row, answer in enumerate(([2, 3, 4], [3], [], [])):
        words = [n for n in range(6) if labels[row, n] != IGNORED]
        total = 1 + scores[row, words].exp().sum()
        chosen = scores[row, answer].exp().sum() if answer else torch.ones(())
        assert float(found[row]) == pytest.approx(float((total / chosen).log()))
    both = SpanObjective().losses(torch.stack([scores, scores], -1), labels, torch.zeros(1, 1))
    assert float(both[1, 0]) == pytest.approx(float(found[1]))


@given(asked(), st.integers(1, 3), st.integers(0, 10**6))
def test_windows_hold_as_much_as_any_and_lie_beside_one_another(made, count, seed):
    split, _, _, limits = made
    scores = np.random.default_rng(seed).normal(scale=3, size=(split.num_words, 1)).astype("f4")
    chosen = split.with_windows(SpanWindows().likely(split, scores, limits.window, count))
    words = [own[own >= 0] for own in map(chosen.window_words, range(len(chosen.windows)))]
    assert len(set(np.concatenate(words).tolist())) == sum(map(len, words)), "no word twice"
    for window, own in enumerate(words):
        assert chosen.window_length(window) <= limits.window
        assert np.array_equal(own, np.arange(own[0], own[-1] + 1))
    for context in range(split.num_contexts):
        for window in context_windows(chosen, context):
            fed = chosen.window_sources(window)
            assert np.isin(fed[fed >= 0], context_tokens(split, context)).all()
    row_of = np.searchsorted(split.sentence_offsets, [own[0] for own in words], side="right") - 1
    odds = np.exp(scores[:, 0].astype(float))
    for row, pieces in enumerate(split.pieces):
        own = [words[n] for n in np.flatnonzero(row_of == row)]
        assert 1 <= len(own) <= count
        start, most = split.sentence_offsets[row], 0.0
        for piece in pieces:
            room = limits.window - int(np.diff(split.lead_before(int(piece.places[0])))[0])
            for a, b in itertools.combinations(range(piece.num_words + 1), 2):
                if piece.places[b] - piece.places[a] <= room:
                    most = max(most, float(odds[start + a : start + b].sum()))
            start += piece.num_words
        assert max(odds[each].sum() for each in own) == pytest.approx(most)


def test_a_text_that_fits_is_read_whole(tmp_path):
    split = prepare_data(resolve(tiny_read_once(tmp_path))).splits["test"]
    scores = np.zeros((split.num_words, 1), "f4")
    whole = SpanWindows().likely(split, scores, 10_000, 5)
    tiles = SpanWindows().tiles(split, 10_000)
    assert np.array_equal(whole.slices, tiles.slices)
    assert np.array_equal(whole.offsets, tiles.offsets)


@pytest.mark.parametrize("schedule", ["sequential", "joint"])
def test_a_scorer_learns_and_changes_no_other_loss(tmp_path, schedule):
    """Up to the clipping of gradients, which is switched off."""
    losses: dict[bool, list[dict[str, float]]] = {}
    for scored, make in ((True, tiny_scored), (False, tiny_read_once)):
        folder = tmp_path / str(scored)
        folder.mkdir()
        config = make(
            folder,
            schedule={"name": schedule, "epochs": 12},
            optimizer={"clip_norm": 1e9, "student_learning_rate": 1e-2},
        )
        reports = [report for own in local_crew(config).train(0, 24) for report in own]
        losses[scored] = [
            r.losses.means for r in reports if r.stage == "student" and r.losses.means
        ]
    scores = [own.pop("scorer") for own in losses[True]]
    assert np.mean(scores[-4:]) < 0.9 * np.mean(scores[:4])
    assert losses[True] == losses[False]


@pytest.mark.parametrize(
    "sections", [{"task": {"name": "qa"}}, {"task": {"name": "relation", "query": "student"}}]
)
def test_a_scorer_is_for_questions_that_the_teacher_has_not_read(tmp_path, sections):
    raw = tiny_raw(tmp_path, distillation={"weight": 0.0}, **sections)
    raw["student"]["scorer"] = {}
    with pytest.raises(UserError, match=r"student.scorer is for qa with task.query: student"):
        parse_config(raw, "tiny")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A short run."""
    folder = tmp_path_factory.mktemp("scored")
    run: dict[str, Any] = {"run": {"folder": str(folder / "run")}, "topology": {"runner": "local"}}
    run_training(tiny_scored(folder, schedule={"max_steps": 6, "name": "joint"}, **run))
    return folder / "run"


@pytest.mark.slow
def test_a_run_evaluates_again_and_answers_what_was_read_as_rows(run):
    again = evaluate_run(run, "test").evaluation
    assert again.metrics == json.loads((run / "summary.json").read_text())["after"]
    pair = tsarch.load(run, device="cpu")
    passage, questions = questions_of(run)
    context = pair.read(passage)
    wanted = pair.predict([{"context": passage, "question": own} for own in questions])
    found = context.predict(questions)
    texts = [[getattr(own, "text", None) for own in answers] for answers in (found, wanted)]
    assert texts[0] == texts[1]
    assert [own.score for own in found] == pytest.approx([o.score for o in wanted], abs=1e-5)


def lengths_read(patch: pytest.MonkeyPatch) -> list[list[int]]:
    """Tokens of the windows of each call, from now on."""
    read: list[list[int]] = []
    reads = Pair.read
    patch.setattr(
        Pair,
        "read",
        lambda self, own: read.append([len(w.token_ids) for w in own]) or reads(self, own),
    )
    return read


@pytest.mark.slow
def test_a_question_costs_the_same_of_a_longer_text(run, monkeypatch):
    """The student reads two windows, whatever there is; a text that fits into one, that one."""
    pair = tsarch.load(run, device="cpu")
    passage, questions = questions_of(run)
    limit, read = pair.window_tokens, lengths_read(monkeypatch)
    for times in (1, 4):
        context = pair.read(" ".join([passage] * times))
        read.clear()
        context.predict(questions[0])
        lengths = list(itertools.chain(*read))
        assert len(lengths) == 2
        assert max(lengths) <= limit
    context = pair.read(" ".join(passage.split()[:4]))
    read.clear()
    context.predict(questions[0])
    assert len(list(itertools.chain(*read))) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("shorter_by", "grows"), [(8, False), (18, True)])
def test_windows_may_be_shorter_than_those_that_were_learned(
    run, monkeypatch, tmp_path, shorter_by, grows
):
    """By `evaluation.window_tokens`; for a question that they have no room for they grow."""
    whole = tsarch.load(run, device="cpu")
    passage, (question, *_) = questions_of(run)
    limit = whole.window_tokens - shorter_by
    shutil.copytree(run, tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["evaluation"]["window_tokens"] = limit
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    context = tsarch.load(tmp_path / "run", device="cpu").read(" ".join([passage] * 2))
    with monkeypatch.context() as patch:
        read = lengths_read(patch)
        context.predict(question)
    longest = max(itertools.chain(*read))
    assert longest <= whole.window_tokens
    assert (longest > limit) == grows
    found = evaluate_run(run, "test", overrides=[f"evaluation.window_tokens={limit}"])
    again = evaluate_run(tmp_path / "run", "test")
    assert found.evaluation.metrics == again.evaluation.metrics


@pytest.mark.parametrize(
    ("task", "tokens", "what"), [("ner", 8, "is for qa with a student"), ("qa", 64, "not exceed")]
)
def test_shorter_windows_are_for_questions_and_shorter(tmp_path, task, tokens, what):
    raw = tiny_raw(tmp_path, task={"name": task}, evaluation={"window_tokens": tokens})
    with pytest.raises(UserError, match=what):
        parse_config(raw, "tiny")


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.replicas(3, 2)
def test_windows_are_the_same_at_any_replica_count(tmp_path, crews):
    check_equal_evaluation(tiny_scored(tmp_path), crews)
