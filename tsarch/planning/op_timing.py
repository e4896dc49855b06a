"""How long operations take on this machine's CPUs: those of a step that matter most, tried out.

A step has few kinds of operations, often repeated. In a budget of seconds those are run that a
first guess (products and memory traffic at their peaks) holds to be the dearest; what the others
take is the guess times what operations like them have taken of theirs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from tsarch.planning.dry_ops import Example, Op, Shape, is_work
from tsarch.planning.hardware import Hardware

Clock = Callable[[], float]

_ROUNDS = 3
_PEAK_S = 0.25
"""Of the budget what finding the peaks may take."""
_MOST_BYTES = 2 * 2**30
"""Operations over more are not run."""
_LITTLE = 0.03
"""Share of a step's operations that need not be tried."""
_COLD_BYTES = 64 * 2**20
"""More than caches keep."""


@dataclass(frozen=True)
class Timing:
    """Seconds of operations on CPUs."""

    hardware: Hardware
    measured: Mapping[Op, float]
    factors: Mapping[bool, float]
    """Of products, and of others: seconds over the guess."""

    def seconds(self, op: Op) -> float:
        """Of one run of an operation."""
        known = self.measured.get(op)
        if known is None:
            known = guess(op, self.hardware) * self.factors[op.flops > 0]
        return known + self.hardware.overhead_s


def guess(op: Op, hardware: Hardware) -> float:
    """Seconds at the peaks, whichever of products and memory takes longer."""
    rate = hardware.flops_s(op.dtype is torch.bfloat16)
    return max(op.flops / rate, op.moved_bytes / hardware.bytes_s())


def cpu_hardware(num_threads: int, clock: Clock = time.perf_counter) -> Hardware:
    """This machine, its peaks measured with so many threads in a fraction of a second."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        side = 768
        flops = 2.0 * side**3
        fp32 = flops / _fastest(_product(side, torch.float32), clock)
        bf16 = flops / _fastest(_product(side, torch.bfloat16), clock)
        big, out = torch.ones(_COLD_BYTES // 4), torch.empty(_COLD_BYTES // 4)
        memory = 3.0 * big.nbytes / _fastest(lambda: torch.add(big, big, out=out), clock)
        overhead_s = _overhead(clock)
    finally:
        torch.set_num_threads(before)
    available = int(psutil.virtual_memory().available)
    loopback = memory / 4  # two copies and two ends, as gloo does it
    return Hardware(
        name="cpu",
        fp32_flops_s=fp32,
        bf16_flops_s=bf16,
        memory_bytes_s=memory,
        memory_bytes=available,
        devices_a_node=1 << 30,
        node_bytes_s=loopback,
        network_bytes_s=loopback,
        product_share=1.0,
        memory_share=1.0,
        overhead_s=overhead_s,
        is_cpu=True,
    )


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations that do anything; views and the like take their time beside these."""

    number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One more."""
        self.number += is_work(func)
        return func(*args, **(kwargs or {}))


def _overhead(clock: Clock) -> float:
    """Seconds that an operation takes beside: of modules, Python and autograd, as a layer has them
    that is so small that all else takes no time."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    given = torch.ones(1, 2, 8, requires_grad=True)

    def run() -> None:
        layer(given).sum().backward()

    with _Counter() as counter:  # type: ignore[no-untyped-call]
        run()
    return _fastest(run, clock) / int(counter.number)


def _product(side: int, dtype: torch.dtype) -> Callable[[], object]:
    a = torch.ones(side, side, dtype=dtype)
    return lambda: a @ a


def _fastest(run: Callable[[], object], clock: Clock) -> float:
    """Seconds of the fastest of several runs in an eighth of the peaks' share of the budget."""
    run()
    best, end = float("inf"), time.perf_counter() + _PEAK_S / 4
    while time.perf_counter() < end:
        began = clock()
        run()
        best = min(best, clock() - began)
    return best


def measure(
    numbers: Mapping[Op, float],
    examples: Mapping[Op, Example],
    hardware: Hardware,
    num_threads: int,
    budget_s: float,
    clock: Clock = time.perf_counter,
) -> Timing:
    """Try out the dearest operations, how often `numbers` says, for so many seconds at most: until
    those that are left make up little of the step. `clock` gives the seconds that are told: a busy
    machine is better measured by a thread's own."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    measured: dict[Op, float] = {}
    end = time.perf_counter() + budget_s
    try:
        guesses = {op: number * guess(op, hardware) for op, number in numbers.items()}
        rest_s, little_s = sum(guesses.values()), _LITTLE * sum(guesses.values())
        for op in sorted(guesses, key=lambda op: -guesses[op]):
            left_s = end - time.perf_counter()
            if left_s <= 0 or rest_s <= little_s:
                break
            rest_s -= guesses[op]
            size = sum(shape.nbytes for shape in (*op.inputs, *op.outputs))
            if op in examples and size <= _MOST_BYTES and 6 * guess(op, hardware) < left_s:
                seconds = _run(examples[op], clock)
                if seconds is not None:
                    measured[op] = seconds
    finally:
        torch.set_num_threads(before)
    return Timing(hardware, measured, _factors(measured, numbers, hardware))


def _factors(
    measured: Mapping[Op, float], numbers: Mapping[Op, float], hardware: Hardware
) -> dict[bool, float]:
    """Of products and of others: seconds over the guess, all together."""
    factors = {}
    for products in (True, False):
        own = [op for op in measured if (op.flops > 0) is products]
        guessed = sum(numbers[op] * guess(op, hardware) for op in own)
        taken = sum(numbers[op] * measured[op] for op in own)
        factors[products] = taken / guessed if guessed > 0 else 1.0
    return factors


def _run(example: Example, clock: Clock) -> float | None:
    """Fastest seconds of an operation on tensors of any values; None: it can't be run alone."""
    func, args, kwargs = example
    try:
        times = []
        for _ in range(_ROUNDS):
            own = tree_map_only(Shape, _tensor, (args, kwargs))
            began = clock()
            func(*own[0], **own[1])
            times.append(clock() - began)
        return min(times)
    except Exception:  # operations raise what they like about values
        return None


def _tensor(shape: Shape) -> torch.Tensor:
    """Of half ones: any number is as good, but subnormal ones, NaN and far places of tables."""
    own = torch.empty_strided(shape.sizes, shape.strides, dtype=shape.dtype)
    return own.fill_(0.5) if shape.dtype.is_floating_point else own.zero_()
