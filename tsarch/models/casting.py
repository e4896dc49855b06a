"""Modules in another precision."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


def frequencies(module: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """(owner, name, value) of rotary frequencies (Su et al. 2021), which stay fp32 in any
    precision: rounded to bf16, half of them would turn a token at place 500 by a radian too much
    or too little. Architectures compute with them in fp32."""
    for owner in module.modules():
        for name, buffer in owner.named_buffers(recurse=False):
            if name.endswith("inv_freq"):
                yield owner, name, buffer


def cast(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Bring a module to a device and its values into a precision."""
    exact = list(frequencies(module))
    module.to(device, dtype)
    put_back(exact)
    return module


def put_back(exact: list[tuple[nn.Module, str, Tensor]]) -> None:
    """Replace what has become of frequencies by what they were, where their modules are now."""
    for owner, name, value in exact:
        now: Tensor = getattr(owner, name)
        if now.dtype != value.dtype:
            setattr(owner, name, value.to(now.device))
