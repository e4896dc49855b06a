"""Which architectures have the fast path, and that it is refused where it would compute something
else. That texts are the same: tests/test_generation.py, test_decoding.py, test_speculative.py."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.generative_configs import TEACHERS
from tsarch.models.backbone import backbone_config, build_backbone
from tsarch.models.causal_stack import CausalStack
from tsarch.models.fast_path import FastTexts, fast_stack
from tsarch.models.few_rows import FewRows
from tsarch.models.static_values import StaticValues, ValueSizes
from tsarch.models.t5_stack import T5Stack
from tsarch.seeding import torch_seed

LLAMA, T5 = TEACHERS["llama"], TEACHERS["t5"]
FP32 = torch.float32
KINDS: dict[str, tuple[dict[str, Any], type | None]] = {
    "llama": (LLAMA, CausalStack),
    "mistral": (TEACHERS["mistral"], CausalStack),
    "qwen2": (LLAMA, CausalStack),
    "qwen3": (LLAMA | {"head_dim": 8}, CausalStack),
    "gemma": (LLAMA | {"head_dim": 8}, CausalStack),
    "t5": (T5, T5Stack),
    "mt5": (T5 | {"feed_forward_proj": "gated-gelu"}, T5Stack),
    "umt5": (T5, None),  # every layer has a bias of its own
    "granite": (LLAMA | {"residual_multiplier": 0.5}, None),
    "smollm3": (LLAMA | {"num_hidden_layers": 5, "pad_token_id": 0}, None),  # some without places
    "gpt2": (TEACHERS["gpt2"], None),
    "bart": (TEACHERS["bart"], None),
}


def model_of(kind: str) -> Any:
    raw = {**KINDS[kind][0], "model_type": kind, "vocab_size": 300}
    built = build_backbone(backbone_config(None, raw, 0.0, 0.0), None, partial(torch_seed, 0))
    return built.model.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_the_fast_path_is_for_models_that_it_computes_alike(kind):
    stack = fast_stack(model_of(kind), FP32, share=False)
    wanted = KINDS[kind][1]
    assert stack is None if wanted is None else isinstance(stack, wanted)


def test_layers_that_compute_something_else_are_run_by_their_own_class():
    model = model_of("llama")
    forward = type(model.layers[0].mlp).forward
    try:
        type(model.layers[0].mlp).forward = lambda self, x: 0.999 * forward(self, x)
        assert fast_stack(model, FP32, share=False) is None
    finally:
        type(model.layers[0].mlp).forward = forward


@pytest.mark.parametrize("change", ["setting", "adapter", "shard"])
def test_unlike_layers_adapters_and_parts_of_weights_are_run_by_their_own_class(change):
    model = model_of("llama")
    last = model.layers[2]
    if change == "setting":
        last.self_attn.scaling *= 2.0
    elif change == "adapter":
        last.mlp.up_proj = nn.Sequential(last.mlp.up_proj)
    else:
        last.mlp.up_proj.weight.data = torch.empty(0)
    assert fast_stack(model, FP32, share=False) is None


def test_models_that_nobody_trains_share_their_weights_with_it():
    model = model_of("llama")
    embeds = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0))
    wanted = model(inputs_embeds=embeds).last_hidden_state
    own = model.layers[0].self_attn
    before = own.q_proj.weight.data_ptr(), own.k_proj.weight.data_ptr()
    assert fast_stack(model, FP32, share=False) is not None
    assert (own.q_proj.weight.data_ptr(), own.k_proj.weight.data_ptr()) == before
    assert fast_stack(model, FP32, share=True) is not None
    distance = own.k_proj.weight.data_ptr() - own.q_proj.weight.data_ptr()
    assert distance == own.q_proj.weight.numel() * 4
    assert torch.equal(model(inputs_embeds=embeds).last_hidden_state, wanted)


def test_longer_texts_than_were_planned_get_more_slots():
    model = model_of("llama")
    stack = fast_stack(model, FP32, share=False)
    assert stack is not None
    embeds = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(0))
    texts = FastTexts(stack, 1, 4, torch.device("cpu"), whole=False)
    found = []
    for place in range(9):
        found.append(texts.read(embeds[:, place : place + 1]))
        texts.values.keep(np.ones(1, dtype=np.int64))
    wanted = model(inputs_embeds=embeds).last_hidden_state
    torch.testing.assert_close(torch.cat(found, 1), wanted, rtol=1e-4, atol=1e-5)


def test_what_was_not_kept_is_written_over():
    values = StaticValues(ValueSizes(1, 1, 2, 1), 2, 6, FP32, torch.device("cpu"))
    said = torch.arange(8.0).view(2, 2, 1, 2)
    values.attend(0, said, said, said, values.span(2), 1.0)
    values.keep(np.array([2, 1]))
    assert values.span(1).places.tolist() == [[2], [1]]
    one = torch.ones(2, 1, 1, 2)
    seen = values.attend(0, one * 0, one, one, values.span(1), 1.0)
    wanted = [(said[0].sum((0, 1)) + 1) / 3, (said[1, 0, 0] + 1) / 2]  # means of what is kept
    torch.testing.assert_close(seen[:, 0], torch.stack(wanted))
    values.restart(np.array([True, False]))
    assert values.lengths.tolist() == [0, 1]


@pytest.mark.parametrize("dtype", [FP32, torch.bfloat16])
@pytest.mark.parametrize("has_bias", [False, True])
def test_products_of_few_rows_are_those_of_the_matrix_as_it_lies(dtype, has_bias):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 16, generator=generator).to(dtype)
    bias = torch.randn(24, generator=generator).to(dtype) if has_bias else None
    own = None if bias is None else bias.float()
    product = FewRows(weight, bias)
    for shape in [(1, 1), (1, 3), (1, 4), (5, 3), (7,), (2, 40)]:
        inputs = torch.randn(*shape, 16, generator=generator).to(dtype)
        wanted = nn.functional.linear(inputs.float(), weight.float(), own)
        tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype is FP32 else {"rtol": 2e-2, "atol": 2e-2}
        torch.testing.assert_close(product(inputs).float(), wanted, **tolerance)
