"""The teacher stage of one rank: model and engine, and what is under way between instructions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tsarch.data.feed import Feed
from tsarch.losses.token import cross_entropy
from tsarch.parallel.link import Message
from tsarch.parallel.tied_embedding import TiedEmbedding
from tsarch.records import LossParts
from tsarch.stage.engine import Engine
from tsarch.stage.step_rows import StepRows


@dataclass(frozen=True)
class Outgoing:
    """Rows for one student replica."""

    student: int
    message: Message
    rows: Tensor


class TeacherStage:
    """Runs the teacher's instructions on replica `replica`."""

    def __init__(self, engine: Engine, tied: TiedEmbedding, replica: int) -> None:
        self.engine = engine
        self.replica = replica
        self.rows = StepRows(tied)
        self._losses: dict[tuple[int, int], Tensor] = {}
        self._outgoing: dict[tuple[int, int], list[Outgoing]] = {}

    def forward(self, feed: Feed, step: int, micro_batch: int, update: bool) -> LossParts:
        """Hidden states, predictions and loss of a micro-batch; keeps the graph for an update."""
        part = feed.teacher_part(step, micro_batch, self.replica)
        touched = self.rows.get(step, feed.plan(step).token_ids, update)
        device = self.engine.device
        with torch.set_grad_enabled(update):
            embeds = touched.lookup(
                torch.from_numpy(part.rows).to(device), self.engine.compute_dtype
            )
            hidden, logits = self.engine.forward(embeds, torch.from_numpy(part.mask).to(device))
            labels = torch.from_numpy(feed.labels(part.words)).to(device)
            losses = cross_entropy(logits, labels)
            loss = losses.sum() / feed.plan(step).num_labels
        if update:
            self._losses[step, micro_batch] = loss
        boundary = [hidden, logits.to(hidden.dtype)] if feed.send_predictions else [hidden]
        rows = torch.cat([t.detach() for t in boundary], dim=-1).flatten(0, 1)
        self._outgoing[step, micro_batch] = [
            Outgoing(
                student,
                Message(step, micro_batch, len(places), rows.shape[1]),
                rows[torch.from_numpy(places).to(device)],
            )
            for student, places in part.outgoing.items()
        ]
        total = float(losses.detach().double().sum()) / feed.plan(step).num_labels
        return LossParts({"teacher": total})

    def outgoing(self, step: int, micro_batch: int) -> list[Outgoing]:
        """The boundary rows of a micro-batch, once."""
        return self._outgoing.pop((step, micro_batch))

    def backward(self, step: int, micro_batch: int, last: bool) -> None:
        """Back-propagate a micro-batch's loss."""
        self.engine.backward(self._losses.pop((step, micro_batch)), last)
