"""The link: rows arrive as they were sent; a message that the plan doesn't know is an error."""

from __future__ import annotations

import pytest
import torch

from tests.ranks import run_ranks
from tsarch.parallel.link import GroupLink, LoopbackLink
from tsarch.records import Message
from tsarch.topology import Topology

CPU = torch.device("cpu")


def test_loopback_keeps_order_and_pairs():
    link = LoopbackLink(torch.float32)
    first, second, back = Message(0, 0, 0, 1, 2, 3), Message(0, 1, 0, 1, 1, 3), None
    assert not link.is_ready(first)
    link.send(first, torch.ones(2, 3))
    link.send(second, torch.zeros(1, 3))
    assert link.is_ready(first)
    back = Message(0, 0, 1, 0, 2, 3)
    assert not link.is_ready(back)
    for message, value in ((first, 1.0), (second, 0.0)):
        out = torch.full((message.num_states, message.width), 7.0)
        link.receive(message, out)
        assert torch.equal(out, torch.full_like(out, value))
    assert link.bytes_sent == 36


def test_rows_travel_in_the_links_dtype():
    link = LoopbackLink(torch.bfloat16)
    message = Message(0, 0, 0, 1, 1, 2)
    link.send(message, torch.tensor([[1.0, 1.001]]))
    out = torch.empty(1, 2)
    link.receive(message, out)
    assert link.bytes_sent == 4
    assert out.tolist() == [[1.0, 1.0]]


def _rows(message: Message, dtype: torch.dtype) -> torch.Tensor:
    size = message.num_states * message.width
    values = torch.arange(size).view(message.num_states, message.width) + 100 * message.source
    return values.to(dtype)


def _messages(source: int, target: int, num_steps: int = 20) -> list[Message]:
    return [
        Message(k, b, source, target, 1 + (3 * k + b) % 5, 4)
        for k in range(num_steps)
        for b in range(2)
    ]


def _two_to_two(rank, group):
    """Both stages send messages of changing sizes in both directions at once, ahead of the
    receives; the number of buffers stops growing."""
    topology = Topology.pair(2, 2)
    link = GroupLink(group, CPU, torch.bfloat16, max_outstanding=8)
    stage, _ = topology.place(rank)
    others = [r for r in range(4) if topology.place(r)[0] is not stage]
    incoming = [_messages(other, rank) for other in others]
    outgoing = [_messages(rank, other) for other in others]
    num_buffers = []
    for place in range(len(incoming[0])):
        for own in incoming:
            link.expect(own[place])
        for own in outgoing:
            link.send(own[place], _rows(own[place], torch.bfloat16))
        for own in incoming:
            out = torch.empty(own[place].num_states, 4)
            link.receive(own[place], out)
            assert torch.equal(out, _rows(own[place], torch.bfloat16).float())
        num_buffers.append(link.num_buffers)
    link.flush()
    return num_buffers


@pytest.mark.slow
@pytest.mark.ranks
def test_rows_arrive_in_both_directions_and_buffers_are_used_again():
    for num_buffers in run_ranks(_two_to_two, num_ranks=4):
        assert num_buffers[0] > 0
        assert num_buffers[-1] == num_buffers[20]


def _other_message(rank, group):
    link = GroupLink(group, CPU, torch.float32, max_outstanding=4)
    if rank == 0:
        link.send(Message(3, 0, 0, 1, 2, 4), torch.zeros(2, 4))
        link.flush()
        return ""
    link.expect(Message(4, 0, 0, 1, 2, 4))
    try:
        link.receive(Message(4, 0, 0, 1, 2, 4), torch.empty(2, 4))
    except RuntimeError as error:
        return str(error)
    return "nothing was noticed"


@pytest.mark.slow
@pytest.mark.ranks
def test_an_unplanned_message_is_an_error_that_names_both():
    text = run_ranks(_other_message, num_ranks=2)[1]
    assert "rank 1 expected Message(step=4" in text
    assert "the ranks don't run the same plan" in text
