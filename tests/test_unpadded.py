"""Batches without padding: the same numbers, gradients and losses; padding isn't computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from tests.helpers import local_crew, tiny_config
from tsarch.models import unpadded
from tsarch.models.unpadded import Unpadded, is_exact
from tsarch.stage.fed_states import fed_states

SIZES = {"vocab_size": 320, "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 1}
SIZES |= {"bos_token_id": 1, "eos_token_id": 2}
"""Of models so small that building them takes no time."""


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "llama"])
def test_architectures_that_mix_positions_by_attention_alone_need_no_padding(kind):
    assert is_exact(AutoConfig.for_model(kind, **SIZES))


@pytest.mark.parametrize(
    ("kind", "more"),
    [("mistral", {"sliding_window": 64}), ("t5", {}), ("convbert", {}), ("bloom", {})],
)
def test_others_are_found_out(kind, more):
    assert not is_exact(AutoConfig.for_model(kind, **SIZES, **more))


def groups() -> tuple[list[Tensor], list[Tensor]]:
    """Sequences of like length together; the last group's are long ones."""
    torch.manual_seed(1)
    masks = []
    for lengths in ([7, 5, 5], [3, 3], [60, 50, 50]):
        masks.append((torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)).long())
    return [torch.randn(*mask.shape, 32, requires_grad=True) for mask in masks], masks


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("lose_marks", [False, True])
def test_hidden_states_and_gradients_are_those_of_a_padded_batch(kind, lose_marks, monkeypatch):
    if lose_marks:  # as hooks of engines do that make every tensor anew

        class Forgets(dict):
            def __setitem__(self, *_):
                pass

        monkeypatch.setattr(unpadded, "_KNOWN", Forgets())
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(kind, **SIZES)).eval()
    embeds, masks = groups()
    wanted = [
        model(inputs_embeds=own, attention_mask=mask).last_hidden_state
        for own, mask in zip(embeds, masks, strict=True)
    ]
    found = Unpadded(model).read(model, embeds, masks, [{}] * 3)
    weights = [torch.randn_like(own) * mask.unsqueeze(2) for own, mask in zip(wanted, masks)]
    gradients = []
    for states in (wanted, found):
        sums = [(own * weight).sum() for own, weight in zip(states, weights, strict=True)]
        inputs = [*embeds, *model.parameters()]
        gradients.append(
            torch.autograd.grad(sum(sums), inputs, retain_graph=True, allow_unused=True)
        )
    for own, other, mask in zip(found, wanted, masks, strict=True):
        torch.testing.assert_close(own[mask == 1], other[mask == 1], rtol=1e-5, atol=1e-6)
    for own, other in zip(*gradients, strict=True):
        assert (own is None) == (other is None)
        if own is not None:
            torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


def test_only_states_that_are_read_pass_the_bridge():
    hidden = torch.arange(18.0).view(6, 3)
    batches = [np.array([[4, 3], [-1, -1]]), np.array([[1, -1]])]
    read, rows = fed_states(hidden, batches)
    assert torch.equal(read[:-1], hidden[[1, 3, 4]])
    assert [own.tolist() for own in rows] == [[[2, 1], [-1, -1]], [[0, -1]]]
    nobody = [np.full((1, 2), -1)]
    assert len(fed_states(hidden, nobody)[0]) == 1
    everyone = [np.arange(5)[None]]
    assert fed_states(hidden, everyone)[0] is hidden


def test_losses_are_the_same_and_no_padding_is_computed(tmp_path):
    rows = {}
    for wanted in (True, False):
        config = tiny_config(tmp_path, data={"unpadded": wanted}, topology={"runner": "local"})
        reports = [r for step in local_crew(config).train(0, 4) for r in step]
        rows[wanted] = reports
    for own, padded in zip(rows[True], rows[False], strict=True):
        assert own.losses.means == pytest.approx(padded.losses.means, rel=1e-5)
        assert own.num_real == own.num_positions == padded.num_real
        assert padded.num_positions >= padded.num_real
    assert sum(r.num_positions for r in rows[False]) > sum(r.num_real for r in rows[False])
