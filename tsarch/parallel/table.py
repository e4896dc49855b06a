"""The rows of the embedding table, those that training can touch first.

A row of a token that no training context holds never gets a gradient. Without weight decay (the
table has none) AdamW and SGD leave such a row as it is, to the last bit. So only the other rows
need a gradient, optimizer state and an optimizer's work; stored first, they are one slice.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tsarch.records import IntArray


class Table:
    """(vocabulary, width) fp32 values in the order of slots: trained tokens, then all others.

    Args:
        values: (vocabulary, width) in the order of tokens; copied.
        trained: sorted distinct tokens that training can touch; None: all.
    """

    def __init__(self, values: Tensor, trained: IntArray | None = None) -> None:
        tokens = np.arange(len(values))
        if trained is None:
            trained = tokens
        self.num_trained = len(trained)
        self._slots = np.empty(len(values), dtype=np.int64)
        self._slots[np.concatenate([trained, np.setdiff1d(tokens, trained)])] = tokens
        self._is_in_order = bool((self._slots == tokens).all())
        self.storage = torch.empty_like(values, requires_grad=False)
        """(vocabulary, width), the trained rows first."""
        self.load(values)

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def trained_rows(self) -> Tensor:
        """(num_trained, width) view of the rows that training can touch."""
        return self.storage[: self.num_trained]

    def slots(self, token_ids: IntArray) -> IntArray:
        """Where the rows of tokens are stored."""
        return self._slots[token_ids]

    def tokens(self, slots: slice) -> IntArray:
        """The tokens whose rows are stored in `slots`."""
        return np.argsort(self._slots)[slots]

    def rows(self, token_ids: IntArray) -> Tensor:
        """(tokens, width) copy of the rows of `token_ids`."""
        return self.storage[self._index(token_ids)]

    def values(self) -> Tensor:
        """(vocabulary, width) in the order of tokens: the storage itself if it has that order, else
        a copy."""
        return self.storage if self._is_in_order else self.rows(np.arange(len(self)))

    def load(self, values: Tensor) -> None:
        """Put in (vocabulary, width) values in the order of tokens."""
        self.put(np.arange(len(self)), values)

    def put(self, token_ids: IntArray, rows: Tensor) -> None:
        """Put in (tokens, width) rows of `token_ids`."""
        with torch.no_grad():
            self.storage[self._index(token_ids)] = rows.to(self.storage)

    def _index(self, token_ids: IntArray) -> Tensor:
        return torch.from_numpy(self.slots(token_ids)).to(self.storage.device)
