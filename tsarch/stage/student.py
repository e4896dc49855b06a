"""The student stage of one rank: model and engine, and what is under way between instructions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tsarch.data.feed import Feed
from tsarch.data.parts import StudentPart, WindowGroup
from tsarch.losses.token import cross_entropy, distillation
from tsarch.parallel.link import Message
from tsarch.parallel.tied_embedding import TiedEmbedding, TouchedRows
from tsarch.records import LossParts
from tsarch.stage.engine import Engine
from tsarch.stage.step_rows import StepRows


@dataclass(frozen=True)
class DistillationSpec:
    """See `DistillationConfig`."""

    weight: float
    temperature: float
    alone_only: bool


@dataclass(frozen=True)
class GroupOutput:
    """Logits of one group of windows, beside the teacher's on the same positions."""

    group: WindowGroup
    logits: Tensor
    """(windows, tokens, num_labels)."""
    teacher_logits: Tensor | None
    """(windows, tokens, num_labels), where they came along."""


class StudentStage:
    """Runs the student's instructions on replica `replica`."""

    def __init__(
        self,
        engine: Engine,
        tied: TiedEmbedding,
        replica: int,
        teacher_width: int,
        num_labels: int,
        distillation: DistillationSpec,
    ) -> None:
        self.engine = engine
        self.replica = replica
        self.on_output: Callable[[GroupOutput], None] | None = None
        """Called with every group's logits while evaluating."""
        self.rows = StepRows(tied)
        self._teacher_width = teacher_width
        self._num_labels = num_labels
        self._distillation = distillation
        self._losses: dict[tuple[int, int], Tensor] = {}

    def incoming(self, feed: Feed, step: int, micro_batch: int) -> list[tuple[int, Message]]:
        """(teacher replica, message) of a micro-batch, in order of arrival."""
        part = feed.student_part(step, micro_batch, self.replica)
        return [
            (teacher, Message(step, micro_batch, rows, self._boundary_width(feed)))
            for teacher, rows in part.incoming.items()
        ]

    def forward(
        self, feed: Feed, step: int, micro_batch: int, update: bool, received: list[Tensor]
    ) -> LossParts:
        """Predictions and loss of a micro-batch's windows; keeps the graph for an update."""
        part = feed.student_part(step, micro_batch, self.replica)
        touched = self.rows.get(step, feed.plan(step).token_ids, update)
        boundary, teacher_logits = self._split_boundary(feed, received)
        with torch.set_grad_enabled(update):
            logits = self._logits(part, touched, boundary)
            outputs = [
                GroupOutput(group, group_logits, self._teacher_view(group, teacher_logits))
                for group, group_logits in zip(part.groups, logits, strict=True)
            ]
            loss, parts = self._loss(feed, step, outputs)
        if update:
            self._losses[step, micro_batch] = loss
        if self.on_output is not None:
            for output in outputs:
                self.on_output(output)
        return parts

    def backward(self, step: int, micro_batch: int, last: bool) -> None:
        """Back-propagate a micro-batch's loss."""
        self.engine.backward(self._losses.pop((step, micro_batch)), last)

    def _boundary_width(self, feed: Feed) -> int:
        return self._teacher_width + (self._num_labels if feed.send_predictions else 0)

    def _split_boundary(self, feed: Feed, received: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Hidden states (rows, teacher_width) and, if they came, predictions (rows, labels)."""
        width = self._boundary_width(feed)
        # One row more, so that an idle replica's indices point somewhere; nothing reads it.
        spare = torch.zeros(1, width, dtype=self.engine.compute_dtype, device=self.engine.device)
        rows = torch.cat([*received, spare])
        if not feed.send_predictions:
            return rows, None
        return rows[:, : self._teacher_width], rows[:, self._teacher_width :]

    def _logits(self, part: StudentPart, touched: TouchedRows, boundary: Tensor) -> list[Tensor]:
        device, dtype = self.engine.device, self.engine.compute_dtype
        embeds = [touched.lookup(torch.from_numpy(g.rows).to(device), dtype) for g in part.groups]
        masks = [torch.from_numpy(g.mask).to(device) for g in part.groups]
        places = [torch.from_numpy(g.boundary).to(device) for g in part.groups]
        logits: list[Tensor] = self.engine.forward(embeds, masks, boundary, places)
        return logits

    def _teacher_view(self, group: WindowGroup, teacher_logits: Tensor | None) -> Tensor | None:
        """The teacher's logits at the group's positions (also of passes that were not fed)."""
        if teacher_logits is None:
            return None
        places = torch.from_numpy(group.arrived).to(self.engine.device)
        return teacher_logits[places.clamp(min=0)]

    def _loss(self, feed: Feed, step: int, outputs: list[GroupOutput]) -> tuple[Tensor, LossParts]:
        """Σ weight · (cross-entropy + λ·KD) / labels of the global batch, and its terms."""
        num_labels = feed.plan(step).num_labels
        total = torch.zeros((), device=self.engine.device)
        sums = {"student": 0.0, "student_alone": 0.0, "distillation": 0.0}
        for output in outputs:
            labels = torch.from_numpy(feed.labels(output.group.words)).to(total.device)
            weight = torch.from_numpy(output.group.weight).to(total.device).unsqueeze(1)
            losses = cross_entropy(output.logits, labels)
            total = total + (losses * weight).sum()
            second = torch.from_numpy(output.group.second).to(total.device).unsqueeze(1)
            per_pass = losses.detach().double()
            sums["student"] += float((per_pass * (1 - second)).sum())
            sums["student_alone"] += float((per_pass * second).sum())
            if self._distillation.weight > 0 and output.teacher_logits is not None:
                divergence = self._divergence(output, labels) * weight
                total = total + self._distillation.weight * divergence.sum().float()
                sums["distillation"] += float(divergence.detach().double().sum())
        parts = LossParts({name: value / num_labels for name, value in sums.items()})
        return total / num_labels, parts

    def _divergence(self, output: GroupOutput, labels: Tensor) -> Tensor:
        """(windows, tokens) KD term of the passes that it is for."""
        assert output.teacher_logits is not None
        spec = self._distillation
        divergence = distillation(output.logits, output.teacher_logits, labels, spec.temperature)
        if spec.alone_only:
            fed = torch.from_numpy(output.group.fed).to(divergence.device).unsqueeze(1)
            divergence = divergence * (1 - fed)
        return divergence
