"""ZeRO 3 from the first parameter on: each one is sharded over the stage as soon as it exists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tsarch.models.construction import Construction


def zero3_construction(
    deepspeed_config: dict[str, Any], dtype: torch.dtype, stage_rank: int
) -> Construction:
    """Shards what is handed to it; the stage's first rank reads weights and sends them.

    Args:
        deepspeed_config: that of the engine that will take the model.
        dtype: of the parameters in the engine.
        stage_rank: this rank's place in the stage's world, which must be up.
    """
    return Construction(_Sharder(deepspeed_config, dtype), stage_rank == 0, _fill)


def forget_models() -> None:
    """Be as a process that has built nothing yet: ZeRO 3 numbers parameters and modules over all
    models of a process, and compares the numbers of a stage's ranks; and it remembers the forward
    pass that an error has ended. No model may be left."""
    from deepspeed.runtime.zero import parameter_offload
    from deepspeed.runtime.zero.partition_parameters import Init

    Init.param_id = 0
    register: Any = parameter_offload.DeepSpeedZeRoOffload._register_deepspeed_module
    register.__defaults__[0][0] = 0  # the default value of `count`, a list that all calls share
    parameter_offload.FWD_MODULE_STACK.clear()


def _fill(tensor: Tensor, value: Tensor | None) -> None:
    """Put the first rank's value into a sharded parameter, or this rank's into a buffer."""
    import deepspeed

    is_sharded = hasattr(tensor, "ds_id")
    gathered = deepspeed.zero.GatheredParameters([tensor], modifier_rank=0, enabled=is_sharded)
    with gathered, torch.no_grad():
        if value is not None:
            tensor.copy_(value)


class _Sharder:
    """Gives parameters to DeepSpeed, which broadcasts them from the stage's first rank, keeps this
    rank's shard and frees the rest."""

    def __init__(self, deepspeed_config: dict[str, Any], dtype: torch.dtype) -> None:
        self._deepspeed_config = deepspeed_config
        self._dtype = dtype
        self._first: Any = None

    def __call__(self, parameters: Sequence[nn.Parameter]) -> None:
        """Shard those that are whole, one after the other. Every rank of the stage calls it."""
        import deepspeed

        for parameter in parameters:
            if hasattr(parameter, "ds_id"):
                continue
            parameter.data = parameter.data.to(self._dtype)
            if self._first is None:
                self._first = parameter
                # Partitions in place, and gives its methods to the parameter.
                deepspeed.zero.Init(
                    module=nn.ParameterList([parameter]),
                    config_dict_or_path=self._deepspeed_config,
                    dtype=self._dtype,
                )
            else:
                self._first.convert_to_zero_parameters(param_list=[parameter])
