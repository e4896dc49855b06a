"""The link: boundary tensors between replicas of the two stages.

A message is one (step, micro_batch) from one rank to one other: a header that names it, then the
states. Hidden states go from teacher to student ranks, in `joint` their gradients back. Messages of
a pair of ranks in one direction arrive in the order of sending.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Protocol

import torch
from torch import Tensor

from tsarch.parallel.groups import ProcessGroup
from tsarch.parallel.lifeline import Lifeline
from tsarch.records import Message


class Link(Protocol):
    """Both ends of the link, as one rank sees it."""

    bytes_sent: int
    wait_s: float
    """Seconds spent waiting for other ranks so far."""

    def send(self, message: Message, states: Tensor) -> None:
        """Copy `states` (num_states, width) in the link's dtype and start sending; returns before
        they have arrived."""

    def expect(self, message: Message) -> None:
        """Start receiving a message that a later `receive` will wait for."""

    def is_ready(self, message: Message) -> bool:
        """Whether `receive` may be called now."""

    def receive(self, message: Message, out: Tensor) -> None:
        """Wait for an expected message and copy its states to `out` (num_states, width)."""

    def flush(self) -> None:
        """Wait until all that was sent has left."""


class LoopbackLink:
    """Both stages in one process: messages wait in queues."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.bytes_sent = 0
        self.wait_s = 0.0
        self._dtype = dtype
        self._queues: dict[tuple[int, int], deque[tuple[Message, Tensor]]] = {}

    def send(self, message: Message, states: Tensor) -> None:
        """Put the states in the queue."""
        copy = states.detach().to(self._dtype)
        self.bytes_sent += copy.nbytes
        self._queue(message).append((message, copy))

    def expect(self, message: Message) -> None:
        """Nothing to start: the sender is this process."""

    def is_ready(self, message: Message) -> bool:
        """Whether the message has been sent."""
        return bool(self._queue(message))

    def receive(self, message: Message, out: Tensor) -> None:
        """Take the states out of the queue."""
        sent, states = self._queue(message).popleft()
        assert sent == message, f"expected {message}, got {sent}"
        out.copy_(states)

    def flush(self) -> None:
        """Nothing is under way."""

    def _queue(self, message: Message) -> deque[tuple[Message, Tensor]]:
        return self._queues.setdefault((message.source, message.target), deque())


_HEADER_VALUES = 8
_HEADER_BYTES = 8 * _HEADER_VALUES
_MAGIC = 0x7415A2C4
_NOTHING = torch.empty(0, dtype=torch.uint8)
_DTYPE_CODES = {torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}


class GroupLink:
    """The link over a process group (gloo or nccl) that spans both stages.

    Pairs each `send` with the `receive` of the same message on the other stage. Sends are
    asynchronous: blocking ones in both directions would deadlock. Buffers are used again: after
    the first steps a message allocates nothing.

    Args:
        dtype: of the states as they travel.
        max_outstanding: messages that may be under way from this rank; `send` then waits for the
            oldest. At least as many as the schedule sends before the other side must receive.
        lifeline: what happens when the other side is gone.
    """

    def __init__(
        self,
        group: ProcessGroup,
        device: torch.device,
        dtype: torch.dtype,
        max_outstanding: int,
        lifeline: Lifeline | None = None,
    ) -> None:
        self.bytes_sent = 0
        self.wait_s = 0.0
        self._group = group
        self._lifeline = lifeline or Lifeline()
        self._device = device
        self._dtype = dtype
        self._max_outstanding = max_outstanding
        self._buffers = _BufferPool(device)
        self._sending: deque[tuple[Any, Tensor]] = deque()
        self._expected: dict[Message, tuple[Any, Tensor]] = {}

    @property
    def num_buffers(self) -> int:
        """Buffers allocated so far."""
        return self._buffers.num_allocated

    def send(self, message: Message, states: Tensor) -> None:
        """Copy header and states to one buffer and start sending it."""
        while len(self._sending) >= self._max_outstanding:
            self._finish_oldest_send()
        size = _HEADER_BYTES + message.nbytes(self._dtype)
        buffer = self._buffers.take(size)
        buffer[:_HEADER_BYTES].view(torch.int64).copy_(_header(message, self._dtype))
        self._states(buffer, message).copy_(states.detach())
        self.bytes_sent += size

        def start() -> None:
            work = self._group.send([buffer[:size]], message.target, 0)
            self._sending.append((work, buffer))

        self._lifeline.attempt(start)

    def expect(self, message: Message) -> None:
        """Start receiving."""
        size = _HEADER_BYTES + message.nbytes(self._dtype)
        buffer = self._buffers.take(size)

        def start() -> None:
            work = self._group.recv([buffer[:size]], message.source, 0)
            self._expected[message] = work, buffer

        self._lifeline.attempt(start)

    def is_ready(self, message: Message) -> bool:
        """Always: `receive` waits."""
        return True

    def receive(self, message: Message, out: Tensor) -> None:
        """Wait for an expected message.

        Raises:
            RuntimeError: another message came (the ranks' plans differ), or none in time.
        """
        work, buffer = self._expected.pop(message, (None, _NOTHING))
        if work is None or not self._wait(work):
            out.zero_()
            return
        header = buffer[:_HEADER_BYTES].view(torch.int64).cpu()
        if not torch.equal(header, _header(message, self._dtype)):
            raise RuntimeError(
                f"rank {message.target} expected {message}, but a message with the header "
                f"{header.tolist()} came: the ranks don't run the same plan"
            )
        out.copy_(self._states(buffer, message))
        self._buffers.give_back(buffer)

    def flush(self) -> None:
        """Wait until all that was sent has left."""
        while self._sending:
            self._finish_oldest_send()

    def _states(self, buffer: Tensor, message: Message) -> Tensor:
        end = _HEADER_BYTES + message.nbytes(self._dtype)
        states = buffer[_HEADER_BYTES:end].view(self._dtype)
        return states.view(message.num_states, message.width)

    def _finish_oldest_send(self) -> None:
        work, buffer = self._sending.popleft()
        if self._wait(work):
            self._buffers.give_back(buffer)

    def _wait(self, work: Any) -> bool:
        """Whether the other side did its part."""
        started = time.perf_counter()
        is_done = self._lifeline.attempt(work.wait)
        self.wait_s += time.perf_counter() - started
        return is_done


class _BufferPool:
    """Byte buffers in sizes of powers of two, given out again and again."""

    def __init__(self, device: torch.device) -> None:
        self.num_allocated = 0
        self._device = device
        self._free: dict[int, list[Tensor]] = {}

    def take(self, size: int) -> Tensor:
        """A buffer of at least `size` bytes."""
        capacity = 1 << (size - 1).bit_length()
        free = self._free.setdefault(capacity, [])
        if free:
            return free.pop()
        self.num_allocated += 1
        return torch.empty(capacity, dtype=torch.uint8, device=self._device)

    def give_back(self, buffer: Tensor) -> None:
        """Take a buffer in that nobody uses any more."""
        self._free[len(buffer)].append(buffer)


def _header(message: Message, dtype: torch.dtype) -> Tensor:
    m = message
    values = [_MAGIC, m.step, m.micro_batch, m.source, m.target, m.num_states, m.width]
    return torch.tensor([*values, _DTYPE_CODES[dtype]], dtype=torch.int64)
