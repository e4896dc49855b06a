"""What a stage can be told to do. Frozen data: only the executor (`rank/executor.py`) acts."""

from __future__ import annotations

from dataclasses import dataclass

from tsarch.topology import Stage


@dataclass(frozen=True)
class Forward:
    """Run the stage's model on a micro-batch; `update` keeps the graph for `Backward`."""

    step: int
    micro_batch: int
    update: bool


@dataclass(frozen=True)
class Backward:
    """Back-propagate the micro-batch's loss; `last` ends the accumulation of its step."""

    step: int
    micro_batch: int
    last: bool


@dataclass(frozen=True)
class SendHidden:
    """Start sending the hidden states of a micro-batch to the stage `peer`. Pairs with `RecvHidden`
    of the same (step, micro_batch) there; does not wait for it."""

    step: int
    micro_batch: int
    peer: Stage


@dataclass(frozen=True)
class RecvHidden:
    """Wait for the hidden states of a micro-batch from the stage `peer` (pairs with `SendHidden`).

    `requires_grad`: their gradient will go back (`SendGrad`)."""

    step: int
    micro_batch: int
    peer: Stage
    requires_grad: bool = False


@dataclass(frozen=True)
class SendGrad:
    """Start sending the gradient of a micro-batch's hidden states back to the stage `peer`. Pairs
    with `RecvGrad` of the same (step, micro_batch) there; does not wait for it."""

    step: int
    micro_batch: int
    peer: Stage


@dataclass(frozen=True)
class RecvGrad:
    """Wait for the gradient from the stage `peer` that the micro-batch's `Backward` takes in (pairs
    with `SendGrad`)."""

    step: int
    micro_batch: int
    peer: Stage


@dataclass(frozen=True)
class OptimizerStep:
    """Update the stage's own parameters with the accumulated gradient of `step`."""

    step: int


@dataclass(frozen=True)
class StartTiedExchange:
    """All ranks of all stages: start summing the tied embedding's gradient.

    `contributions` names, per stage that adds a gradient, the step it comes from; a stage not
    named takes part with zeros. Every rank meets exchanges in the same order.
    """

    exchange: int
    learning_rate_step: int
    contributions: tuple[tuple[Stage, int], ...]


@dataclass(frozen=True)
class FinishTiedExchange:
    """Wait for the exchange of the same number and update the table with the sum."""

    exchange: int


Send = SendHidden | SendGrad
Receive = RecvHidden | RecvGrad
Instruction = (
    Forward | Backward | Send | Receive | OptimizerStep | StartTiedExchange | FinishTiedExchange
)
Program = tuple[Instruction, ...]
