"""Sequences that several ranks read together: each has a slice of their tokens.

The sequences stand end to end (as in `unpadded.py`), and the row is cut into slices of one size.
Layers compute every position by itself, so each rank computes them for its slice; but for
attention, before which ranks trade: each gets the queries, keys and values of all tokens, for its
part of the heads, and gives back what it made of them. (Jacobs et al. 2023, "DeepSpeed Ulysses".)
So a rank holds that part of everything, and what is sent grows with the slice alone.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tsarch.models.decoding_cache import Decoding
from tsarch.models.small_copy import computes_the_same, small_model
from tsarch.models.unpadded import Batch, attend_each, is_mark

Local = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention of all tokens for some of the heads: (1, tokens, heads, width) queries, (1, tokens,
key_heads, width) keys and values → (1, tokens, heads, width)."""
Spread = Callable[[Local, Tensor, Tensor, Tensor], Tensor]
"""Lets all ranks that share sequences compute `Local` for a part of the heads each: (1, tokens,
heads, width) queries, keys and values of this rank's slice → as wide attention of the slice. All
these ranks call it together, and in the backward pass again."""
_SUFFIX = "_by_slices"
_NUM_TRIED = 2
_TRIED = (13, 9, 6, 1)
"""Tokens of the sequences that are tried out."""


@dataclass(frozen=True)
class Slice:
    """What a rank must know of the sequences of its slice."""

    positions: Tensor
    """(1, tokens) place of each token in its sequence."""
    lengths: Tensor
    """(sequences,) tokens of all whole sequences, in their order."""


class SequenceParallel:
    """Reads slices of sequences with a backbone, together with other ranks.

    Args:
        spread: how attention is shared out.
        name: of this way to attend, in transformers' registry.
    """

    def __init__(self, backbone: PreTrainedModel, spread: Spread, name: str = _SUFFIX) -> None:
        self._first_position = Decoding.of(backbone).first_position
        base_name = backbone.config._attn_implementation
        base = ALL_ATTENTION_FUNCTIONS[base_name]
        ALL_ATTENTION_FUNCTIONS.register(base_name + name, partial(_attend, spread, base))
        masks = ALL_MASK_ATTENTION_FUNCTIONS[base_name]
        ALL_MASK_ATTENTION_FUNCTIONS.register(base_name + name, masks)
        backbone.set_attn_implementation(base_name + name)

    def read(
        self, backbone: nn.Module, embeds: Tensor, own: Slice, options: Mapping[str, Tensor]
    ) -> Tensor:
        """(1, tokens, width) embeddings of a slice → hidden states. All ranks that share the
        sequences call it.

        Args:
            options: further arguments of the backbone, (1, tokens) each.
        """
        places = torch.arange(int(own.lengths.max()), device=embeds.device)
        found = backbone(
            inputs_embeds=embeds,
            attention_mask=Batch.of([places < own.lengths.unsqueeze(1)]).mark(),
            position_ids=own.positions + self._first_position,
            **options,
        )
        hidden: Tensor = found.last_hidden_state
        return hidden


def _attend(
    spread: Spread,
    base: Callable[..., tuple[Tensor, Any]],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[Tensor, Any]:
    """An attention function as transformers calls it: of a slice, if there is a mark of whole
    sequences; otherwise `base` with what it is given."""
    if attention_mask is None or not is_mark(attention_mask):
        return base(module, query, key, value, attention_mask, is_causal=is_causal, **options)
    batch = Batch.marked(attention_mask)
    num_tokens = attention_mask.shape[-1]

    def local(*all_tokens: Tensor) -> Tensor:
        rows = [own[0, :num_tokens] for own in all_tokens]
        found = attend_each(base, module, rows, batch, is_causal, options)
        # The last slices may have some places more, which belong to no sequence.
        num_more = all_tokens[0].shape[1] - num_tokens
        return nn.functional.pad(found, (0, 0, 0, 0, 0, num_more))

    return spread(local, *(own.transpose(1, 2) for own in (query, key, value))), None


def can_share(config: PretrainedConfig) -> bool:
    """Whether models of an architecture compute the same by slices: tried out on a small copy of
    one, by threads in place of ranks."""
    return computes_the_same(_difference, config)


def _difference(config: PretrainedConfig) -> float:
    """Of a small model's hidden states, over the largest of them: by slices, and one sequence at a
    time.

    Raises:
        Exception: it can't be built, or not be read so.
    """
    model = small_model(config)
    with torch.no_grad():
        embeds = torch.randn(sum(_TRIED), model.get_input_embeddings().weight.shape[1])
        alone = torch.split(embeds, list(_TRIED))
        wanted = torch.cat([model(inputs_embeds=own[None]).last_hidden_state[0] for own in alone])
    found = _by_threads(model, embeds)[: len(wanted)]
    return float(((found - wanted).abs().max() / wanted.abs().max()).nan_to_num(torch.inf))


def _by_threads(model: PreTrainedModel, embeds: Tensor) -> Tensor:
    """(tokens, width) embeddings of the tried sequences → (tokens or some more, width) hidden
    states, each slice by a thread of its own."""
    size = -(-len(embeds) // _NUM_TRIED)
    num_more = size * _NUM_TRIED - len(embeds)
    parts = torch.split(nn.functional.pad(embeds, (0, 0, 0, num_more)), size)
    places = torch.cat([torch.arange(n) for n in (*_TRIED, num_more)])
    positions = torch.split(places, size)
    trade = _Trade(_NUM_TRIED)

    def read(place: int) -> Tensor:
        try:
            own = copy.deepcopy(model)
            reads = SequenceParallel(own, partial(trade.spread, place), f"{_SUFFIX}_{place}")
            of_slice = Slice(positions[place][None], torch.tensor(_TRIED))
            with torch.no_grad():
                return reads.read(own, parts[place][None], of_slice, {})[0]
        except BaseException:
            trade.give_up()
            raise

    with ThreadPoolExecutor(_NUM_TRIED) as threads:
        return torch.cat(list(threads.map(read, range(_NUM_TRIED))))


class _Trade:
    """`Spread` between threads."""

    def __init__(self, number: int) -> None:
        self._barrier = threading.Barrier(number)
        self._board: list[Tensor] = [torch.empty(0)] * number

    def give_up(self) -> None:
        """Let the others fail too."""
        self._barrier.abort()

    def spread(self, place: int, local: Local, *own: Tensor) -> Tensor:
        """Of the thread that has the slice `place`."""
        number = len(self._board)
        mine = [
            torch.cat(self._gathered(place, part), 1).chunk(number, 2)[place].contiguous()
            for part in own
        ]
        found = torch.cat(self._gathered(place, local(*mine)), 2)
        return found.chunk(number, 1)[place]

    def _gathered(self, place: int, own: Tensor) -> list[Tensor]:
        self._board[place] = own
        self._barrier.wait()
        found = list(self._board)
        self._barrier.wait()
        return found
