"""The terms of a student's loss that match its inside with the teacher's, position by position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tsarch.losses.hidden import hidden_distance
from tsarch.losses.relations import relation_divergence
from tsarch.models.inner_states import Shown
from tsarch.specs import DistillationSpec
from tsarch.stage.matching import Matching


class Matched:
    """Compares what both models show of a batch of windows."""

    def __init__(self, matching: Matching, spec: DistillationSpec) -> None:
        self._matching = matching
        self._spec = spec
        self.weights = {"hidden": spec.hidden_weight, "relation": spec.relation_weight}
        """Term → its weight in the loss."""
        self.passes = spec.match_passes or spec.passes

    @property
    def width(self) -> int:
        """Numbers that the teacher shows a position."""
        return self._matching.width

    def terms(
        self, own: Sequence[Tensor], hidden: Tensor, shown: Tensor, readable: Tensor
    ) -> Mapping[str, Tensor]:
        """Term → (windows, tokens) of a batch.

        Args:
            own: what the student's model gives beside its predictions (`StudentModel.forward`).
            hidden: (windows, tokens, teacher_width) the teacher's states.
            shown: (windows, tokens, width) what it shows beside them.
            readable: (windows, tokens) bool, tokens whose states came.
        """
        found = {}
        teacher = _by_name(self._matching.teacher, self._matching.teacher_widths, shown)
        if pairs := self._matching.pairs:
            kind = self._spec.hidden_loss
            distances = [
                hidden_distance(mapped, hidden if other is None else teacher[other], kind)
                for mapped, (_, other) in zip(own, pairs)
            ]
            found["hidden"] = torch.stack(distances).mean(0)
        if relations := self._matching.relations:
            widths = self._matching.student_widths[len(self._matching.student.layers) :]
            parts = _by_name(Shown(parts=self._matching.student.parts), widths, own[-1])
            divergences = [
                relation_divergence(
                    (parts[a], parts[b]),
                    (teacher[a], teacher[b]),
                    readable,
                    self._matching.num_heads,
                )
                for a, b in relations
            ]
            found["relation"] = torch.stack(divergences).mean(0)
        return found


def _by_name(shown: Shown, widths: Sequence[int], states: Tensor) -> dict[int | str, Tensor]:
    """Layer, or part of the last attention → its (windows, tokens, …) share of what is shown."""
    names: list[int | str] = [*shown.layers, *shown.parts]
    return dict(zip(names, torch.split(states, list(widths), dim=-1))) if names else {}
