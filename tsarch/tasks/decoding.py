"""Which token comes next: greedy, beam search and sampling, for one text at a time. No models."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class DecodingSpec:
    """See `DecodingConfig`."""

    num_beams: int
    length_penalty: float
    sample: bool
    temperature: float
    top_k: int
    top_p: float
    no_repeat_ngram: int
    max_tokens: int
    """Tokens of a text at most, its end included."""
    end: int
    """Token that ends a text; not part of it."""

    @property
    def takes_likeliest(self) -> bool:
        """Whether the next token is the likeliest of all, whatever came before."""
        return self.num_beams == 1 and not self.sample and not self.no_repeat_ngram


@dataclass
class Decoder:
    """The hypotheses of one text.

    Args:
        random: draws for sampling, this text's own, so that the result doesn't depend on which
            texts are generated together.
    """

    spec: DecodingSpec
    random: np.random.Generator
    hypotheses: list[list[int]] = field(default_factory=lambda: [[]])
    is_done: bool = False
    _scores: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.float64))
    """(hypotheses,) log-probability of each."""
    _finished: list[tuple[float, list[int]]] = field(default_factory=list)

    def choose(self, log_probabilities: Tensor) -> list[tuple[int, int]]:
        """(hypotheses, vocabulary) log-probabilities of the next token → (parent, token) of every
        hypothesis that goes on; none once the text is done."""
        allowed = self._allowed(log_probabilities.double())
        chosen = self._sampled(allowed) if self.spec.sample else self._likeliest(allowed)
        self.hypotheses = [[*self.hypotheses[parent], token] for parent, token in chosen]
        self.is_done = not chosen
        if chosen and len(self.hypotheses[0]) == self.spec.max_tokens:
            for score, tokens in zip(self._scores.tolist(), self.hypotheses, strict=True):
                self._finish(score, tokens, len(tokens))
            self.is_done = True
        return [] if self.is_done else chosen

    def take(self, token: int, log_probability: float) -> int:
        """Go on with the likeliest token, which was found elsewhere (`takes_likeliest`)."""
        own = self.hypotheses[0]
        self._scores += log_probability
        if token == self.spec.end:
            self._finish(float(self._scores), own, len(own) + 1)
        else:
            own.append(token)
            if len(own) == self.spec.max_tokens:
                self._finish(float(self._scores), own, len(own))
        self.is_done = bool(self._finished)
        return token

    def drawn(self, log_probabilities: Tensor) -> int:
        """The token that `choose` goes on with from (1, vocabulary), of one hypothesis; the end's
        if it ends."""
        num_tokens = len(self.hypotheses[0])
        self.choose(log_probabilities)
        own = self.hypotheses[0] if self.hypotheses else []
        return own[-1] if len(own) > num_tokens else self.spec.end

    @property
    def num_left(self) -> int:
        """Tokens that may still come."""
        return self.spec.max_tokens - len(self.hypotheses[0])

    @property
    def best(self) -> list[int]:
        """The best finished text's tokens, without its end."""
        return self._best()[1]

    @property
    def best_score(self) -> float:
        """Its log-probability, divided by its length to the power of the length penalty."""
        return self._best()[0]

    def _best(self) -> tuple[float, list[int]]:
        assert self.is_done
        return max(self._finished, key=lambda item: item[0])

    def _allowed(self, log_probabilities: Tensor) -> Tensor:
        size = self.spec.no_repeat_ngram
        if size == 0 or len(self.hypotheses[0]) < size:
            return log_probabilities
        from transformers import NoRepeatNGramLogitsProcessor

        so_far = torch.tensor(self.hypotheses, device=log_probabilities.device)
        processed: Tensor = NoRepeatNGramLogitsProcessor(size)(so_far, log_probabilities)
        return processed

    def _likeliest(self, log_probabilities: Tensor) -> list[tuple[int, int]]:
        """Beam search: of twice as many continuations as beams, those that end are finished and
        the best others go on, until as many texts are finished as there are beams."""
        num_beams = self.spec.num_beams
        totals = (self._scores.to(log_probabilities.device)[:, None] + log_probabilities).flatten()
        best = totals.topk(min(2 * num_beams, len(totals)))
        going_on: list[tuple[float, int, int]] = []
        for rank, (score, place) in enumerate(
            zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ):
            parent, token = divmod(place, log_probabilities.shape[1])
            if token == self.spec.end:
                if rank < num_beams:
                    tokens = self.hypotheses[parent]
                    self._finish(score, tokens, len(tokens) + 1)
            elif len(going_on) < num_beams:
                going_on.append((score, parent, token))
        if len(self._finished) >= num_beams:
            return []
        self._scores = torch.tensor([score for score, _, _ in going_on], dtype=torch.float64)
        return [(parent, token) for _, parent, token in going_on]

    def _sampled(self, log_probabilities: Tensor) -> list[tuple[int, int]]:
        from transformers import TopKLogitsWarper, TopPLogitsWarper

        scores = log_probabilities / self.spec.temperature
        none = torch.empty(0)
        if self.spec.top_k > 0:
            scores = TopKLogitsWarper(self.spec.top_k)(none, scores)
        if self.spec.top_p < 1.0:
            scores = TopPLogitsWarper(self.spec.top_p)(none, scores)
        cumulated = torch.softmax(scores[0], dim=-1).cumsum(0)
        draw = self.random.random() * float(cumulated[-1])
        token = min(int(torch.searchsorted(cumulated, draw, right=True)), len(cumulated) - 1)
        self._scores = self._scores + float(log_probabilities[0, token])
        if token == self.spec.end:
            self._finish(float(self._scores), self.hypotheses[0], len(self.hypotheses[0]) + 1)
            return []
        return [(0, token)]

    def _finish(self, score: float, tokens: list[int], length: int) -> None:
        self._finished.append((score / length**self.spec.length_penalty, tokens))
