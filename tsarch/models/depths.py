"""Models that answer after some of their layers, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel

from tsarch.errors import UserError
from tsarch.models.skeleton import layer_stacks
from tsarch.models.small_copy import small_copy


def name_of_finish(config: PretrainedConfig) -> str:
    """Name of the module that makes the hidden states at the end of what the last layer puts out (a
    norm, of architectures whose layers begin with theirs); empty: they are the same. Found out with
    a small model of the kind.

    Raises:
        UserError: it does something else in between.
        Exception: a small model can't be built (each architecture has errors of its own).
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModel.from_config(
            small_copy(config), dtype=torch.float32, trust_remote_code=False
        ).eval()
        for parameter in model.parameters():  # norms start as nothing
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        return _finish(model)


def _finish(model: PreTrainedModel) -> str:
    ((stack_name, stack),) = layer_stacks(model)
    calls: list[tuple[str, Tensor, Tensor]] = []

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
                calls.append((name, inputs[0], output))

        return hook

    last: list[Tensor] = []
    stack[-1].register_forward_hook(
        lambda module, inputs, output: last.append(
            output if isinstance(output, Tensor) else output[0]
        )
    )
    for name, module in model.named_modules():
        if name and not name.startswith(stack_name):
            module.register_forward_hook(note(name))
    width = model.get_input_embeddings().weight.shape[1]
    found = model(inputs_embeds=torch.randn(1, 5, width)).last_hidden_state
    if torch.equal(found, last[-1]):
        return ""
    for name, given, made in calls:
        is_next = given.shape == last[-1].shape and torch.equal(given, last[-1])
        if is_next and torch.equal(made, found):
            return name
    what = "does more behind its last layer than a norm, so it can't answer after others."
    raise UserError.single(type(model).__name__, what, "Leave out student.depths.")


def cut_weights(
    state: Mapping[str, Tensor], stacks: Sequence[str], depth: int
) -> dict[str, Tensor]:
    """Weights of a student that answers after `depth` layers, of those of one that can.

    Args:
        stacks: names of the lists of layers in its backbone.
    """
    own: dict[str, Tensor] = {}
    for name, value in state.items():
        stack = next((s for s in stacks if name.startswith(f"backbone.{s}.")), None)
        if stack is not None:
            number = name.removeprefix(f"backbone.{stack}.").partition(".")[0]
            if int(number) >= depth:
                continue
        if not name.startswith(("depth_heads.", "hidden_map.")):
            own.setdefault(name, value)
        elif name.startswith(f"depth_heads.{depth}."):
            own[name.replace(f"depth_heads.{depth}.", "head.")] = value
    return own
