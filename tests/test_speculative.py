"""Texts with proposed tokens are those without: every architecture, mode and way of choosing."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.generative_configs import TEACHERS
from tests.helpers import local_crew
from tests.test_generation import SPEC, config_of
from tsarch.config import MODES, DecodingConfig
from tsarch.pair.generation import Prompt, TeacherGeneration, prompts_of
from tsarch.pair.halves import Plain, TableLookup, TeacherHalf
from tsarch.pair.proposing import Pace, Proposal, TextSoFar
from tsarch.pair.reading import Halves
from tsarch.pair.writing import Writing, WritingSpec
from tsarch.run.texts import pass_lines
from tsarch.seeding import generator
from tsarch.tasks.decoding import Decoder
from tsarch.topology import Stage
from tsarch.written import Passes

PLAIN = WritingSpec(replace(SPEC, max_tokens=24), use_cache=True, batch=5, seed=0)
FAST = {"llama", "t5"}
"""Of the teachers of these tests, with a fast path; Mistral's has a window shorter than texts."""


class Guesses:
    """In place of `TextSoFar.proposal`: what comes next, as known from before, wrong after a
    number of tokens that differs from time to time."""

    def __init__(self, prompts: list[Prompt], texts: list[list[int]]) -> None:
        self._known = [[*p.token_ids.tolist(), *t] for p, t in zip(prompts, texts, strict=True)]
        self._random = np.random.default_rng(0)

    def __call__(self, text: TextSoFar, num_tokens: int) -> Proposal | None:
        place = len(text.tokens)
        known = next(own for own in self._known if own[:place] == text.tokens)
        guess = [*known[place : place + num_tokens], *[7] * num_tokens][:num_tokens]
        wrong = int(self._random.integers(0, num_tokens + 3))
        if wrong < num_tokens:
            guess[wrong] = (guess[wrong] + 1) % 300
        return Proposal(guess, 3)


def opened(folder: Path, model: str) -> tuple[Halves, list[Prompt]]:
    """Random models that write differing texts, and prompts of unlike lengths."""
    crew = local_crew(config_of(folder, model))
    rank: Any = crew._rank
    stages = rank.parts.stages
    halves = Halves(
        stages[Stage.TEACHER].half,
        stages[Stage.STUDENT].half,
        TableLookup(rank.parts.tied.table),
        12,
    )
    rank.parts.train(False)
    return halves, prompts_of(rank.prepared.splits["test"], range(7))


def texts_of(halves: Halves, prompts: list[Prompt], mode: str, spec: WritingSpec) -> Any:
    writing = Writing(halves, spec, 0.4)
    texts = [own.tokens for own in writing.write(prompts, mode)]
    return texts, writing.passes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "how"),
    [
        pytest.param(
            model,
            how,
            marks=() if model in FAST or not how else pytest.mark.thorough,
            id=f"{model}-{next(iter(how), 'greedy')}",
        )
        for model in TEACHERS
        for how in ({}, {"sample": True, "top_k": 50}, {"no_repeat_ngram": 2})
    ],
)
def test_proposed_tokens_change_nothing(tmp_path, monkeypatch, model, how):
    halves, prompts = opened(tmp_path, model)
    decoding = replace(PLAIN.decoding, **how)
    for mode in MODES if model in FAST else ("teacher", "student"):
        plain = replace(PLAIN, decoding=decoding)
        wanted, without = texts_of(halves, prompts, mode, plain)
        with monkeypatch.context() as patched:
            guesses = Guesses(prompts, wanted)
            patched.setattr(TextSoFar, "proposal", lambda text, n, g=guesses: g(text, n))
            found, passes = texts_of(halves, prompts, mode, replace(plain, num_proposed=5))
        assert found == wanted
        assert passes.num_right > 0
        assert passes.num_tokens == without.num_tokens
        assert passes.num_passes < without.num_passes
        by_itself, _ = texts_of(halves, prompts, mode, replace(plain, num_proposed=-1))
        assert by_itself == wanted


@pytest.mark.slow
@pytest.mark.parametrize("model", ["llama", "t5", "gpt2"])
def test_modes_for_which_the_teacher_reads_once_write_what_each_writes(
    tmp_path, monkeypatch, model
):
    halves, prompts = opened(tmp_path, model)
    spec = replace(PLAIN, num_proposed=3)
    alone = {mode: texts_of(halves, prompts, mode, spec)[0] for mode in MODES}
    sizes = []
    start = TeacherGeneration.start

    def noted(teacher: TeacherGeneration, own: list[Prompt]) -> Any:
        sizes.append(len(own))
        return start(teacher, own)

    monkeypatch.setattr(TeacherGeneration, "start", noted)
    found = Writing(halves, spec, 0.4).write_modes(prompts, MODES)
    assert {mode: [own.tokens for own in found[mode].texts] for mode in MODES} == alone
    assert sizes == ([5, 2] if model in FAST else [5, 5, 5, 2, 2, 2])


@pytest.mark.slow
@pytest.mark.parametrize("model", ["llama", "t5"])
def test_exact_texts_of_bf16_do_not_depend_on_proposals(tmp_path, monkeypatch, model):
    halves, prompts = opened(tmp_path, model)
    assert halves.teacher is not None
    module: Any = halves.teacher.runs.module  # type: ignore[attr-defined]
    half = TeacherHalf(Plain(module, torch.device("cpu"), torch.bfloat16), module)
    halves = replace(halves, teacher=half, student=None)
    exact = replace(PLAIN, exact=True)
    wanted, without = texts_of(halves, prompts, "teacher", exact)
    guesses = Guesses(prompts, wanted)
    monkeypatch.setattr(TextSoFar, "proposal", lambda text, n: guesses(text, n))
    found, passes = texts_of(halves, prompts, "teacher", replace(exact, num_proposed=3))
    assert found == wanted
    assert passes.num_passes < without.num_passes
    assert passes.num_right > 0


@pytest.mark.slow
def test_exact_texts_without_a_fast_path_are_plain_ones(tmp_path):
    halves, prompts = opened(tmp_path, "gpt2")
    wanted, _ = texts_of(halves, prompts, "teacher", PLAIN)
    exact = replace(PLAIN, exact=True, num_proposed=-1)
    found, passes = texts_of(halves, prompts, "teacher", exact)
    assert found == wanted
    assert passes.num_proposed == 0


def test_what_came_last_after_the_longest_match_is_proposed():
    text = TextSoFar([1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3])
    assert text.proposal(3) == Proposal([4, 9, 2], 3)
    text.append(5)
    assert text.proposal(2) == Proposal([1, 2], 3)
    text.append(9)
    assert text.proposal(4) == Proposal([2, 3, 5, 1], 1)
    assert TextSoFar([1, 2, 3]).proposal(3) is None
    assert text.proposal(0) is None


def test_what_repeats_itself_is_proposed_to_go_on_so():
    assert TextSoFar([8, 1, 2, 1, 2]).proposal(5) == Proposal([1, 2, 1, 2, 1], 2)


def a_pace(costs: dict[int, float], num_texts: int, right: float) -> Pace:
    """One that has seen what passes take and what share of tokens was right."""
    pace = Pace()
    for width, seconds in costs.items():
        pace.took(num_texts, width, seconds)
    for _ in range(200):
        pace.judged(3, int(10 * right), 10)
    return pace


def test_as_many_tokens_are_proposed_as_are_worth_it():
    proposal = Proposal([1] * 8, 3)
    free = a_pace({1: 1.0, 9: 1.05}, 1, 0.9)
    assert free.choose([proposal]) == 8
    assert free.choose([None]) == 0
    dear = a_pace({1: 1.0, 9: 4.0}, 1, 0.6)
    assert 0 < dear.choose([proposal]) < 4
    assert a_pace({1: 1.0, 9: 9.0}, 16, 0.6).choose([proposal] * 16) == 0


def test_what_was_not_worth_it_is_tried_again():
    pace = a_pace({1: 1.0, 9: 9.0}, 16, 0.6)
    chosen = [pace.choose([Proposal([1] * 8, 3)] * 16) for _ in range(100)]
    assert chosen.count(1) == 2
    assert chosen.count(0) == 98


def test_a_plain_pass_and_one_more_token_are_measured_before_many_are_proposed():
    pace, proposals = Pace(), [Proposal([1] * 8, 3)] * 16
    assert pace.choose(proposals) == 0
    pace.took(16, 1, 1.0)
    assert pace.choose(proposals) == 1
    pace.took(16, 2, 1.3)
    assert pace.choose(proposals) > 1
    pace.took(16, 2, 2.9)  # the median is between
    assert pace.choose(proposals) == 0


def test_sampled_tokens_that_were_proposed_follow_the_distribution():
    """The first token after a proposed one, drawn again and again: as often as it is likely."""
    logs = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]]).log()
    spec = replace(SPEC, sample=True, max_tokens=9, end=99)
    firsts, seconds = [], []
    for seed in range(600):
        decoder = Decoder(spec, generator(seed, "test"))
        token = decoder.drawn(logs[:1])
        firsts.append(token)
        if token == 1:  # the proposed one, so that the second place of the pass counts
            seconds.append(decoder.drawn(logs[1:]))
    for own, wanted in ((firsts, (0.1, 0.2, 0.7)), (seconds, (0.5, 0.25, 0.25))):
        for token, share in enumerate(wanted):
            error = math.sqrt(share * (1 - share) / len(own))
            assert abs(own.count(token) / len(own) - share) < 3.5 * error


@pytest.mark.parametrize("tokens", [9, 0, "many"])
def test_unusual_numbers_of_tokens_are_refused(tokens):
    with pytest.raises(ValueError, match="tokens"):
        DecodingConfig(speculative={"tokens": tokens})


def test_beams_with_proposed_tokens_are_refused():
    with pytest.raises(ValueError, match=r"`speculative` takes one beam"):
        DecodingConfig(num_beams=2, speculative={})
    with pytest.raises(ValueError, match=r"`exact` checks three tokens at most"):
        DecodingConfig(exact=True, speculative={"tokens": 5})


def test_tokens_a_pass_speed_and_shares_are_told():
    passes = Passes(
        num_texts=2,
        num_passes=4,
        num_read=8,
        num_tokens=22,
        num_proposed=20,
        num_right=12,
        prompt_s=0.5,
        proposing_s=0.1,
        checking_s=1.6,
        choosing_s=0.3,
        plain_s=3.6,
    )
    (line,) = pass_lines({"teacher": passes, "student": Passes()})
    assert line == (
        "teacher: 22 tokens in 2.5 s, 0.5 s of it for the prompts; 2.50 tokens a pass, 2.00 × the "
        "speed of one token a pass (proposing 5%, checking 80%, the rest 15%)"
    )
    declined = replace(passes, num_declined=3)
    assert "nothing was proposed in 75% of the passes" in pass_lines({"teacher": declined})[0]
    assert (passes + passes).num_tokens == 44


@pytest.mark.slow
def test_rotary_positions_keep_their_precision_in_bf16(tmp_path):
    halves, _ = opened(tmp_path, "llama")
    assert halves.teacher is not None
    module: Any = halves.teacher.runs.module  # type: ignore[attr-defined]
    wanted = module.backbone.rotary_emb.inv_freq.clone()
    Plain(module, torch.device("cpu"), torch.bfloat16)
    assert module.backbone.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert torch.equal(module.backbone.rotary_emb.inv_freq, wanted)
