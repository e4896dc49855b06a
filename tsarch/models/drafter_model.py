"""A student that proposes: what the teacher will say next, from the teacher's states so far.

At a place it reads the token there and the teacher's states of the place before, since those of its
own place are what it is to spare. Where they aren't known yet, after tokens that it proposed
itself, its own states of the place before take their place; training does the same for some steps
(Li et al. 2025, "EAGLE-3: Scaling up Inference Acceleration of Large Language Models via
Training-Time Test").
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tsarch.models.backbone import Backbone
from tsarch.models.decoding_cache import Decoding, DecodingCache, read_on
from tsarch.models.heads import make_head, without_padding
from tsarch.models.unpadded import Unpadded

_EPS = 1e-6


class DrafterModel(nn.Module):
    """Reads token and earlier state side by side. Takes embeddings, never ids.

    Args:
        teacher_width: of the states that feed it, of several layers side by side.
        num_steps: tokens that it proposes after one another while it trains.
        num_choices: tokens that it chooses from.
    """

    def __init__(
        self,
        backbone: Backbone,
        table_width: int,
        teacher_width: int,
        num_steps: int,
        num_choices: int,
        dropout: float,
        table_scale: float = 1.0,
    ) -> None:
        super().__init__()
        width, hidden_width = backbone.embedding_width, backbone.hidden_width
        self.teacher_width = teacher_width
        self.num_steps = num_steps
        self.register_buffer("choices", torch.arange(num_choices))
        """(num_choices,) tokens that it chooses from, in their order."""
        self.fuse = _linear(teacher_width, hidden_width)
        self.token_norm = nn.RMSNorm(table_width, eps=_EPS)
        self.state_norm = nn.RMSNorm(hidden_width, eps=_EPS)
        self.from_token = _linear(table_width, width)
        self.from_state = _linear(hidden_width, width)
        self.backbone = backbone.model
        self.decoding = Decoding.of(backbone.model)
        self.head = make_head(hidden_width, None, table_width, dropout, table_scale)
        self.depths: tuple[int, ...] = ()
        self.unpadded: Unpadded | None = None
        self._known_rows: tuple[Tensor, Tensor] | None = None

    choices: Tensor

    def choose(self, counts: Tensor) -> None:
        """Choose from the tokens with the largest (vocabulary,) `counts`, of equals the first."""
        order = torch.argsort(counts, descending=True, stable=True)[: len(self.choices)]
        self.choices.copy_(order.sort().values)
        self._known_rows = None

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
        """Predictions (windows, tokens, outputs) of the token after each place, of each group of
        windows; while it trains, then those of each further step, in which what stands before a
        place was read with its own states of the step before.

        Arguments are those of `StudentModel.forward`; a place is fed with the state of the one
        before it.
        """
        fused = self.fuse(boundary)
        states = torch.cat([fused, fused.new_zeros(1, fused.shape[1])])
        num_steps = self.num_steps if self.training else 1
        found = [
            self._steps(own, mask, states[_before(place, -1)], num_steps)
            for own, mask, place in zip(embeds, masks, places, strict=True)
        ]
        return [own[step] for step in range(num_steps) for own in found]

    def rows_of(self, table: Tensor) -> Tensor:
        """(num_choices, table_width) the rows of a table that it chooses from; kept until it
        changes its choice or is given another table."""
        known = self._known_rows
        if known is None or known[0] is not table:
            self._known_rows = known = table, table.index_select(0, self.choices)
        return known[1]

    def mixed(self, embeds: Tensor, states: Tensor) -> Tensor:
        """(…, table_width) embeddings and (…, hidden_width) states before them → inputs of the
        layers."""
        tokens, before = self.token_norm(embeds), self.state_norm(states)
        found: Tensor = self.from_token(tokens) + self.from_state(before)
        return found

    def _steps(self, embeds: Tensor, mask: Tensor, states: Tensor, num_steps: int) -> list[Tensor]:
        inputs: list[Tensor] = []
        said = []
        for _ in range(num_steps):
            inputs.append(without_padding(self.mixed(embeds, states), mask))
            hidden = self._read(inputs, mask)
            said.append(self.head(hidden))
            states = _before(hidden, 0.0)
        return said

    def _read(self, inputs: Sequence[Tensor], mask: Tensor) -> Tensor:
        """(windows, tokens, width) hidden states of the last step."""
        if len(inputs) == 1:
            return read_on(self.backbone, inputs[0], mask, {}, None)
        num_tokens = mask.shape[1]
        sees = seen_in_steps(num_tokens, len(inputs)).to(mask.device)
        hidden_keys = torch.finfo(inputs[0].dtype).min
        bias = torch.zeros(sees.shape, dtype=inputs[0].dtype, device=mask.device)
        bias = bias.masked_fill(~sees, hidden_keys).expand(len(mask), 1, *sees.shape)
        places = torch.arange(num_tokens, device=mask.device).repeat(len(inputs))
        hidden: Tensor = self.backbone(
            inputs_embeds=torch.cat(list(inputs), dim=1),
            attention_mask=bias,
            position_ids=places.expand(len(mask), -1),
        ).last_hidden_state
        return hidden[:, -num_tokens:]


def seen_in_steps(num_tokens: int, num_steps: int) -> Tensor:
    """(steps × tokens, steps × tokens) bool, which key a query sees.

    A place of step j goes on with a text that the teacher has read up to j places before: it sees
    those by the first step, and of each later step m the one place that stands there in this
    continuation, j − m before its own.
    """
    places = torch.arange(num_tokens)
    behind = places.unsqueeze(1) - places  # query's minus key's
    nothing = torch.zeros(num_tokens, num_tokens, dtype=torch.bool)
    rows = []
    for step in range(num_steps):
        own = [behind >= step]
        own += [behind == step - earlier for earlier in range(1, step + 1)]
        rows.append(torch.cat([*own, *[nothing] * (num_steps - step - 1)], dim=1))
    return torch.cat(rows)


def _before(values: Tensor, first: float) -> Tensor:
    """(windows, tokens, …) of the place before each; `first` at the first one."""
    moved = values.roll(1, dims=1)
    moved[:, 0] = first
    return moved


def _linear(source_width: int, target_width: int) -> nn.Linear:
    layer = nn.Linear(source_width, target_width, bias=False)
    nn.init.normal_(layer.weight, std=0.02)
    return layer
