"""Generated texts: as transformers generates them, with and without caches, in windows, and the
choice of tokens."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.generative_configs import TEACHERS, generative_config
from tests.helpers import local_crew
from tsarch.blueprint import resolve
from tsarch.config import MODES, Config
from tsarch.data.source_target import SourceTargetTokens, pack_targets
from tsarch.data.target_layout import SourceTargetLayout
from tsarch.pair.generation import prompts_of
from tsarch.prepare import Prepared, packing_spec, prepare_data
from tsarch.rank.generate import chosen_contexts
from tsarch.rank.local_crew import LocalCrew
from tsarch.stage.build import build_model
from tsarch.tasks.decoding import Decoder, DecodingSpec
from tsarch.topology import Stage

WIDE = {
    "gpt2": {"initializer_range": 0.4},
    "llama": {"initializer_range": 0.4},
    "mistral": {"initializer_range": 0.4},
    "mamba": {"initializer_range": 0.4},
    "lfm2": {"initializer_range": 0.4},
    "t5": {},
    "bart": {"init_std": 0.4},
}


def config_of(folder: Path, model: str, **decoding: Any) -> Config:
    """Random weights large enough that texts don't repeat one token."""
    teacher = {**TEACHERS[model], **WIDE[model], "vocab_size": 300, "eos_token_id": 0}
    student = {**TEACHERS["gpt2"], **WIDE["gpt2"], "vocab_size": 300}
    return generative_config(
        folder,
        "translation",
        model,
        topology={"runner": "local"},
        teacher={"config": teacher},
        student={"layers": None, "config": student},
        decoding=decoding,
    )


def reference(config: Config, model: str) -> Any:
    """transformers' own model with the same weights."""
    import transformers

    built = build_model(resolve(config), Stage.TEACHER, None)
    assert config.teacher.config is not None
    hf_config = transformers.AutoConfig.for_model(**config.teacher.config)
    kind = {
        "t5": transformers.AutoModelForSeq2SeqLM,
        "bart": transformers.AutoModelForSeq2SeqLM,
    }.get(model, transformers.AutoModelForCausalLM)
    hf = kind.from_config(hf_config).eval()
    base = hf if model == "t5" else hf.base_model
    missing = base.load_state_dict(built.module.backbone.state_dict(), strict=False)
    assert not missing.unexpected_keys
    with torch.no_grad():
        hf.get_input_embeddings().weight.copy_(built.table)
        hf.get_output_embeddings().weight.copy_(built.table)
        if model in ("t5", "bart"):
            for side in (hf.get_encoder(), hf.get_decoder()):
                side.embed_tokens.weight.copy_(built.table)
    return hf


@pytest.mark.parametrize("model", ["gpt2", "llama", "mistral", "mamba", "lfm2", "t5", "bart"])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_the_teacher_generates_what_transformers_generates(tmp_path, model, num_beams):
    config = config_of(tmp_path, model, num_beams=num_beams, length_penalty=0.8)
    prepared = prepare_data(resolve(config))
    texts = LocalCrew(resolve(config), prepared).generate("test", "teacher", 0.5)
    hf = reference(config, model)
    split = prepared.splits["test"]
    contexts = chosen_contexts(split, config.decoding.max_texts)
    for context, prompt in zip(contexts, prompts_of(split, contexts), strict=True):
        ids = torch.from_numpy(prompt.token_ids)[None]
        start = {}
        if model in ("t5", "bart"):
            ids, start = ids[:, :-1], {"decoder_start_token_id": 0}
        found = hf.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            num_beams=num_beams,
            length_penalty=0.8,
            early_stopping=True,
            do_sample=False,
            max_new_tokens=config.task.max_target_tokens,
            eos_token_id=0,
            pad_token_id=0,
            forced_eos_token_id=None,
            **start,
        )[0].tolist()
        expected = found[1:] if start else found[ids.shape[1] :]
        if 0 in expected:
            expected = expected[: expected.index(0)]
        assert texts[context] == expected
    assert len({tuple(text) for text in texts.values()}) > 1


@pytest.mark.parametrize("model", ["gpt2", "llama", "t5", "bart"])
def test_perplexity_is_transformers_loss(tmp_path, model):
    config = config_of(tmp_path, model)
    prepared = prepare_data(resolve(config))
    (found,) = LocalCrew(resolve(config), prepared).evaluate("test", [0.5])
    hf = reference(config, model)
    split = prepared.splits["test"]
    for context in range(4):
        own = slice(*split.context_offsets[context : context + 2])
        ids, words = (torch.from_numpy(a[own])[None] for a in (split.token_ids, split.words))
        gold = torch.from_numpy(split.labels)[words[words >= 0]]
        inputs = {"input_ids": ids}
        if model in ("t5", "bart"):
            inputs = {"input_ids": ids[words < 0][None], "decoder_input_ids": ids[words >= 0][None]}
        with torch.no_grad():
            logits = hf(**inputs).logits[0, -len(gold) :]
        expected = torch.log_softmax(logits, -1)[torch.arange(len(gold)), gold]
        said = torch.from_numpy(found.teacher[words[words >= 0]])
        torch.testing.assert_close(said, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", ["gpt2", "llama", "t5", "bart"])
@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"sample": True, "top_k": 50}])
def test_caches_change_nothing(tmp_path, model, how):
    texts = []
    for cache in (True, False):
        config = config_of(tmp_path, model, cache=cache, **how)
        crew = local_crew(config)
        texts.append({mode: crew.generate("test", mode, 0.4) for mode in MODES})
    assert texts[0] == texts[1]
    longest = max(len(text) for text in texts[0]["student"].values())
    assert longest > config.student.max_tokens, "a text goes over several windows"


def test_generating_continues_what_the_losses_are_of(tmp_path):
    """The student's choices are its likeliest tokens when the text is read as in training, window
    by window."""
    config = config_of(tmp_path, "llama")
    prepared = prepare_data(resolve(config))
    crew = LocalCrew(resolve(config), prepared)
    for mode in MODES:
        texts = crew.generate("test", mode, 0.5)
        context = max(texts, key=lambda c: len(texts[c]))
        likelier = log_likelihood(config, prepared, texts[context], context, mode)
        changed = [*texts[context][:-1], texts[context][-1] % 250 + 1]
        assert likelier > log_likelihood(config, prepared, changed, context, mode)


def log_likelihood(
    config: Config, prepared: Prepared, tokens: list[int], context: int, mode: str
) -> float:
    """Of the last of some target tokens, as the evaluation sees it."""
    split = prepared.splits["test"]
    (prompt,) = prompts_of(split, [context])
    frame = SourceTargetLayout(packing_spec(resolve(config)), keep_last=False).frame
    row = SourceTargetTokens([prompt.token_ids[:-1].tolist()], tokens)
    own = pack_targets([row], frame)
    replaced = replace(prepared, splits={**prepared.splits, "test": own})
    (found,) = LocalCrew(resolve(config), replaced).evaluate("test", [0.5])
    said = {**vars(found), "joint": found.joint[0]}[mode]
    return float(said[len(tokens) - 1])


SPEC = DecodingSpec(
    num_beams=1,
    length_penalty=1.0,
    sample=False,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    no_repeat_ngram=0,
    max_tokens=4,
    end=0,
)


def scores(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities]).log()


def decoder(**changes: Any) -> Decoder:
    return Decoder(DecodingSpec(**{**vars(SPEC), **changes}), np.random.default_rng(0))


def test_greedy_takes_the_likeliest_until_the_end_or_the_limit():
    own = decoder()
    assert own.choose(scores(0.1, 0.2, 0.7)) == [(0, 2)]
    assert own.choose(scores(0.1, 0.7, 0.2)) == [(0, 1)]
    assert own.choose(scores(0.7, 0.2, 0.1)) == []
    assert own.best == [2, 1]
    own = decoder()
    for _ in range(3):
        assert own.choose(scores(0.1, 0.2, 0.7)) == [(0, 2)]
    assert own.choose(scores(0.1, 0.2, 0.7)) == []
    assert own.best == [2, 2, 2, 2]


def test_beams_find_the_likelier_text_that_greedy_misses():
    own = decoder(num_beams=2, length_penalty=0.0)
    assert own.choose(scores(0.0, 0.6, 0.4)) == [(0, 1), (0, 2)]
    after_one, after_two = [0.4, 0.3, 0.3], [0.9, 0.05, 0.05]
    own.choose(torch.tensor([after_one, after_two]).log())
    while not own.is_done:
        own.choose(torch.tensor([[0.2, 0.4, 0.4]] * len(own.hypotheses)).log())
    assert own.best == [2], "0.4 × 0.9 > 0.6 × 0.4"


def test_no_group_of_tokens_comes_twice():
    own = decoder(no_repeat_ngram=2, max_tokens=9)
    likely = scores(0.01, 0.6, 0.39)
    while own.choose(likely):
        pass
    pairs = list(zip(own.best, own.best[1:]))
    assert len(set(pairs)) == len(pairs) > 2


def test_sampling_follows_the_distribution_and_its_limits():
    drawn = []
    for seed in range(400):
        own = Decoder(DecodingSpec(**{**vars(SPEC), "sample": True}), np.random.default_rng(seed))
        ((_, token),) = own.choose(scores(0.0, 0.25, 0.75))
        drawn.append(token)
    assert abs(drawn.count(1) / 400 - 0.25) < 3 * math.sqrt(0.25 * 0.75 / 400)
    for limits in ({"top_k": 1}, {"top_p": 0.7}, {"temperature": 0.01}):
        own = decoder(sample=True, **limits)
        assert own.choose(scores(0.0, 0.25, 0.75)) == [(0, 2)]
