"""How much each label counts in the loss, where some are much rarer than others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tsarch.config import LossConfig
from tsarch.errors import Mistake, UserError
from tsarch.records import IntArray
from tsarch.tasks.base import LabelTask, Task


def check_loss(loss: LossConfig, task: Task, name: str) -> None:
    """Check that the settings can be followed by the task called `name`.

    Raises:
        UserError: it has no labels.
    """
    given = [key for key, value in loss if value not in (None, 0.0)]
    if given and not isinstance(task, LabelTask):
        what = f"is for tasks with labels (ner, classification, relation), not for {name}."
        raise UserError(Mistake(f"loss.{key}", what, "Leave it out.") for key in given)


def label_weights(
    loss: LossConfig, labels: Sequence[str], counts: IntArray
) -> tuple[float, ...] | None:
    """The weight of each label; None: all count the same.

    Args:
        counts: (labels,) positions of train that have each label.

    Raises:
        UserError: a name that is no label.
    """
    wanted = loss.label_weights
    if wanted is None:
        return None
    if isinstance(wanted, Mapping):
        return _named(wanted, labels)
    weights = np.ones(len(labels))
    weights[counts > 0] = counts[counts > 0] ** (-1.0 if wanted == "balanced" else -0.5)
    weights[counts > 0] *= counts.sum() / (weights * counts).sum()
    return tuple(weights.tolist())


def told(weights: Sequence[float], labels: Sequence[str]) -> str:
    """A remark with the weights, heaviest first."""
    order = sorted(range(len(labels)), key=lambda i: -weights[i])
    shown = ", ".join(f"{labels[i]} {weights[i]:.3g}" for i in order[:12])
    more = f" … ({len(labels)} labels)" if len(labels) > 12 else ""
    return f"loss.label_weights: {shown}{more}"


def _named(wanted: Mapping[str, float], labels: Sequence[str]) -> tuple[float, ...]:
    weights = dict.fromkeys(labels, 1.0)
    unknown = []
    # Names of labels are more special than entity types, so they come last.
    for name, weight in sorted(wanted.items(), key=lambda item: item[0] in weights):
        own = (
            [name] if name in weights else [f"{p}-{name}" for p in "BI" if f"{p}-{name}" in weights]
        )
        weights |= dict.fromkeys(own, weight)
        if not own:
            unknown.append(name)
    if unknown:
        hint = f"Labels: {', '.join(labels[:20])}{' …' if len(labels) > 20 else ''}."
        raise UserError(
            Mistake("loss.label_weights", f"`{name}` is no label of train.", hint)
            for name in unknown
        )
    return tuple(weights[label] for label in labels)
