"""What the executor asks of a stage, whatever it reads."""

from __future__ import annotations

from typing import Protocol

from tsarch.data.feed import Feed
from tsarch.parallel.link import Link
from tsarch.records import LossParts, Message
from tsarch.stage.engine import Engine
from tsarch.stage.positions import PositionCount
from tsarch.stage.step_rows import StepRows
from tsarch.topology import Stage


class RunningStage(Protocol):
    """A stage of one rank between instructions.

    `peer` is the stage at the other end of the link. All methods are local: those that send pair
    with those that receive the same (step, micro_batch) on ranks of the peer.
    """

    stage: Stage
    replica: int
    engine: Engine
    rows: StepRows
    positions: PositionCount

    def forward(self, feed: Feed, step: int, micro_batch: int, update: bool) -> LossParts:
        """Predictions and loss of a micro-batch; keeps the graph for an update."""

    def backward(self, step: int, micro_batch: int, last: bool) -> None:
        """Back-propagate a micro-batch's loss."""

    def send(self, feed: Feed, link: Link, step: int, micro_batch: int, peer: Stage) -> None:
        """Start sending what a micro-batch's forward or backward made for a peer."""

    def expected(self, feed: Feed, step: int, micro_batch: int, peer: Stage) -> list[Message]:
        """The messages of a micro-batch from a peer, in order of arrival."""

    def receive(
        self,
        feed: Feed,
        link: Link,
        step: int,
        micro_batch: int,
        peer: Stage,
        requires_grad: bool = False,
    ) -> None:
        """Wait for a peer's messages of a micro-batch; with `requires_grad` their gradient goes
        back."""
