"""Whole parameters and optimizer states out of DeepSpeed's shards, and back.

Under ZeRO, DeepSpeed keeps fp32 values and their state in flat tensors, a part on each rank.
`deepspeed.utils.safe_get_full_*` gathers one parameter at a time, so a rank holds
a single whole one beside its share. Written for DeepSpeed 0.19.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from tsarch.checkpoint.optimizer_state import saved_state


def full_tensors(optimizer: Any, parameter: nn.Parameter) -> Iterator[tuple[str, Tensor]]:
    """(kind, whole tensor) of a parameter, on every rank. Every rank of the stage calls it, for all
    parameters in one order, with DeepSpeed's (not torch's) `optimizer`."""
    value = safe_get_full_fp32_param(parameter)
    assert value is not None, "DeepSpeed has no fp32 copy of a trained parameter"
    yield "value", value
    state: dict[str, Any] = next(iter(optimizer.optimizer.state.values()), {})
    for kind, tensor in state.items():
        if not isinstance(tensor, Tensor):
            continue
        if tensor.dim() == 0:
            # The flat tensors of a stage are all stepped together.
            yield kind, tensor
        else:
            full = safe_get_full_optimizer_state(parameter, kind)
            assert full is not None
            yield kind, full


def link_state(optimizer: Any) -> None:
    """Tell ZeRO 1 and 2 and the bf16 optimizer anew where the state of each parameter is; they link
    it once, at their first step, and would not see another state put in its place."""
    if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state") and optimizer.optimizer.state:
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()


def make_state(optimizer: Any, saved: Mapping[str, Tensor], name: str) -> None:
    """Give every flat tensor of this rank a state like that of the saved parameter `name`: its
    count of steps, and zeros for `set_full` to fill."""
    optimizer.optimizer.state.clear()
    state = saved_state(saved, name)
    for flat in _flat_tensors(optimizer):
        if state:
            optimizer.optimizer.state[flat] = {
                kind: value.to(flat.device, copy=True)
                if value.dim() == 0
                else torch.zeros_like(flat)
                for kind, value in state.items()
            }
    link_state(optimizer)


def set_full(parameter: nn.Parameter, name: str, saved: Mapping[str, Tensor]) -> None:
    """Put the saved parameter and its state into this rank's part (not into the weights that the
    module computes with)."""
    pairs = [(None, saved[f"value/{name}"]), *saved_state(saved, name).items()]
    for kind, value in pairs:
        if value.dim() == 0 and kind is not None:
            continue
        if hasattr(parameter, "ds_id"):
            # `safe_set_full_*` reads past the end where ranks don't divide the size.
            part = _part(parameter, value)
            if kind is None:
                safe_set_local_fp32_param(parameter, part)
            else:
                safe_set_local_optimizer_state(parameter, part, kind)
        elif kind is None:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, kind)


def _flat_tensors(optimizer: Any) -> list[Tensor]:
    """This rank's flat fp32 tensors: of the bf16 optimizer, of ZeRO 1 and 2, of ZeRO 3."""
    for name in (
        "fp32_groups_flat_partition",
        "single_partition_of_fp32_groups",
        "fp32_partitioned_groups_flat",
    ):
        if hasattr(optimizer, name):
            return list(getattr(optimizer, name))
    raise AssertionError(f"{type(optimizer).__name__} has no flat fp32 tensors that we know")


def _part(parameter: Any, value: Tensor) -> Tensor:
    """This rank's part of a whole tensor, padded as ZeRO 3 pads it."""
    size = parameter.ds_tensor.numel()
    rank = torch.distributed.get_rank(group=parameter.ds_process_group)
    flat = value.flatten()[rank * size : (rank + 1) * size]
    return torch.nn.functional.pad(flat, (0, size - flat.numel()))
