"""Each stage's part in generating texts: what it reads of them and what it puts out.

A batch of texts goes through both stages token by token. The teacher reads whole contexts; its
hidden state and prediction of every new token travel to the student, which reads its window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tsarch.models.decoding_cache import DecodingCache, kept_values
from tsarch.parallel.tied_embedding import TiedEmbedding
from tsarch.records import IntArray
from tsarch.stage.engine import Engine
from tsarch.stage.reader import Reader


@dataclass(frozen=True)
class Prompt:
    """What a text starts with."""

    token_ids: IntArray
    """(tokens,) source and start of the target."""
    window_start: int
    """Where the student's first window begins; it goes to the prompt's end."""


def _embedded(engine: Engine, tied: TiedEmbedding, token_ids: IntArray) -> Tensor:
    """(…) tokens → (…, table_width) embeddings."""
    rows = tied.table.rows(token_ids.ravel()).to(engine.compute_dtype)
    return rows.view(*token_ids.shape, -1)


def _padded(
    engine: Engine, tied: TiedEmbedding, sequences: Sequence[IntArray]
) -> tuple[Tensor, Tensor, Tensor]:
    """(texts, longest, table_width) embeddings, padded on the right, (texts, longest) mask and
    places."""
    shape = len(sequences), max(map(len, sequences))
    tokens, mask = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for row, own in enumerate(sequences):
        tokens[row, : len(own)] = own
        mask[row, : len(own)] = 1
    embeds = _embedded(engine, tied, tokens)
    masks = torch.from_numpy(mask).to(embeds.device)
    places = torch.arange(shape[1], device=embeds.device).expand_as(masks)
    return embeds, masks, places


class TeacherGeneration:
    """The teacher of some texts."""

    def __init__(
        self, engine: Engine, tied: TiedEmbedding, is_seq2seq: bool, use_cache: bool
    ) -> None:
        self._engine = engine
        self._tied = tied
        self._is_seq2seq = is_seq2seq
        self._cache = DecodingCache(kept_values(is_seq2seq) if use_cache else None)
        self._reader = Reader(self._read, self._cache)
        self._lengths = np.empty(0, dtype=np.int64)

    def start(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        """Per text (window_tokens, width + outputs): what the student needs of the prompt."""
        sequences = [prompt.token_ids for prompt in prompts]
        self._lengths = np.array([len(own) for own in sequences])
        embeds, masks, places = _padded(self._engine, self._tied, sequences)
        if self._is_seq2seq:
            starts = torch.from_numpy(self._lengths - 1).to(embeds.device)
            rows = torch.cat(self._engine.forward(embeds, masks, starts, None, self._cache), -1)
            first = embeds[torch.arange(len(prompts)), starts].unsqueeze(1)
            self._lengths = np.ones_like(self._lengths)  # the decoder reads the target alone
            self._reader.adopt(first, masks[:, :1] | 1, places[:, :1])
        else:
            rows = self._reader.feed(embeds, masks, places)
        return [
            own[prompt.window_start : len(prompt.token_ids)]
            for own, prompt in zip(rows, prompts, strict=True)
        ]

    def step(self, parents: IntArray, tokens: IntArray) -> Tensor:
        """Go on with texts `parents` (texts,) and their next tokens (texts,) → (texts, width +
        outputs)."""
        device = self._engine.device
        self._reader.reorder(torch.from_numpy(parents).to(device))
        self._lengths = self._lengths[parents] + 1
        embeds = _embedded(self._engine, self._tied, tokens[:, None])
        positions = torch.from_numpy(self._lengths[:, None] - 1).to(device)
        return self._reader.feed(embeds, torch.ones_like(positions), positions)[:, 0]

    def _read(
        self, inputs: Tensor, mask: Tensor, positions: Tensor, cache: DecodingCache
    ) -> Tensor:
        hidden, predictions = self._engine.forward(inputs, mask, None, positions, cache)
        return torch.cat([hidden, predictions.to(hidden.dtype)], dim=-1)


class StudentGeneration:
    """The student of some texts, fed by the teacher or alone; it sees its window only.

    Windows are blocks of `max_tokens`, as in training: when one is full the next begins.
    """

    def __init__(
        self,
        engine: Engine,
        tied: TiedEmbedding,
        teacher_width: int,
        max_tokens: int,
        use_cache: bool,
    ) -> None:
        self._engine = engine
        self._tied = tied
        self._width = teacher_width
        self._max_tokens = max_tokens
        self._reader = Reader(
            self._read, DecodingCache(kept_values(is_seq2seq=False) if use_cache else None)
        )
        self._table_width = tied.table.storage.shape[1]
        self._lengths = np.empty(0, dtype=np.int64)

    def start(self, prompts: Sequence[Prompt], hidden: Sequence[Tensor] | None) -> Tensor:
        """The prompts' windows, with the teacher's (window_tokens, teacher_width) of each if it is
        fed → (texts, outputs) predictions of the first tokens."""
        windows = [prompt.token_ids[prompt.window_start :] for prompt in prompts]
        self._lengths = np.array([len(own) for own in windows])
        embeds, masks, places = _padded(self._engine, self._tied, windows)
        bridge = None
        if hidden is not None:
            bridge = embeds.new_zeros(*masks.shape, self._width)
            for row, own in enumerate(hidden):
                bridge[row, : len(own)] = own
        predictions = self._reader.feed(self._inputs(embeds, bridge), masks, places)
        last = torch.from_numpy(self._lengths - 1).to(embeds.device)
        return predictions[torch.arange(len(prompts), device=embeds.device), last]

    def step(self, parents: IntArray, tokens: IntArray, hidden: Tensor | None) -> Tensor:
        """Go on with texts `parents` and their next tokens (texts,), with the teacher's (texts,
        teacher_width) of these if it is fed → (texts, outputs)."""
        device = self._engine.device
        self._reader.reorder(torch.from_numpy(parents).to(device))
        lengths = self._lengths[parents]
        full = lengths == self._max_tokens
        self._reader.forget(torch.from_numpy(full).to(device))
        self._lengths = np.where(full, 1, lengths + 1)
        embeds = _embedded(self._engine, self._tied, tokens[:, None])
        positions = torch.from_numpy(self._lengths[:, None] - 1).to(device)
        bridge = None if hidden is None else hidden.to(embeds.dtype).unsqueeze(1)
        inputs = self._inputs(embeds, bridge)
        return self._reader.feed(inputs, torch.ones_like(positions), positions)[:, 0]

    def _inputs(self, embeds: Tensor, bridge: Tensor | None) -> Tensor:
        """Embeddings, the teacher's hidden states, and whether there are some, side by side."""
        flag = embeds.new_full((*embeds.shape[:2], 1), float(bridge is not None))
        if bridge is None:
            bridge = embeds.new_zeros(*embeds.shape[:2], self._width)
        return torch.cat([embeds, bridge, flag], dim=-1)

    def _read(
        self, inputs: Tensor, mask: Tensor, positions: Tensor, cache: DecodingCache
    ) -> Tensor:
        embeds, bridge, flag = torch.split(inputs, [self._table_width, self._width, 1], dim=-1)
        rows = bridge.flatten(0, 1)
        places = torch.arange(len(rows), device=rows.device).view(inputs.shape[:2])
        places = torch.where(flag[..., 0] > 0, places, -1)
        predictions: Tensor = self._engine.forward(
            [embeds], [mask], rows, [places], positions, cache
        )[0]
        return predictions
