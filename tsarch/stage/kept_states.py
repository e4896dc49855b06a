"""Hidden states that never change, computed once: those of a frozen backbone over a frozen table.

They stay in the rank's host memory, as far as they fit. Nothing of it is in a checkpoint: what a
resumed run, or another replica, doesn't have it computes again, to the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tsarch.records import IntArray


class KeptStates:
    """States of contexts, by their numbers.

    Args:
        max_bytes: that are kept; contexts that come later are computed each time.
    """

    def __init__(self, max_bytes: int) -> None:
        self._free_bytes = max_bytes
        self._states: dict[int, Tensor] = {}
        self.num_computed = 0
        """Contexts computed so far."""

    def of(
        self, contexts: Sequence[int], mask: IntArray, compute: Callable[[IntArray], Tensor]
    ) -> Tensor:
        """(batch, tokens, width) states of a batch of contexts, zero at padding.

        Args:
            mask: (batch, tokens), 1 at tokens, then 0.
            compute: places of contexts in the batch → (contexts, tokens, width) their states.
        """
        missing = [n for n, own in enumerate(contexts) if own not in self._states]
        found: dict[int, Tensor] = {}
        lengths = mask.sum(1).tolist()
        if missing:
            self.num_computed += len(missing)
            for place, states in zip(missing, compute(torch.tensor(missing).numpy()), strict=True):
                found[place] = states[: lengths[place]].detach()
                self._keep(contexts[place], found[place])
        rows = [found[n] if n in found else self._states[own] for n, own in enumerate(contexts)]
        width, like = rows[0].shape[1], next(iter(found.values()), rows[0])
        batch = torch.zeros(*mask.shape, width, dtype=like.dtype, device=like.device)
        for place, states in enumerate(rows):
            batch[place, : len(states)] = states
        return batch

    def _keep(self, context: int, states: Tensor) -> None:
        if states.nbytes <= self._free_bytes:
            self._free_bytes -= states.nbytes
            self._states[context] = states.to("cpu", copy=True)
