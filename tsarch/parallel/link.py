"""The link: boundary tensors from teacher replicas to student replicas.

A message is one (step, micro_batch) from one replica to one other: a header that names it, then
the rows. Messages of a pair of replicas arrive in the order of sending.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tsarch.parallel.groups import ProcessGroup
from tsarch.topology import Stage, Topology


@dataclass(frozen=True)
class Message:
    """Name and size of a boundary message; both ends know it from the step's plan."""

    step: int
    micro_batch: int
    rows: int
    width: int


class Link(Protocol):
    """Both ends of the link, as one rank sees it."""

    bytes_sent: int

    def send(self, message: Message, rows: Tensor, teacher: int, student: int) -> None:
        """Start sending `rows` (message.rows, message.width); returns before it has arrived."""

    def expect(self, message: Message, dtype: torch.dtype, teacher: int, student: int) -> None:
        """Start receiving a message that a later `receive` will wait for."""

    def is_ready(self, message: Message, teacher: int, student: int) -> bool:
        """Whether `receive` may be called now."""

    def receive(self, message: Message, teacher: int, student: int) -> Tensor:
        """Wait for the rows (message.rows, message.width) of an expected message."""

    def flush(self) -> None:
        """Wait until all that was sent has left."""


class LoopbackLink:
    """Both stages in one process: messages wait in a queue."""

    def __init__(self) -> None:
        self.bytes_sent = 0
        self._queues: dict[tuple[int, int], deque[tuple[Message, Tensor]]] = {}

    def send(self, message: Message, rows: Tensor, teacher: int, student: int) -> None:
        """Put the rows in the queue."""
        self.bytes_sent += rows.nbytes
        self._queues.setdefault((teacher, student), deque()).append((message, rows))

    def expect(self, message: Message, dtype: torch.dtype, teacher: int, student: int) -> None:
        """Nothing to start: the sender is this process."""

    def is_ready(self, message: Message, teacher: int, student: int) -> bool:
        """Whether the message has been sent."""
        return bool(self._queues.get((teacher, student)))

    def receive(self, message: Message, teacher: int, student: int) -> Tensor:
        """Take the rows out of the queue."""
        sent, rows = self._queues[teacher, student].popleft()
        assert sent == message, f"expected {message}, got {sent}"
        return rows

    def flush(self) -> None:
        """Nothing is under way."""


_HEADER_VALUES = 6
_HEADER_BYTES = 8 * _HEADER_VALUES
_MAGIC = 0x7415A2C4


class GroupLink:
    """The link over a process group (gloo or nccl) that spans both stages.

    Pairs each `send` with the `receive` of the same message on the other stage. Sends are
    asynchronous: blocking ones in both directions would deadlock.
    """

    def __init__(self, group: ProcessGroup, topology: Topology, device: torch.device) -> None:
        self.bytes_sent = 0
        self._group = group
        self._topology = topology
        self._device = device
        self._sending: deque[tuple[object, Tensor]] = deque()
        self._max_outstanding = 4 * topology.student_replicas
        self._expected: dict[tuple[Message, int], tuple[object, Tensor, torch.dtype]] = {}

    def send(self, message: Message, rows: Tensor, teacher: int, student: int) -> None:
        """Copy header and rows to one buffer and start sending it to the student replica."""
        header = _header(message, rows.dtype)
        payload = rows.detach().contiguous().view(torch.uint8).flatten()
        buffer = torch.cat([header.view(torch.uint8).to(self._device), payload])
        work = self._group.send([buffer], self._topology.rank(Stage.STUDENT, student), 0)
        self.bytes_sent += buffer.nbytes
        self._sending.append((work, buffer))
        while self._sending and self._sending[0][0].is_completed():  # type: ignore[attr-defined]
            self._sending.popleft()
        while len(self._sending) > self._max_outstanding:
            self._sending.popleft()[0].wait()  # type: ignore[attr-defined]

    def expect(self, message: Message, dtype: torch.dtype, teacher: int, student: int) -> None:
        """Start receiving from the teacher replica."""
        size = _HEADER_BYTES + message.rows * message.width * dtype.itemsize
        buffer = torch.empty(size, dtype=torch.uint8, device=self._device)
        work = self._group.recv([buffer], self._topology.rank(Stage.TEACHER, teacher), 0)
        self._expected[message, teacher] = (work, buffer, dtype)

    def is_ready(self, message: Message, teacher: int, student: int) -> bool:
        """Always: `receive` waits."""
        return True

    def receive(self, message: Message, teacher: int, student: int) -> Tensor:
        """Wait for an expected message.

        Raises:
            RuntimeError: another message came (the ranks' plans differ), or none in time.
        """
        work, buffer, dtype = self._expected.pop((message, teacher))
        work.wait()  # type: ignore[attr-defined]
        header = buffer[:_HEADER_BYTES].view(torch.int64).cpu()
        if not torch.equal(header, _header(message, dtype)):
            raise RuntimeError(
                f"student {student} expected {message} from teacher {teacher}, but a message with "
                f"the header {header.tolist()} came: the ranks don't run the same plan"
            )
        return buffer[_HEADER_BYTES:].view(dtype).view(message.rows, message.width)

    def flush(self) -> None:
        """Wait until all that was sent has left."""
        while self._sending:
            self._sending.popleft()[0].wait()  # type: ignore[attr-defined]


_DTYPE_CODES = {torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}


def _header(message: Message, dtype: torch.dtype) -> Tensor:
    values = (message.step, message.micro_batch, message.rows, message.width)
    return torch.tensor([_MAGIC, *values, _DTYPE_CODES[dtype]], dtype=torch.int64)
