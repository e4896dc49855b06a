"""Spans: at which word of a sequence an answer starts and at which it ends, or that it isn't there.

A head puts out two logits a word, of the start and of the end. "Not in this context or window" is
a further class of both distributions, with the logit 0: p(start = i) = exp(sᵢ) / (1 + Σⱼ exp(sⱼ))
over the words j. So sᵢ + eⱼ is the log-odds of the span against no answer, which may be compared
between contexts and windows. (Devlin et al. 2019, "BERT", sections 4.2 and 4.3, where the logit of
no answer is that of [CLS].)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tsarch.config.base import Divergence
from tsarch.losses.predictions import Predicted, dense
from tsarch.losses.token import divergence
from tsarch.records import SPAN_END, SPAN_START

_NEVER = -1e4
"""Logit of positions without a word; fp16 can hold it."""
_LEAST = 1e-6
"""Least probability that the teacher is taken to give to "not in this window"."""


class SpanObjective:
    """Start and end of an answer; in double precision, since sequences differ in length."""

    uses_table = False
    per_sequence = True

    def num_outputs(self, num_labels: int) -> int | None:
        """Start and end."""
        return 2

    def losses(self, predictions: Predicted, labels: Tensor, table: Tensor) -> Tensor:
        """Mean negative log-likelihood of start and end; of "no answer" where not both are here."""
        scores = _scores(predictions, labels)
        words = labels.clamp(min=0)
        gold = torch.stack([words & SPAN_START, words & SPAN_END], dim=-1) > 0
        is_here = gold.any(1).all(-1)
        chosen = (scores * (gold & is_here[:, None, None])).sum(1)
        return _at_first((_log_total(scores) - chosen).mean(-1).float(), labels)

    def divergences(
        self,
        student: Predicted,
        teacher: Predicted,
        labels: Tensor,
        temperature: float,
        table: Tensor,
        kind: Divergence = "kl",
    ) -> Tensor:
        """Mean over start and end of T²·`divergence` between the distributions over the window's
        words and "not here"; `teacher` is as `sent` made it, and what it gives to words outside is
        not here.
        """
        inside = _scores(teacher, labels)
        outside = (1 - inside.exp().sum(1, keepdim=True)).clamp(min=_LEAST).log()
        none = torch.zeros_like(outside)
        log_teacher = _log_softened(torch.cat([outside, inside], 1), temperature)
        log_student = _log_softened(torch.cat([none, _scores(student, labels)], 1), temperature)
        values = divergence(log_student, log_teacher, kind, dim=1)
        return _at_first(values.mean(-1) * temperature**2, labels)

    def sent(self, predictions: Predicted, labels: Tensor) -> Predicted:
        """Log-probabilities over the whole context, which a window alone can't tell."""
        scores = _scores(predictions, labels)
        return (scores - _log_total(scores)[:, None]).clamp(min=_NEVER).float()


def region_losses(scores: Tensor, labels: Tensor) -> Tensor:
    """(batch, tokens) scores, each a logit of "the answer is there" against "not in this window",
    whose logit is 0, and (batch, tokens) labels → (batch,) negative log-likelihood of the answer's
    words together, or of its absence where it isn't here whole."""
    starts, ends = (_words_with(labels, bit) for bit in (SPAN_START, SPAN_END))
    begun = starts.int().cumsum(1)
    inside = (begun > ends.int().cumsum(1)) | ends
    is_here = starts.any(1) & ends.any(1)
    all_words = _scores(scores.unsqueeze(-1), labels)[..., 0]
    answer = all_words.masked_fill(~(inside & (labels >= 0)), _NEVER)
    none = torch.zeros_like(answer[:, 0])
    chosen = torch.where(is_here, torch.logsumexp(answer, dim=1), none)
    return F.softplus(torch.logsumexp(all_words, dim=1)) - chosen


def _words_with(labels: Tensor, bit: int) -> Tensor:
    """(batch, tokens) bool, words whose labels have a bit."""
    return (labels.clamp(min=0) & bit) > 0


def _scores(predictions: Predicted, labels: Tensor) -> Tensor:
    """(batch, tokens, 2) fp64, hopeless where there is no word (`IGNORED` is negative)."""
    return dense(predictions).double().masked_fill((labels < 0).unsqueeze(-1), _NEVER)


def _log_total(scores: Tensor) -> Tensor:
    """(batch, tokens, 2) → (batch, 2) log(1 + Σ exp)."""
    return F.softplus(torch.logsumexp(scores, dim=1))


def _log_softened(scores: Tensor, temperature: float) -> Tensor:
    return F.log_softmax(scores / temperature, dim=1)


def _at_first(values: Tensor, labels: Tensor) -> Tensor:
    """(batch,) → (batch, tokens): the value of a sequence at its first position, 0 elsewhere."""
    return F.pad(values.unsqueeze(1), (0, labels.shape[1] - 1))
