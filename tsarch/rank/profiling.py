"""Some ticks of a rank as torch's profiler sees them, with the schedule's instructions named."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule
from torch.utils import flop_counter

from tsarch.profiled import Profile, TimeSpent
from tsarch.rank.executor import await_device
from tsarch.schedule.instruction import Instruction
from tsarch.topology import Stage

_LABEL = "tsarch: "
"""Begins the name of an instruction in a trace."""
_FACTORS = {"aten::mm": 0, "aten::bmm": 0, "aten::addmm": 1, "aten::baddbmm": 1}
"""Matrix product → place of its first factor; the second follows."""
_ATTENTION = "aten::_scaled_dot_product_"
_MOST_OPERATORS = 12
_NUM_BEFORE = 2
"""Ticks before the first that is recorded."""
_IN_S = 1e-6
_sdpa_forward: Any = flop_counter.sdpa_flop_count
_sdpa_backward: Any = flop_counter.sdpa_backward_flop_count


class Profiler:
    """Records ticks from the third on; in the second the profiler itself warms up.

    Torch records one thread: the one that makes this must run the ticks.
    """

    def __init__(self, folder: Path, rank: int, num_ticks: int, device: torch.device) -> None:
        self._file = folder / f"rank-{rank}.json.gz"
        self._rank = rank
        self._device = device
        self._found: Profile | None = None
        self._num_ticks = 0
        is_gpu = device.type == "cuda"
        self._profile = profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_gpu else [])],
            schedule=schedule(wait=_NUM_BEFORE - 1, warmup=1, active=num_ticks, repeat=1),
            on_trace_ready=self._take,
            record_shapes=True,
        )
        self._profile.start()

    def tick_done(self) -> None:
        """A tick is over."""
        self._num_ticks += 1
        self._profile.step()

    @contextmanager
    def around(self, stage: Stage, instruction: Instruction) -> Iterator[None]:
        """Name an instruction, and let a GPU end it, so that its time is its own."""
        if self._found is not None:
            yield
            return
        with record_function(f"{_LABEL}{stage} {type(instruction).__name__}"):
            yield
            await_device(self._device)

    def end(self) -> Profile | None:
        """Stop, if not all ticks have come; what was recorded."""
        self._profile.stop()
        return self._found

    def _take(self, recorded: profile) -> None:
        """Write the trace, and add up what is in it."""
        recorded.export_chrome_trace(str(self._file))
        events: Any = recorded.events()  # type: ignore[no-untyped-call]
        on_cpu = [e for e in events if e.device_type.name == "CPU"]
        spans = sorted(
            (e for e in on_cpu if e.name.startswith(_LABEL)), key=lambda e: e.time_range.start
        )
        if not spans:
            return
        seconds = (max(e.time_range.end for e in spans) - spans[0].time_range.start) * _IN_S
        is_gpu = self._device.type == "cuda"
        self._found = Profile(
            self._rank,
            self._num_ticks - _NUM_BEFORE,
            seconds,
            torch.cuda.get_device_name(self._device) if is_gpu else "cpu",
            torch.get_num_threads(),
            _instructions(spans, on_cpu),
            _operators(recorded.key_averages(), is_gpu),
        )


def _instructions(spans: Sequence[Any], events: Sequence[Any]) -> tuple[TimeSpent, ...]:
    """Time of each kind, and the operations of what was called meanwhile (on a GPU's backward pass
    by another thread)."""
    starts = [span.time_range.start for span in spans]
    flops = [0.0] * len(spans)
    for event in events:
        place = bisect_right(starts, event.time_range.start) - 1
        if place >= 0 and event.time_range.start < spans[place].time_range.end:
            flops[place] += num_flops(event.name, event.input_shapes)
    by_name = sorted(zip(spans, flops), key=lambda own: own[0].name)
    found = []
    for name, group in groupby(by_name, key=lambda own: own[0].name):
        own = list(group)
        seconds = sum(span.time_range.end - span.time_range.start for span, _ in own) * _IN_S
        total = sum(number for _, number in own)
        found.append(TimeSpent(name.removeprefix(_LABEL), len(own), seconds, total))
    return tuple(sorted(found, key=lambda own: -own.seconds))


def _operators(averages: Any, is_gpu: bool) -> tuple[TimeSpent, ...]:
    """The dearest of them, by their own time."""
    field = "self_device_time_total" if is_gpu else "self_cpu_time_total"
    found = [
        TimeSpent(own.key, int(own.count), getattr(own, field) * _IN_S, 0.0)
        for own in averages
        if not own.key.startswith((_LABEL, "ProfilerStep"))
    ]
    return tuple(sorted(found, key=lambda own: -own.seconds)[:_MOST_OPERATORS])


def num_flops(name: str, shapes: Sequence[Sequence[int]]) -> float:
    """Of a matrix product (2·m·k·n) or fused attention, by the shapes of its inputs; 0: of what
    else there is."""
    if name in _FACTORS:
        first = _FACTORS[name]
        one, other = shapes[first : first + 2]
        return 2.0 * prod(one) * other[-1]
    if name.startswith(_ATTENTION):
        if name.endswith("backward"):
            return float(_sdpa_backward(*shapes[:4]))
        return float(_sdpa_forward(*shapes[:3]))
    return 0.0
