"""The teacher: a model and its head over embedded long contexts."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from tsarch.models.backbone import Backbone, type_option
from tsarch.models.boundary import Exit
from tsarch.models.decoding_cache import Decoding, DecodingCache, read_on
from tsarch.models.heads import make_head, projection, without_padding
from tsarch.models.inner_states import InnerStates
from tsarch.models.output_head import OutputHead, predictions_of
from tsarch.models.sequence_parallel import SequenceParallel, Slice
from tsarch.models.unpadded import Unpadded


class TeacherModel(nn.Module):
    """Hidden states and predictions of whole contexts. Takes embeddings, never ids.

    Args:
        boundary_layer: the layer before which the hidden states leave; None: the last ones leave.
            Predictions are the head's over the last ones in any case.
        output: a language model's own head, in place of one that is made here.
        taps: after so many layers each, states go with the last ones: side by side, each of root
            mean square 1, the last ones at the end.
        first_position: of a context's first token, with `boundary_layer`.
    """

    def __init__(
        self,
        backbone: Backbone,
        table_width: int,
        num_outputs: int | None,
        dropout: float,
        table_scale: float = 1.0,
        output: OutputHead | None = None,
        boundary_layer: int | None = None,
        taps: tuple[int, ...] = (),
        first_position: int = 0,
    ) -> None:
        super().__init__()
        # First, so that the student's shortcut can draw the same numbers.
        head = output or make_head(
            backbone.hidden_width, num_outputs, table_width, dropout, table_scale
        )
        self.projection = projection(table_width, backbone.embedding_width)
        self.backbone = backbone.model
        self.exit = None
        if boundary_layer is not None:
            self.exit = Exit(backbone.model, boundary_layer, first_position)
        self.head = head
        self._embedding_scale = backbone.embedding_scale
        self._source_scale = backbone.source_scale
        self.taps = taps
        self._own_width = backbone.hidden_width
        self.hidden_width = (len(taps) + 1) * backbone.hidden_width
        self.is_seq2seq = bool(backbone.model.config.is_encoder_decoder)
        self.decoding = Decoding.of(backbone.model)
        self._num_types = backbone.num_types
        self.unpadded: Unpadded | None = None
        """How it reads batches without padding; None: it doesn't."""
        self.sequence_parallel: SequenceParallel | None = None
        """How it reads its slice of contexts that ranks share; None: there are none."""
        self.inner: InnerStates | None = None
        """What it shows of its inside while it trains; None: nothing."""
        self.is_fixed = False
        """Whether nothing below the head changes, so that its states may be kept."""

    def train(self, mode: bool = True) -> Self:
        """Switch dropout on or off; where nothing changes but the head, in the head alone."""
        super().train(mode)
        if self.is_fixed:
            self.backbone.eval()
        return self

    def forward(
        self,
        embeds: Tensor,
        mask: Tensor,
        starts: Tensor | None = None,
        positions: Tensor | None = None,
        cache: DecodingCache | None = None,
        chosen: Tensor | None = None,
        table: Tensor | None = None,
        types: Tensor | None = None,
        known: bool = False,
        own: Slice | None = None,
        whole: bool = False,
    ) -> tuple[Tensor, ...]:
        """(batch, tokens, table_width), (batch, tokens) → hidden (batch, tokens, width) and
        predictions (batch, tokens, outputs); of an `OutputHead` logits (n, vocabulary) of the n
        `chosen` positions. While it trains, also what it shows of its `inner` states: (batch,
        tokens, widths of all).

        Args:
            starts: (batch,) where each target starts: a sequence-to-sequence model's encoder reads
                what stands before, its decoder the rest; hidden states of the former are zero.
            positions: (batch, tokens) places in the text, where they aren't 0, 1, 2, …
            cache: keys and values of earlier tokens, which `mask` then covers too.
            chosen: (batch, tokens) bool, for an `OutputHead`; None: all, in their shape.
            table: (vocabulary, table_width) for an `OutputHead` that reads it.
            types: (batch, tokens) types of tokens, where they aren't all 0; a model that knows no
                such types doesn't see them.
            known: `embeds` are the hidden states, as `whole` gives them; the head alone reads them.
            own: the tokens are a slice of sequences that other ranks read too, a batch of one.
            whole: give with hidden states all that predictions are made from: the last ones beside
                those that leave before them.
        """
        if known:
            return self._left(embeds), predictions_of(self.head, self._last(embeds), chosen, table)
        embeds = self.projection(embeds)
        if self.is_seq2seq:
            hidden = self._decoded(embeds, mask, starts, cache)
            return hidden, predictions_of(self.head, hidden, chosen, table)
        embeds = without_padding(_scaled(embeds, self._embedding_scale), mask)
        places = self.decoding.options(positions, cache)
        kinds = type_option(types, self._num_types)
        if self.exit is not None:
            left, last = self.exit.read(self.backbone, self.unpadded, embeds, mask, kinds)
            if last is None:  # nobody asks the teacher itself
                return left, left.new_zeros(*left.shape[:2], 0)
            given = torch.cat([left, last], -1) if whole else left
            return given, predictions_of(self.head, last, chosen, table)
        hidden, *shown = self._encoded(embeds, mask, places, kinds, cache, own)
        return hidden, predictions_of(self.head, self._last(hidden), chosen, table), *shown

    def _encoded(
        self,
        embeds: Tensor,
        mask: Tensor,
        places: dict[str, Any],
        kinds: dict[str, Tensor],
        cache: DecodingCache | None,
        own: Slice | None,
    ) -> tuple[Tensor, ...]:
        """Hidden states (batch, tokens, width); while it trains, also what is shown of its inside,
        if anything is."""
        if own is not None:
            assert self.sequence_parallel is not None
            return (self.sequence_parallel.read(self.backbone, embeds, own, kinds),)
        inner = self.inner if self.training else None
        if self.unpadded is not None and cache is None and not places:
            hidden = self.unpadded.read(self.backbone, [embeds], [mask], [kinds], inner)[0]
        else:
            hidden = read_on(self.backbone, embeds, mask, places | kinds, cache, inner, self.taps)
        if inner is None:
            return (hidden,)
        hidden, shown = hidden.tensor_split([self.hidden_width], dim=-1)
        return hidden, shown.detach()

    def _left(self, hidden: Tensor) -> Tensor:
        """What leaves of whole hidden states."""
        return hidden if self.exit is None else hidden[..., : self._own_width]

    def _last(self, hidden: Tensor) -> Tensor:
        """The last layer's part of hidden states."""
        return hidden[..., -self._own_width :]

    def _decoded(
        self, embeds: Tensor, mask: Tensor, starts: Tensor | None, cache: DecodingCache | None
    ) -> Tensor:
        """Hidden states (batch, tokens, width) of the target side of a sequence-to-sequence model,
        in their places."""
        if starts is None:  # later tokens of targets, whose sources the cache has
            assert cache is not None
            return self._decoder(_scaled(embeds, self._embedding_scale), None, cache)
        num_tokens = embeds.shape[1]
        places = torch.arange(num_tokens, device=embeds.device)
        before = places < starts.unsqueeze(1)
        num_source = max(int(starts.max()), 1)
        source_mask = _readable((mask * before)[:, :num_source])
        source = self.backbone.encoder(
            inputs_embeds=without_padding(
                _scaled(embeds[:, :num_source], self._source_scale), source_mask
            ),
            attention_mask=source_mask,
        ).last_hidden_state
        lengths = mask.sum(1) - starts
        offsets = torch.arange(max(int(lengths.max()), 1), device=embeds.device)
        own = (starts.unsqueeze(1) + offsets).clamp(max=num_tokens - 1)
        rows = torch.arange(len(embeds), device=embeds.device).unsqueeze(1)
        cache = cache or DecodingCache()
        cache.source, cache.source_mask = source, source_mask
        target_mask = _readable((offsets < lengths.unsqueeze(1)).to(mask.dtype))
        targets = without_padding(_scaled(embeds[rows, own], self._embedding_scale), target_mask)
        decoded = self._decoder(targets, target_mask, cache)
        hidden = decoded.new_zeros(*embeds.shape[:2], decoded.shape[2])
        inside = (target_mask.bool() & (lengths.unsqueeze(1) > offsets)).unsqueeze(2)
        return hidden.index_put((rows.expand_as(own), own), decoded * inside, accumulate=True)

    def _decoder(self, embeds: Tensor, mask: Tensor | None, cache: DecodingCache) -> Tensor:
        if cache.fast is not None:
            if mask is not None:  # the sources are new
                assert cache.source is not None
                assert cache.source_mask is not None
                cache.fast.open_source(cache.source, cache.source_mask)
            return cache.fast.read(embeds)
        options: dict[str, Any] = {"attention_mask": mask, "use_cache": False}
        if cache.values is not None:
            options |= {"past_key_values": cache.values, "use_cache": True}
        hidden: Tensor = self.backbone.decoder(
            inputs_embeds=embeds,
            encoder_hidden_states=cache.source,
            encoder_attention_mask=cache.source_mask,
            **options,
        ).last_hidden_state
        return hidden


def _scaled(embeds: Tensor, scale: float) -> Tensor:
    return embeds if scale == 1.0 else embeds * scale


def _readable(mask: Tensor) -> Tensor:
    """The mask with one readable token at least, so that no softmax is over nothing."""
    mask = mask.clone()
    mask[:, 0] = 1
    return mask
