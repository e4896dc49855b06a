"""A batch of texts of one hypothesis each, written in as few passes of the models as there may be.

A pass reads the newest token of every text and what may come next (`proposing`), and tells of each
place what does. Proposed tokens stay up to the first that isn't what the decoder chose there from
the model's own distribution: for a certain proposal that is rejection sampling (Leviathan et al.
2023, "Fast Inference from Transformers via Speculative Decoding"), and each text draws the same
numbers as without proposals, so that it also is the same text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from tsarch.config import Mode, ProposalSource
from tsarch.pair.drafting import Drafts
from tsarch.pair.generation import Keeping
from tsarch.pair.proposing import DRAFTED, MOST_PROPOSED, Pace, Proposal, TextSoFar
from tsarch.pair.reading import Reader, ReadPrompts, ReadTexts
from tsarch.tasks.decoding import Decoder, DecodingSpec
from tsarch.written import Passes

EXACT_WIDTH = 4
"""Tokens of every pass with `exact`: products of other sizes are rounded in another way."""
_LEAST_LIVE = 0.75
"""Share of a batch's texts that go on; with fewer it is made smaller, which copies what is kept."""


@dataclass
class _Text:
    """A text that is written."""

    decoder: Decoder
    so_far: TextSoFar
    num_read: int
    """Tokens, of prompt and text, that the models keep."""
    proposal: Proposal | None = None
    fed: list[int] = field(default_factory=list)
    """Tokens of this pass: those that are chosen and not read, then proposed ones."""

    @property
    def num_known(self) -> int:
        """Tokens that are chosen and not read."""
        return len(self.so_far.tokens) - self.num_read

    def settle(self, choose: Callable[[int], int]) -> int:
        """Choose what comes after the known tokens, and after proposed ones as long as they are
        right; how many tokens are chosen.

        Args:
            choose: place of a pass → the token that the decoder takes after it.
        """
        num_chosen = 0
        for place in range(max(self.num_known, 1) - 1, len(self.fed)):
            token = choose(place)
            num_chosen += 1
            if self.decoder.is_done:
                break
            self.so_far.append(token)
            if place + 1 < len(self.fed) and self.fed[place + 1] != token:
                break
        return num_chosen


class TextLoop:
    """Writes texts with a reader.

    Args:
        pace: how many tokens are proposed; None: none are.
        sources: of proposed tokens, see `SpeculativeConfig`.
        exact: texts don't depend on what is proposed, to the last bit of the models' numbers. For
            models without a fast path nothing is proposed then.
    """

    def __init__(
        self,
        reader: Reader,
        spec: DecodingSpec,
        mode: Mode,
        use_cache: bool,
        pace: Pace | None,
        exact: bool,
        sources: Sequence[ProposalSource] = ("prompt",),
    ) -> None:
        self._reader = reader
        self._spec = spec
        self._mode: Mode = mode
        self._use_cache = use_cache
        self._width = EXACT_WIDTH if exact and use_cache and reader.is_fast(mode) else None
        self._pace = None if exact and self._width is None else pace
        self._asks_text = "prompt" in sources
        self._asks_drafter = "drafter" in sources and reader.has_drafter(mode)
        self._drafts: Drafts | None = None
        self.passes = Passes()
        """What it took so far."""

    def write(self, prompts: ReadPrompts, decoders: Sequence[Decoder]) -> None:
        """Let the decoders choose until all are done."""
        start = time.perf_counter()
        room = self._spec.max_tokens + (self._width or MOST_PROPOSED + 1)
        keeping = Keeping(self._use_cache, room, self._width is not None)
        texts = self._reader.open(self._mode, keeping)
        rows = [
            _Text(decoder, TextSoFar(prompt.token_ids.tolist()), len(prompt.token_ids), fed=[0])
            for decoder, prompt in zip(decoders, prompts.prompts, strict=True)
        ]
        self._settle(texts, rows, [own.unsqueeze(1) for own in texts.start(prompts)])
        self._drafts = None
        if self._pace is not None and self._asks_drafter:
            self._drafts = self._reader.drafts(texts.prompt_states, 2 * room)
        spent = time.perf_counter() - start
        self.passes = self.passes.plus(num_texts=len(rows), num_tokens=len(rows), prompt_s=spent)
        while not all(row.decoder.is_done for row in rows):
            rows = self._without_done(texts, rows)
            self._pass(texts, rows)

    def _without_done(self, texts: ReadTexts, rows: list[_Text]) -> list[_Text]:
        """Leave out texts that are done, where that is worth a copy of what is kept."""
        live = [place for place, row in enumerate(rows) if not row.decoder.is_done]
        is_worth_it = not texts.is_ragged or len(live) <= _LEAST_LIVE * len(rows)
        if self._width is not None or len(live) == len(rows) or not is_worth_it:
            return rows
        texts.reorder(np.array(live))
        if self._drafts is not None:
            self._drafts.reorder(np.array(live))
        return [rows[place] for place in live]

    def _pass(self, texts: ReadTexts, rows: list[_Text]) -> None:
        """Read on, and choose."""
        start = time.perf_counter()
        self._feed(texts, rows)
        counts = np.array([len(row.fed) for row in rows])
        tokens = np.zeros((len(rows), self._width or int(counts.max())), dtype=np.int64)
        for place, row in enumerate(rows):
            tokens[place, : len(row.fed)] = row.fed
        fed = time.perf_counter()
        logits = texts.read(tokens, counts)
        if logits[0].is_cuda:
            torch.cuda.synchronize(logits[0].device)
        read = time.perf_counter()
        live = [row for row in rows if not row.decoder.is_done]
        proposed = [max(len(row.fed) - row.num_known, 0) for row in live]
        chosen = self._settle(texts, rows, logits)
        self._keep(texts, rows)
        if self._pace is not None:
            self._pace.took(len(rows), tokens.shape[1], read - fed)
            for row, num_chosen, num_proposed in zip(live, chosen, proposed, strict=True):
                if row.proposal is not None and num_proposed:
                    self._pace.judged(row.proposal.size, num_chosen - 1, num_proposed)
        self._count(rows, live, proposed, chosen, tokens.shape[1], (start, fed, read))

    def _feed(self, texts: ReadTexts, rows: list[_Text]) -> None:
        """Choose what each text reads: what is known, and proposals as far as there is room. One
        that is done reads anything, and keeps nothing of it."""
        most = 0
        if self._pace is not None:
            for row in rows:
                row.proposal = None if row.decoder.is_done else self._proposal(row)
            most = self._pace.choose([row.proposal for row in rows])
            most = most if self._width is None else min(self._pace.most, self._width - 1)
            self._draft(rows, most)
        for row, room in zip(rows, texts.room(len(rows)).tolist(), strict=True):
            if row.decoder.is_done:
                row.fed = [0]
                continue
            most_own = max(min(most, row.decoder.num_left - 1), 0)
            proposed = [] if row.proposal is None else row.proposal.tokens[:most_own]
            row.fed = [*row.so_far.tokens[row.num_read :], *proposed][:room]

    def _proposal(self, row: _Text) -> Proposal | None:
        """What may come next in a text by what promises more: itself, or the drafter."""
        assert self._pace is not None
        own = row.so_far.proposal(self._pace.most) if self._asks_text else None
        if self._drafts is None:
            return own
        is_better = own is not None and self._pace.rate(own.size) >= self._pace.rate(DRAFTED)
        return own if is_better else Proposal([], DRAFTED)

    def _draft(self, rows: list[_Text], num_tokens: int) -> None:
        """Ask the drafter for so many tokens, where it is to propose."""
        drafted = [own.proposal is not None and own.proposal.size == DRAFTED for own in rows]
        if self._drafts is None or self._pace is None or not num_tokens or not any(drafted):
            return
        start = time.perf_counter()
        found = self._drafts.propose([row.so_far.tokens for row in rows], num_tokens)
        self._pace.drafted(len(rows), num_tokens, time.perf_counter() - start)
        for row, is_drafted, tokens in zip(rows, drafted, found, strict=True):
            if is_drafted:
                row.proposal = Proposal(tokens, DRAFTED)

    def _settle(self, texts: ReadTexts, rows: list[_Text], logits: list[Tensor]) -> list[int]:
        """Let the decoders of texts that aren't done choose from (texts, tokens, vocabulary)
        logits; how many tokens each chooses."""
        live = [(place, row) for place, row in enumerate(rows) if not row.decoder.is_done]
        if self._spec.takes_likeliest:
            tokens, scores = _likeliest(texts, logits)
            return [
                row.settle(partial(_taken, row.decoder, tokens[place], scores[place]))
                for place, row in live
            ]
        logs = texts.log_probabilities(logits)
        return [row.settle(partial(_drawn, row.decoder, logs[place])) for place, row in live]

    def _keep(self, texts: ReadTexts, rows: list[_Text]) -> None:
        """Let the models keep what is right: all but the newest token, which isn't read yet."""
        counts = np.array([min(len(row.fed), row.num_known - 1) for row in rows])
        done = np.array([row.decoder.is_done for row in rows])
        counts[done] = 0
        if not texts.is_ragged:  # what others know beyond it they read again
            counts[:] = counts[~done].min() if not done.all() else 1
        texts.keep(counts)
        if self._drafts is not None and texts.states is not None:
            self._drafts.keep(texts.states, counts)
        for row, count in zip(rows, counts.tolist(), strict=True):
            row.num_read += count

    def _count(
        self,
        rows: list[_Text],
        live: list[_Text],
        proposed: list[int],
        chosen: list[int],
        width: int,
        times: tuple[float, float, float],
    ) -> None:
        start, fed, read = times
        stop = time.perf_counter()
        num_tokens = sum(chosen)
        plain_s = read - fed
        if self._pace is not None:
            plain_s *= num_tokens / len(live) / self._pace.cost(len(rows), width)
        has_proposals = any(row.proposal is not None for row in live)
        self.passes = self.passes.plus(
            num_passes=1,
            num_read=len(live),
            num_tokens=num_tokens,
            num_proposed=sum(proposed),
            num_right=sum(max(own - 1, 0) for own in chosen),
            num_declined=int(has_proposals and not any(proposed)),
            proposing_s=fed - start,
            checking_s=read - fed,
            choosing_s=stop - read,
            plain_s=plain_s,
        )


def _taken(decoder: Decoder, tokens: list[int], scores: list[float], place: int) -> int:
    return decoder.take(tokens[place], scores[place])


def _drawn(decoder: Decoder, logs: Tensor, place: int) -> int:
    return decoder.drawn(logs[place : place + 1])


def _likeliest(texts: ReadTexts, logits: list[Tensor]) -> tuple[list[list[int]], list[list[float]]]:
    """Per text and place the likeliest token and its log-probability."""
    if len(logits) > 1:
        mixed = texts.log_probabilities(logits).max(dim=-1)
        return mixed.indices.tolist(), mixed.values.tolist()
    best = logits[0].max(dim=-1)
    scores = best.values - logits[0].logsumexp(dim=-1)
    return best.indices.tolist(), scores.tolist()
