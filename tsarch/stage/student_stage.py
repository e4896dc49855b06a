"""The student stage of one rank: model and engine, and what is under way between instructions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tsarch.data.feed import Feed
from tsarch.data.replica_arrays import StudentPart, WindowBatch
from tsarch.losses.objective import Objective
from tsarch.parallel.link import Link, Message
from tsarch.parallel.tied_embedding import TiedEmbedding, TouchedRows
from tsarch.records import LossParts
from tsarch.stage.engine import Engine
from tsarch.stage.step_rows import StepRows
from tsarch.tasks.collect import WindowOutputs
from tsarch.topology import Stage


@dataclass(frozen=True)
class DistillationSpec:
    """See `DistillationConfig`."""

    weight: float
    temperature: float
    passes: Literal["all", "fed", "alone"]


@dataclass(frozen=True)
class _Boundary:
    """What came from the teachers for a micro-batch, and a spare row."""

    hidden: Tensor
    """(rows + 1, teacher_width); a leaf whose gradient goes back, in `joint`."""
    predictions: Tensor | None
    """(rows + 1, outputs), where they came along."""


class StudentStage:
    """Runs the student's instructions on replica `replica`."""

    def __init__(
        self,
        engine: Engine,
        tied: TiedEmbedding,
        replica: int,
        teacher_width: int,
        num_outputs: int,
        objective: Objective,
        distillation: DistillationSpec,
    ) -> None:
        self.engine = engine
        self.replica = replica
        self.on_output: Callable[[WindowOutputs], None] | None = None
        """Called with every group's predictions while evaluating."""
        self.rows = StepRows(tied)
        self._teacher_width = teacher_width
        self._num_outputs = num_outputs
        self._objective = objective
        self._distillation = distillation
        self._losses: dict[tuple[int, int], Tensor] = {}
        self._boundaries: dict[tuple[int, int], _Boundary] = {}
        self._outgoing: dict[tuple[int, int], Tensor] = {}

    def incoming(self, feed: Feed, step: int, micro_batch: int) -> list[Message]:
        """The messages with a micro-batch's hidden states, in order of arrival."""
        part = feed.student_part(step, micro_batch, self.replica)
        width = self._teacher_width + (self._num_outputs if feed.send_predictions else 0)
        own = feed.topology.rank(Stage.STUDENT, self.replica)
        return [
            Message(step, micro_batch, feed.topology.rank(Stage.TEACHER, teacher), own, rows, width)
            for teacher, rows in part.incoming.items()
        ]

    def receive(
        self, feed: Feed, link: Link, step: int, micro_batch: int, requires_grad: bool
    ) -> None:
        """Wait for the hidden states of a micro-batch (and predictions, if they come along).

        `requires_grad`: `backward` will make their gradient, for `send`.
        """
        messages = self.incoming(feed, step, micro_batch)
        width = self._teacher_width + (self._num_outputs if feed.send_predictions else 0)
        # One row more, so that an idle replica's indices point somewhere; nothing reads it.
        rows = torch.zeros(
            sum(m.rows for m in messages) + 1,
            width,
            dtype=self.engine.compute_dtype,
            device=self.engine.device,
        )
        start = 0
        for message in messages:
            link.receive(message, rows[start : start + message.rows])
            start += message.rows
        hidden, predictions = rows[:, : self._teacher_width], None
        if feed.send_predictions:
            predictions = rows[:, self._teacher_width :]
        if requires_grad:
            hidden = hidden.clone().requires_grad_()
        self._boundaries[step, micro_batch] = _Boundary(hidden, predictions)

    def forward(self, feed: Feed, step: int, micro_batch: int, update: bool) -> LossParts:
        """Predictions and loss of a micro-batch's windows; keeps the graph for an update."""
        part = feed.student_part(step, micro_batch, self.replica)
        touched = self.rows.get(step, feed.plan(step).token_ids, update)
        boundary = self._boundaries[step, micro_batch]
        with torch.set_grad_enabled(update):
            predictions = self._predictions(part, touched, boundary.hidden)
            outputs = [
                WindowOutputs(
                    group,
                    torch.from_numpy(feed.labels(group.words)).to(own.device),
                    own,
                    self._teacher_view(group, boundary.predictions),
                    touched.leaf,
                )
                for group, own in zip(part.groups, predictions, strict=True)
            ]
            num_terms = feed.plan(step).num_terms(Stage.STUDENT, self._objective.per_sequence)
            loss, parts = self._loss(num_terms, outputs)
        if update:
            self._losses[step, micro_batch] = loss
        if not boundary.hidden.requires_grad:
            del self._boundaries[step, micro_batch]
        if self.on_output is not None:
            for output in outputs:
                self.on_output(output)
        return parts

    def backward(self, step: int, micro_batch: int, last: bool) -> None:
        """Back-propagate a micro-batch's loss."""
        self.engine.backward(self._losses.pop((step, micro_batch)), last)
        boundary = self._boundaries.pop((step, micro_batch), None)
        if boundary is not None:
            grad = boundary.hidden.grad
            grad = torch.zeros_like(boundary.hidden) if grad is None else grad
            self._outgoing[step, micro_batch] = grad * self.engine.grad_scale

    def send(self, feed: Feed, link: Link, step: int, micro_batch: int) -> None:
        """Start sending the gradient of a micro-batch's hidden states back to the teachers."""
        grad = self._outgoing.pop((step, micro_batch))
        start = 0
        for m in self.incoming(feed, step, micro_batch):
            back = Message(step, micro_batch, m.target, m.source, m.rows, self._teacher_width)
            link.send(back, grad[start : start + m.rows])
            start += m.rows

    def _predictions(
        self, part: StudentPart, touched: TouchedRows, boundary: Tensor
    ) -> list[Tensor]:
        device, dtype = self.engine.device, self.engine.compute_dtype
        embeds = [touched.lookup(torch.from_numpy(g.rows).to(device), dtype) for g in part.groups]
        masks = [torch.from_numpy(g.mask).to(device) for g in part.groups]
        places = [torch.from_numpy(g.boundary).to(device) for g in part.groups]
        predictions: list[Tensor] = self.engine.forward(embeds, masks, boundary, places)
        return predictions

    def _teacher_view(self, group: WindowBatch, predictions: Tensor | None) -> Tensor | None:
        """The teacher's predictions at the group's positions (also of passes that were not fed)."""
        if predictions is None:
            return None
        places = torch.from_numpy(group.arrived).to(self.engine.device)
        return predictions[places.clamp(min=0)]

    def _loss(self, num_terms: int, outputs: list[WindowOutputs]) -> tuple[Tensor, LossParts]:
        """Σ weight · (loss + λ·KD) / terms of the global batch, and its parts."""
        total = torch.zeros((), device=self.engine.device)
        sums = {"student": 0.0, "student_alone": 0.0, "distillation": 0.0}
        for output in outputs:
            weight = torch.from_numpy(output.group.weight).to(total.device).unsqueeze(1)
            losses = self._objective.losses(output.student, output.labels, output.table)
            total = total + (losses * weight).sum()
            second = torch.from_numpy(output.group.second).to(total.device).unsqueeze(1)
            per_pass = losses.detach().double()
            sums["student"] += float((per_pass * (1 - second)).sum())
            sums["student_alone"] += float((per_pass * second).sum())
            if self._distillation.weight > 0 and output.teacher is not None:
                divergence = self._divergence(output) * weight
                total = total + self._distillation.weight * divergence.sum().float()
                sums["distillation"] += float(divergence.detach().double().sum())
        parts = LossParts({name: value / num_terms for name, value in sums.items()})
        return total / num_terms, parts

    def _divergence(self, output: WindowOutputs) -> Tensor:
        """(windows, tokens) KD term of the passes that it is for."""
        assert output.teacher is not None
        spec = self._distillation
        divergence = self._objective.divergences(
            output.student, output.teacher, output.labels, spec.temperature, output.table
        )
        if spec.passes != "all":
            fed = torch.from_numpy(output.group.fed).to(divergence.device).unsqueeze(1)
            divergence = divergence * (fed if spec.passes == "fed" else 1 - fed)
        return divergence
