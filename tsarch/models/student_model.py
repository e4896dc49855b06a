"""The student: encoder and head over short windows, fed through the bridge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tsarch.models.backbone import Backbone, type_option
from tsarch.models.boundary import Entrance
from tsarch.models.decoding_cache import Decoding, DecodingCache, read_on
from tsarch.models.heads import linear_map, make_head, projection, without_padding
from tsarch.models.output_head import OutputHead, predictions_of
from tsarch.models.unpadded import Unpadded


class StudentModel(nn.Module):
    """Reads `E[token] + bridge(h[position])`; above a boundary layer `bridge(h[position])`, beside
    what its lower layers make of `E[token]`. Takes embeddings, never ids.

    Args:
        teacher_width: of the hidden states that feed it; 0: nobody does, so there is no bridge.
        bridge_scale: what the bridge starts as, times the identity.
        shortcut_seed: for a second head, which reads h[position]; the prediction is the sum of
            both (of logits a product of experts, Hinton 2002): what the teacher knows needn't be
            carried through the layers and the first head, which so stay free for windows without
            it. None: no second head.
        boundary_layer: the layer before which bridge(h[position]) takes the place of what the
            layers below would have made of E[token]; these read by themselves what no state feeds.
            None: the bridge is added to E[token].
        output: a language model's own head, in place of one that is made here. A second head then
            maps h[position] to what is added to the hidden states before it.
        maps_hidden: whether training wants the hidden states too, in the teacher's width (through a
            linear map, which nothing else reads).
    """

    def __init__(
        self,
        backbone: Backbone,
        table_width: int,
        teacher_width: int,
        num_outputs: int | None,
        dropout: float,
        learned_no_teacher: bool = False,
        bridge_scale: float = 1.0,
        table_scale: float = 1.0,
        shortcut_seed: int | None = None,
        maps_hidden: bool = False,
        boundary_layer: int | None = None,
        output: OutputHead | None = None,
    ) -> None:
        super().__init__()
        width = backbone.embedding_width
        self.teacher_width = teacher_width
        self.projection = projection(table_width, width)
        self.entrance = None
        if boundary_layer is not None:
            self.entrance = Entrance(backbone.model, boundary_layer)
        self.bridge = None
        if teacher_width:
            enters = width if boundary_layer is None else backbone.hidden_width
            self.bridge = linear_map(teacher_width, enters, bridge_scale)
            self.no_teacher = nn.Parameter(torch.zeros(width), requires_grad=learned_no_teacher)
        self.backbone = backbone.model
        self.decoding = Decoding.of(backbone.model)
        self._num_types = backbone.num_types
        self.unpadded: Unpadded | None = None
        """How it reads batches without padding; None: it doesn't."""
        self._embedding_scale = backbone.embedding_scale
        hidden_width = backbone.hidden_width
        own = (num_outputs, table_width, dropout, table_scale)
        self.head = output or make_head(hidden_width, *own)
        self.shortcut = None
        if shortcut_seed is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(shortcut_seed)
                self.shortcut = (
                    linear_map(teacher_width, hidden_width)
                    if output is not None
                    else make_head(teacher_width, *own, maps=True)
                )
        self.hidden_map = None
        if maps_hidden:
            self.hidden_map = linear_map(hidden_width, teacher_width)

    def forward(
        self,
        embeds: Sequence[Tensor],
        masks: Sequence[Tensor],
        boundary: Tensor,
        places: Sequence[Tensor],
        positions: Tensor | None = None,
        cache: DecodingCache | None = None,
        chosen: Sequence[Tensor] | None = None,
        table: Tensor | None = None,
        types: Sequence[Tensor | None] | None = None,
    ) -> list[Tensor]:
        """Predictions (windows, tokens, outputs) of each group of windows; while it trains with a
        `hidden_map`, also the mapped hidden states (windows, tokens, teacher_width) of each.

        Args:
            embeds: per group (windows, tokens, table_width).
            masks: per group (windows, tokens), 0 at padding.
            boundary: (rows, teacher_width) hidden states that came from the teacher.
            places: per group (windows, tokens), row in `boundary`; −1: no teacher here.
            positions: (windows, tokens) places in the windows of the one group, where they aren't
                0, 1, 2, …
            cache: keys and values of the one group's earlier tokens, which its mask covers too.
            chosen: per group (windows, tokens) bool, for an `OutputHead`: logits (n, vocabulary) of
                these positions. None: of all, in their shape.
            table: (vocabulary, table_width) for an `OutputHead` that reads it.
            types: per group (windows, tokens) types of tokens, where they aren't all 0.
        """
        shared = self.decoding.options(positions, cache)
        wanted = [None] * len(embeds) if chosen is None else chosen
        kinds = [None] * len(embeds) if types is None else types
        bridged, added = self._fed(boundary)
        inputs = []
        for own, mask, place in zip(embeds, masks, places, strict=True):
            fed = self.projection(own)
            if bridged is not None and self.entrance is None:
                fed = fed + bridged[place]
            inputs.append(without_padding(self._scaled(fed), mask))
        options = [type_option(kind, self._num_types) for kind in kinds]
        hidden = self._encoded(inputs, masks, shared, options, cache, bridged, places)
        predictions = [
            self._said(own, None if added is None else added[place], want, table)
            for own, place, want in zip(hidden, places, wanted, strict=True)
        ]
        if self.hidden_map is None or not self.training:
            return predictions
        return predictions + [self.hidden_map(own) for own in hidden]

    def _fed(self, boundary: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """What the teacher's states (rows, teacher_width) add to the inputs, or what enters in
        their place, and what they add to the predictions; a last row for places without them."""
        if self.bridge is None:
            return None, None
        bridged = self.bridge(boundary)
        if self.entrance is None:
            bridged = torch.cat([bridged, self.no_teacher.unsqueeze(0)])
        if self.shortcut is None:
            return bridged, None
        added = self.shortcut(boundary)
        return bridged, torch.cat([added, added.new_zeros(1, added.shape[1])])

    def _scaled(self, embeds: Tensor) -> Tensor:
        return embeds if self._embedding_scale == 1.0 else embeds * self._embedding_scale

    def _encoded(
        self,
        embeds: Sequence[Tensor],
        masks: Sequence[Tensor],
        places: dict[str, Any],
        types: Sequence[dict[str, Tensor]],
        cache: DecodingCache | None,
        bridged: Tensor | None,
        fed_by: Sequence[Tensor],
    ) -> list[Tensor]:
        """Hidden states (windows, tokens, width) of each group; `places`: in texts that grow,
        `fed_by`: rows of what is `bridged`, where that enters between layers."""
        if self.entrance is not None and bridged is not None:
            return self.entrance.read(
                self.backbone, self.unpadded, embeds, masks, types, bridged, fed_by
            )
        if self.unpadded is not None and cache is None and not places:
            return self.unpadded.read(self.backbone, embeds, masks, types)
        return [
            read_on(self.backbone, own, mask, places | kind, cache)
            for own, mask, kind in zip(embeds, masks, types, strict=True)
        ]

    def _said(
        self, hidden: Tensor, added: Tensor | None, chosen: Tensor | None, table: Tensor | None
    ) -> Tensor:
        """Predictions of a group, with what the teacher's states add."""
        if added is not None and isinstance(self.head, OutputHead):
            return predictions_of(self.head, hidden + added, chosen, table)
        predictions = predictions_of(self.head, hidden, chosen, table)
        return predictions if added is None else predictions + added
