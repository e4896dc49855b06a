"""Task heads on top of hidden states, and the linear maps between widths."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TokenHead(nn.Module):
    """Dropout and a linear layer: (…, width) → (…, num_outputs)."""

    def __init__(self, width: int, num_outputs: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, num_outputs)
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits of every position."""
        logits: Tensor = self.linear(self.dropout(hidden))
        return logits


class MultipliedLinear(nn.Linear):
    """A linear layer of whose outputs a multiple is given."""

    def __init__(self, source_width: int, target_width: int, multiplier: float) -> None:
        super().__init__(source_width, target_width)
        self._multiplier = multiplier

    def forward(self, input: Tensor) -> Tensor:
        """(…, in_features) → (…, out_features)."""
        return super().forward(input) * self._multiplier


def linear_map(
    source_width: int, target_width: int, scale: float = 1.0, multiplier: float = 1.0
) -> nn.Linear:
    """A linear layer that starts as the identity (or as an orthogonal map, if widths differ) times
    `scale`; with a `multiplier` other than 1 as that of a layer whose weights are as much larger.
    """
    if multiplier == 1.0:
        layer = nn.Linear(source_width, target_width)
    else:
        layer = MultipliedLinear(source_width, target_width, multiplier)
    scale /= multiplier
    with torch.no_grad():
        if source_width == target_width:
            nn.init.eye_(layer.weight)
        else:
            nn.init.orthogonal_(layer.weight)
        if scale != 1.0:
            layer.weight.mul_(scale)
        nn.init.zeros_(layer.bias)
    return layer


def projection(table_width: int, width: int) -> nn.Module:
    """From the tied table's width to a stage's embedding width; nothing if they are equal."""
    return nn.Identity() if table_width == width else linear_map(table_width, width)


def without_padding(embeds: Tensor, mask: Tensor) -> Tensor:
    """(batch, tokens, width) inputs, zero at padding, whatever stood there; no gradient goes there.

    Args:
        mask: (batch, tokens), 0 at padding; it may have earlier tokens too, before these.
    """
    return embeds.masked_fill(mask[:, -embeds.shape[1] :].unsqueeze(-1) == 0, 0.0)


class VocabularyHead(nn.Module):
    """(…, width) → (…, table_width): what is compared with every row of the table.

    Args:
        scale: of the result. T5's tables are trained for table_width^-0.5.
        maps: through a linear map also where the widths are equal.
    """

    def __init__(self, width: int, table_width: int, scale: float, maps: bool = False) -> None:
        super().__init__()
        maps = maps or width != table_width
        self.linear = linear_map(width, table_width) if maps else nn.Identity()
        self._scale = scale

    def forward(self, hidden: Tensor) -> Tensor:
        """Vectors of every position."""
        vectors: Tensor = self.linear(hidden)
        return vectors if self._scale == 1.0 else vectors * self._scale


def make_head(
    width: int,
    num_outputs: int | None,
    table_width: int,
    dropout: float,
    table_scale: float,
    maps: bool = False,
) -> nn.Module:
    """The head over hidden states of `width`: (…, width) → (…, num_outputs); for None vectors as
    wide as the table, which is then the output projection, times `table_scale` (`maps`: see
    `VocabularyHead`)."""
    if num_outputs is None:
        return VocabularyHead(width, table_width, table_scale, maps)
    return TokenHead(width, num_outputs, dropout)


def token_logits(vectors: Tensor, table: Tensor) -> Tensor:
    """(…, table_width), (vocabulary, table_width) → (…, vocabulary) fp32 logits."""
    return (vectors @ table.to(vectors.dtype).t()).float()
