"""A cable on which everything is late, for kernels without netem: frames are carried from one
network namespace to another, each after a delay.

    nsenter --net=SWITCH python -m tests.suites.late_cable NAME HOST_PID SECONDS

makes the device NAME here and `eth0` in the namespace of the process HOST_PID, says `plugged`, and
carries until it is ended. It needs a fifth of a core for 10 MB/s.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import struct
import sys
import time
from collections import deque

_TUNSETIFF = 0x400454CA
_TAP, _NO_HEADER = 0x0002, 0x1000
_CLONE_NEWNET = 0x40000000
_LARGEST = 65536


def open_tap(name: str) -> int:
    """A network device whose frames this process reads and writes."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", name.encode(), _TAP | _NO_HEADER))
    return device


def enter_network_of(pid: int) -> None:
    """Go to another process's network namespace; what is open stays where it was opened."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/proc/{pid}/ns/net") as namespace:
        if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")


def carry(ends: tuple[int, int], delay_s: float) -> None:
    """Carry frames both ways, for ever."""
    waiting: dict[int, deque[tuple[float, bytes]]] = {end: deque() for end in ends}
    other = {ends[0]: ends[1], ends[1]: ends[0]}
    while True:
        due_s = min((own[0][0] for own in waiting.values() if own), default=None)
        timeout_s = None if due_s is None else max(0.0, due_s - time.monotonic())
        for end in select.select(ends, [], [], timeout_s)[0]:
            _take(end, waiting[other[end]], delay_s)
        now_s = time.monotonic()
        for end, frames in waiting.items():
            while frames and frames[0][0] <= now_s:
                _put(end, frames.popleft()[1])


def _take(end: int, frames: deque[tuple[float, bytes]], delay_s: float) -> None:
    """All frames that are there."""
    try:
        while True:
            frames.append((time.monotonic() + delay_s, os.read(end, _LARGEST)))
    except BlockingIOError:
        return


def _put(end: int, frame: bytes) -> None:
    try:
        os.write(end, frame)
    except OSError:
        return  # a device that is down, or full: a cable loses frames, and TCP sends them again


def main() -> None:
    """Plug in, and carry."""
    name, host_pid, delay_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    here = open_tap(name)
    enter_network_of(host_pid)
    there = open_tap("eth0")
    print("plugged", flush=True)
    carry((here, there), delay_s)


if __name__ == "__main__":
    main()
