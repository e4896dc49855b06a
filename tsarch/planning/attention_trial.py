"""Up to how many tokens attention by products is the fastest way: a second's measurement."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tsarch.models.attention import products

_LENGTHS = (16, 32, 64, 128, 256, 512)
"""Tokens of the inputs that are tried; of longer ones the scores take too much memory to be kept
for the backward pass."""
_NUM_TOKENS = 512
"""Of a batch: a few milliseconds a pass."""
_NUM_TURNS = 5
"""Without anything quicker, until it is believed: where others want the cores too, threads that
wait for one another take CPU time, and most turns are slow."""
_MOST_TURNS = 40
_SAME = 0.98
"""Of a time: less than that is quicker."""
_GAIN = 0.95
"""What must be gained for the way that is not torch's own."""


def fastest_up_to(heads: int, width: int, dtype: torch.dtype, most_tokens: int) -> int:
    """Most keys for which products are faster than torch's fused attention, and all fewer too, in a
    forward and a backward pass on the CPU with this process's threads; 0: for none.

    Args:
        width: of a head.
        most_tokens: of an input of the run; longer ones are not tried.
    """
    found = 0
    for length in _LENGTHS:
        if found >= most_tokens or not _products_are_faster(heads, width, length, dtype):
            break
        found = length
    return found


def _products_are_faster(heads: int, width: int, length: int, dtype: torch.dtype) -> bool:
    generator = torch.Generator().manual_seed(0)
    shape = (max(_NUM_TOKENS // length, 1), heads, length, width)
    q, k, v, grad = (torch.randn(shape, generator=generator).to(dtype) for _ in range(4))
    inputs = [own.requires_grad_() for own in (q, k, v)]
    mask = torch.ones(shape[0], 1, length, length, dtype=torch.bool)
    mask[0, ..., length - 1] = False
    module = nn.Module()

    def fused() -> None:
        found, _ = sdpa_attention_forward(module, *inputs, mask)
        torch.autograd.grad(found, inputs, grad.transpose(1, 2))

    def by_products() -> None:
        found = products(q, k, v, mask).transpose(1, 2).contiguous()
        torch.autograd.grad(found, inputs, grad.transpose(1, 2))

    seconds = least_seconds((fused, by_products))
    return seconds[1] < _GAIN * seconds[0]


def least_seconds(
    ways: Sequence[Callable[[], None]], clock: Callable[[], float] = time.process_time
) -> list[float]:
    """The least CPU time that each takes, once several turns have found no less."""
    for way in ways:  # a warm-up
        way()
    least, since = [float("inf")] * len(ways), 0
    for _ in range(_MOST_TURNS):
        before = list(least)
        for number, way in enumerate(ways):
            started = clock()
            way()
            least[number] = min(least[number], clock() - started)
        is_less = any(own < _SAME * old for own, old in zip(least, before, strict=True))
        since = 0 if is_less else since + 1
        if since == _NUM_TURNS:
            break
    return least
