"""Batches without padding: the sequences of a batch end to end, each attending to itself.

Layers compute every position by itself, but for attention. So padding is left out of all of them;
attention alone puts the tokens of some sequences of like length into a padded array, for which it
is a small part of the work. On GPUs with a kernel for sequences of any length there is none there
either. Whether an architecture computes the same that way is tried out on a small copy of it, since
models may mix positions in ways of their own (convolutions, recurrent layers, biases by place).

Attention learns of the sequences through transformers' own argument for masks: what stands there is
not a mask but a mark, (1, 1, 2, tokens) whole numbers: the group and the sequence of each token. So
it stays with its own forward pass wherever that goes (checkpointed activations, hooks of engines).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import PretrainedConfig, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tsarch.models.decoding_cache import Decoding
from tsarch.models.inner_states import InnerStates, watching
from tsarch.models.small_copy import computes_the_same, small_model

_TRIED = ((13, 9), (6, 1))
"""Tokens of the sequences of two groups that are tried out."""
_LONG = 48
"""Tokens of a sequence on average from which on attention reads sequences one by one."""
_SUFFIX = "_by_sequence"


class Unpadded:
    """Reads groups of sequences with a backbone, all in one call and without padding."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        self._first_position = Decoding.of(backbone).first_position
        attend_by_sequence(backbone)

    def read(
        self,
        backbone: nn.Module,
        embeds: Sequence[Tensor],
        masks: Sequence[Tensor],
        options: Sequence[Mapping[str, Tensor]],
        inner: InnerStates | None = None,
    ) -> list[Tensor]:
        """Hidden states (sequences, tokens, width) of each group, and beside them what `inner`
        records; at padding, where they have no gradient, those of some token.

        Args:
            embeds: per group (sequences, tokens, width).
            masks: per group (sequences, tokens), 1 at tokens, then 0 at padding.
            options: per group further arguments of the backbone, (sequences, tokens) each.
        """
        batch = Batch.of(masks)
        positions = batch.positions(masks)
        return batch.padded(self.run(backbone, batch, embeds, options, positions, inner))

    def run(
        self,
        backbone: nn.Module,
        batch: Batch,
        embeds: Sequence[Tensor],
        options: Sequence[Mapping[str, Tensor]],
        positions: Tensor,
        inner: InnerStates | None = None,
    ) -> Tensor:
        """Hidden states (1, tokens of all, width) of a batch, and beside them what `inner` records.

        Args:
            embeds: per group, as in `read`, and so are the `options`.
            positions: (1, tokens of all) place of each token in its sequence.
        """
        given = {name: batch.flat([own[name] for own in options]) for name in options[0]}
        with watching(inner):
            hidden: Tensor = backbone(
                inputs_embeds=batch.flat(embeds),
                attention_mask=batch.mark(),
                position_ids=positions + self._first_position,
                **given,
            ).last_hidden_state
        return hidden if inner is None else inner.beside(hidden)


def attend_by_sequence(model: PreTrainedModel) -> None:
    """Have a model's attention heed the marks of unpadded batches; else it is what it was."""
    name = model.config._attn_implementation
    if name.endswith(_SUFFIX):
        return
    own = name + _SUFFIX
    base = ALL_ATTENTION_FUNCTIONS[name]
    ALL_ATTENTION_FUNCTIONS.register(own, partial(_attend, base))
    ALL_MASK_ATTENTION_FUNCTIONS.register(own, ALL_MASK_ATTENTION_FUNCTIONS[name])
    model.set_attn_implementation(own)


def is_exact(config: PretrainedConfig) -> bool:
    """Whether models of an architecture compute the same of unpadded batches."""
    return computes_the_same(_difference, config)


def _difference(config: PretrainedConfig) -> float:
    """Of a small model's hidden states, over the largest of them: unpadded, and one by one.

    Raises:
        Exception: it can't be built, or not be read so.
    """
    model = small_model(config)
    with torch.no_grad():
        width = model.get_input_embeddings().weight.shape[1]
        groups = [torch.randn(len(lengths), max(lengths), width) for lengths in _TRIED]
        wanted = [
            [model(inputs_embeds=row[None, :n]).last_hidden_state[0] for row, n in zip(rows, own)]
            for rows, own in zip(groups, _TRIED, strict=True)
        ]
        masks = [(torch.arange(max(own)) < torch.tensor(own).unsqueeze(1)).long() for own in _TRIED]
        found = Unpadded(model).read(model, groups, masks, [{}] * len(groups))
        apart = [
            (row[: len(own)] - own).abs().max() / own.abs().max()
            for rows, owns in zip(found, wanted, strict=True)
            for row, own in zip(rows, owns, strict=True)
        ]
        return float(torch.stack(apart).max().nan_to_num(torch.inf))


class _Pack(torch.autograd.Function):
    """(padded, …) → (tokens, …): what stands at `places`, which are all different."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.num_padded = len(padded)
        return padded.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        return _spread(grad, places, ctx.num_padded), None


class _Pad(torch.autograd.Function):
    """(tokens, …) → (padded, …): put at `places`, which are all different. Elsewhere, where nobody
    reads, some token again: `sources` (padded,) says which. No gradient comes back from there."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, places: Tensor, sources: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        return flat.index_select(0, sources)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return grad.index_select(0, places), None, None


def _spread(flat: Tensor, places: Tensor, num_padded: int) -> Tensor:
    return flat.new_zeros(num_padded, *flat.shape[1:]).index_copy_(0, places, flat)


@dataclass(frozen=True)
class _Group:
    """Sequences of like length."""

    num_tokens: int
    """Real ones."""
    mask: Tensor
    """(sequences, tokens) bool."""

    @cached_property
    def places(self) -> Tensor | None:
        """(tokens,) places of the tokens in the flattened group; None: there is no padding."""
        if self.num_tokens == self.mask.numel():
            return None
        return self.mask.flatten().nonzero().squeeze(1)

    @cached_property
    def sources(self) -> Tensor:
        """(sequences × tokens,) the token of the group, counted from its first, that stands at each
        place; at padding the last one before."""
        return (self.mask.flatten().cumsum(0) - 1).clamp(min=0)

    def pack(self, padded: Tensor) -> Tensor:
        """(sequences, tokens, …) → (real tokens, …)."""
        flat = padded.flatten(0, 1)
        return flat if self.places is None else _Pack.apply(flat, self.places)  # type: ignore[no-untyped-call]

    def pad(self, own: Tensor) -> Tensor:
        """(real tokens, …) → (sequences, tokens, …); at padding some token."""
        if self.places is not None:
            own = _Pad.apply(own, self.places, self.sources)  # type: ignore[no-untyped-call]
        return own.view(*self.mask.shape, *own.shape[1:])

    def keys(self, is_causal: bool) -> Tensor | None:
        """(sequences, 1, tokens, tokens) which keys a token may see. None: all, or, of a causal
        model, those up to its own: padding comes after all that is real."""
        if is_causal or self.places is None:
            return None
        size = self.mask.shape[1]
        return self.mask[:, None, None, :].expand(-1, 1, size, -1)

    def parts(self) -> list[_Group]:
        """The group, or its sequences: long ones one by one cost less than to pad them."""
        if self.places is None or self.num_tokens < _LONG * len(self.mask):
            return [self]
        runs = [(size, len(list(same))) for size, same in groupby(self.mask.sum(1).tolist())]
        return [_Group(n * size, self.mask.new_ones(n, size)) for size, n in runs]


@dataclass(frozen=True)
class Batch:
    """Groups of sequences, end to end."""

    groups: tuple[_Group, ...]

    @classmethod
    def of(cls, masks: Sequence[Tensor]) -> Batch:
        """Of groups with these (sequences, tokens) masks."""
        return cls(tuple(_Group(int(mask.sum()), mask.bool()) for mask in masks))

    @classmethod
    def marked(cls, mark: Tensor) -> Batch:
        """What a mark says."""
        if mark not in _KNOWN:
            group, sequence = mark[0, 0].cpu()
            masks = []
            for number in range(int(group[-1]) + 1):
                lengths = sequence[group == number].bincount()
                masks.append(torch.arange(int(lengths.max())) < lengths.unsqueeze(1))
            return cls.of([mask.to(mark.device) for mask in masks])
        known: Batch = _KNOWN[mark]
        return known

    def mark(self) -> Tensor:
        """See the module's docstring."""
        numbers = []
        for number, own in enumerate(self.groups):
            sequences = torch.arange(len(own.mask), device=own.mask.device).unsqueeze(1)
            sequence = own.pack(sequences.expand_as(own.mask))
            numbers.append(torch.stack([torch.full_like(sequence, number), sequence]))
        mark = torch.cat(numbers, dim=1)[None, None]
        _KNOWN[mark] = self
        return mark

    def flat(self, padded: Sequence[Tensor]) -> Tensor:
        """Per group (sequences, tokens, …) → (1, tokens of all, …)."""
        return _joined([own.pack(part) for own, part in zip(self.groups, padded, strict=True)])

    def padded(self, row: Tensor) -> list[Tensor]:
        """(1, tokens of all, …) → per group (sequences, tokens, …)."""
        return [own.pad(part) for own, part in zip(self.groups, _split(row[0], self.groups))]

    @cached_property
    def parts(self) -> tuple[_Group, ...]:
        """What attention reads at a time."""
        return tuple(part for group in self.groups for part in group.parts())

    def positions(self, masks: Sequence[Tensor]) -> Tensor:
        """(1, tokens of all) place of each token in its sequence."""
        places = [torch.arange(m.shape[1], device=m.device).expand_as(m) for m in masks]
        return self.flat(places)

    def lengths(self) -> Tensor:
        """(sequences of all groups,) their tokens."""
        return torch.cat([own.mask.sum(1) for own in self.groups])


def _split(row: Tensor, groups: Sequence[_Group]) -> tuple[Tensor, ...]:
    """(tokens of all groups, …) → (tokens, …) of each."""
    return torch.split(row, [own.num_tokens for own in groups])


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """(tokens, …) of each group → (1, tokens of all, …)."""
    row = parts[0] if len(parts) == 1 else torch.cat(list(parts))
    return row.unsqueeze(0)


_KNOWN = WeakTensorKeyDictionary()
"""Mark → what it says; a mark that a hook has made anew is read again."""


def _attend(
    base: Callable[..., tuple[Tensor, Any]],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[Tensor, Any]:
    """An attention function as transformers calls it: by sequence, if there is a mark; otherwise
    `base` with what it is given."""
    if attention_mask is None or not is_mark(attention_mask):
        return base(module, query, key, value, attention_mask, is_causal=is_causal, **options)
    rows = [own[0].transpose(0, 1) for own in (query, key, value)]
    batch = Batch.marked(attention_mask)
    return attend_each(base, module, rows, batch, is_causal, options), None


def is_mark(attention_mask: Tensor) -> bool:
    """Whether what stands where masks do is a mark."""
    return not attention_mask.is_floating_point() and attention_mask.dtype != torch.bool


def attend_each(
    base: Callable[..., tuple[Tensor, Any]],
    module: nn.Module,
    rows: Sequence[Tensor],
    batch: Batch,
    is_causal: bool | None,
    options: Mapping[str, Any],
) -> Tensor:
    """(1, tokens, heads, width) attention of each sequence of a batch to itself, by an attention
    function `base` of transformers.

    Args:
        rows: (tokens, heads, width) queries, keys and values of all sequences, end to end.
        is_causal: None: as `module` says.
    """
    causal = bool(getattr(module, "is_causal", True)) if is_causal is None else is_causal
    if _has_kernel(rows[0], options):
        return _by_kernel(batch, rows, causal, options.get("scaling")).unsqueeze(0)
    found = []
    for part, *own in zip(batch.parts, *(_split(row, batch.parts) for row in rows), strict=True):
        given = [part.pad(tokens).transpose(1, 2) for tokens in own]
        output, _ = base(module, *given, part.keys(causal), is_causal=causal, **options)
        found.append(part.pack(output))
    return _joined(found)


def _has_kernel(query: Tensor, options: Mapping[str, Any]) -> bool:
    """Whether torch has attention over sequences of any length for these numbers."""
    is_half = query.dtype in (torch.float16, torch.bfloat16)
    return query.is_cuda and is_half and not options.get("dropout")


def _by_kernel(
    batch: Batch, rows: Sequence[Tensor], is_causal: bool, scaling: float | None
) -> Tensor:
    """(tokens, heads, width) attention of (tokens, heads, width) queries, keys and values."""
    from torch.nn.attention.varlen import varlen_attn

    lengths = batch.lengths()
    bounds = nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    longest = max(own.mask.shape[1] for own in batch.groups)
    query, key, value = (row.contiguous() for row in rows)
    found = varlen_attn(
        query,
        key,
        value,
        bounds,
        bounds,
        longest,
        longest,
        scale=scaling,
        window_size=(-1, 0 if is_causal else -1),
        enable_gqa=key.shape[1] != query.shape[1],
    )
    assert isinstance(found, Tensor)
    return found
