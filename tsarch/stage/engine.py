"""Engines: a module with its optimizer, replicated over a stage's ranks or alone in a process.

The protocol lets stages stay ignorant of what runs below: plain torch on one device here, DeepSpeed
where several ranks share a stage or its states in `deepspeed_engine.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tsarch.checkpoint.host_copies import Keep
from tsarch.checkpoint.optimizer_state import keep_parameter, restore_parameter
from tsarch.models.casting import cast
from tsarch.models.construction import full_shape
from tsarch.parallel.gradient_norm import clip_by_global_norm
from tsarch.specs import OptimizerSpec
from tsarch.stage.master_weights import MasterWeights

StateDict = dict[str, Tensor]


class Engine(Protocol):
    """A module, trained as far as its parameters aren't frozen. Collective: all ranks of a stage
    make the same calls in one order."""

    module: nn.Module
    device: torch.device
    compute_dtype: torch.dtype
    """Dtype of activations that enter and leave the module."""
    grad_scale: float
    """What to multiply a gradient by that leaves the engine through its inputs, so that the sum
    over the stage's ranks is the gradient of the sum of the ranks' losses."""

    def forward(self, *inputs: Any) -> Any:
        """Run the module, in training mode or not as `train` says."""

    def train(self, mode: bool) -> None:
        """Switch dropout on or off."""

    def backward(self, loss: Tensor, last: bool) -> None:
        """Accumulate the gradient of the *sum* of all ranks' losses; `last` ends a step."""

    def step(self, learning_rate_factor: float) -> float:
        """Clip, update, clear the gradients; returns the global norm before clipping (or 0).

        A norm that is not finite is the same on all ranks of the stage, and none of them updates.
        """

    def state_dict(self) -> StateDict | None:
        """All weights on the CPU on the stage's first rank, None on others."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put weights in for inference."""

    def keep_state(self, keep: Keep) -> None:
        """Hand this rank's share of what training changes to `keep`: whole fp32 parameters, their
        optimizer state, buffers. The shares of a stage's ranks together are all of it."""

    def restore_state(self, saved: Mapping[str, Tensor]) -> None:
        """Put in what the ranks of a stage, of any number and ZeRO stage, have given to `keep`."""


def parameter_groups(module: nn.Module, spec: OptimizerSpec) -> list[dict[str, Any]]:
    """Groups for the optimizer: backbone and new layers, with and without weight decay.

    Biases and norms (one-dimensional parameters) don't decay, as in BERT's own training.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            key = (name.startswith("backbone."), len(full_shape(parameter)) > 1)
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": spec.learning_rate * (1.0 if old else spec.head_learning_rate_factor),
            "weight_decay": spec.weight_decay if decays else 0.0,
        }
        for (old, decays), parameters in groups.items()
    ]


def trained_parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Names and parameters that training changes; the others come from the model's files again."""
    return [(name, p) for name, p in module.named_parameters() if p.requires_grad]


def saved_buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Names and buffers that belong to the weights."""
    names = set(module.state_dict())
    return [(name, buffer) for name, buffer in module.named_buffers() if name in names]


def make_optimizer(groups: Iterable[dict[str, Any]], spec: OptimizerSpec) -> torch.optim.Optimizer:
    """AdamW or SGD over parameter groups; the fused kernels where torch has them."""
    if spec.name == "sgd":
        return torch.optim.SGD(groups, lr=spec.learning_rate, momentum=spec.momentum)
    return torch.optim.AdamW(
        groups, lr=spec.learning_rate, betas=spec.betas, eps=spec.epsilon, fused=True
    )


def clip_gradients(module: nn.Module, clip_norm: float) -> float:
    """Clip all gradients of a module; returns their norm before."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    return clip_by_global_norm(gradients, clip_norm)


def spoiled_unless_finite(loss: Tensor) -> Tensor:
    """The loss itself, to the last bit; if it is not finite, one whose gradient is NaN everywhere.

    So a bad loss on one rank makes every sum that its gradient enters bad, the stage's and the tied
    table's, and all ranks see it without asking one another.
    """
    return loss * torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan)


class LearningRates:
    """Peak learning rates of an optimizer's groups, scaled step by step."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._peaks = [group["lr"] for group in optimizer.param_groups]

    def scale(self, factor: float) -> None:
        """Set every group's rate to its peak × `factor`."""
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor


class LocalEngine:
    """A module that one rank has for itself, whole. In bf16 over fp32 master weights."""

    def __init__(
        self, module: nn.Module, spec: OptimizerSpec, precision: str, device: torch.device
    ) -> None:
        self.device = device
        self.compute_dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.grad_scale = 1.0
        self.module = module.to(self.device)
        self._clip_norm = spec.clip_norm
        groups = parameter_groups(module, spec)
        self._masters = MasterWeights(module) if precision == "bf16" else None
        if self._masters is not None:
            groups = self._masters.groups(groups)
            cast(module, self.device, self.compute_dtype)
        self._is_frozen = not groups
        if not self._is_frozen:
            self._optimizer = make_optimizer(groups, spec)
            self._rates = LearningRates(self._optimizer)

    def forward(self, *inputs: Any) -> Any:
        """Run the module."""
        return self.module(*inputs)

    def train(self, mode: bool) -> None:
        """Switch dropout on or off."""
        self.module.train(mode)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Accumulate the gradient of `loss`."""
        if loss.requires_grad:
            torch.autograd.backward(spoiled_unless_finite(loss))
            if self._masters is not None:
                self._masters.take_gradients()

    def step(self, learning_rate_factor: float) -> float:
        """Clip, update, clear the gradients."""
        if self._is_frozen:
            return 0.0
        if self._masters is None:
            norm = clip_gradients(self.module, self._clip_norm)
        else:
            norm = clip_by_global_norm(self._masters.gradients(), self._clip_norm)
        self._rates.scale(learning_rate_factor)
        if math.isfinite(norm):
            self._optimizer.step()
            if self._masters is not None:
                self._masters.publish()
        self._optimizer.zero_grad()
        return norm

    def state_dict(self) -> StateDict | None:
        """All weights on the CPU."""
        own = self.module if self._masters is None else self._masters
        return {name: t.detach().cpu().contiguous() for name, t in own.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put weights in."""
        own = self.module if self._masters is None else self._masters
        own.load_state_dict(state)

    def keep_state(self, keep: Keep) -> None:
        """All of it."""
        for name, parameter in self._stepped():
            keep_parameter(self._optimizer, name, parameter, keep)
        for name, buffer in saved_buffers(self.module):
            keep(f"value/{name}", buffer)

    def restore_state(self, saved: Mapping[str, Tensor]) -> None:
        """Put it in."""
        for name, parameter in self._stepped():
            restore_parameter(self._optimizer, name, parameter, saved)
        if self._masters is not None:
            self._masters.publish()
        for name, buffer in saved_buffers(self.module):
            buffer.copy_(saved[f"value/{name}"])

    def _stepped(self) -> list[tuple[str, nn.Parameter]]:
        """Names and fp32 values of what trains."""
        parameters = trained_parameters(self.module)
        if self._masters is None:
            return parameters
        return [(name, self._masters.of(parameter)) for name, parameter in parameters]
