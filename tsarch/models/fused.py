"""Layers of a model as plain functions of tensors, for reading few tokens at a time.

Projections of the same input become one product. A model that isn't trained shares its weights
with it: they become parts of the joined matrix, so that none is held twice.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsarch.models.few_rows import FewRows

Function = Callable[[Tensor], Tensor]


class UnlikeError(Exception):
    """A model isn't made as the fast path knows it."""


def joined(parts: Sequence[nn.Module], dtype: torch.dtype, share: bool) -> Function:
    """(…, width) → (…, outputs of all parts) of linear layers.

    Raises:
        UnlikeError: they are no plain linear layers with whole weights.
    """
    layers = [_plain_linear(part) for part in parts]
    biases = [layer.bias for layer in layers]
    if len({bias is None for bias in biases}) > 1:
        raise UnlikeError
    weight = layers[0].weight.detach().to(dtype)
    if len(layers) > 1:
        weight = torch.cat([layer.weight.detach() for layer in layers]).to(dtype)
        if share and all(layer.weight.dtype == dtype for layer in layers):
            sizes = [layer.out_features for layer in layers]
            for layer, own in zip(layers, torch.split(weight, sizes), strict=True):
                layer.weight.data = own
    bias = None
    if biases[0] is not None:
        bias = torch.cat([own.detach() for own in biases if own is not None]).to(dtype)
    return FewRows(weight, bias)


def _plain_linear(module: nn.Module) -> nn.Linear:
    if type(module) is not nn.Linear:
        raise UnlikeError
    if module.weight.shape != (module.out_features, module.in_features):
        raise UnlikeError  # a sharded parameter, of which there is a part here
    return module


def norm_of(module: nn.Module, dtype: torch.dtype) -> Function:
    """A norm as one operation where torch has it, else the module itself."""
    width = _rms_width(module)
    if width is None:
        return module if _dtype(module) == dtype else copy.deepcopy(module).to(dtype)
    weight, eps = module.get_parameter("weight").detach().to(dtype), _eps(module)
    return lambda inputs: F.rms_norm(inputs, (width,), weight, eps)


def _rms_width(module: nn.Module) -> int | None:
    """Width of a root mean square norm with a weight, told by what it computes; None: another."""
    names = [name for name, _ in module.named_parameters()]
    if names != ["weight"]:
        return None
    weight = module.get_parameter("weight")
    if weight.dim() != 1 or not len(weight) or _eps(module) < 0:
        return None
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(3, len(weight), generator=generator).to(weight.device) * 1e-2
    exact = copy.deepcopy(module).float()
    wanted = exact(inputs)
    found = F.rms_norm(inputs, (len(weight),), weight.detach().float(), _eps(module))
    return len(weight) if torch.allclose(wanted, found, rtol=1e-5, atol=1e-6) else None


def _eps(module: nn.Module) -> float:
    for name in ("variance_epsilon", "eps"):
        if isinstance(getattr(module, name, None), float):
            return float(getattr(module, name))
    return -1.0


def _dtype(module: nn.Module) -> torch.dtype | None:
    return next((own.dtype for own in module.parameters()), None)


def check_alike(modules: Sequence[nn.Module], but: Sequence[str] = ()) -> None:
    """Layers must have the same settings: those of a few are then looked at for all.

    Args:
        but: names of settings and of modules inside that may differ.

    Raises:
        UnlikeError: they differ in one, apart from their numbers.
    """

    def settings(module: nn.Module) -> list[tuple[str, object]]:
        return [
            (f"{path}.{name}", value)
            for path, own in module.named_modules()
            if path.rpartition(".")[2] not in but
            for name, value in sorted(vars(own).items())
            if type(value) in (bool, int, float, str, type(None))
            and name not in ("layer_idx", "layer_id", *but)
        ]

    wanted = settings(modules[0])
    if any(settings(module) != wanted for module in modules[1:]):
        raise UnlikeError
