"""Backbones that states leave, or enter, between two layers.

A teacher's states leave before one of its layers. A student's layers above its boundary go on with
them, beside what no state feeds, which its layers below the boundary have read by itself. So upper
layers of a pretrained model read what they were trained to read, while the lower ones read a text
and what is asked about it apart (Cao et al. 2020, "DeFormer").

Layers are entered by hooks: what goes into the first upper one is replaced, and the mask of all.
Whether an architecture computes the same that way is tried out on a small copy of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask

from tsarch.models.causality import is_causal
from tsarch.models.decoding_cache import Decoding
from tsarch.models.skeleton import layer_stacks
from tsarch.models.small_copy import computes_the_same, small_model
from tsarch.models.unpadded import Batch, Unpadded, is_exact

_MASK = "attention_mask"


class _LeftError(Exception):
    """States have left, and nothing more is wanted."""


class Exit:
    """Where states leave a backbone: before `layer`, counted from 0.

    Args:
        first_position: of a sequence's first token, in models that have learned positions.

    Raises:
        UserError: the architecture has no list of layers.
    """

    def __init__(self, backbone: PreTrainedModel, layer: int, first_position: int = 0) -> None:
        self.first_position = first_position
        """See above."""
        self._decoding = Decoding.of(backbone)
        self.is_end = False
        """Whether the layers from there on needn't run."""
        self._left: list[Tensor] = []
        _layers(backbone)[layer].register_forward_pre_hook(self._leave, with_kwargs=True)

    def read(
        self,
        backbone: PreTrainedModel,
        unpadded: Unpadded | None,
        embeds: Tensor,
        mask: Tensor,
        options: Mapping[str, Tensor],
    ) -> tuple[Tensor, Tensor | None]:
        """(sequences, tokens, width) embeddings → the states that leave, and the last ones, both
        (sequences, tokens, width); None: the layers from there on haven't run."""
        self._left.clear()
        last = None
        if unpadded is not None:
            batch = Batch.of([mask])
            with suppress(_LeftError):
                places = batch.positions([mask]) + self.first_position
                found = unpadded.run(backbone, batch, [embeds], [options], places)
                last = batch.padded(found)[0]
            return batch.padded(self._left.pop())[0], last
        if self.first_position:
            places = torch.arange(embeds.shape[1], device=embeds.device) + self.first_position
            options = {**options, **self._decoding.options(places[None], None)}
        with suppress(_LeftError):
            found = backbone(inputs_embeds=embeds, attention_mask=mask, **options)
            last = found.last_hidden_state
        return self._left.pop(), last

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._left.append(args[0] if args else kwargs["hidden_states"])
        if self.is_end and not torch.compiler.is_compiling():
            raise _LeftError


@dataclass(frozen=True)
class _Entering:
    """What enters in one call of a backbone."""

    join: Callable[[Tensor], Tensor]
    """From what has come through the lower layers to what the upper ones read."""
    mask: Tensor | None
    """What the upper layers get as their mask."""


class Entrance:
    """Where states enter a backbone: before `layer`, counted from 0.

    Raises:
        UserError: the architecture has no list of layers.
    """

    def __init__(self, backbone: PreTrainedModel, layer: int) -> None:
        self._entering: _Entering | None = None
        upper = _layers(backbone)[layer:]
        upper[0].register_forward_pre_hook(self._enter, with_kwargs=True)
        for own in upper:
            own.register_forward_pre_hook(self._see_all, with_kwargs=True)

    def read(
        self,
        backbone: PreTrainedModel,
        unpadded: Unpadded | None,
        embeds: Sequence[Tensor],
        masks: Sequence[Tensor],
        options: Sequence[Mapping[str, Tensor]],
        states: Tensor,
        places: Sequence[Tensor],
    ) -> list[Tensor]:
        """Hidden states (windows, tokens, width) of each group of windows.

        Args:
            embeds: per group (windows, tokens, width); those of tokens that a state feeds are not
                read.
            masks: per group (windows, tokens), 1 at tokens, then 0 at padding.
            options: per group further arguments of the backbone, (windows, tokens) each.
            states: (rows, width) what enters.
            places: per group (windows, tokens), row in `states`; −1: the lower layers read it.
        """
        if unpadded is not None:
            return self._read_unpadded(backbone, unpadded, embeds, masks, options, states, places)
        given = zip(embeds, masks, options, places, strict=True)
        return [self._read_padded(backbone, *own, states) for own in given]

    def _read_unpadded(
        self,
        backbone: PreTrainedModel,
        unpadded: Unpadded,
        embeds: Sequence[Tensor],
        masks: Sequence[Tensor],
        options: Sequence[Mapping[str, Tensor]],
        states: Tensor,
        places: Sequence[Tensor],
    ) -> list[Tensor]:
        """All groups in one call, the lower layers over what they are to read alone."""
        lower = [_Lower.of(m, p) for m, p in zip(masks, places, strict=True)]
        below, all_of_it = Batch.of([own.mask for own in lower]), Batch.of(masks)
        numbers, start = [], 0
        num_below = sum(int(own.mask.sum()) for own in lower)
        for own, place in zip(lower, places, strict=True):
            among = own.numbers + start
            numbers.append(torch.where(own.is_read & (place < 0), among, num_below + place))
            start += int(own.mask.sum())
        order = all_of_it.flat(numbers)[0]

        def join(hidden: Tensor) -> Tensor:
            return torch.cat([hidden[0], states.to(hidden.dtype)]).index_select(0, order)[None]

        with self._open(_Entering(join, all_of_it.mark())):
            last = unpadded.run(
                backbone,
                below,
                [own.gather(part) for own, part in zip(lower, embeds, strict=True)],
                [
                    {name: own.gather(part) for name, part in given.items()}
                    for own, given in zip(lower, options, strict=True)
                ],
                below.flat([own.places for own in lower]),
            )
        return all_of_it.padded(last)

    def _read_padded(
        self,
        backbone: PreTrainedModel,
        embeds: Tensor,
        mask: Tensor,
        options: Mapping[str, Tensor],
        place: Tensor,
        states: Tensor,
    ) -> Tensor:
        """A group by itself. The lower layers see only what they are to read, but compute all."""

        def join(hidden: Tensor) -> Tensor:
            entered = states.to(hidden.dtype)[place.clamp(min=0)]
            return torch.where((place < 0).unsqueeze(-1), hidden, entered)

        seen = create_bidirectional_mask(backbone.config, embeds, mask)
        assert seen is None or isinstance(seen, Tensor)
        with self._open(_Entering(join, seen)):
            read = _read_below(mask, place).to(mask.dtype)
            found: Tensor = backbone(
                inputs_embeds=embeds, attention_mask=read, **options
            ).last_hidden_state
        return found

    @contextmanager
    def _open(self, entering: _Entering) -> Iterator[None]:
        self._entering = entering
        try:
            yield
        finally:
            self._entering = None

    def _enter(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._entering is None:
            return None
        if args:
            return (self._entering.join(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self._entering.join(kwargs["hidden_states"])}

    def _see_all(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._entering is None:
            return None
        place = list(inspect.signature(module.forward).parameters).index(_MASK)
        if place < len(args):
            return (*args[:place], self._entering.mask, *args[place + 1 :]), kwargs
        return args, {**kwargs, _MASK: self._entering.mask}


@dataclass(frozen=True)
class _Lower:
    """What of a group of windows the lower layers read, moved to the left."""

    is_read: Tensor
    """(windows, tokens) bool."""
    places: Tensor
    """(windows, most) place in its window of each token that is read."""
    mask: Tensor
    """(windows, most)."""

    @classmethod
    def of(cls, mask: Tensor, place: Tensor) -> _Lower:
        """Of windows with this (windows, tokens) mask, whose tokens are fed where `place` ≥ 0."""
        is_read = _read_below(mask, place)
        counts = is_read.sum(1, keepdim=True)
        most = int(counts.max())
        places = torch.argsort(~is_read, dim=1, stable=True)[:, :most]
        return cls(is_read, places, torch.arange(most, device=mask.device) < counts)

    @property
    def numbers(self) -> Tensor:
        """(windows, tokens) which of the group's tokens that are read each is."""
        return (self.is_read.flatten().cumsum(0) - 1).view(self.is_read.shape)

    def gather(self, values: Tensor) -> Tensor:
        """(windows, tokens, …) → (windows, most, …)."""
        rows = torch.arange(len(values), device=values.device).unsqueeze(1)
        return values[rows, self.places]


def _read_below(mask: Tensor, place: Tensor) -> Tensor:
    """(windows, tokens) bool, what no state feeds; a window's first token always, so that no
    attention is over nothing."""
    first = torch.arange(mask.shape[1], device=mask.device) == 0
    return mask.bool() & ((place < 0) | first)


def _layers(backbone: PreTrainedModel) -> list[nn.Module]:
    (_, stack), *_ = layer_stacks(backbone)
    return list(stack)


def can_be_entered(config: PretrainedConfig) -> bool:
    """Whether models of an architecture go on with states that have left one of their kind."""
    return computes_the_same(_difference, config)


def _difference(config: PretrainedConfig) -> float:
    """Of a small model's last states, over the largest of them: read as ever, and with states that
    have left the same model and enter it again; padded and, where it is exact, unpadded.

    Raises:
        Exception: it can't be built, or has no layers that can be entered.
    """
    if config.is_encoder_decoder or is_causal(config):
        return torch.inf
    model = small_model(config)
    leave, enter = Exit(model, 1), Entrance(model, 1)
    with torch.no_grad():
        embeds = torch.randn(2, 9, model.get_input_embeddings().weight.shape[1])
        mask = (torch.arange(9) < torch.tensor([[9], [6]])).long()
        wanted_states, wanted = leave.read(model, None, embeds, mask, {})
        assert wanted is not None
        own = torch.arange(18).view(2, 9)
        apart = []
        for unpadded in (None, Unpadded(model) if is_exact(config) else None):
            mixed = []
            for places in (own, torch.full_like(own, -1)):
                states = wanted_states.flatten(0, 1)
                (found,) = enter.read(model, unpadded, [embeds], [mask], [{}], states, [places])
                mixed.append((found - wanted)[mask.bool()].abs().max())
            apart += mixed
        return float((torch.stack(apart).max() / wanted.abs().max()).nan_to_num(torch.inf))
