"""The teacher stage of one rank: model and engine, and what is under way between instructions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tsarch.data.feed import Feed
from tsarch.data.replica_arrays import TeacherPart
from tsarch.losses.objective import Objective
from tsarch.parallel.link import Link, Message
from tsarch.parallel.tied_embedding import TiedEmbedding
from tsarch.records import IntArray, LossParts
from tsarch.stage.engine import Engine
from tsarch.stage.in_flight import Outgoing
from tsarch.stage.step_rows import StepRows
from tsarch.topology import Stage


@dataclass
class _UnderWay:
    """A micro-batch between its forward and its backward."""

    part: TeacherPart
    hidden: Tensor
    """(batch × teacher_tokens, teacher_width), with its graph."""
    loss: Tensor
    grad: Tensor | None = None
    """Gradient of the students' losses at `hidden`, once it has come."""


class TeacherStage:
    """Runs the teacher's instructions on replica `replica`."""

    def __init__(
        self,
        engine: Engine,
        tied: TiedEmbedding,
        replica: int,
        objective: Objective,
        is_seq2seq: bool = False,
    ) -> None:
        self.engine = engine
        self.replica = replica
        self.on_output: Callable[[IntArray, Tensor], None] | None = None
        """Called with every part's words and predictions while the teacher alone is evaluated."""
        self._objective = objective
        self._is_seq2seq = is_seq2seq
        self.rows = StepRows(tied)
        self._under_way: dict[tuple[int, int], _UnderWay] = {}
        self.sent: Outgoing = {}
        """The last step's messages: a checkpoint takes those that are under way."""
        self._outgoing: dict[tuple[int, int], list[tuple[Message, Tensor]]] = {}

    def forward(self, feed: Feed, step: int, micro_batch: int, update: bool) -> LossParts:
        """Hidden states, predictions and loss of a micro-batch; keeps the graph for an update."""
        part = feed.teacher_part(step, micro_batch, self.replica)
        touched = self.rows.get(step, feed.plan(step).token_ids, update)
        device = self.engine.device
        with torch.set_grad_enabled(update):
            embeds = touched.lookup(
                torch.from_numpy(part.rows).to(device), self.engine.compute_dtype
            )
            mask = torch.from_numpy(part.mask).to(device)
            hidden, predictions = self.engine.forward(embeds, mask, self._starts(part.words))
            hidden = hidden.flatten(0, 1)
            labels = torch.from_numpy(feed.labels(part.words)).to(device)
            losses = self._objective.losses(predictions, labels, touched.leaf)
            num_terms = feed.plan(step).num_terms(Stage.TEACHER, self._objective.per_sequence)
            loss = losses.sum() / num_terms
        if update:
            self._under_way[step, micro_batch] = _UnderWay(part, hidden, loss)
        predictions = predictions.detach()
        if self.on_output is not None:
            self.on_output(part.words, predictions)
        sent = self._objective.sent(predictions, labels).flatten(0, 1)
        self._outgoing[step, micro_batch] = self._messages(
            feed, part, step, micro_batch, hidden.detach(), sent
        )
        total = float(losses.detach().double().sum()) / num_terms
        return LossParts({"teacher": total})

    def send(self, link: Link, step: int, micro_batch: int) -> None:
        """Start sending the hidden states of a micro-batch, to each student what it needs."""
        messages = self._outgoing.pop((step, micro_batch))
        self.sent[micro_batch] = (step, messages)
        for message, rows in messages:
            link.send(message, rows)

    def resend(
        self, link: Link, step: int, micro_batch: int, messages: list[tuple[Message, Tensor]]
    ) -> None:
        """Send what was sent before a checkpoint."""
        device = self.engine.device
        self._outgoing[step, micro_batch] = [(m, rows.to(device)) for m, rows in messages]
        self.send(link, step, micro_batch)

    def incoming(self, feed: Feed, step: int, micro_batch: int) -> list[Message]:
        """The gradient messages of a micro-batch, in order of arrival."""
        under_way = feed.teacher_part(step, micro_batch, self.replica)
        own = feed.topology.rank(Stage.TEACHER, self.replica)
        return [
            Message(
                step,
                micro_batch,
                feed.topology.rank(Stage.STUDENT, student),
                own,
                len(places),
                feed.teacher_width,
            )
            for student, places in under_way.outgoing.items()
        ]

    def receive(self, feed: Feed, link: Link, step: int, micro_batch: int) -> None:
        """Wait for the gradient of a micro-batch's hidden states, for its `backward`."""
        under_way = self._under_way[step, micro_batch]
        under_way.grad = torch.zeros_like(under_way.hidden)
        places = under_way.part.outgoing.values()
        for message, own in zip(self.incoming(feed, step, micro_batch), places, strict=True):
            rows = under_way.grad.new_empty(message.rows, message.width)
            link.receive(message, rows)
            under_way.grad.index_add_(0, torch.from_numpy(own).to(rows.device), rows)

    def backward(self, step: int, micro_batch: int, last: bool) -> None:
        """Back-propagate a micro-batch's loss, and the students' through the hidden states.

        Their gradient g enters as the loss (h·g).sum(), whose derivative it is: engines only take
        losses, and ZeRO needs one call for both.
        """
        under_way = self._under_way.pop((step, micro_batch))
        loss = under_way.loss
        if under_way.grad is not None and under_way.hidden.requires_grad:
            loss = loss + (under_way.hidden * under_way.grad).sum(dtype=torch.float32)
        self.engine.backward(loss, last)

    def _starts(self, words: IntArray) -> Tensor | None:
        """(batch,) places of the first labelled tokens, for sequence-to-sequence models."""
        if not self._is_seq2seq:
            return None
        starts = np.argmax(words >= 0, axis=1)
        return torch.from_numpy(starts).to(self.engine.device)

    def _messages(
        self,
        feed: Feed,
        part: TeacherPart,
        step: int,
        micro_batch: int,
        hidden: Tensor,
        predictions: Tensor,
    ) -> list[tuple[Message, Tensor]]:
        rows = hidden
        if feed.send_predictions:
            rows = torch.cat([hidden, predictions.to(hidden.dtype)], dim=-1)
        own = feed.topology.rank(Stage.TEACHER, self.replica)
        return [
            (
                Message(
                    step,
                    micro_batch,
                    own,
                    feed.topology.rank(Stage.STUDENT, student),
                    len(places),
                    rows.shape[1],
                ),
                rows[torch.from_numpy(places).to(rows.device)],
            )
            for student, places in part.outgoing.items()
        ]
