"""A stage that reads contexts, on one rank: its half of the pair in an engine, and what is under
way between instructions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tsarch.data.feed import Feed
from tsarch.data.replica_arrays import ContextBatch
from tsarch.losses.objective import Objective
from tsarch.losses.predictions import Logits, Predicted, dense
from tsarch.models.sequence_parallel import Slice
from tsarch.models.teacher_model import TeacherModel
from tsarch.pair.halves import TeacherHalf
from tsarch.pair.states import States, Tokens
from tsarch.parallel.link import Link
from tsarch.parallel.tied_embedding import TiedEmbedding, TouchedRows
from tsarch.records import IGNORED, IntArray, LossParts, Message
from tsarch.stage.engine import Engine
from tsarch.stage.in_flight import Sent
from tsarch.stage.kept_states import KeptStates
from tsarch.stage.positions import PositionCount
from tsarch.stage.step_rows import StepRows
from tsarch.stage.whole_contexts import Gather, WholeContexts
from tsarch.tasks.collect import ContextOutputs
from tsarch.topology import Stage


@dataclass
class _UnderWay:
    """A micro-batch between its forward and its backward."""

    batch: ContextBatch
    hidden: Tensor
    """(batch × context_tokens, teacher_width), with its graph."""
    loss: Tensor
    grad: Tensor | None = None
    """Gradient of the students' losses at `hidden`, once it has come."""


@dataclass
class _Judged:
    """What a micro-batch's losses are of."""

    predictions: Predicted
    labels: Tensor
    num_judges: int = 1
    """Replicas that compute the same losses."""
    whole: WholeContexts | None = None
    """Of which contexts this replica has a slice, where these are whole ones."""

    def sent(self, objective: Objective) -> Predicted:
        """The replica's own predictions as they travel."""
        said = objective.sent(self.predictions.detach(), self.labels)
        return said if self.whole is None else self.whole.slice_of(dense(said))


class TeacherStage:
    """Runs the instructions of replica `replica`."""

    def __init__(
        self,
        stage: Stage,
        engine: Engine,
        tied: TiedEmbedding,
        replica: int,
        objective: Objective,
        kept: KeptStates | None = None,
        gets_gradient: bool = True,
        gather: Gather | None = None,
    ) -> None:
        self.stage = stage
        self.engine = engine
        self.replica = replica
        module = engine.module
        assert isinstance(module, TeacherModel)
        self.half = TeacherHalf(engine, module)
        self._hidden_width = module.hidden_width
        self.on_output: Callable[[ContextOutputs], None] | None = None
        """Called with every batch's predictions while a teacher alone is evaluated."""
        self._objective = objective
        self._gets_gradient = gets_gradient
        """Whether the students' gradient comes back (`joint`), of contexts without labels too."""
        self._kept = kept
        """States that training takes from an earlier epoch; None: they change."""
        self._gather = gather
        """Between the replicas that share contexts; None: this one has its own."""
        self.rows = StepRows(tied)
        reads_slices = module.sequence_parallel is not None
        self.positions = PositionCount(module.unpadded is not None or reads_slices)
        self._under_way: dict[tuple[int, int], _UnderWay] = {}
        self.sent: Sent = {}
        """The last step's messages: a checkpoint takes those that are under way."""
        self._outgoing: dict[tuple[int, int], tuple[Tensor, Logits | None]] = {}
        """States (batch × context_tokens, width), and logits that go with them."""

    def forward(self, feed: Feed, step: int, micro_batch: int, update: bool) -> LossParts:
        """Hidden states, predictions and loss of a micro-batch; keeps the graph for an update."""
        batch = feed.context_batch(step, micro_batch, self.stage, self.replica)
        touched = self.rows.get(step, feed.plan(step).token_ids, update)
        labels = torch.from_numpy(batch.labels).to(self.engine.device)
        with torch.set_grad_enabled(update):
            chosen = labels != IGNORED
            if self._kept is not None and update:
                contexts = feed.plan(step).micro_batches[micro_batch].contexts[self.stage]
                states = self._read_once(touched, contexts[self.replica], batch, chosen)
            elif update and not (self._gets_gradient or feed.all_labelled(step, micro_batch)):
                states = self._read_apart(touched, batch, chosen)
            else:
                states = self._encode(touched, batch, slice(None), chosen)
            hidden, predictions = states.hidden.flatten(0, 1), self._said(states, chosen)
            judged = self._judged(feed, batch, predictions, labels)
            learned = torch.from_numpy(batch.labelled).to(labels.device).unsqueeze(1)
            losses = self._objective.losses(judged.predictions, judged.labels, touched.leaf)
            losses = losses * learned
            num_terms = feed.plan(step).num_terms(self.stage, self._objective.per_sequence)
            num_terms *= judged.num_judges
            loss = losses.sum() / num_terms
        if update:
            self._under_way[step, micro_batch] = _UnderWay(batch, hidden, loss)
        predictions = predictions.detach()
        if self.on_output is not None:
            self.on_output(ContextOutputs(batch.words, labels, predictions, touched.leaf))
        if feed.topology.graph.targets(self.stage):
            states_out, logits = hidden.detach(), None
            if feed.send_shown and states.shown is not None:
                states_out = torch.cat([states_out, states.shown.flatten(0, 1)], dim=-1)
            if feed.send_predictions:
                sent = judged.sent(self._objective)
                if isinstance(sent, Logits):
                    logits = sent
                else:
                    own = sent.flatten(0, 1).to(states_out.dtype)
                    states_out = torch.cat([states_out, own], dim=-1)
            self._outgoing[step, micro_batch] = states_out, logits
        total = float(losses.detach().double().sum()) / num_terms
        return LossParts({self.stage.name: total})

    def send(self, feed: Feed, link: Link, step: int, micro_batch: int, peer: Stage) -> None:
        """Start sending a micro-batch's hidden states, to each rank of `peer` what it needs."""
        states, logits = self._outgoing[step, micro_batch]
        batch = feed.context_batch(step, micro_batch, self.stage, self.replica)
        messages = []
        for route in feed.routes_from(step, micro_batch, self._rank(feed), peer):
            own = torch.from_numpy(batch.outgoing[route.target]).to(states.device)
            sent = states[own]
            if logits is not None:
                sent = torch.cat([sent, logits.rows(own).to(sent.dtype)], dim=-1)
            messages.append((route.message(step, micro_batch, sent.shape[1]), sent))
        self._send_all(link, step, micro_batch, peer, messages)
        if peer is feed.topology.graph.targets(self.stage)[-1]:
            del self._outgoing[step, micro_batch]

    def resend(
        self,
        link: Link,
        step: int,
        micro_batch: int,
        peer: Stage,
        messages: list[tuple[Message, Tensor]],
    ) -> None:
        """Send what was sent before a checkpoint."""
        device = self.engine.device
        self._send_all(
            link, step, micro_batch, peer, [(m, states.to(device)) for m, states in messages]
        )

    def expected(self, feed: Feed, step: int, micro_batch: int, peer: Stage) -> list[Message]:
        """The gradient messages of a micro-batch from a peer, in order of arrival."""
        routes = feed.routes_from(step, micro_batch, self._rank(feed), peer)
        return [route.message_back(step, micro_batch, self._hidden_width) for route in routes]

    def receive(
        self,
        feed: Feed,
        link: Link,
        step: int,
        micro_batch: int,
        peer: Stage,
        requires_grad: bool = False,
    ) -> None:
        """Wait for a peer's gradient of a micro-batch's hidden states, for its `backward`."""
        under_way = self._under_way[step, micro_batch]
        if under_way.grad is None:
            under_way.grad = torch.zeros_like(under_way.hidden)
        for message in self.expected(feed, step, micro_batch, peer):
            grads = under_way.grad.new_empty(message.num_states, message.width)
            link.receive(message, grads)
            own = torch.from_numpy(under_way.batch.outgoing[message.source]).to(grads.device)
            under_way.grad.index_add_(0, own, grads)

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

    def _encode(
        self,
        touched: TouchedRows,
        batch: ContextBatch,
        rows: IntArray | slice,
        chosen: Tensor,
        whole: bool = False,
    ) -> States:
        """States and predictions of some `rows` of a batch; `whole`: see `TeacherHalf.encode`."""
        self.positions.add([batch.mask[rows]])
        types = None if batch.types is None else batch.types[rows]
        tokens = Tokens(batch.rows[rows], batch.mask[rows], types)
        starts = self._starts(batch)
        own = None if starts is None else starts[rows]
        return self.half.encode(touched, tokens, own, chosen, self._slice(batch), whole)

    def _judged(
        self, feed: Feed, batch: ContextBatch, predictions: Predicted, labels: Tensor
    ) -> _Judged:
        """What losses are of: the replica's own positions, or, where they look at whole contexts
        that it shares, these."""
        if self._gather is None or batch.slice is None or not self._objective.per_sequence:
            return _Judged(predictions, labels)
        number = feed.topology.num_slices(self.stage)
        whole = WholeContexts(self._gather, batch.slice, self.replica % number)
        said, own = whole.of(dense(predictions), 0.0), whole.of(labels, IGNORED)
        return _Judged(said, own, number, whole)

    def _slice(self, batch: ContextBatch) -> Slice | None:
        """Which part of its contexts a batch is, if it is one."""
        if batch.slice is None:
            return None
        arrays = batch.slice.positions[None], batch.slice.lengths
        return Slice(*(torch.from_numpy(own).to(self.engine.device) for own in arrays))

    def _read_apart(self, touched: TouchedRows, batch: ContextBatch, chosen: Tensor) -> States:
        """States and predictions of a batch, of which contexts without labels have no gradient:
        they are read without a graph. Each replica calls the model twice (ZeRO 3 gathers parameters
        in every call), if need be for a context that it has read already."""
        known, others = np.flatnonzero(batch.labelled), np.flatnonzero(batch.labelled == 0)
        with torch.no_grad():
            rows = others if len(others) else known[:1]
            beside = self._encode(touched, batch, rows, chosen[rows])
        rows = known if len(known) else others[:1]
        own = self._encode(touched, batch, rows, chosen[rows])
        places = np.arange(len(others)) + len(rows)
        if not len(known):
            places[0] = 0  # so that there is a graph
        order = np.argsort(np.concatenate([known, others]), kind="stable")
        chosen_rows = np.concatenate([np.arange(len(known)), places])[order]
        index = torch.from_numpy(chosen_rows).to(chosen.device)
        hidden = torch.cat([own.hidden, beside.hidden]).index_select(0, index)
        predictions = torch.cat([own.predictions, beside.predictions]).index_select(0, index)
        if own.shown is None:
            return States(hidden, predictions)
        assert beside.shown is not None
        shown = torch.cat([own.shown, beside.shown]).index_select(0, index)
        return States(hidden, predictions, shown)

    def _read_once(
        self, touched: TouchedRows, contexts: Sequence[int], batch: ContextBatch, chosen: Tensor
    ) -> States:
        """States and predictions of a batch, of which the former may be known."""
        assert self._kept is not None

        def compute(rows: IntArray) -> Tensor:
            nowhere = torch.zeros_like(chosen[rows])
            with torch.no_grad():
                hidden: Tensor = self._encode(touched, batch, rows, nowhere, whole=True).hidden
            return hidden

        if not contexts:  # this replica is idle
            return self._encode(touched, batch, slice(None), chosen)
        hidden = self._kept.of(contexts, batch.mask, compute).to(self.engine.device)
        return self.half.predict(touched, hidden, batch.mask, chosen)

    def _said(self, states: States, chosen: Tensor) -> Predicted:
        """Predictions of everywhere, or logits of the `chosen` positions."""
        if self.half.output.gives_logits:
            return Logits(states.predictions, chosen)
        predictions: Tensor = states.predictions
        return predictions

    def _starts(self, batch: ContextBatch) -> IntArray | None:
        """(batch,) places of the first labelled tokens, for sequence-to-sequence models."""
        return np.argmax(batch.words >= 0, axis=1) if self.half.is_seq2seq else None

    def _rank(self, feed: Feed) -> int:
        return feed.topology.rank(self.stage, self.replica)

    def _send_all(
        self,
        link: Link,
        step: int,
        micro_batch: int,
        peer: Stage,
        messages: list[tuple[Message, Tensor]],
    ) -> None:
        self.sent[peer, micro_batch] = (step, messages)
        for message, states in messages:
            link.send(message, states)
