"""A stage that reads windows, on one rank: its half of the pair in an engine, and what is under way
between instructions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tsarch.data.feed import Feed
from tsarch.data.replica_arrays import WindowBatch
from tsarch.losses.objective import Objective
from tsarch.losses.predictions import Logits, Predicted, dense
from tsarch.losses.token import confidence
from tsarch.models.drafter_model import DrafterModel
from tsarch.models.student_model import StudentModel
from tsarch.pair.halves import StudentHalf
from tsarch.pair.states import Tokens
from tsarch.parallel.link import Link
from tsarch.parallel.tied_embedding import TiedEmbedding
from tsarch.records import IGNORED, FloatArray, LossParts, Message
from tsarch.specs import DistillationSpec, PredictionSpec, ScorerSpec, UnlabelledSpec
from tsarch.stage.drafting import drafting_loss
from tsarch.stage.engine import Engine
from tsarch.stage.fed_states import Boundary, fed_states
from tsarch.stage.matched import Matched
from tsarch.stage.positions import PositionCount
from tsarch.stage.slice_scores import parted_scores, scorer_loss
from tsarch.stage.step_rows import StepRows
from tsarch.tasks.collect import WindowOutputs
from tsarch.topology import Stage


class StudentStage:
    """Runs the instructions of replica `replica`."""

    def __init__(
        self,
        stage: Stage,
        engine: Engine,
        tied: TiedEmbedding,
        replica: int,
        arriving: PredictionSpec,
        objective: Objective,
        distillation: DistillationSpec,
        matched: Matched | None = None,
        unlabelled: UnlabelledSpec | None = None,
        targets: FloatArray | None = None,
        scorer: ScorerSpec | None = None,
    ) -> None:
        self.stage = stage
        self.engine = engine
        self.replica = replica
        assert isinstance(engine.module, StudentModel | DrafterModel)
        self.half = StudentHalf(engine, engine.module)
        self._module = engine.module
        self._depths = engine.module.depths
        self.on_output: Callable[[WindowOutputs], None] | None = None
        """Called with every batch's predictions while evaluating."""
        self.on_survey: Callable[[Sequence[WindowBatch], Sequence[Tensor]], None] | None = None
        """Called with batches and their scores, which are all that is made then; None: nobody."""
        self.rows = StepRows(tied)
        self.positions = PositionCount(engine.module.unpadded is not None)
        self._arriving = arriving
        """What comes along from the teachers, where their predictions are wanted."""
        self._objective = objective
        self._distillation = distillation
        self._unlabelled = unlabelled
        """None: all text has labels."""
        self._targets = targets
        """(num_words, outputs) of the training split, what is distilled in place of what teachers
        say; None: it is what they say."""
        self._scorer = scorer
        """Of the module's scores of slices; None: it makes none."""
        self._matched = matched
        """Compares the models' inside; None: nobody does."""
        self._losses: dict[tuple[int, int], Tensor] = {}
        self._boundaries: dict[tuple[int, int], Boundary] = {}
        self._outgoing: dict[tuple[int, int], Tensor] = {}

    def expected(self, feed: Feed, step: int, micro_batch: int, peer: Stage) -> list[Message]:
        """The messages with a micro-batch's hidden states, in order of arrival."""
        routes = feed.routes_to(step, micro_batch, self._rank(feed), peer)
        return [route.message(step, micro_batch, self._width(feed)) for route in routes]

    def receive(
        self,
        feed: Feed,
        link: Link,
        step: int,
        micro_batch: int,
        peer: Stage,
        requires_grad: bool = False,
    ) -> None:
        """Wait for the hidden states of a micro-batch (and predictions, if they come along).

        `requires_grad`: `backward` will make their gradient, for `send`.
        """
        messages = self.expected(feed, step, micro_batch, peer)
        states = self._room(feed, sum(message.num_states for message in messages))
        start = 0
        for message in messages:
            link.receive(message, states[start : start + message.num_states])
            start += message.num_states
        boundary = self._parted(feed, states)
        if requires_grad:
            boundary = replace(boundary, hidden=boundary.hidden.clone().requires_grad_())
        self._boundaries[step, micro_batch] = boundary

    def forward(self, feed: Feed, step: int, micro_batch: int, update: bool) -> LossParts:
        """Predictions and loss of a micro-batch's windows; keeps the graph for an update."""
        batches = feed.window_batches(step, micro_batch, self.stage, self.replica)
        self.positions.add(own.mask for own in batches)
        touched = self.rows.get(step, feed.plan(step).token_ids, update)
        boundary = self._boundaries.get((step, micro_batch))
        if boundary is None:  # nobody feeds this stage
            boundary = replace(self._parted(feed, self._room(feed, 0)), predictions=None)
        device = self.engine.device
        labels = [torch.from_numpy(feed.labels(own.words)).to(device) for own in batches]
        with torch.set_grad_enabled(update):
            fed, fed_by = fed_states(boundary.hidden, [own.boundary for own in batches])
            found = self.half.read(
                touched,
                [Tokens(own.rows, own.mask, own.types) for own in batches],
                fed,
                fed_by,
                [own != IGNORED for own in labels],
                survey=self.on_survey is not None,
            )
            if self.on_survey is not None:
                self._boundaries.pop((step, micro_batch), None)
                self.on_survey(batches, found)
                return LossParts({})
            num_terms = feed.plan(step).num_terms(self.stage, self._objective.per_sequence)
            outputs, loss, parts = self._learned(
                num_terms, batches, labels, boundary, found, touched.leaf
            )
        if update:
            self._losses[step, micro_batch] = loss
        if not boundary.hidden.requires_grad:
            self._boundaries.pop((step, micro_batch), None)
        if self.on_output is not None:
            for output in outputs:
                self.on_output(output)
        return parts

    def _learned(
        self,
        num_terms: int,
        batches: Sequence[WindowBatch],
        labels: Sequence[Tensor],
        boundary: Boundary,
        found: list[Tensor],
        table: Tensor,
    ) -> tuple[list[WindowOutputs], Tensor, LossParts]:
        """Predictions at the end, loss and its parts, of what the module `found`."""
        has_scores = self._scorer is not None and self._module.training
        found, scores = parted_scores(found, len(batches) if has_scores else 0)
        heard = [
            self._teachers(batch, own, boundary.predictions)
            for batch, own in zip(batches, labels, strict=True)
        ]
        outputs, *shallow = [
            [
                WindowOutputs(batch, own, self._said(said, own), teacher, table)
                for batch, own, said, teacher in zip(batches, labels, part, heard, strict=True)
            ]
            for part in self._by_depth(found, len(batches))
        ]
        loss, parts = self._of_all(num_terms, outputs, shallow)
        if inside := found[len(batches) * (1 + len(shallow)) :]:
            term, part = self._match(num_terms, outputs, inside, boundary)
            loss, parts = loss + term, parts + part
        if self._scorer is not None and scores:
            mean = scorer_loss(num_terms, batches, labels, scores)
            loss = loss + self._scorer.weight * mean.float()
            parts += LossParts({self._part("scorer"): float(mean.detach())})
        return outputs, loss, parts

    def backward(self, step: int, micro_batch: int, last: bool) -> None:
        """Back-propagate a micro-batch's loss."""
        self.engine.backward(self._losses.pop((step, micro_batch)), last)
        boundary = self._boundaries.pop((step, micro_batch), None)
        if boundary is not None:
            grad = boundary.hidden.grad
            grad = torch.zeros_like(boundary.hidden) if grad is None else grad
            self._outgoing[step, micro_batch] = grad * self.engine.grad_scale

    def send(self, feed: Feed, link: Link, step: int, micro_batch: int, peer: Stage) -> None:
        """Start sending the gradient of a micro-batch's hidden states back to a peer."""
        grad = self._outgoing.pop((step, micro_batch))
        start = 0
        for route in feed.routes_to(step, micro_batch, self._rank(feed), peer):
            back = route.message_back(step, micro_batch, self.half.teacher_width)
            link.send(back, grad[start : start + back.num_states])
            start += back.num_states

    def _rank(self, feed: Feed) -> int:
        return feed.topology.rank(self.stage, self.replica)

    def _width(self, feed: Feed) -> int:
        """Numbers that travel for a position."""
        predicted = self._arriving.width if feed.send_predictions else 0
        return self.half.teacher_width + self._shown_width(feed) + predicted

    def _shown_width(self, feed: Feed) -> int:
        return self._matched.width if feed.send_shown and self._matched is not None else 0

    def _parted(self, feed: Feed, states: Tensor) -> Boundary:
        """What came, told apart: hidden states, what is shown beside them, predictions."""
        widths = [self.half.teacher_width, self._shown_width(feed)]
        hidden, shown, predictions = states.tensor_split([widths[0], sum(widths)], dim=1)
        return Boundary(hidden, predictions if feed.send_predictions else None, shown)

    def _room(self, feed: Feed, num_states: int) -> Tensor:
        """Zeros for so many states, and one more, so that an idle replica's indices point
        somewhere; nothing reads it."""
        dtype, device = self.engine.compute_dtype, self.engine.device
        return torch.zeros(num_states + 1, self._width(feed), dtype=dtype, device=device)

    def _said(self, predictions: Tensor, labels: Tensor) -> Predicted:
        """Predictions of everywhere, or logits of the labelled positions."""
        if self.half.output.gives_logits:
            return Logits(predictions, labels != IGNORED)
        return predictions

    def _teachers(
        self, batch: WindowBatch, labels: Tensor, predictions: Tensor | None
    ) -> Predicted | None:
        """What the teacher, or another run's, says at the batch's positions."""
        if self._targets is not None and self.on_output is None:
            said = np.where((batch.words >= 0)[..., None], self._targets[batch.words], 0)
            return torch.from_numpy(said).to(self.engine.device)
        if predictions is None or not self._arriving.are_logits:
            return self._at(batch, predictions)
        chosen = labels != IGNORED
        places = torch.from_numpy(batch.arrived).to(self.engine.device)[chosen]
        return Logits(predictions[places.clamp(min=0)], chosen)

    def _at(self, batch: WindowBatch, states: Tensor | None) -> Tensor | None:
        """What came from the teacher at the batch's positions (also of passes not fed)."""
        if states is None:
            return None
        places = torch.from_numpy(batch.arrived).to(self.engine.device)
        return states[places.clamp(min=0)]

    def _loss(self, num_terms: int, outputs: list[WindowOutputs]) -> tuple[Tensor, LossParts]:
        """Σ weight · (loss + λ·KD) / terms of the global batch, and its parts."""
        total = torch.zeros((), device=self.engine.device)
        name = self.stage.name
        alone, taught = f"{name}_alone", self._part("distillation")
        sums = {name: 0.0, alone: 0.0, taught: 0.0}
        unlabelled = self._part("unlabelled")
        if self._unlabelled is not None:
            sums[unlabelled] = 0.0
        for output in outputs:
            weight = torch.from_numpy(output.batch.weight).to(total.device).unsqueeze(1)
            learned = torch.from_numpy(output.batch.labelled).to(total.device).unsqueeze(1)
            losses = self._objective.losses(output.student, output.labels, output.table) * learned
            total = total + (losses * weight).sum()
            second = torch.from_numpy(output.batch.second).to(total.device).unsqueeze(1)
            per_pass = losses.detach().double()
            stands_for = torch.from_numpy(output.batch.stands_for).to(second.device).unsqueeze(1)
            per_pass = per_pass * stands_for
            sums[name] += float((per_pass * (1 - second)).sum())
            sums[alone] += float((per_pass * second).sum())
            if self._distillation.weight > 0 and output.teacher is not None:
                divergence = self._divergence(output) * weight
                total = total + self._distillation.weight * divergence.sum().float()
                found = divergence.detach().double()
                sums[taught] += float((found * learned).sum())
                if self._unlabelled is not None:
                    sums[unlabelled] += float((found * (1 - learned)).sum())
        parts = LossParts({part: value / num_terms for part, value in sums.items()})
        return total / num_terms, parts

    def _of_all(
        self, num_terms: int, outputs: list[WindowOutputs], shallow: list[list[WindowOutputs]]
    ) -> tuple[Tensor, LossParts]:
        """Loss and parts of what is said at the end and after fewer layers, or by a drafter."""
        if self.half.drafter is not None:
            return self._drafting_loss(num_terms, [outputs, *shallow])
        loss, parts = self._loss(num_terms, outputs)
        if shallow:
            term, part = self._shallow_loss(num_terms, shallow)
            loss, parts = (loss + term) / (1 + len(shallow)), parts + part
        return loss, parts

    def _drafting_loss(
        self, num_terms: int, steps: list[list[WindowOutputs]]
    ) -> tuple[Tensor, LossParts]:
        """λ · what is between a drafter and the teacher, over its steps, and its parts."""
        assert self.half.drafter is not None
        total, first = drafting_loss(steps, self.half.drafter.choices, self._divergence)
        loss = self._distillation.weight * total.float() / num_terms
        name, taught = self.stage.name, self._part("distillation")
        parts = {name: float(loss.detach()), f"{name}_alone": 0.0, taught: first / num_terms}
        return loss, LossParts(parts)

    def _by_depth(self, found: list[Tensor], num_batches: int) -> list[list[Tensor]]:
        """Predictions of each batch, at the end and, in training, after fewer layers."""
        number = 1 + (len(self._depths) if self._module.training else 0)
        if self.half.drafter is not None:  # its steps
            number = len(found) // num_batches
        return [found[i * num_batches : (i + 1) * num_batches] for i in range(number)]

    def _shallow_loss(
        self, num_terms: int, shallow: list[list[WindowOutputs]]
    ) -> tuple[Tensor, LossParts]:
        """Sum of the losses after fewer layers, and their parts."""
        total, parts = torch.zeros((), device=self.engine.device), LossParts({})
        for depth, outputs in zip(self._depths, shallow, strict=True):
            loss, own = self._loss(num_terms, outputs)
            total = total + loss
            parts += LossParts({f"{name}_depth{depth}": v for name, v in own.means.items()})
        return total, parts

    def _divergence(self, output: WindowOutputs) -> Tensor:
        """(windows, tokens) KD term of the passes that it is for."""
        temperature, own = self._distillation.temperature, self._unlabelled
        values = self._divergence_at(output, temperature)
        if own is not None and not output.batch.labelled.all():
            apart = values
            if own.temperature != temperature:
                apart = self._divergence_at(output, own.temperature)
            if own.min_confidence > 0:
                assert output.teacher is not None
                apart = apart * (confidence(dense(output.teacher)) >= own.min_confidence)
            learned = torch.from_numpy(output.batch.labelled).to(values.device).unsqueeze(1)
            values = torch.where(learned == 1, values, apart)
        return values * self._is_taught(output.batch, self._distillation.passes)

    def _divergence_at(self, output: WindowOutputs, temperature: float) -> Tensor:
        """(windows, tokens) from the teacher's to the student's predictions."""
        assert output.teacher is not None
        return self._objective.divergences(
            output.student,
            output.teacher,
            output.labels,
            temperature,
            output.table,
            self._distillation.divergence,
        )

    def _match(
        self,
        num_terms: int,
        outputs: list[WindowOutputs],
        inside: list[Tensor],
        boundary: Boundary,
    ) -> tuple[Tensor, LossParts]:
        """Σ weight · what the models' inside differs by / terms of the global batch, and its parts.

        Args:
            inside: what the model gives beside its predictions: of each batch the first thing,
                then of each batch the second one, …
        """
        assert self._matched is not None
        total = torch.zeros((), device=self.engine.device)
        sums: dict[str, float] = {}
        for place, output in enumerate(outputs):
            batch = output.batch
            hidden = self._at(batch, boundary.hidden.detach())
            shown = self._at(batch, boundary.shown)
            assert hidden is not None
            assert shown is not None
            came = torch.from_numpy((batch.arrived >= 0) & (batch.mask > 0)).to(total.device)
            chosen = (output.labels != IGNORED).double()
            if self._objective.per_sequence:  # a mean over the words of each
                chosen = chosen / chosen.sum(1, keepdim=True).clamp(min=1)
            weight = torch.from_numpy(batch.weight).to(total.device).unsqueeze(1)
            counted = chosen * self._is_taught(batch, self._matched.passes) * weight
            own = inside[place :: len(outputs)]
            for name, values in self._matched.terms(own, hidden, shown, came).items():
                taught = values * counted
                total = total + self._matched.weights[name] * taught.sum().float()
                sums[name] = sums.get(name, 0.0) + float(taught.detach().sum())
        parts = {self._part(name): value / num_terms for name, value in sums.items()}
        return total / num_terms, LossParts(parts)

    def _is_taught(self, batch: WindowBatch, passes: Literal["all", "fed", "alone"]) -> Tensor:
        """(windows, 1) 1 for the passes that a term is for."""
        fed = torch.from_numpy(batch.fed).to(self.engine.device).unsqueeze(1)
        if passes == "all":
            return torch.ones_like(fed)
        return fed if passes == "fed" else 1 - fed

    def _part(self, name: str) -> str:
        """Name of a part of the loss that other stages have too."""
        return name + self.stage.name.removeprefix("student")
