"""What a rank does when another one is gone, or when it is told that one is."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest
import torch

from tests.ranks import run_ranks
from tsarch.parallel.lifeline import Lifeline
from tsarch.parallel.link import GroupLink
from tsarch.parallel.sockets import Sockets
from tsarch.records import Message

CPU = torch.device("cpu")


def test_without_anyone_holding_it_an_error_is_an_error():
    def fail() -> None:
        raise RuntimeError("Connection closed by peer")

    lifeline = Lifeline()
    with pytest.raises(RuntimeError, match="closed by peer"):
        lifeline.attempt(fail)
    assert lifeline.error is None
    with pytest.raises(RuntimeError, match="by peer"), lifeline.held():  # noqa: PT012 - it goes on
        assert not lifeline.attempt(fail)
        assert not lifeline.attempt(lambda: pytest.fail("nothing is tried any more"))
    assert lifeline.error is not None


def _go_on(rank: int, group: Any) -> list[float]:
    """Rank 1 is gone without a word; rank 0 goes on with zeros."""
    if rank == 1:
        return []
    lifeline = Lifeline()
    link = GroupLink(group, CPU, torch.float32, 4, lifeline)
    first, second = Message(0, 0, 1, 0, 2, 3), Message(0, 1, 1, 0, 2, 3)
    out = torch.ones(2, 3)
    with pytest.raises(RuntimeError), lifeline.held():  # noqa: PT012 - it goes on within
        link.expect(first)
        link.receive(first, out)
        link.send(Message(0, 0, 0, 1, 2, 3), out)
        link.expect(second)
        link.receive(second, out)
        link.flush()
    return out.flatten().tolist()


@pytest.mark.ranks
def test_a_link_whose_other_end_is_gone_gives_zeros_while_it_is_held():
    assert run_ranks(_go_on, 2)[0] == [0.0] * 6


def test_connections_are_cut_for_whoever_waits_in_them_and_listeners_go_on():
    before = socket.create_server(("127.0.0.1", 0))
    sockets, got = Sockets(), []
    with sockets.watched():
        server = socket.create_server(("127.0.0.1", 0))
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    waiting = threading.Thread(target=lambda: got.append(near.recv(1)))
    waiting.start()
    sockets.cut()
    waiting.join(timeout=30)
    assert got == [b""], "as if the other side had ended"
    assert far.recv(1) == b""
    for own in (before, server):
        with socket.create_connection(own.getsockname()), own.accept()[0]:
            pass
    near.close(), far.close()
    with socket.create_connection(before.getsockname()) as other, before.accept()[0] as end:
        sockets.cut()  # these came later, under the numbers of those that are gone
        end.sendall(b"x")
        assert other.recv(1) == b"x"
    before.close(), server.close()
