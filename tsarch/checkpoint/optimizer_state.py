"""A parameter's value and what AdamW or SGD keep for it, as named tensors.

Names in a file are `KIND/PARAMETER`: `value`, `step`, `exp_avg`, `exp_avg_sq`, `momentum_buffer`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tsarch.checkpoint.host_copies import Keep

OPTIMIZER_STATE = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")


def state_tensors(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """What the optimizer keeps for a parameter; empty before its first step."""
    state = optimizer.state.get(parameter, {})
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def saved_state(saved: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The saved optimizer state of parameter `name`.

    Raises:
        ValueError: a part of AdamW's is missing, or of another size than the parameter.
    """
    kinds = [kind for kind in OPTIMIZER_STATE if f"{kind}/{name}" in saved]
    state = {kind: saved[f"{kind}/{name}"] for kind in kinds}
    if kinds and kinds not in (["momentum_buffer"], ["step", "exp_avg", "exp_avg_sq"]):
        raise ValueError(f"of {name} only {' and '.join(kinds)} were saved")
    size = saved[f"value/{name}"].numel()
    for kind in kinds:
        if kind != "step" and state[kind].numel() != size:
            raise ValueError(f"{kind}/{name} has the shape {tuple(state[kind].shape)}")
    return state


def keep_parameter(
    optimizer: torch.optim.Optimizer, name: str, parameter: nn.Parameter, keep: Keep
) -> None:
    """Hand a whole parameter and its state to `keep`."""
    keep(f"value/{name}", parameter)
    for kind, value in state_tensors(optimizer, parameter).items():
        keep(f"{kind}/{name}", value)


def restore_parameter(
    optimizer: torch.optim.Optimizer,
    name: str,
    parameter: nn.Parameter,
    saved: Mapping[str, Tensor],
) -> None:
    """The inverse of `keep_parameter`."""
    with torch.no_grad():
        parameter.copy_(saved[f"value/{name}"])
    optimizer.state.pop(parameter, None)
    state = {k: v.to(parameter.device) for k, v in saved_state(saved, name).items()}
    if state:
        optimizer.state[parameter] = state
