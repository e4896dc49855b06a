"""Collects what both models predict for words, in all modes, while the pipeline runs forward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tsarch.data.replica_arrays import WindowBatch
from tsarch.records import Array, FloatArray, IntArray, Predictions
from tsarch.tasks.votes import likeliest

if TYPE_CHECKING:
    from torch import Tensor

    from tsarch.losses.predictions import Predicted


@dataclass(frozen=True)
class WindowOutputs:
    """What both models say of one batch of windows: torch's tensors, or NumPy's arrays
    without labels and table."""

    batch: WindowBatch
    labels: Tensor
    """(windows, tokens), `IGNORED` where there is no word."""
    student: Predicted
    """(windows, tokens, outputs) the student's predictions."""
    teacher: Predicted | None
    """(windows, tokens, outputs) the teacher's on the same positions, where they came along."""
    table: Tensor
    """(rows, table_width) rows of the table that the step touches."""


@dataclass(frozen=True)
class ContextOutputs:
    """What a teacher says of one batch of contexts, as `WindowOutputs`."""

    words: IntArray
    """(contexts, tokens) word that starts at a token, −1 elsewhere."""
    labels: Tensor
    """(contexts, tokens), `IGNORED` where there is no word."""
    teacher: Predicted
    """(contexts, tokens, outputs) its predictions."""
    table: Tensor
    """(rows, table_width) rows of the table that the step touches."""


class Collector(Protocol):
    """Takes batches of windows, each alone and, if the student is fed, fed too, with the teacher's
    predictions where it makes any; of a teacher by itself batches of contexts. Keeps what metrics
    need."""

    def add(self, output: WindowOutputs) -> None:
        """Take one batch of windows."""

    def add_contexts(self, output: ContextOutputs) -> None:
        """Take one batch of contexts."""

    def result(self) -> Predictions:
        """Everything collected, by word."""


@dataclass(frozen=True)
class _Chosen:
    """The passes over windows of a batch that were fed, or those that were not."""

    words: IntArray
    student: FloatArray
    teacher: FloatArray | None


Scores = Callable[[Any, Any, Any], FloatArray]
"""(n, outputs) predictions, (n,) labels, table → (n, …) what is kept of each position. Predictions
are of torch, or an array of NumPy; labels and table are None where they aren't known."""
Decision = Callable[[FloatArray], np.ndarray]
"""(…, n, …) scores → what a mode says."""


class WordCollector:
    """Keeps scores of words.

    Args:
        joint_weights: weights w that `joint` is wanted for.
        scores: what is kept; `joint` is w·teacher + (1 − w)·student of it.
        decide: from scores to what a mode says.
    """

    def __init__(self, joint_weights: Sequence[float], scores: Scores, decide: Decision) -> None:
        self._joint_weights = np.array(joint_weights, dtype=np.float32)
        self._scores = scores
        self._decide = decide
        self._fed: list[_Chosen] = []
        self._one: list[tuple[IntArray, FloatArray]] = []
        """Of a model by itself: the student alone, or a teacher without a student."""
        self._mode = "student_alone"

    def add(self, output: WindowOutputs) -> None:
        """Take one batch of windows."""
        batch = output.batch
        for fed in (True, False):
            chosen = (batch.words >= 0) & (batch.fed[:, None] == int(fed))
            words = batch.words[chosen]
            student = self._kept(output.student, chosen, output)
            if not fed:
                self._one.append((words, self._decide(student)))
                continue
            teacher = None
            if output.teacher is not None:
                teacher = self._kept(output.teacher, chosen, output)
            if teacher is not None or len(words):
                self._fed.append(_Chosen(words, student, teacher))

    def add_contexts(self, output: ContextOutputs) -> None:
        """Take one batch of contexts."""
        self._mode = "teacher"
        chosen = output.words >= 0
        scores = self._kept(output.teacher, chosen, output)
        self._one.append((output.words[chosen], self._decide(scores)))

    def _kept(
        self, predicted: Any, chosen: Array, output: WindowOutputs | ContextOutputs
    ) -> FloatArray:
        """What is kept of predictions at the `chosen` (batch, tokens) places."""
        if isinstance(predicted, np.ndarray):
            return self._scores(predicted[chosen], None, None)
        import torch

        from tsarch.losses.predictions import at

        places = torch.from_numpy(chosen).to(predicted.device)
        labels = None if output.labels is None else output.labels[places]  # answers have none
        return self._scores(at(predicted, places), labels, output.table)

    def result(self) -> Predictions:
        """Everything collected, by word."""
        words = np.concatenate([words for words, _ in self._one])
        if not len(words) and self._fed:
            return self._with_fed(None)
        order = np.argsort(words)
        one = {self._mode: np.concatenate([said for _, said in self._one])[order]}
        alone = Predictions(words[order], **one)
        return self._with_fed(alone) if self._fed else alone

    def _with_fed(self, alone: Predictions | None) -> Predictions:
        """The modes that need both models, beside the student alone where it was asked too."""
        words = np.concatenate([own.words for own in self._fed])
        student = np.concatenate([own.student for own in self._fed])
        order = np.argsort(words)
        alone = alone or Predictions(words[order])
        assert np.array_equal(words[order], alone.words)
        found = replace(alone, student=self._decide(student)[order])
        said = [own.teacher for own in self._fed if own.teacher is not None]
        if not said:
            return found
        teacher = np.concatenate(said)
        weights = self._joint_weights.reshape(-1, *(1 for _ in student.shape))
        joint = self._decide(weights * teacher + (1 - weights) * student)
        return replace(found, teacher=self._decide(teacher)[order], joint=joint[:, order])


def label_collector(joint_weights: Sequence[float]) -> Collector:
    """Label ids; `joint` is the weighted mean of both probabilities."""
    return WordCollector(joint_weights, label_probabilities, likeliest)


def probability_collector(joint_weight: float) -> Collector:
    """Labels' probabilities, undecided; `joint` is the weighted mean of both models'."""
    return WordCollector([joint_weight], label_probabilities, lambda scores: scores)


def token_collector(joint_weights: Sequence[float]) -> Collector:
    """Log-probability of the true next token; `joint` is the weighted mean of both."""
    tiny = np.finfo(np.float32).tiny
    return WordCollector(
        joint_weights, _token_probabilities, lambda scores: np.log(np.maximum(scores, tiny))
    )


def span_collector() -> Collector:
    """Logits of start and end of both models; no `joint`."""
    return WordCollector([], _logits, lambda logits: logits)


def _logits(predictions: Any, labels: Any, table: Any) -> FloatArray:
    if isinstance(predictions, np.ndarray):
        return predictions.astype(np.float32)
    from tsarch.losses.predictions import dense

    logits: FloatArray = dense(predictions).float().cpu().numpy()
    return logits


def label_probabilities(predictions: Any, labels: Any, table: Any) -> FloatArray:
    probabilities: FloatArray
    if isinstance(predictions, np.ndarray):
        own = predictions.astype(np.float32)
        powers = np.exp(own - own.max(-1, keepdims=True, initial=-np.inf))
        probabilities = powers / powers.sum(-1, keepdims=True)
        return probabilities
    import torch

    from tsarch.losses.predictions import dense

    probabilities = torch.softmax(dense(predictions).float(), dim=-1).cpu().numpy()
    return probabilities


def _token_probabilities(predictions: Any, labels: Any, table: Any) -> FloatArray:
    from tsarch.losses.objective import VocabularyObjective

    losses = VocabularyObjective().losses(predictions, labels, table)
    probabilities: FloatArray = (-losses).exp().cpu().numpy()
    return probabilities
