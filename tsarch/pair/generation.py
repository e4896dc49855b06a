"""Each half's part in generating texts: what it reads of them and what it puts out.

A batch of texts goes through both halves, some tokens at a time. The teacher reads whole contexts;
its hidden state and prediction of every new token travel to the student, which reads its window.
What was read may turn out wrong: `keep` says how much of it stays.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from tsarch.models.decoding_cache import DecodingCache, kept_values
from tsarch.models.fast_path import FastTexts, Stack
from tsarch.pair.growing_texts import FastGrowingTexts, GrowingTexts, Read, SlottedTexts
from tsarch.pair.halves import Prepared, StudentHalf, TableLookup, TeacherHalf
from tsarch.pair.states import Tokens
from tsarch.records import IntArray, TokenizedSplit


@dataclass(frozen=True)
class Prompt:
    """What a text starts with."""

    token_ids: IntArray
    """(tokens,) source and start of the target."""
    window_start: int
    """Where the student's first window begins; it goes to the prompt's end."""


@dataclass(frozen=True)
class Keeping:
    """How what models computed of earlier tokens is kept."""

    use_cache: bool = True
    """Keep it at all."""
    room: int = 64
    """Tokens a text that will be read after its prompt; more are possible."""
    whole: bool = False
    """See `StaticValues`; then no more than `room` are possible."""


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


Half = TypeVar("Half", TeacherHalf, StudentHalf)


class _Generation(Generic[Half]):
    """What teacher and student have of texts under way."""

    def __init__(
        self,
        half: Half,
        table: TableLookup,
        keeping: Keeping,
        prepared: Prepared | None = None,
    ) -> None:
        self._half: Half = half
        self._table = table
        self._keeping = keeping
        self._given = prepared
        self._logits: Tensor | None = None
        """(n, vocabulary) of the wanted tokens, of a model that gives logits itself."""
        self._texts: GrowingTexts

    @cached_property
    def _prepared(self) -> Prepared:
        return self._given or self._half.prepared(self._table)

    @property
    def is_ragged(self) -> bool:
        """See `GrowingTexts`."""
        return self._texts.is_ragged

    def keep(self, counts: IntArray) -> None:
        """Keep the first `counts` of the tokens that were just read."""
        self._texts.keep(counts)

    def reorder(self, parents: IntArray) -> None:
        """Go on with the texts `parents`, in their order."""
        self._texts.reorder(parents)


class TeacherGeneration(_Generation[TeacherHalf]):
    """The teacher of some texts.

    Args:
        prepared: by the half; None: when it starts.
    """

    def start(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        """Per text (window_tokens, width + outputs): what the student needs of the prompt."""
        sequences = [prompt.token_ids for prompt in prompts]
        embeds, masks = _padded(self._half, self._table, sequences)
        targets = 1 if self._half.is_seq2seq else embeds.shape[1]
        self._texts, cache = _texts(
            self._read, self._half, self._keeping, self._prepared.stack, (len(prompts), targets)
        )
        if self._half.is_seq2seq:
            lengths = np.array([len(own) for own in sequences])
            starts = torch.from_numpy(lengths - 1).to(embeds.device)
            chosen = torch.arange(embeds.shape[1], device=embeds.device) == starts.unsqueeze(1)
            rows = self._read_states(embeds, masks, starts, None, chosen, cache)
            first = embeds[torch.arange(len(prompts)), starts].unsqueeze(1)
            self._texts.adopt(first)  # the decoder reads the target alone
        else:
            rows = self._texts.start(embeds, masks)
        windows = [
            own[prompt.window_start : len(prompt.token_ids)]
            for own, prompt in zip(rows, prompts, strict=True)
        ]
        if self._logits is None:
            return windows
        return [
            torch.cat([own, _at_end(logits, len(own)).to(own.dtype)], dim=-1)
            for own, logits in zip(windows, self._logits, strict=True)
        ]

    @property
    def can_begin_again(self) -> bool:
        """Whether `again` can be asked, once it has started."""
        return isinstance(self._texts, FastGrowingTexts)

    def again(self) -> TeacherGeneration:
        """Another one that goes on from where this one is, which then doesn't go on any more."""
        assert isinstance(self._texts, FastGrowingTexts)
        own = copy.copy(self)
        own._texts = self._texts.again(own._read)
        return own

    def step(self, parents: IntArray, tokens: IntArray) -> Tensor:
        """Go on with texts `parents` (texts,) and their next tokens (texts,) → (texts, width +
        outputs)."""
        self.reorder(parents)
        one = np.ones(len(tokens), dtype=np.int64)
        states = self.read(tokens[:, None], one)[:, 0]
        self.keep(one)
        return states

    def read(self, tokens: IntArray, counts: IntArray) -> Tensor:
        """Read (texts, tokens) next tokens, the first `counts` of each text → (texts, tokens,
        width + outputs); `keep` says which of them stay."""
        states = self._texts.feed(self._half.embed(self._table, tokens), counts)
        if self._logits is None:
            return states
        logits = self._logits.view(*tokens.shape, -1)
        return torch.cat([states, logits.to(states.dtype)], dim=-1)

    def _read(
        self,
        inputs: Tensor,
        mask: Tensor,
        positions: Tensor | None,
        chosen: Tensor,
        cache: DecodingCache,
    ) -> Tensor:
        return self._read_states(inputs, mask, None, positions, chosen, cache)

    def _read_states(
        self,
        inputs: Tensor,
        mask: Tensor,
        starts: Tensor | None,
        positions: Tensor | None,
        chosen: Tensor,
        cache: DecodingCache,
    ) -> Tensor:
        """Hidden states and predictions side by side; of a model that gives logits itself hidden
        states, and `_logits`."""
        wanted = chosen if self._half.output.gives_logits else None
        read = self._half.read_on(
            inputs, mask, starts, positions, cache, wanted, self._prepared.rows
        )
        if wanted is not None:
            self._logits = read.predictions
            hidden: Tensor = read.hidden
            return hidden
        return torch.cat([read.hidden, read.predictions.to(read.hidden.dtype)], dim=-1)


class StudentGeneration(_Generation[StudentHalf]):
    """The student of some texts, fed by the teacher or alone; it sees its window only.

    Windows are blocks of `max_tokens`, as in training: when one is full the next begins.
    `prepared`: see `TeacherGeneration`.
    """

    def __init__(
        self,
        half: StudentHalf,
        table: TableLookup,
        max_tokens: int,
        keeping: Keeping,
        prepared: Prepared | None = None,
    ) -> None:
        super().__init__(half, table, keeping, prepared)
        self._width = half.teacher_width
        self._max_tokens = max_tokens

    @property
    def room(self) -> IntArray:
        """(texts,) tokens that the window of each can take now, at least one: a full one ends."""
        lengths = self._texts.lengths
        return self._max_tokens - np.where(lengths == self._max_tokens, 0, lengths)

    def start(self, prompts: Sequence[Prompt], hidden: Sequence[Tensor] | None) -> Tensor:
        """The prompts' windows, with the teacher's (window_tokens, teacher_width) of each if it is
        fed → (texts, outputs) predictions of the first tokens."""
        windows = [prompt.token_ids[prompt.window_start :] for prompt in prompts]
        embeds, masks = _padded(self._half, self._table, windows)
        self._texts, _ = _texts(
            self._read, self._half, self._keeping, self._prepared.stack, embeds.shape[:2]
        )
        bridge = None
        if hidden is not None:
            bridge = embeds.new_zeros(*masks.shape, self._width)
            for row, own in enumerate(hidden):
                bridge[row, : len(own)] = own
        said = self._texts.start(self._inputs(embeds, bridge), masks)
        if self._logits is not None:
            return self._logits
        return said[torch.arange(len(said)), [len(own) - 1 for own in windows]]

    def step(self, parents: IntArray, tokens: IntArray, hidden: Tensor | None) -> Tensor:
        """Go on with texts `parents` and their next tokens (texts,), with the teacher's (texts,
        teacher_width) of these if it is fed → (texts, outputs)."""
        self.reorder(parents)
        one = np.ones(len(tokens), dtype=np.int64)
        said = self.read(tokens[:, None], one, None if hidden is None else hidden.unsqueeze(1))
        self.keep(one)
        return said[:, 0]

    def read(self, tokens: IntArray, counts: IntArray, hidden: Tensor | None) -> Tensor:
        """Read (texts, tokens) next tokens, the first `counts` of each text (`room` at most), with
        the teacher's (texts, tokens, teacher_width) if it is fed → (texts, tokens, outputs);
        `keep` says which of them stay."""
        full = self._texts.lengths == self._max_tokens
        if full.any():
            self._texts.restart(full)
        embeds = self._half.embed(self._table, tokens)
        bridge = None if hidden is None else hidden.to(embeds.dtype)
        said = self._texts.feed(self._inputs(embeds, bridge), counts)
        return said if self._logits is None else self._logits.view(*tokens.shape, -1)

    def _inputs(self, embeds: Tensor, bridge: Tensor | None) -> Tensor:
        """Embeddings, the teacher's hidden states, and whether there are some, side by side."""
        flag = embeds.new_full((*embeds.shape[:2], 1), float(bridge is not None))
        if bridge is None:
            bridge = embeds.new_zeros(*embeds.shape[:2], self._width)
        return torch.cat([embeds, bridge, flag], dim=-1)

    def _read(
        self,
        inputs: Tensor,
        mask: Tensor,
        positions: Tensor | None,
        chosen: Tensor,
        cache: DecodingCache,
    ) -> Tensor:
        width = inputs.shape[2] - self._width - 1
        embeds, bridge, flag = torch.split(inputs, [width, self._width, 1], dim=-1)
        rows = bridge.flatten(0, 1)
        places = torch.arange(len(rows), device=rows.device).view(inputs.shape[:2])
        places = torch.where(flag[..., 0] > 0, places, -1)
        if not self._half.output.gives_logits:
            return self._half.read_on(embeds, mask, rows, places, positions, cache)
        given = embeds, mask, rows, places, positions, cache, chosen, self._prepared.rows
        self._logits = self._half.read_on(*given)
        return embeds


def _texts(
    read: Read,
    half: TeacherHalf | StudentHalf,
    keeping: Keeping,
    stack: Stack | None,
    sizes: Sequence[int],
) -> tuple[GrowingTexts, DecodingCache]:
    """Texts of which (texts, tokens) `sizes` are read first, by the quickest path there is."""
    num_texts, num_tokens = sizes
    num_slots = num_tokens + keeping.room
    is_long = stack is not None and stack.longest is not None and num_slots > stack.longest
    if stack is not None and keeping.use_cache and not is_long:
        fast = FastTexts(stack, num_texts, num_slots, half.runs.device, keeping.whole)
        cache = DecodingCache(fast=fast)
        return FastGrowingTexts(read, cache), cache
    is_seq2seq = isinstance(half, TeacherHalf) and half.is_seq2seq
    keeps = keeping.use_cache and half.keeps_values
    cache = DecodingCache(kept_values(is_seq2seq) if keeps else None)
    return SlottedTexts(read, cache), cache


def _at_end(logits: Tensor, num_rows: int) -> Tensor:
    """(vocabulary,) → (num_rows, vocabulary), zeros but for the last."""
    rows = logits.new_zeros(num_rows, len(logits))
    rows[-1] = logits
    return rows
