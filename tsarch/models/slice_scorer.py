"""Which parts of a text a question may be about, told from the teacher's states of it, which are
there already: no layer runs.

Each word of the question looks for the token near a place whose state is most like it, and the mean
of how like they are is the place's score (late interaction: Khattab & Zaharia 2020, "ColBERT",
equation 3, over a neighbourhood in place of a document).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_REACH = 16
"""Tokens to both sides of a place that are near: about a sentence."""
_SCALE = 8.0
"""Of the mean of how like they are, which differs little from place to place at first."""
_LEVEL = -20.0
"""What is added at first: some hundred places together are about as likely as none."""
_NOWHERE = -1e4


class SliceScorer(nn.Module):
    """Compares the table's rows of a question with states, both mapped to `dimensions`. It learns
    by itself: no gradient leaves it.

    Args:
        seed: of the maps; where both widths are the same the maps start alike, so that a token is
            most like itself.
    """

    def __init__(self, table_width: int, teacher_width: int, dimensions: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            self.question = _orthogonal(table_width, dimensions, seed)
            self.state = _orthogonal(teacher_width, dimensions, seed)
        self.level = nn.Parameter(torch.full((1,), _LEVEL))

    def forward(self, embeds: Tensor, mask: Tensor, states: Tensor, places: Tensor) -> Tensor:
        """(windows, tokens) fp32 scores of tokens that states feed; of others they mean nothing.

        Args:
            embeds: (windows, tokens, table_width); what no state feeds, at the beginning of a
                window, is the question.
            mask: (windows, tokens), 0 at padding.
            states: (rows, teacher_width).
            places: (windows, tokens) row in `states`; −1: no state.
        """
        fed = places >= 0
        asked = mask.bool() & ~fed & fed.any(1, keepdim=True)
        longest = max(int(asked.sum(1).max()), 1)
        asked = asked[:, :longest]
        questions = self.question(_normed(embeds[:, :longest])).float()
        keys = self.state(_normed(states)).float()[places.clamp(min=0)]
        alike = questions @ keys.transpose(1, 2) / keys.shape[-1] ** 0.5
        alike = alike.masked_fill(~fed.unsqueeze(1), _NOWHERE)
        near = F.max_pool1d(alike, 2 * _REACH + 1, stride=1, padding=_REACH)
        counts = asked.sum(1, keepdim=True).clamp(min=1)
        mean = (near * asked.unsqueeze(2)).sum(1) / counts
        return _SCALE * mean + self.level.float()


def _orthogonal(source_width: int, target_width: int, seed: int) -> nn.Linear:
    layer = nn.Linear(source_width, target_width, bias=False)
    torch.manual_seed(seed)
    nn.init.orthogonal_(layer.weight)
    return layer


def _normed(values: Tensor) -> Tensor:
    return F.layer_norm(values.detach(), values.shape[-1:])
