"""The teacher: encoder and head over embedded long contexts."""

from __future__ import annotations

from torch import Tensor, nn

from tsarch.models.backbone import Backbone
from tsarch.models.heads import make_head, projection


class TeacherModel(nn.Module):
    """Hidden states and predictions of whole contexts. Takes embeddings, never ids."""

    def __init__(
        self, backbone: Backbone, table_width: int, num_outputs: int | None, dropout: float
    ) -> None:
        super().__init__()
        self.projection = projection(table_width, backbone.embedding_width)
        self.backbone = backbone.model
        self.head = make_head(backbone.hidden_width, num_outputs, table_width, dropout)

    def forward(self, embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, tokens, table_width), (batch, tokens) → hidden (batch, tokens, width) and
        logits (batch, tokens, num_outputs)."""
        output = self.backbone(inputs_embeds=self.projection(embeds), attention_mask=mask)
        hidden = output.last_hidden_state
        return hidden, self.head(hidden)
