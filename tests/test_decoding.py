"""A text that is read on from a cache, beside longer ones and over windows, is read as in training.

Sliding windows count places between tokens, recurrent layers have states, RoBERTa's kin number
places from padding's on: whatever an architecture keeps, the numbers are those of a text alone.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tsarch.models.backbone import Backbone, backbone_config, build_backbone
from tsarch.models.student_model import StudentModel
from tsarch.models.teacher_model import TeacherModel
from tsarch.pair.generation import Keeping, Prompt, StudentGeneration, TeacherGeneration
from tsarch.pair.halves import Plain, StudentHalf, TableLookup, TeacherHalf
from tsarch.parallel.table import Table
from tsarch.records import IntArray
from tsarch.seeding import torch_seed

VOCABULARY, WINDOW = 40, 10
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
PLAIN = {**SIZES, "intermediate_size": 24, "max_position_embeddings": 64}
GROUPED = {**PLAIN, "num_key_value_heads": 1}
MAMBA = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
HYBRID_MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_state": 4,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "mistral": {**GROUPED, "sliding_window": 4},
    "gemma3_text": {**GROUPED, "head_dim": 8, "sliding_window": 4},
    "phi3": {**GROUPED, "sliding_window": 4, "pad_token_id": 0},
    "gpt_neo": {
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 2,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 4,
    },
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2},
    "falcon": {**SIZES, "alibi": True, "new_decoder_architecture": False},
    "opt": {**SIZES, "ffn_dim": 24, "max_position_embeddings": 64, "word_embed_proj_dim": 16},
    "bert": {**PLAIN, "is_decoder": True},
    "roberta": {**PLAIN, "is_decoder": True, "pad_token_id": 1},
    "mamba": MAMBA,
    "mamba2": {**MAMBA, "num_heads": 4, "head_dim": 8, "n_groups": 1},
    "rwkv": {"hidden_size": 16, "num_hidden_layers": 2, "attention_hidden_size": 16},
    "recurrent_gemma": {
        **GROUPED,
        "num_hidden_layers": 3,
        "lru_width": 16,
        "attention_window_size": 4,
    },
    "lfm2": {**GROUPED, "layer_types": ["conv", "full_attention"]},
    "bamba": {**GROUPED, **HYBRID_MAMBA, "attn_layer_indices": [1]},
}
CACHED = {"gpt2", "mistral", "gemma3_text", "phi3", "gpt_neo", "bloom", "falcon", "opt", "bert"}
LOOKUP = TableLookup(Table(torch.randn(VOCABULARY, 16, generator=torch.Generator().manual_seed(1))))
RNG = np.random.default_rng(0)
PROMPTS = [Prompt(RNG.integers(2, VOCABULARY, size), 0) for size in (9, 4, 6)]
NEXT = RNG.integers(2, VOCABULARY, (len(PROMPTS), 8))


def backbone(kind: str) -> Backbone:
    """Random weights, biases too."""
    raw = {"model_type": kind, "vocab_size": VOCABULARY, **ARCHITECTURES[kind]}
    built = build_backbone(backbone_config(None, raw, 0.0, 0.0), None, partial(torch_seed, 0))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in built.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return built


def teacher_states(half: TeacherHalf, texts: list[int], use_cache: bool) -> Tensor:
    """(texts, 9, width + outputs) of the last token of each prompt and of all that come next."""
    generation = TeacherGeneration(half, LOOKUP, Keeping(use_cache))
    found = [torch.stack([own[-1] for own in generation.start([PROMPTS[t] for t in texts])])]
    rows = np.arange(len(texts))
    found += [generation.step(rows, tokens) for tokens in NEXT[texts].T]
    return torch.stack(found, 1)


def student_predictions(half: StudentHalf, texts: list[int], use_cache: bool) -> Tensor:
    """(texts, 9, outputs), as `teacher_states`."""
    generation = StudentGeneration(half, LOOKUP, WINDOW, Keeping(use_cache))
    found = [generation.start([PROMPTS[text] for text in texts], None)]
    rows = np.arange(len(texts))
    found += [generation.step(rows, tokens, None) for tokens in NEXT[texts].T]
    return torch.stack(found, 1)


def whole(text: int) -> IntArray:
    """A prompt and all that comes next."""
    return np.concatenate([PROMPTS[text].token_ids, NEXT[text]])


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_texts_of_several_lengths_are_read_as_one_alone_in_training(kind, use_cache):
    model = TeacherModel(backbone(kind), 16, 3, 0.0)
    half = TeacherHalf(Plain(model, torch.device("cpu"), torch.float32), model)
    assert half.keeps_values == (kind in CACHED | {"roberta"})
    found = teacher_states(half, [0, 1, 2], use_cache)
    for text, states in enumerate(found):
        embeds = LOOKUP.lookup(torch.from_numpy(whole(text)[None]), torch.float32)
        read = half.runs.forward(embeds, torch.ones(embeds.shape[:2], dtype=torch.long))
        expected = torch.cat(read, -1)[0, len(PROMPTS[text].token_ids) - 1 :]
        assert_close(states, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_windows_that_begin_at_different_times_are_read_as_in_training(kind):
    model = StudentModel(backbone(kind), 16, 0, 3, 0.0)
    half = StudentHalf(Plain(model, torch.device("cpu"), torch.float32), model)
    found = student_predictions(half, [0, 1, 2], use_cache=True)
    for text, said in enumerate(found):
        tokens = whole(text)
        windows = [tokens[start : start + WINDOW] for start in range(0, len(tokens), WINDOW)]
        expected = []
        for own in windows:
            embeds = LOOKUP.lookup(torch.from_numpy(own[None]), torch.float32)
            mask, nobody = torch.ones(1, len(own), dtype=torch.long), torch.full((1, len(own)), -1)
            (read,) = half.runs.forward([embeds], [mask], torch.zeros(1, 1), [nobody])
            expected.append(read[0])
        alone = torch.cat(expected)[len(PROMPTS[text].token_ids) - 1 :]
        assert_close(said, alone, rtol=1e-4, atol=1e-4)


def test_a_reordered_batch_goes_on_with_its_texts():
    model = TeacherModel(backbone("mistral"), 16, 3, 0.0)
    half = TeacherHalf(Plain(model, torch.device("cpu"), torch.float32), model)
    ends = []
    for use_cache in (True, False):
        generation = TeacherGeneration(half, LOOKUP, Keeping(use_cache))
        generation.start(PROMPTS)
        generation.step(np.array([2, 0, 0]), np.array([5, 6, 7]))
        ends.append(generation.step(np.array([1, 1, 0]), np.array([8, 9, 10])))
    assert_close(*ends, rtol=1e-4, atol=1e-4)
