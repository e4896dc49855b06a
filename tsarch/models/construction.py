"""How a model comes into being: parameter by parameter, each handed over once it has its values.

A rank that keeps whole parameters does nothing with them; under ZeRO 3 they are sharded there and
then (`tsarch/stage/zero3.py`), so that no rank ever holds a whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn


def _keep(parameters: Sequence[nn.Parameter]) -> None:
    """Whole parameters stay as they are."""


def _fill(tensor: torch.Tensor, value: torch.Tensor | None) -> None:
    """Put a value into a whole tensor."""
    assert value is not None
    with torch.no_grad():
        tensor.copy_(value)


@dataclass(frozen=True)
class Construction:
    """What happens to parameters while a model is built."""

    settle: Callable[[Sequence[nn.Parameter]], None] = _keep
    """Takes parameters that have their values. All ranks of a stage call it with the same
    parameters in the same order; those it has taken before are left alone."""
    reads: bool = True
    """Whether this rank reads weights from files; one that doesn't gets them in `settle`."""
    fill: Callable[[torch.Tensor, torch.Tensor | None], None] = _fill
    """Puts another value into a settled parameter, or a buffer. All ranks of a stage call it in the
    same order; those that don't read give None for a parameter."""
    draws: bool = True
    """Whether backbones get values at all; without, their parameters stay on the meta device until
    saved ones are put in their places (`load_state_dict(assign=True)`)."""


WHOLE = Construction()
SAVED = Construction(draws=False)
"""For models whose values were saved."""


def put_weights(
    module: nn.Module, state: Mapping[str, torch.Tensor], construction: Construction
) -> None:
    """Put a whole state into a built module; all ranks of a stage call it."""
    names = set(module.state_dict())
    for name, parameter in module.named_parameters():
        if name in names:
            construction.fill(parameter, state[name] if construction.reads else None)
    for name, buffer in module.named_buffers():
        if name in names:
            construction.fill(buffer, state[name])


def full_shape(parameter: nn.Parameter) -> torch.Size:
    """Shape of the whole parameter, also where this rank has only a shard of it."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def num_elements(module: nn.Module) -> int:
    """Number of elements of all parameters, whole or sharded."""
    return sum(full_shape(parameter).numel() for parameter in module.parameters())


def num_trained(module: nn.Module) -> int:
    """Those of them that training changes."""
    return sum(full_shape(p).numel() for p in module.parameters() if p.requires_grad)


def put(module: nn.Module, name: str, value: torch.Tensor) -> nn.Parameter | None:
    """Replace the parameter or buffer `name` (dotted); returns the new parameter, if it is one."""
    owner_name, _, leaf = name.rpartition(".")
    owner = module.get_submodule(owner_name)
    old = getattr(owner, leaf)
    if not isinstance(old, nn.Parameter):
        setattr(owner, leaf, value)
        return None
    parameter = nn.Parameter(value, requires_grad=old.requires_grad)
    setattr(owner, leaf, parameter)
    return parameter
