"""Random weights as transformers draws them, each module from a seed of its own.

A module's values depend on its name and the run's seed alone. So they are the same in one process
and in many, for a whole model and for some of its layers, and no rank needs to draw or hold what
is not its own. What the files of a pretrained model don't have (buffers such as position numbers)
comes from here too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.initialization import guard_torch_init_functions

from tsarch.models.construction import Construction, put
from tsarch.models.skeleton import Skeleton

SeedOf = Callable[[str], int]
"""Seed of a module, by its name in `Skeleton.source`."""
Initialise = Callable[[nn.Module], None]


def fill_with_random(skeleton: Skeleton, seed_of: SeedOf, construction: Construction) -> None:
    """Give values to all that is on the meta device, except the table and what is `claimed`.

    At most the parameters of a module and of its direct children are whole at one time:
    transformers' initialisation of a module may reach that far, and no further.
    """
    with torch.no_grad(), guard_torch_init_functions():
        visit = _Visit(skeleton, seed_of, construction)
        visit.settle(visit.module(skeleton.model, "", skeleton.source._init_weights))


def fill_table(skeleton: Skeleton, seed_of: SeedOf) -> None:
    """Give random values to the table. The rest of the model must have its own."""
    name = skeleton.table
    owner = name.removesuffix(".weight")
    with torch.no_grad(), guard_torch_init_functions():
        put(skeleton.model, name, torch.empty(skeleton.model.get_parameter(name).shape))
        torch.default_generator.manual_seed(seed_of(skeleton.origin(owner)))
        for module in (owner, owner.rpartition(".")[0]):
            skeleton.source._init_weights(skeleton.model.get_submodule(module))


def claim(model: PreTrainedModel, names: set[str]) -> None:
    """Mark what will get its values elsewhere; transformers' initialisation leaves it alone."""
    for name in names:
        model.get_parameter_or_buffer(name)._is_hf_initialized = True


class _Visit:
    """One walk over the modules, children first."""

    def __init__(self, skeleton: Skeleton, seed_of: SeedOf, construction: Construction) -> None:
        self._skeleton = skeleton
        self._seed_of = seed_of
        self._construction = construction
        self._table = skeleton.model.get_parameter(skeleton.table) if skeleton.table else None

    def module(self, module: nn.Module, name: str, initialise: Initialise) -> list[nn.Parameter]:
        """Initialise `module`; returns its own new parameters, which its parent may still change
        and then settles."""
        below = []
        for child_name, child in module.named_children():
            path = f"{name}.{child_name}".lstrip(".")
            own = self._origin(path)._init_weights if isinstance(child, PreTrainedModel) else None
            below += self.module(child, path, own or initialise)
        num_new, parameters = self._materialise(module)
        if num_new or below or not name:  # some whole models fill in what is deep in them
            origin = self._skeleton.origin(name)
            torch.default_generator.manual_seed(self._seed_of(origin))
            initialise(module)
        self.settle(below)
        return parameters

    def settle(self, parameters: list[nn.Parameter]) -> None:
        """Hand over parameters that nothing will change any more."""
        for parameter in parameters:
            parameter._is_hf_initialized = True  # type: ignore[attr-defined]
        if parameters:
            self._construction.settle(parameters)

    def _origin(self, path: str) -> PreTrainedModel:
        found = self._skeleton.source.get_submodule(self._skeleton.origin(path))
        assert isinstance(found, PreTrainedModel)
        return found

    def _materialise(self, module: nn.Module) -> tuple[int, list[nn.Parameter]]:
        """Memory for what the module itself has on the meta device: (how many, parameters)."""
        new = [
            put(module, name, torch.zeros_like(tensor, device="cpu"))
            for name, tensor in _own_tensors(module)
            if tensor.is_meta
            and tensor is not self._table
            and not hasattr(tensor, "_is_hf_initialized")
        ]
        return len(new), [parameter for parameter in new if parameter is not None]


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from list(module.named_parameters(recurse=False))
    yield from list(module.named_buffers(recurse=False))
