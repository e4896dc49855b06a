"""Attention by products is torch's fused attention, but for rounding, in any architecture that
looks its attention up; and dropout draws what it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from tsarch.models.attention import attend_by_products, products
from tsarch.models.fast_dropout import FastDropout, kept_places, use_fast_dropout

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 9}
T5 = {"d_model": 16, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 4, "vocab_size": 9}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bert": {**SIZES, "intermediate_size": 24},
    "llama": {**SIZES, "intermediate_size": 24, "num_key_value_heads": 2},
    "t5": {**T5, "decoder_start_token_id": 0},
}


def states_and_gradients(model: nn.Module, is_seq2seq: bool) -> list[torch.Tensor]:
    """Of real tokens, where half of a row is padding."""
    model.zero_grad()
    ids = torch.arange(20).view(2, 10) % 9
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    more = {"decoder_input_ids": ids, "decoder_attention_mask": mask} if is_seq2seq else {}
    hidden = model(input_ids=ids, attention_mask=mask, **more).last_hidden_state[mask == 1]
    (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
    return [hidden.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_products_are_the_fused_attention(kind):
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(kind, **ARCHITECTURES[kind])).eval()
    fused = states_and_gradients(model, kind == "t5")
    for most_keys in (9, 10):  # one too few, and enough
        assert attend_by_products(model, most_keys)
        model.config._attn_implementation = f"products_up_to_{most_keys}"
        found = states_and_gradients(model, kind == "t5")
        for ours, theirs in zip(found, fused, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        equal = all(torch.equal(*pair) for pair in zip(found, fused, strict=True))
        assert equal is (most_keys == 9), "the other way computes in another order"
        model.set_attn_implementation("sdpa")


def test_architectures_with_a_way_of_their_own_keep_it():
    falcon = AutoModel.from_config(AutoConfig.for_model("falcon", **SIZES))
    assert not attend_by_products(falcon, 64)
    assert falcon.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_backward_pass_is_the_derivative(dropout):
    torch.manual_seed(0)
    inputs = [torch.randn(1, 2, 3, 2, dtype=torch.double, requires_grad=True) for _ in range(3)]
    bias = torch.randn(1, 2, 3, 3, dtype=torch.double, requires_grad=True)
    mask = torch.rand(1, 1, 3, 3) > 0.3
    mask[..., 0] = True

    def attend(*given):
        torch.manual_seed(1)
        return products(*given[:3], mask, given[3], None, dropout)

    assert torch.autograd.gradcheck(attend, (*inputs, bias))


def test_a_query_that_sees_nothing_has_finite_numbers():
    inputs = [torch.ones(1, 1, 2, 4, requires_grad=True) for _ in range(3)]
    found = products(*inputs, torch.tensor([[[[True, False], [False, False]]]]))
    found.sum().backward()
    assert all(torch.isfinite(own).all() for own in (found, *(x.grad for x in inputs)))


def test_bf16_is_near_fp32():
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, 40, 8) for _ in range(3)]
    mask = torch.rand(2, 1, 40, 40) > 0.2
    exact = products(*inputs, mask)
    rough = products(*(own.bfloat16() for own in inputs), mask)
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), exact, rtol=0.03, atol=0.03)


def test_dropout_drops_as_many_as_it_says_and_leaves_the_mean():
    torch.manual_seed(0)
    layer = FastDropout(0.1)
    values = torch.ones(500, 401, requires_grad=True)
    dropped = layer(values)
    share = float((dropped == 0).float().mean())
    assert share == pytest.approx(0.1, abs=0.005)  # seven standard deviations
    assert float(dropped.detach().mean()) == pytest.approx(1.0, abs=0.01)
    dropped.sum().backward()
    torch.testing.assert_close(values.grad, dropped.detach(), msg="the same places")
    assert torch.equal(layer.eval()(values), values)


def test_what_is_dropped_follows_from_torchs_state_in_any_precision():
    layer = use_fast_dropout(nn.Sequential(nn.Dropout(0.3)))
    assert isinstance(layer[0], FastDropout)
    found = []
    for dtype in (torch.float32, torch.float32, torch.bfloat16):
        torch.manual_seed(5)
        found.append([layer(torch.ones(4, 30, dtype=dtype)) == 0 for _ in range(2)])
    assert all(torch.equal(own[0], found[0][0]) for own in found)
    assert not torch.equal(*found[0])


def test_extreme_probabilities():
    assert kept_places((3,), 1e-9)[0].tolist() == [1, 1, 1]
    assert FastDropout(1.0)(torch.ones(5)).tolist() == [0.0] * 5
