"""What a drafter proposes for a batch of texts that the teacher writes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tsarch.models.causal_stack import CausalStack
from tsarch.models.drafter_model import DrafterModel
from tsarch.models.fast_path import FastTexts
from tsarch.pair.halves import Prepared, StudentHalf
from tsarch.records import IntArray


class Drafts:
    """A drafter's view of some texts: which of their tokens it has read, and the teacher's states
    that it hasn't.

    It reads every token with the teacher's state of the one before; after a token of its own it
    reads on with its own state, which is forgotten again.

    Args:
        windows: per text the tokens of its prompt that the drafter may see.
        states: per text (window_tokens, teacher_width), the teacher's of these.
        max_tokens: after so many a text begins anew, as in training.
        room: tokens a text that will be read after its prompt.
    """

    def __init__(
        self,
        half: StudentHalf,
        prepared: Prepared,
        states: Sequence[Tensor],
        max_tokens: int,
        room: int,
    ) -> None:
        assert half.drafter is not None
        assert isinstance(prepared.stack, CausalStack)
        self._module: DrafterModel = half.drafter
        self._rows = prepared.rows
        self._choices = half.drafter.choices
        self._logits = half.drafter.logits_by(prepared.rows)
        self._max_tokens = max_tokens
        longest = max(len(own) for own in states)
        device = prepared.rows.device
        self._texts = FastTexts(prepared.stack, len(states), longest + room, device, whole=False)
        self._unread = list(states)  # the first token, before which there is none, isn't read

    def keep(self, states: Tensor, counts: IntArray) -> None:
        """Take the teacher's states (texts, tokens, teacher_width) of the tokens that it read, of
        which the first `counts` (texts,) stay."""
        for row, count in enumerate(counts.tolist()):
            self._unread[row] = torch.cat([self._unread[row], states[row, :count]])

    def reorder(self, parents: IntArray) -> None:
        """Go on with the texts `parents`, in their order."""
        self._texts.reorder(torch.from_numpy(parents).to(self._rows.device))
        self._unread = [self._unread[parent] for parent in parents.tolist()]

    @torch.inference_mode()
    def propose(self, tokens: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
        """So many tokens that may come next in each text.

        Args:
            tokens: of each text so far, its prompt included.
        """
        hidden = self._read_on(tokens)
        kept = self._texts.values.lengths
        found = [self._chosen(hidden)]
        one = np.ones(len(tokens), dtype=np.int64)
        for _ in range(num_tokens - 1):
            inputs = self._module.beside(self._rows[found[-1]], hidden)
            hidden = self._texts.read(inputs.unsqueeze(1))[:, 0]
            self._texts.values.keep(one)
            found.append(self._chosen(hidden))
        self._texts.values.lengths = kept
        proposed: list[list[int]] = torch.stack(found, dim=1).tolist()
        return proposed

    def _read_on(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Read what wasn't → (texts, width) states of each text's newest token."""
        counts = np.array([len(own) for own in self._unread])
        values = self._texts.values
        values.restart(values.lengths + counts >= self._max_tokens)
        width = int(counts.max())
        read = torch.zeros(len(tokens), width, dtype=torch.long)
        states = self._unread[0].new_zeros(len(tokens), width, self._unread[0].shape[1])
        for row, (own, unread) in enumerate(zip(tokens, self._unread, strict=True)):
            read[row, : len(unread)] = torch.tensor(own[len(own) - len(unread) :])
            states[row, : len(unread)] = unread
            self._unread[row] = unread[:0]
        module = self._module
        embeds = self._rows[read.to(self._rows.device)]
        inputs = module.beside(embeds, module.fuse(states.to(embeds.dtype)))
        hidden = self._texts.read(inputs)
        values.keep(counts)
        return hidden[torch.arange(len(tokens)), np.maximum(counts - 1, 0)]

    def _chosen(self, hidden: Tensor) -> Tensor:
        """(texts, width) states → (texts,) likeliest tokens."""
        likeliest = self._logits(self._module.head(hidden)).argmax(dim=-1)
        return self._choices[likeliest]
