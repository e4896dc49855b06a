"""What stands beside a stage that is run without values: its engine, and the link."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tsarch.checkpoint.host_copies import Keep
from tsarch.records import Message
from tsarch.specs import OptimizerSpec
from tsarch.stage.engine import (
    LearningRates,
    LocalEngine,
    clip_gradients,
    make_optimizer,
    parameter_groups,
    trained_parameters,
)


@dataclass
class DryLink:
    """Takes all that is sent, and gives what is wanted at once."""

    dtype: torch.dtype
    bytes_sent: int = 0
    wait_s: float = 0.0

    def send(self, message: Message, states: Tensor) -> None:
        """Count it; it is copied in the link's dtype."""
        states.detach().to(self.dtype)
        self.bytes_sent += message.nbytes(self.dtype)

    def expect(self, message: Message) -> None:
        """Nothing to start."""

    def is_ready(self, message: Message) -> bool:
        """Always."""
        return True

    def receive(self, message: Message, out: Tensor) -> None:
        """As if it had come."""
        out.copy_(torch.empty(message.num_states, message.width, dtype=self.dtype))

    def flush(self) -> None:
        """Nothing is under way."""


def stepped_optimizer(groups: list[dict[str, Any]], spec: OptimizerSpec) -> torch.optim.Optimizer:
    """One that has its state, as in all steps but a run's first."""
    optimizer = make_optimizer(groups, spec)
    parameters = [own for group in optimizer.param_groups for own in group["params"]]
    grads = [own.grad for own in parameters]
    for own in parameters:
        own.grad = torch.zeros_like(own)
    optimizer.step()
    for own, grad in zip(parameters, grads, strict=True):
        own.grad = grad
    return optimizer


class DryLocalEngine(LocalEngine):
    """The engine of a run in one process, as it is in all steps but a run's first."""

    def __init__(self, module: nn.Module, spec: OptimizerSpec, precision: str) -> None:
        super().__init__(module, spec, precision, torch.device("cpu"))
        for _, parameter in trained_parameters(module):
            parameter.grad = torch.zeros_like(parameter)
        if self._masters is not None:
            self._masters.take_gradients()
        self.step(1.0)


class DryEngine:
    """A module whose optimizer steps fp32 copies where ZeRO or bf16 has them. Sharing out over
    replicas and collectives are reckoned elsewhere (`run_plan.py`)."""

    def __init__(
        self,
        module: nn.Module,
        spec: OptimizerSpec,
        dtype: torch.dtype,
        zero_stage: int,
    ) -> None:
        self.module = module
        self.device = torch.device("cpu")
        self.compute_dtype = dtype
        self.grad_scale = 1.0
        self._clip_norm = spec.clip_norm
        self._copy: nn.Parameter | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        if not (groups := parameter_groups(module, spec)):
            return
        if zero_stage > 0 or dtype is not torch.float32:
            count = sum(p.numel() for group in groups for p in group["params"])
            self._copy = nn.Parameter(torch.empty(count))
            groups = [{"params": [self._copy], "lr": 0.0}]
        self._optimizer = stepped_optimizer(groups, spec)
        self._rates = LearningRates(self._optimizer)

    def forward(self, *inputs: Any) -> Any:
        """Run the module."""
        return self.module(*inputs)

    def train(self, mode: bool) -> None:
        """Switch dropout on or off."""
        self.module.train(mode)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Back-propagate."""
        if loss.requires_grad:
            torch.autograd.backward(loss)

    def step(self, learning_rate_factor: float) -> float:
        """Clip, update, clear the gradients."""
        if self._optimizer is None:
            return 0.0
        norm = clip_gradients(self.module, self._clip_norm)
        if self._copy is not None:
            self._copy.grad = torch.zeros_like(self._copy)
        self._rates.scale(learning_rate_factor)
        self._optimizer.step()
        self.module.zero_grad(set_to_none=True)
        return norm

    def state_dict(self) -> dict[str, Tensor] | None:
        """There are no values."""
        return None

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """There are no values."""

    def keep_state(self, keep: Keep) -> None:
        """There are no values."""

    def restore_state(self, saved: Mapping[str, Tensor]) -> None:
        """There are no values."""
