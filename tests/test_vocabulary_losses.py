"""Losses over a vocabulary, made block by block: those of whole logits, and their gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tsarch.losses import blocks
from tsarch.losses.objective import VocabularyObjective
from tsarch.losses.predictions import Logits
from tsarch.losses.token import cross_entropy, distillation
from tsarch.models.heads import token_logits
from tsarch.records import IGNORED

VOCABULARY, WIDTH = 11, 4
OBJECTIVE = VocabularyObjective()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 3 positions, the last one of less; parts of 2."""
    monkeypatch.setattr(blocks, "_BLOCK_ELEMENTS", {"cpu": 3 * VOCABULARY})
    monkeypatch.setattr(blocks, "_PART_ELEMENTS", {"cpu": 2 * VOCABULARY})


def inputs(num_positions: int = 8) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Vectors of student and teacher, labels (one of them ignored), table."""
    generator = torch.Generator().manual_seed(num_positions)
    student, teacher = torch.randn(2, 1, num_positions, WIDTH, generator=generator)
    labels = torch.randint(VOCABULARY, (1, num_positions), generator=generator)
    labels[:, 1:2] = IGNORED
    return student, teacher, labels, torch.randn(VOCABULARY, WIDTH, generator=generator)


def slopes(values: Tensor, *leaves: Tensor) -> list[Tensor]:
    """Gradients of a sum in which no two positions count alike."""
    weights = torch.linspace(0.5, 2.0, values.numel(), dtype=values.dtype).view(values.shape)
    return list(torch.autograd.grad((values * weights).sum(), leaves))


@pytest.mark.parametrize("trained", [("own",), ("table",), ("own", "table")])
@pytest.mark.parametrize("kind", [None, "kl", "reverse_kl", "jensen_shannon"])
def test_losses_and_gradients_are_those_of_whole_logits(kind, trained):
    student, teacher, labels, table = inputs()
    leaves = [{"own": student, "table": table}[name].requires_grad_() for name in trained]
    if kind is None:
        found = OBJECTIVE.losses(student, labels, table)
        expected = cross_entropy(token_logits(student, table), labels)
    else:
        found = OBJECTIVE.divergences(student, teacher, labels, 2.0, table, kind)
        own, other = token_logits(student, table), token_logits(teacher, table).detach()
        expected = distillation(own, other, labels, 2.0, kind)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    for own, other in zip(slopes(found, *leaves), slopes(expected, *leaves), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)


def test_logits_that_a_model_gives_get_their_gradient_and_stay_as_they_are():
    student, _, labels, table = inputs()
    chosen = labels != IGNORED
    logits = token_logits(student, table)[chosen].requires_grad_()
    before = logits.detach().clone()
    table.requires_grad_()
    (found,) = slopes(OBJECTIVE.losses(Logits(logits, chosen), labels, table), logits)
    (expected,) = slopes(
        torch.zeros(chosen.shape).masked_scatter(chosen, cross_entropy(logits, labels[chosen])),
        logits,
    )
    torch.testing.assert_close(found, expected)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_vectors_of_half_precision_are_multiplied_in_it(dtype):
    student, _, labels, table = inputs()
    low = student.to(dtype).requires_grad_()
    found = OBJECTIVE.losses(low, labels, table.requires_grad_())
    expected = cross_entropy(token_logits(low, table), labels)
    torch.testing.assert_close(found, expected)
    for own, other in zip(slopes(found, low, table), slopes(expected, low, table), strict=True):
        torch.testing.assert_close(own, other, rtol=0.02, atol=0.02)


def test_no_positions_are_no_losses_but_have_a_gradient():
    student, teacher, labels, table = inputs(0)
    student.requires_grad_()
    losses = OBJECTIVE.losses(student, labels, table)
    divergences = OBJECTIVE.divergences(student, teacher, labels, 1.0, table)
    assert losses.shape == divergences.shape == (1, 0)
    assert (losses.dtype, divergences.dtype) == (torch.float32, torch.float64)
    assert slopes(losses, student)[0].shape == student.shape


@pytest.mark.parametrize("trains", [False, True])
def test_no_more_logits_are_held_than_those_of_a_block(monkeypatch, trains):
    """With the largest tensor that is made counted, of 30 positions."""
    student, teacher, labels, table = inputs(30)
    student.requires_grad_(trains)
    table.requires_grad_(trains)
    sizes: list[int] = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            found = result if isinstance(result, tuple | list) else [result]
            sizes.extend(own.numel() for own in found if isinstance(own, Tensor))
            return result

    with Sizes():
        value = OBJECTIVE.losses(student, labels, table).sum()
        value = value + OBJECTIVE.divergences(student, teacher, labels, 1.0, table).sum()
        if trains:
            value.backward()
    assert max(sizes) <= max(3 * VOCABULARY, 30 * WIDTH)
