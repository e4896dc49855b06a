"""Each half's part in generating texts: what it reads of them and what it puts out.

A batch of texts goes through both halves token by token. The teacher reads whole contexts; its
hidden state and prediction of every new token travel to the student, which reads its window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tsarch.models.decoding_cache import DecodingCache, kept_values
from tsarch.pair.growing_texts import GrowingTexts
from tsarch.pair.halves import StudentHalf, TableLookup, TeacherHalf
from tsarch.pair.states import Tokens
from tsarch.records import IntArray, TokenizedSplit


@dataclass(frozen=True)
class Prompt:
    """What a text starts with."""

    token_ids: IntArray
    """(tokens,) source and start of the target."""
    window_start: int
    """Where the student's first window begins; it goes to the prompt's end."""


def prompts_of(split: TokenizedSplit, contexts: Sequence[int]) -> list[Prompt]:
    """What is known of each context before its target."""
    prompts = []
    for context in contexts:
        start, stop = split.context_offsets[context : context + 2]
        end = int(np.argmax(split.words[start:stop] >= 0)) + 1
        window = split.windows[split.window_offsets[context], 0]
        prompts.append(Prompt(split.token_ids[start : start + end], int(window - start)))
    return prompts


def _padded(
    half: TeacherHalf | StudentHalf, table: TableLookup, sequences: Sequence[IntArray]
) -> tuple[Tensor, Tensor]:
    """(texts, longest, table_width) embeddings, padded on the right, and (texts, longest) mask."""
    tokens = Tokens.padded(sequences)
    embeds = half.embed(table, tokens.places)
    return embeds, torch.from_numpy(tokens.mask).to(embeds.device)


def _ending_together(inputs: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Texts padded on the right → (texts, longest, width) inputs padded on the left, (texts,
    longest) mask and positions (0 at padding)."""
    slots = torch.arange(mask.shape[1], device=mask.device)
    places = slots - (mask.shape[1] - mask.sum(1, keepdim=True))
    rows = torch.arange(len(mask), device=mask.device).unsqueeze(1)
    # Negative places are those of padding, from the right end.
    return inputs[rows, places], mask[rows, places], places.clamp(min=0)


class TeacherGeneration:
    """The teacher of some texts."""

    def __init__(self, half: TeacherHalf, table: TableLookup, use_cache: bool) -> None:
        self._half = half
        self._table = table
        self._rows = half.output.rows(table)
        self._logits: Tensor | None = None
        """(texts, vocabulary) of the newest tokens, of a model that gives logits itself."""
        keeps = use_cache and half.keeps_values
        self._cache = DecodingCache(kept_values(half.is_seq2seq) if keeps else None)
        self._texts = GrowingTexts(self._read, self._cache)
        self._lengths = np.empty(0, dtype=np.int64)

    def start(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        """Per text (window_tokens, width + outputs): what the student needs of the prompt."""
        sequences = [prompt.token_ids for prompt in prompts]
        self._lengths = np.array([len(own) for own in sequences])
        embeds, masks = _padded(self._half, self._table, sequences)
        if self._half.is_seq2seq:
            starts = torch.from_numpy(self._lengths - 1).to(embeds.device)
            rows = self._read_states(embeds, masks, starts, None, self._cache)
            first = embeds[torch.arange(len(prompts)), starts].unsqueeze(1)
            self._lengths = np.ones_like(self._lengths)  # the decoder reads the target alone
            self._texts.adopt(first, masks[:, :1] | 1)
            ends = [len(own) for own in sequences]
        else:
            rows = self._texts.feed(*_ending_together(embeds, masks))
            ends = [rows.shape[1]] * len(prompts)
        windows = [
            own[end - len(prompt.token_ids) + prompt.window_start : end]
            for own, end, prompt in zip(rows, ends, prompts, strict=True)
        ]
        if self._logits is None:
            return windows
        return [
            torch.cat([own, _at_end(logits, len(own)).to(own.dtype)], dim=-1)
            for own, logits in zip(windows, self._logits, strict=True)
        ]

    def step(self, parents: IntArray, tokens: IntArray) -> Tensor:
        """Go on with texts `parents` (texts,) and their next tokens (texts,) → (texts, width +
        outputs)."""
        device = self._half.runs.device
        self._texts.reorder(torch.from_numpy(parents).to(device))
        self._lengths = self._lengths[parents] + 1
        embeds = self._half.embed(self._table, tokens[:, None])
        positions = torch.from_numpy(self._lengths[:, None] - 1).to(device)
        states = self._texts.feed(embeds, torch.ones_like(positions), positions)[:, 0]
        if self._logits is None:
            return states
        return torch.cat([states, self._logits.to(states.dtype)], dim=-1)

    def _read(
        self, inputs: Tensor, mask: Tensor, positions: Tensor | None, cache: DecodingCache
    ) -> Tensor:
        return self._read_states(inputs, mask, None, positions, cache)

    def _read_states(
        self,
        inputs: Tensor,
        mask: Tensor,
        starts: Tensor | None,
        positions: Tensor | None,
        cache: DecodingCache,
    ) -> Tensor:
        """Hidden states and predictions side by side; of a model that gives logits itself hidden
        states, and `_logits`."""
        chosen = None
        if self._half.output.gives_logits:
            chosen = _newest(inputs, _last_places(inputs, mask) if starts is None else starts)
        read = self._half.read_on(inputs, mask, starts, positions, cache, chosen, self._rows)
        if chosen is not None:
            self._logits = read.predictions
            hidden: Tensor = read.hidden
            return hidden
        return torch.cat([read.hidden, read.predictions.to(read.hidden.dtype)], dim=-1)


class StudentGeneration:
    """The student of some texts, fed by the teacher or alone; it sees its window only.

    Windows are blocks of `max_tokens`, as in training: when one is full the next begins.
    """

    def __init__(
        self, half: StudentHalf, table: TableLookup, max_tokens: int, use_cache: bool
    ) -> None:
        self._half = half
        self._table = table
        self._width = half.teacher_width
        self._rows = half.output.rows(table)
        self._logits: Tensor | None = None
        """As the teacher's."""
        self._max_tokens = max_tokens
        values = kept_values(is_seq2seq=False) if use_cache and half.keeps_values else None
        self._texts = GrowingTexts(self._read, DecodingCache(values))
        self._lengths = np.empty(0, dtype=np.int64)

    def start(self, prompts: Sequence[Prompt], hidden: Sequence[Tensor] | None) -> Tensor:
        """The prompts' windows, with the teacher's (window_tokens, teacher_width) of each if it is
        fed → (texts, outputs) predictions of the first tokens."""
        windows = [prompt.token_ids[prompt.window_start :] for prompt in prompts]
        self._lengths = np.array([len(own) for own in windows])
        embeds, masks = _padded(self._half, self._table, windows)
        bridge = None
        if hidden is not None:
            bridge = embeds.new_zeros(*masks.shape, self._width)
            for row, own in enumerate(hidden):
                bridge[row, : len(own)] = own
        inputs = self._inputs(embeds, bridge)
        said = self._texts.feed(*_ending_together(inputs, masks))[:, -1]
        return said if self._logits is None else self._logits

    def step(self, parents: IntArray, tokens: IntArray, hidden: Tensor | None) -> Tensor:
        """Go on with texts `parents` and their next tokens (texts,), with the teacher's (texts,
        teacher_width) of these if it is fed → (texts, outputs)."""
        device = self._half.runs.device
        self._texts.reorder(torch.from_numpy(parents).to(device))
        lengths = self._lengths[parents]
        full = lengths == self._max_tokens
        self._texts.forget(torch.from_numpy(full).to(device))
        self._lengths = np.where(full, 1, lengths + 1)
        embeds = self._half.embed(self._table, tokens[:, None])
        positions = torch.from_numpy(self._lengths[:, None] - 1).to(device)
        bridge = None if hidden is None else hidden.to(embeds.dtype).unsqueeze(1)
        inputs = self._inputs(embeds, bridge)
        said = self._texts.feed(inputs, torch.ones_like(positions), positions)[:, 0]
        return said if self._logits is None else self._logits

    def _inputs(self, embeds: Tensor, bridge: Tensor | None) -> Tensor:
        """Embeddings, the teacher's hidden states, and whether there are some, side by side."""
        flag = embeds.new_full((*embeds.shape[:2], 1), float(bridge is not None))
        if bridge is None:
            bridge = embeds.new_zeros(*embeds.shape[:2], self._width)
        return torch.cat([embeds, bridge, flag], dim=-1)

    def _read(
        self, inputs: Tensor, mask: Tensor, positions: Tensor | None, cache: DecodingCache
    ) -> Tensor:
        width = inputs.shape[2] - self._width - 1
        embeds, bridge, flag = torch.split(inputs, [width, self._width, 1], dim=-1)
        rows = bridge.flatten(0, 1)
        places = torch.arange(len(rows), device=rows.device).view(inputs.shape[:2])
        places = torch.where(flag[..., 0] > 0, places, -1)
        if not self._half.output.gives_logits:
            return self._half.read_on(embeds, mask, rows, places, positions, cache)
        chosen = _newest(inputs, _last_places(inputs, mask))
        given = embeds, mask, rows, places, positions, cache, chosen, self._rows
        self._logits = self._half.read_on(*given)
        return embeds


def _last_places(inputs: Tensor, mask: Tensor) -> Tensor:
    """(texts,) places of the newest tokens in (texts, tokens, width) inputs: the last, unless all
    tokens are read again, padded on the right; `mask` (texts, slots) covers earlier ones too."""
    is_last = mask[:, -1].bool()
    return torch.where(is_last, inputs.shape[1], mask.sum(1)) - 1


def _newest(inputs: Tensor, places: Tensor) -> Tensor:
    """(texts, tokens, width), (texts,) → (texts, tokens) bool, true at the places."""
    chosen = torch.zeros(inputs.shape[:2], dtype=torch.bool, device=inputs.device)
    chosen[torch.arange(len(inputs), device=inputs.device), places] = True
    return chosen


def _at_end(logits: Tensor, num_rows: int) -> Tensor:
    """(vocabulary,) → (num_rows, vocabulary), zeros but for the last."""
    rows = logits.new_zeros(num_rows, len(logits))
    rows[-1] = logits
    return rows
