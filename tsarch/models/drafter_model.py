"""A student that proposes: what the teacher will say next, from the teacher's states so far.

At a place it reads the token there and the teacher's states of the place before, since those of its
own place are what it is to spare. Where they aren't known yet, after tokens that it proposed
itself, its own states of the place before take their place; training does the same for some steps.
Made as EAGLE-3's draft models are (Li et al. 2025, "EAGLE-3: Scaling up Inference Acceleration of
Large Language Models via Training-Time Test"), so that what reads those can read it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tsarch.models.backbone import Backbone
from tsarch.models.decoding_cache import Decoding, DecodingCache, read_on
from tsarch.models.few_rows import FewRows
from tsarch.models.heads import make_head, projection, without_padding
from tsarch.models.unpadded import Unpadded

_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_PROJECTIONS = ("q_proj", "k_proj", "v_proj")


class FedLayer(nn.Module):
    """A layer of Llama's kin that reads a token and a state side by side: attention sees both, and
    what is added to is the state. (…, 2 × width) → (…, width).

    Args:
        layer: whose parts it takes, its projections twice as wide.

    Raises:
        ValueError: the layer has other parts.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        if {name for name, _ in layer.named_children()} != _PARTS:
            raise ValueError("its layers have other parts than Llama's")
        self.self_attn: Any = layer.self_attn
        self.mlp = layer.mlp
        self.input_layernorm = layer.input_layernorm
        self.hidden_norm = copy.deepcopy(layer.input_layernorm)
        self.post_attention_layernorm = layer.post_attention_layernorm
        self.attention_type = getattr(layer, "attention_type", None)
        for name in _PROJECTIONS:
            narrow = getattr(self.self_attn, name)
            sizes = 2 * narrow.in_features, narrow.out_features, narrow.bias is not None
            setattr(self.self_attn, name, nn.Linear(*sizes, device=narrow.weight.device))

    def forward(self, hidden_states: Tensor, **options: Any) -> Tensor:
        """Arguments are those of the layer."""
        token, state = hidden_states.chunk(2, dim=-1)
        state = self.hidden_norm(state)
        both = torch.cat([self.input_layernorm(token), state], dim=-1)
        hidden: Tensor = state + self.self_attn(hidden_states=both, **options)[0]
        inner: Tensor = self.mlp(self.post_attention_layernorm(hidden))
        return hidden + inner


def feed(model: PreTrainedModel) -> None:
    """Have a model's first layer read states beside tokens.

    Raises:
        ValueError: it isn't made as Llama is.
    """
    layers = getattr(model, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ValueError("it isn't made as Llama is")
    layers[0] = FedLayer(layers[0])


class DrafterModel(nn.Module):
    """Reads token and earlier state side by side. Takes embeddings, never ids.

    Args:
        backbone: one that is fed (`feed`).
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
        width = backbone.hidden_width
        self.teacher_width = teacher_width
        self.num_steps = num_steps
        self.register_buffer("choices", torch.arange(num_choices))
        """(num_choices,) tokens that it chooses from, in their order."""
        self.projection = projection(table_width, width)
        self.fuse = nn.Linear(teacher_width, width, bias=False)
        nn.init.normal_(self.fuse.weight, std=0.02)
        self.backbone = backbone.model
        self.decoding = Decoding.of(backbone.model)
        self.head = make_head(width, None, table_width, dropout, table_scale)
        self.depths: tuple[int, ...] = ()
        self.unpadded: Unpadded | None = None
        self._known: tuple[Tensor, FewRows] | None = None

    choices: Tensor

    def choose(self, counts: Tensor) -> None:
        """Choose from the tokens with the largest (vocabulary,) `counts`, of equals the first."""
        order = torch.argsort(counts, descending=True, stable=True)[: len(self.choices)]
        self.choices.copy_(order.sort().values)
        self._known = None

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
        before it, so that the first one of a window says nothing.
        """
        states = self.fuse(boundary)
        num_steps = self.num_steps if self.training else 1
        found = [
            self._steps(_moved(own, -1), _moved(mask, -1), states[place], num_steps)
            for own, mask, place in zip(embeds, masks, places, strict=True)
        ]
        return [_moved(own[step], 1) for step in range(num_steps) for own in found]

    def logits_by(self, table: Tensor) -> FewRows:
        """(…, table_width) → (…, num_choices), by the rows of a table that it chooses from; kept
        until it changes its choice or is given another table."""
        known = self._known
        if known is None or known[0] is not table:
            self._known = known = table, FewRows(table.index_select(0, self.choices))
        return known[1]

    def beside(self, embeds: Tensor, states: Tensor) -> Tensor:
        """(…, table_width) embeddings and (…, width) states before them → (…, 2 × width)."""
        return torch.cat([self.projection(embeds), states], dim=-1)

    def _steps(self, embeds: Tensor, mask: Tensor, states: Tensor, num_steps: int) -> list[Tensor]:
        """What each step says of tokens that stand with the states before them."""
        inputs: list[Tensor] = []
        said = []
        for _ in range(num_steps):
            inputs.append(without_padding(self.beside(embeds, states), mask))
            states = self._read(inputs, mask)
            said.append(self.head(states))
            states = _moved(states, 1)
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


def _moved(values: Tensor, places: int) -> Tensor:
    """(windows, tokens, …), one place on (1) or back (−1), with zeros where nothing comes from."""
    moved = values.roll(places, dims=1)
    moved[:, 0 if places > 0 else -1] = 0
    return moved
