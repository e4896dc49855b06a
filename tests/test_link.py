"""The link: rows arrive as they were sent; a message that the plan doesn't know is an error."""

from __future__ import annotations

import pytest
import torch

from tests.ranks import run_ranks
from tsarch.parallel.link import GroupLink, LoopbackLink, Message
from tsarch.topology import Topology


def test_loopback_keeps_order_and_pairs():
    link = LoopbackLink()
    first, second = Message(0, 0, 2, 3), Message(0, 1, 1, 3)
    assert not link.is_ready(first, 0, 0)
    link.send(first, torch.ones(2, 3), 0, 0)
    link.send(second, torch.zeros(1, 3), 0, 0)
    assert link.is_ready(first, 0, 0)
    assert not link.is_ready(first, 0, 1)
    assert torch.equal(link.receive(first, 0, 0), torch.ones(2, 3))
    assert torch.equal(link.receive(second, 0, 0), torch.zeros(1, 3))
    assert link.bytes_sent == 36


def _rows(message: Message, teacher: int, dtype: torch.dtype) -> torch.Tensor:
    size = message.rows * message.width
    return (torch.arange(size).view(message.rows, message.width) + 100 * teacher).to(dtype)


def _two_to_two(rank, group):
    """Two teachers send both students messages of changing sizes, ahead of the receives."""
    topology = Topology(2, 2)
    link = GroupLink(group, topology, torch.device("cpu"))
    messages = [Message(k, b, 1 + (3 * k + b) % 5, 4) for k in range(20) for b in range(2)]
    stage, replica = topology.place(rank)
    if stage == "teacher":
        for message in messages:
            for student in range(2):
                link.send(message, _rows(message, replica, torch.bfloat16), replica, student)
        link.flush()
        return True
    for message in messages:
        for teacher in range(2):
            link.expect(message, torch.bfloat16, teacher, replica)
        for teacher in range(2):
            rows = link.receive(message, teacher, replica)
            assert torch.equal(rows, _rows(message, teacher, torch.bfloat16))
    return True


@pytest.mark.ranks
def test_rows_arrive_from_every_teacher_at_every_student():
    assert run_ranks(_two_to_two, num_ranks=4) == [True] * 4


def _other_message(rank, group):
    link = GroupLink(group, Topology(1, 1), torch.device("cpu"))
    if rank == 0:
        link.send(Message(3, 0, 2, 4), torch.zeros(2, 4), 0, 0)
        link.flush()
        return ""
    link.expect(Message(4, 0, 2, 4), torch.float32, 0, 0)
    try:
        link.receive(Message(4, 0, 2, 4), 0, 0)
    except RuntimeError as error:
        return str(error)
    return "nothing was noticed"


@pytest.mark.ranks
def test_an_unplanned_message_is_an_error_that_names_both():
    text = run_ranks(_other_message, num_ranks=2)[1]
    assert "student 0 expected Message(step=4" in text
    assert "the ranks don't run the same plan" in text
