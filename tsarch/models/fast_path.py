"""The fast path of generating: a model's layers as few operations on memory that stays in place.

An architecture has one if it is made as one of the stacks here knows it, and if its first layers
then compute what transformers' own class computes; all others are run by that class.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from tsarch.models.causal_stack import CausalStack
from tsarch.models.fused import UnlikeError
from tsarch.models.static_values import StaticValues
from tsarch.models.t5_stack import T5Stack
from tsarch.records import IntArray

Stack = CausalStack | T5Stack

_NUM_TRIED = 2
"""Layers that are tried: all have the same settings (`check_alike`)."""
_NOISE = 0.1
"""On biases and the weights of norms; on matrices what leaves a sum of products near 1."""
_NO_WINDOW = 2**20
_MOST_APART = 3e-5
"""Of the largest number, in fp32: rounding is near 1e-6."""


class FastTexts:
    """A batch of texts, as a stack reads them on.

    Args:
        num_slots: of each text, those that are read and not kept included.
        whole: see `StaticValues`.
    """

    def __init__(
        self, stack: Stack, num_texts: int, num_slots: int, device: torch.device, whole: bool
    ) -> None:
        self._stack = stack
        self.values = StaticValues(stack.sizes, num_texts, num_slots, stack.dtype, device, whole)
        self._source: tuple[list[Tensor], Tensor] | None = None

    def open_source(self, states: Tensor, mask: Tensor) -> None:
        """Take what an encoder made of the sources: (texts, source_tokens, width) and mask."""
        assert isinstance(self._stack, T5Stack)
        self._source = self._stack.source(states, mask)

    def read(self, embeds: Tensor) -> Tensor:
        """(texts, tokens, width) embeddings of the next tokens → hidden states."""
        span = self.values.span(embeds.shape[1])
        if isinstance(self._stack, CausalStack):
            return self._stack.read(embeds, self.values, span)
        assert self._source is not None
        return self._stack.read(embeds, self.values, span, self._source)

    def again(self) -> FastTexts:
        """Others that go on from where these are. What they keep from there on is in the same
        memory: of both, one goes on at a time, from there."""
        own = copy.copy(self)
        own.values = self.values.again()
        return own

    def reorder(self, parents: Tensor) -> None:
        """Go on with the texts `parents`, in their order."""
        self.values.reorder(parents)
        if self._source is not None:
            layers, mask = self._source
            self._source = [own[:, parents] for own in layers], mask[parents]


def fast_stack(
    model: nn.Module, dtype: torch.dtype, share: bool, taps: tuple[int, ...] = ()
) -> Stack | None:
    """The fast path of a backbone; None: it has none.

    Args:
        dtype: of the arithmetic.
        share: let the model's own weights be parts of the joined ones; for models that nobody
            trains.
        taps: see `TeacherModel`.
    """
    is_seq2seq = bool(getattr(model.config, "is_encoder_decoder", False))
    kind = T5Stack if is_seq2seq else CausalStack
    try:
        small = _first_layers(model, is_seq2seq)
        if not _agrees(small, kind(small, torch.float32, False)):
            return None
        stack = kind(model, dtype, share)
        if taps:
            assert isinstance(stack, CausalStack)
            stack.taps = taps
        return stack
    except (UnlikeError, AttributeError):
        return None


def _first_layers(model: nn.Module, is_seq2seq: bool) -> Any:
    """The first layers of a model in fp32, in a model of their own, with noise on all weights: no
    part is then so small that it could be left out unseen.

    Raises:
        UnlikeError: there are none, or a rank has parts of their weights only.
    """
    if is_seq2seq:
        small: Any = copy.copy(model)
        small._modules = {"decoder": _cut(model.get_submodule("decoder"), "block")}
        return small
    return _cut(model, "layers")


def _cut(holder: nn.Module, name: str) -> Any:
    layers = getattr(holder, name, None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        raise UnlikeError
    if any(parameter.numel() == 0 or parameter.is_meta for parameter in layers.parameters()):
        raise UnlikeError
    first = nn.ModuleList(copy.deepcopy(layer) for layer in list(layers)[:_NUM_TRIED])
    small: Any = copy.copy(holder)
    others = {n: m if n == name else copy.deepcopy(m) for n, m in holder.named_children()}
    small._modules = {**others, name: first}
    for child in small.children():
        child.float()
    _disturb(small)
    small.config = copy.deepcopy(holder.config)
    small.config.num_hidden_layers = len(first)
    if getattr(small.config, "sliding_window", None):
        small.config.sliding_window = _NO_WINDOW  # a stack's `longest` sees to it
    return small.eval()


@torch.no_grad()
def _disturb(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        share = _NOISE if parameter.dim() < 2 else parameter.shape[-1] ** -0.5
        noise = torch.randn(parameter.shape, generator=generator) * share
        parameter.add_(noise.to(parameter.device))


@torch.no_grad()
def _agrees(small: Any, stack: Stack) -> bool:
    """Whether a stack reads two texts on, of unlike lengths, as the model itself reads them."""
    is_fed = isinstance(stack, CausalStack) and stack.is_fed
    width = int(small.config.hidden_size) * (2 if is_fed else 1)
    device = next(small.parameters()).device
    generator = torch.Generator().manual_seed(0)
    embeds = (torch.randn(2, 7, width, generator=generator)).to(device)
    texts = FastTexts(stack, 2, 8, device, whole=False)
    mask = torch.ones(2, 7, dtype=torch.long, device=device)
    if isinstance(stack, T5Stack):
        source = torch.randn(2, 5, width, generator=generator).to(device)
        source_mask = torch.tensor([[1] * 5, [1, 1, 1, 0, 0]], device=device)
        given = {"encoder_hidden_states": source, "encoder_attention_mask": source_mask}
        wanted = small.decoder(
            inputs_embeds=embeds, attention_mask=mask, use_cache=False, **given
        ).last_hidden_state
        texts.open_source(source, source_mask)
    else:
        wanted = small(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state
    first = texts.read(embeds[:, :4])
    texts.values.keep(_FIRST_KEPT)
    then = texts.read(torch.stack([embeds[0, 4:], embeds[1, 2:5]]))
    apart = [first - wanted[:, :4], then[0] - wanted[0, 4:], then[1] - wanted[1, 2:5]]
    most = max(float(own.abs().max()) for own in apart)
    return most <= _MOST_APART * float(wanted.abs().max())


_FIRST_KEPT: IntArray = torch.tensor([4, 2]).numpy()
