"""Collects what both models predict for words, in all modes, while the pipeline runs forward."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tsarch.records import IntArray, Predictions
from tsarch.stage.student import GroupOutput

FloatArray = NDArray[np.float32]


class PredictionCollector:
    """Takes groups of windows (each window once fed and once alone) and keeps label ids."""

    def __init__(self, joint_weights: Sequence[float]) -> None:
        self._weights = np.array(joint_weights, dtype=np.float32)[:, None, None]
        self._fed: list[tuple[IntArray, FloatArray, FloatArray]] = []
        self._alone: list[tuple[IntArray, IntArray]] = []

    def add(self, output: GroupOutput) -> None:
        """Take one group's logits."""
        assert output.teacher_logits is not None
        group = output.group
        for fed in (True, False):
            chosen = (group.words >= 0) & (group.fed[:, None] == int(fed))
            words, places = group.words[chosen], torch.from_numpy(chosen)
            student = _probabilities(output.logits, places)
            if fed:
                self._fed.append((words, student, _probabilities(output.teacher_logits, places)))
            else:
                self._alone.append((words, student.argmax(-1)))

    def result(self) -> Predictions:
        """Everything collected, by word."""
        words = np.concatenate([words for words, _, _ in self._fed])
        student = np.concatenate([p for _, p, _ in self._fed])
        teacher = np.concatenate([p for _, _, p in self._fed])
        joint = (self._weights * teacher + (1 - self._weights) * student).argmax(-1)
        alone_words = np.concatenate([words for words, _ in self._alone])
        alone = np.concatenate([labels for _, labels in self._alone])
        order, alone_order = np.argsort(words), np.argsort(alone_words)
        assert np.array_equal(words[order], alone_words[alone_order])
        return Predictions(
            words[order],
            teacher.argmax(-1)[order],
            student.argmax(-1)[order],
            alone[alone_order],
            joint[:, order],
        )


def _probabilities(logits: Tensor, places: Tensor) -> FloatArray:
    """(windows, tokens, labels), (windows, tokens) bool → (n, labels) probabilities."""
    chosen = logits[places.to(logits.device)]
    probabilities: FloatArray = torch.softmax(chosen.float(), dim=-1).cpu().numpy()
    return probabilities
