"""The DeepSpeed engine: ZeRO 0–3 inside one stage's world.

Only it, `deepspeed_config.py`, `deepspeed_state.py` and `zero3.py` import DeepSpeed.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from tsarch.checkpoint.host_copies import Keep
from tsarch.checkpoint.optimizer_state import keep_parameter, restore_parameter
from tsarch.data.partition import balance
from tsarch.models.casting import cast, frequencies, put_back
from tsarch.models.construction import WHOLE, Construction, full_shape
from tsarch.parallel.groups import backend_for
from tsarch.specs import OptimizerSpec
from tsarch.stage.deepspeed_config import engine_config
from tsarch.stage.engine import (
    LearningRates,
    StateDict,
    clip_gradients,
    make_optimizer,
    parameter_groups,
    saved_buffers,
    spoiled_unless_finite,
    trained_parameters,
)
from tsarch.stage.zero3 import forget_models, zero3_construction


def import_deepspeed(device: torch.device) -> None:
    """Import it for a device, which takes seconds."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import tsarch.stage.deepspeed_import  # noqa: F401


def start_stage_world(device: torch.device, timeout_s: float) -> None:
    """Join the stage's world (see `set_stage_environment`). Every rank of the stage calls it."""
    import_deepspeed(device)
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # On CPUs DeepSpeed would compile a shared-memory operator here (up to a minute, with g++ and
    # Python.h) that only its inference uses. Told that it can't be built, it goes without.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend=backend_for(device),
        timeout=timedelta(seconds=timeout_s),
        auto_mpi_discovery=False,
        verbose=False,
    )


def leave_stage_world() -> None:
    """Forget the stage's world, whatever has become of it, so that another one can be joined. No
    engine may be left."""
    import deepspeed

    deepspeed.comm.destroy_process_group()
    deepspeed.comm.comm.cdb = None
    forget_models()


def stage_construction(
    precision: str,
    zero_stage: int,
    replicas: int,
    num_micro_batches: int,
    extra: Mapping[str, Any] | None = None,
) -> Construction:
    """How to build a model for `DeepSpeedEngine` with the same arguments: under ZeRO 3 sharded
    from the first parameter on. `start_stage_world` comes first."""
    if zero_stage < 3:
        return WHOLE
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    config = engine_config(0.0, precision, zero_stage, replicas, num_micro_batches, extra)
    return zero3_construction(config, dtype, stage_rank=int(os.environ["RANK"]))


class DeepSpeedEngine:
    """A module under ZeRO, replicated or sharded over the ranks of its stage.

    DeepSpeed averages gradients over ranks and accumulation steps. Losses here are already
    divided by global counts, so `backward` multiplies by both to get their sum.
    """

    def __init__(
        self,
        module: nn.Module,
        spec: OptimizerSpec,
        precision: str,
        zero_stage: int,
        replicas: int,
        num_micro_batches: int,
        device: torch.device,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self.device = device
        self.compute_dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.grad_scale = 1.0 / replicas
        self._loss_scale = float(replicas * num_micro_batches)
        self._zero_stage = zero_stage
        # Without ZeRO, DeepSpeed sums an fp32 norm in fp32 and doesn't tell it; see clip_gradients.
        self._clips_here = zero_stage == 0 and precision == "fp32"
        self._clip_norm = spec.clip_norm
        self._stage_rank = int(os.environ["RANK"])
        self._replicas = replicas
        self.module = module
        clip_norm = 0.0 if self._clips_here else spec.clip_norm
        config = engine_config(clip_norm, precision, zero_stage, replicas, num_micro_batches, extra)
        groups = parameter_groups(module, spec)
        self._is_frozen = not groups
        if self._is_frozen:
            self.grad_scale = 1.0
            self._engine = self._untrained(config)
            return
        import deepspeed

        optimizer = make_optimizer(groups, spec)
        self._rates = LearningRates(optimizer)
        self._rates.scale(0.0)
        self._torch_optimizer = optimizer
        exact = list(frequencies(module))
        self._engine, *_ = deepspeed.initialize(
            model=module.to(device),
            optimizer=optimizer,
            config=config,
        )
        put_back(exact)
        if zero_stage == 0 and precision == "bf16":
            # To allocate its state, DeepSpeed has made one step here (on zero gradients, with the
            # rate of zero); AdamW would count it in its bias correction.
            optimizer.state.clear()

    def forward(self, *inputs: Any) -> Any:
        """Run the module."""
        return self._engine(*inputs)

    def train(self, mode: bool) -> None:
        """Switch dropout on or off."""
        self._engine.train(mode)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Accumulate; between the micro-batches of a step DeepSpeed wants its `step` called.

        A backward must be known as a new micro-batch's even if no forward came since the last one
        (1F1B): DeepSpeed says so in `forward`, and ZeRO 3 would else overwrite the gradient.
        """
        if self._is_frozen:
            if loss.requires_grad:
                torch.autograd.backward(spoiled_unless_finite(loss))
            return
        if hasattr(self._engine.optimizer, "clear_backward_seen_flag"):
            self._engine.optimizer.clear_backward_seen_flag()
        self._engine.backward(spoiled_unless_finite(loss) * self._loss_scale)
        if not last:
            self._engine.step()

    def step(self, learning_rate_factor: float) -> float:
        """Reduce, clip, update, clear. Under ZeRO and in bf16 DeepSpeed itself leaves an update out
        whose norm is not finite, and tells infinity."""
        if self._is_frozen:
            return 0.0
        self._rates.scale(learning_rate_factor)
        if self._clips_here:
            norm = clip_gradients(self.module, self._clip_norm)
            if not math.isfinite(norm):
                self.module.zero_grad(set_to_none=True)
            self._engine.step()
            return norm
        self._engine.step()
        found = self._engine.get_global_grad_norm()
        return 0.0 if found is None else float(found)

    def state_dict(self) -> StateDict | None:
        """All weights on the CPU of the stage's first rank. Every rank of the stage calls it.

        ZeRO 3 gathers one parameter at a time, so no rank holds more than the CPU copy.
        """
        first = self._stage_rank == 0
        state = {}
        for name, tensor in self._named_tensors():
            with self._gathered(tensor):
                if first:
                    # What was gathered is gone in a moment.
                    own = tensor.detach().to("cpu", copy=self._zero_stage == 3)
                    state[name] = own.contiguous()
        return state if first else None

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put weights in for inference. Every rank of the stage calls it with the same state."""
        for name, tensor in self._named_tensors():
            with self._gathered(tensor, modifier_rank=0), torch.no_grad():
                value = state[name]
                if tensor.shape == value.shape:
                    tensor.copy_(value)

    def keep_state(self, keep: Keep) -> None:
        """Hand this rank's share to `keep`; under ZeRO the ranks gather parameter by parameter."""
        parameters = trained_parameters(self.module)
        sizes = [math.prod(full_shape(p)) for _, p in parameters]
        shares = balance([name for name, _ in parameters], sizes, self._replicas)
        own = set(shares[self._stage_rank])
        if not parameters:
            pass
        elif self._is_sharded:
            from tsarch.stage.deepspeed_state import full_tensors, link_state

            link_state(self._engine.optimizer)
            for name, parameter in parameters:
                for kind, tensor in full_tensors(self._engine.optimizer, parameter):
                    if name in own:
                        keep(f"{kind}/{name}", tensor)
        else:
            masters = self._masters()
            for name, parameter in parameters:
                if name in own:
                    master = masters.get(parameter, parameter)
                    keep_parameter(self._torch_optimizer, name, master, keep)
        if self._stage_rank == 0:
            for name, buffer in saved_buffers(self.module):
                keep(f"value/{name}", buffer)

    def restore_state(self, saved: Mapping[str, Tensor]) -> None:
        """Put it in. Every rank of the stage calls it with the same tensors."""
        parameters = trained_parameters(self.module)
        if not parameters:
            pass
        elif self._is_sharded:
            from tsarch.stage.deepspeed_state import make_state, set_full

            make_state(self._engine.optimizer, saved, parameters[0][0])
            for name, parameter in parameters:
                with self._gathered(parameter, modifier_rank=0), torch.no_grad():
                    if self._zero_stage < 3 or self._stage_rank == 0:
                        parameter.copy_(saved[f"value/{name}"])
                set_full(parameter, name, saved)
        else:
            masters = self._masters()
            for name, parameter in parameters:
                master = masters.get(parameter, parameter)
                restore_parameter(self._torch_optimizer, name, master, saved)
                with torch.no_grad():
                    parameter.copy_(master)
        for name, buffer in saved_buffers(self.module):
            buffer.copy_(saved[f"value/{name}"])

    def _untrained(self, config: dict[str, Any]) -> Any:
        """A module in which nothing trains runs by itself. Where DeepSpeed has sharded its weights,
        it has put hooks into it that gather them for each pass, backward too; its engine would
        refuse a backward pass without an optimizer."""
        if self._zero_stage < 3:
            return cast(self.module, self.device, self.compute_dtype)
        import deepspeed

        self._gatherer, *_ = deepspeed.initialize(model=self.module.to(self.device), config=config)
        return self._gatherer.module

    @property
    def _is_sharded(self) -> bool:
        """Whether fp32 values and optimizer state are in flat tensors, a part on each rank."""
        return self._zero_stage > 0

    def _masters(self) -> dict[nn.Parameter, nn.Parameter]:
        """At ZeRO 0: the fp32 parameters that are stepped in place of those in bf16."""
        own = self._engine.optimizer
        if self.compute_dtype == torch.float32:
            return {}
        groups = zip(own.fp16_groups, own.fp32_groups, strict=True)
        return {p: master for low, high in groups for p, master in zip(low, high, strict=True)}

    def _named_tensors(self) -> list[tuple[str, Tensor]]:
        """What `module.state_dict` holds: parameters, and buffers that are persistent."""
        names = set(self.module.state_dict())
        tensors = [*self.module.named_parameters(), *self.module.named_buffers()]
        return [(name, tensor) for name, tensor in tensors if name in names]

    def _gathered(self, tensor: Tensor, modifier_rank: int | None = None) -> Any:
        import deepspeed

        enabled = self._zero_stage == 3 and hasattr(tensor, "ds_id")
        return deepspeed.zero.GatheredParameters(
            [tensor], modifier_rank=modifier_rank, enabled=enabled
        )
