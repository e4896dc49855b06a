"""The student: encoder and head over short windows, fed through the bridge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tsarch.models.backbone import Backbone, type_option
from tsarch.models.boundary import Entrance
from tsarch.models.decoding_cache import Decoding, DecodingCache, read_on
from tsarch.models.heads import (
    TokenHead,
    linear_map,
    make_head,
    projection,
    without_padding,
)
from tsarch.models.inner_states import InnerStates, Shown
from tsarch.models.output_head import OutputHead, predictions_of
from tsarch.models.slice_scorer import SliceScorer
from tsarch.models.unpadded import Unpadded


class StudentModel(nn.Module):
    """Reads `E[token] + bridge(h[position])`; above a boundary layer `bridge(h[position])`, beside
    what its lower layers make of `E[token]`. Takes embeddings, never ids.

    Args:
        teacher_width: of the hidden states that feed it; 0: nobody does, so there is no bridge.
        bridge_scale: what the bridge starts as, times the identity.
        bridge_multiplier: of what its map makes, which learns as much slower if that is less than
            1.
        shortcut_seed: for a second head, which reads h[position]; the prediction is the sum of
            both (of logits a product of experts, Hinton 2002): what the teacher knows needn't be
            carried through the layers and the first head, which so stay free for windows without
            it. None: no second head.
        boundary_layer: the layer before which bridge(h[position]) takes the place of what the
            layers below would have made of E[token]; these read by themselves what no state feeds.
            None: the bridge is added to E[token].
        output: a language model's own head, in place of one that is made here. A second head then
            maps h[position] to what is added to the hidden states before it.
        matched_layers: layers whose states training wants too, in the teacher's width (each through
            a linear map, which nothing else reads); None: the hidden states at the end.
        depths: numbers of first layers after which it answers too while it trains, each with a head
            of its own; an `output`, or vectors that are compared with the table, are shared.
        finish: see `name_of_finish`.
        scorer: tells by the teacher's states which parts of a text are worth reading; None: nobody
            does.
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
        bridge_multiplier: float = 1.0,
        table_scale: float = 1.0,
        shortcut_seed: int | None = None,
        matched_layers: Sequence[int | None] = (),
        depths: Sequence[int] = (),
        finish: str = "",
        boundary_layer: int | None = None,
        output: OutputHead | None = None,
        scorer: SliceScorer | None = None,
    ) -> None:
        super().__init__()
        width = backbone.embedding_width
        self.teacher_width = teacher_width
        self.projection = projection(table_width, width)
        self.bridge = self.entrance = None
        if boundary_layer is not None:
            self.entrance = Entrance(backbone.model, boundary_layer)
        if teacher_width:
            enters = width if boundary_layer is None else backbone.hidden_width
            self.bridge = linear_map(teacher_width, enters, bridge_scale, bridge_multiplier)
            self.no_teacher = nn.Parameter(torch.zeros(width), requires_grad=learned_no_teacher)
        self.backbone = backbone.model
        self.decoding = Decoding.of(backbone.model)
        self._num_types = backbone.num_types
        self.unpadded: Unpadded | None = None
        """How it reads batches without padding; None: it doesn't."""
        self._embedding_scale = backbone.embedding_scale
        hidden_width = self._hidden_width = backbone.hidden_width
        own = (num_outputs, table_width, dropout, table_scale)
        self.head = output or make_head(hidden_width, *own)
        into = hidden_width if output is not None else None
        self.shortcut = _shortcut(shortcut_seed, into, teacher_width, *own)
        self.inner: InnerStates | None = None
        """What it shows of its inside while it trains; None: nothing."""
        self.depths = tuple(depths)
        self._finish = finish
        heads = self.depths if output is None else ()
        self.depth_heads = _depth_heads(heads, hidden_width, num_outputs, dropout)
        self._matched_layers = tuple(matched_layers)
        self.hidden_map = _maps(self._matched_layers, hidden_width, teacher_width)
        self.scorer = scorer

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
        survey: bool = False,
    ) -> list[Tensor]:
        """Predictions (windows, tokens, outputs) of each group of windows; while it trains also
        those at each of the `depths`, and what is matched with the teacher's, of each group: for
        each of the `matched_layers` mapped states (windows, tokens, teacher_width), then parts of
        the last attention (windows, tokens, widths of all), if `inner` shows any; at the end
        (windows, tokens) scores of each group, if it has a `scorer`.

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
            survey: give the scores alone; no layer runs.
        """
        if survey:
            return self._scores(embeds, masks, boundary, places)
        shared = self.decoding.options(positions, cache)
        wanted = [None] * len(embeds) if chosen is None else chosen
        kinds = [None] * len(embeds) if types is None else types
        bridged, added = self._fed(boundary)
        inputs = self._inputs(embeds, masks, bridged, places)
        options = [type_option(kind, self._num_types) for kind in kinds]
        read = self._encoded(inputs, masks, shared, options, cache, bridged, places)
        found = self._answers(
            read, [None if added is None else added[own] for own in places], wanted, table
        )
        if self.training and self.scorer is not None:
            found = found + self._scores(embeds, masks, boundary, places)
        return found

    def _scores(
        self,
        embeds: Sequence[Tensor],
        masks: Sequence[Tensor],
        boundary: Tensor,
        places: Sequence[Tensor],
    ) -> list[Tensor]:
        """(windows, tokens) of each group, see `SliceScorer`."""
        assert self.scorer is not None
        given = zip(embeds, masks, places, strict=True)
        return [self.scorer(own, mask, boundary, place) for own, mask, place in given]

    def _answers(
        self,
        read: list[Tensor],
        added: Sequence[Tensor | None],
        wanted: Sequence[Tensor | None],
        table: Tensor | None,
    ) -> list[Tensor]:
        """See `forward`.

        Args:
            read: hidden states of each group and, beside them, what is shown.
            added: per group what the teacher's states add to predictions.
        """

        def said(states: Sequence[Tensor], head: nn.Module) -> list[Tensor]:
            parts = zip(states, added, wanted, strict=True)
            return [self._said(head, *part, table) for part in parts]

        is_watched = self.inner is not None and self.training
        hidden = [own[..., : self._hidden_width] for own in read] if is_watched else read
        predictions = said(hidden, self.head)
        if not self.training or (self.inner is None and self._reads_inside):
            return predictions  # by itself, in no stage, it isn't watched
        for depth in self.depths:
            head = self.depth_heads[str(depth)] if self.depth_heads else self.head
            predictions += said([self._at_depth(own, depth) for own in read], head)
        return predictions + self._matched(read)

    def _inputs(
        self,
        embeds: Sequence[Tensor],
        masks: Sequence[Tensor],
        bridged: Tensor | None,
        places: Sequence[Tensor],
    ) -> list[Tensor]:
        """(windows, tokens, width) what the layers of each group are given."""
        inputs = []
        for own, mask, place in zip(embeds, masks, places, strict=True):
            fed = self.projection(own)
            if bridged is not None and self.entrance is None:
                fed = fed + bridged[place]
            inputs.append(without_padding(self._scaled(fed), mask))
        return inputs

    def _at_depth(self, read: Tensor, depth: int) -> Tensor:
        """(windows, tokens, width) hidden states as a model of `depth` layers has them."""
        assert self.inner is not None
        start = self._hidden_width * (1 + self.inner.shown.layers.index(depth - 1))
        states = read[..., start : start + self._hidden_width]
        return self.backbone.get_submodule(self._finish)(states) if self._finish else states

    def _matched(self, read: Sequence[Tensor]) -> list[Tensor]:
        """See `forward`; `read`: hidden states of each group and, beside them, what is shown."""
        width, shown = self._hidden_width, Shown() if self.inner is None else self.inner.shown
        found: list[Tensor] = []
        for layer, own in zip(self._matched_layers, self._maps(), strict=True):
            start = 0 if layer is None else width * (1 + shown.layers.index(layer))
            found += [own(states[..., start : start + width]) for states in read]
        if shown.parts:
            found += [states[..., width * (1 + len(shown.layers)) :] for states in read]
        return found

    @property
    def _reads_inside(self) -> bool:
        """Whether states of other layers than the last are wanted in training."""
        return bool(self.depths) or any(layer is not None for layer in self._matched_layers)

    def _maps(self) -> list[nn.Module]:
        """Of the `matched_layers`, into the teacher's width."""
        if self.hidden_map is None:
            return []
        maps = self.hidden_map
        return list(maps) if isinstance(maps, nn.ModuleList) else [maps]

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
        """Hidden states (windows, tokens, width) of each group, and what is shown beside them;
        `places`: in texts that grow, `fed_by`: rows of what is `bridged`, where that enters between
        layers."""
        if self.entrance is not None and bridged is not None:
            return self.entrance.read(
                self.backbone, self.unpadded, embeds, masks, types, bridged, fed_by
            )
        inner = self.inner if self.training else None
        if self.unpadded is not None and cache is None and not places:
            return self.unpadded.read(self.backbone, embeds, masks, types, inner)
        return [
            read_on(self.backbone, own, mask, places | kind, cache, inner)
            for own, mask, kind in zip(embeds, masks, types, strict=True)
        ]

    def _said(
        self,
        head: nn.Module,
        hidden: Tensor,
        added: Tensor | None,
        chosen: Tensor | None,
        table: Tensor | None,
    ) -> Tensor:
        """Predictions of a group, with what the teacher's states add."""
        if added is not None and isinstance(head, OutputHead):
            return predictions_of(head, hidden + added, chosen, table)
        predictions = predictions_of(head, hidden, chosen, table)
        return predictions if added is None else predictions + added


def _maps(layers: Sequence[int | None], width: int, teacher_width: int) -> nn.Module | None:
    """From the states of each of `layers` to the teacher's width; one alone for the last ones."""
    if not layers:
        return None
    maps = [linear_map(width, teacher_width) for _ in layers]
    return maps[0] if layers == (None,) else nn.ModuleList(maps)


def _shortcut(
    seed: int | None,
    hidden_width: int | None,
    width: int,
    num_outputs: int | None,
    table_width: int,
    dropout: float,
    table_scale: float,
) -> nn.Module | None:
    """A second head; or, for `hidden_width`, a map of what is added to states that wide; without a
    seed none."""
    if seed is None:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if hidden_width is not None:
            return linear_map(width, hidden_width)
        return make_head(width, num_outputs, table_width, dropout, table_scale, maps=True)


def _depth_heads(
    depths: Sequence[int], width: int, num_outputs: int | None, dropout: float
) -> nn.ModuleDict:
    """A head for each depth; none where vectors are compared with the table."""
    if num_outputs is None:
        return nn.ModuleDict()
    return nn.ModuleDict({str(depth): TokenHead(width, num_outputs, dropout) for depth in depths})
