"""Texts that are generated together, as every rank knows them: who has which, and which go on."""

from __future__ import annotations

import numpy as np

from tsarch.data.partition import balance
from tsarch.pair.generation import Prompt
from tsarch.records import IntArray
from tsarch.topology import Stage, Topology

DONE = -1
"""Stands for the next token of a text that has none."""


class TextBatch:
    """Texts that are generated together, as every rank knows them."""

    def __init__(self, prompts: list[Prompt], topology: Topology, num_beams: int) -> None:
        self.prompts = prompts
        self.live = list(range(len(prompts)))
        """Texts that go on."""
        self.num_rows = 1
        """Hypotheses of each of them."""
        sizes = [len(prompt.token_ids) for prompt in prompts]
        self.owners = {
            stage: _owners(balance(self.live, sizes, topology.replicas(stage)))
            for stage in topology.stages
        }
        self._num_beams = num_beams
        self._before = self.live, self.num_rows
        self._chosen = np.empty((0, num_beams, 2), dtype=np.int64)

    def own(self, stage: Stage, replica: int) -> list[int]:
        """Texts that go on at a replica."""
        return [text for text in self.live if self.owners[stage][text] == replica]

    def settle(self, chosen: IntArray) -> None:
        """Take (live, beams, 2) parent and token of every hypothesis, `DONE` where a text ends."""
        goes_on = chosen[:, 0, 1] != DONE
        self._before = self.live, self.num_rows
        self.live = [text for text, more in zip(self.live, goes_on, strict=True) if more]
        self.num_rows = self._num_beams
        self._chosen = chosen[goes_on]

    def continuation(self, stage: Stage, replica: int) -> tuple[IntArray, IntArray]:
        """(rows,) parents among a replica's rows before, and next tokens."""
        live, num_rows = self._before
        before = [text for text in live if self.owners[stage][text] == replica]
        firsts = {text: num_rows * place for place, text in enumerate(before)}
        pairs = [
            (firsts[text] + parent, token)
            for text, own in zip(self.live, self._chosen.tolist(), strict=True)
            if text in firsts
            for parent, token in own
        ]
        parents, tokens = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        return parents, tokens

    def num_states(self, text: int, is_first: bool) -> int:
        """Positions of a text that are read in a round: those of its prompt's window at first, then
        one a hypothesis."""
        if not is_first:
            return self.num_rows
        prompt = self.prompts[text]
        return len(prompt.token_ids) - prompt.window_start


def _owners(shares: list[list[int]]) -> dict[int, int]:
    return {text: replica for replica, own in enumerate(shares) for text in own}
