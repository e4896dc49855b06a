"""fp32 weights behind a module that computes in bf16.

The module's own parameters are bf16 copies, made once a step: nothing is cast where it is used.
Gradients are summed over micro-batches, clipped and stepped in fp32, as in DeepSpeed's engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class MasterWeights:
    """Of those parameters of a module that train. Made while it is still fp32.

    A master has a gradient only if its parameter got one in the step.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._masters = {
            p: nn.Parameter(p.detach().clone()) for p in module.parameters() if p.requires_grad
        }
        self._rooms: dict[nn.Parameter, Tensor] = {}
        """Memory of the masters' gradients, kept from step to step."""

    def of(self, parameter: nn.Parameter) -> nn.Parameter:
        """A parameter's master; itself where it has none."""
        return self._masters.get(parameter, parameter)

    def groups(self, groups: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Groups of an optimizer with the masters in the places of the parameters."""
        return [{**group, "params": [self.of(p) for p in group["params"]]} for group in groups]

    def take_gradients(self) -> None:
        """Add the parameters' gradients to the masters', and drop them."""
        for parameter, master in self._masters.items():
            if parameter.grad is None:
                continue
            if master.grad is None:
                room = self._rooms.get(parameter)
                if room is None:
                    room = self._rooms[parameter] = torch.empty_like(master)
                master.grad = room.copy_(parameter.grad)
            else:
                master.grad.add_(parameter.grad)
            parameter.grad = None

    def gradients(self) -> list[Tensor]:
        """All that there are."""
        return [m.grad for m in self._masters.values() if m.grad is not None]

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the module's parameters."""
        for parameter, master in self._masters.items():
            parameter.copy_(master)

    def state_dict(self) -> dict[str, Tensor]:
        """The module's, with fp32 values of what trains."""
        masters = {name: self.of(p) for name, p in self._module.named_parameters()}
        state = self._module.state_dict()
        return {name: masters.get(name, value).detach() for name, value in state.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put values into the module and into what is behind it."""
        self._module.load_state_dict(state)
        for name, parameter in self._module.named_parameters():
            if parameter in self._masters and name in state:
                self._masters[parameter].copy_(state[name])
