"""Bytes that a rank holds between steps: weights, gradients, optimizer state. Pure, no torch.

Source: Rajbhandari et al. 2020, ZeRO: Memory Optimizations Toward Training Trillion Parameter
Models (https://arxiv.org/abs/1910.02054), sections 3.1 and 5, figure 1. With Ψ parameters, N
replicas and mixed precision, a rank holds 2Ψ bytes of weights, 2Ψ of gradients and KΨ of optimizer
state (K = 12 for Adam: an fp32 copy of the weights, momentum and variance). ZeRO 1 divides the
optimizer state by N, ZeRO 2 the gradients too, ZeRO 3 the weights too. In fp32 a weight and its
gradient take 4 bytes each, and there is no copy.

DeepSpeed 0.19.8 keeps the fp32 copy at ZeRO 1 to 3 in fp32 too, which the functions here count
(`benchmarks/memory.py` compares them with the bytes that ranks hold).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

Precision = Literal["fp32", "bf16"]

_FP32_BYTES = 4
_VALUE_BYTES: dict[Precision, int] = {"fp32": _FP32_BYTES, "bf16": 2}


@dataclass(frozen=True)
class States:
    """Bytes of one rank."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    """Optimizer state with the fp32 copy of the weights, if there is one."""

    @property
    def total(self) -> int:
        """All three."""
        return self.weights + self.gradients + self.optimizer

    def __add__(self, other: States) -> States:
        pairs = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(States)}
        return States(**pairs)


@dataclass(frozen=True)
class StageSize:
    """What the memory of a stage's ranks depends on."""

    parameters: int
    """Parameters of the stage's model; the tied table is not one of them."""
    trainable: int
    """Those of them that are trained."""
    replicas: int
    zero_stage: int
    precision: Precision
    num_moments: int
    """fp32 values that the optimizer keeps per trained parameter, see `num_moments`."""
    sums_in_fp32: bool = False
    """Gradients of bf16 weights are summed in fp32 beside those of a pass, in memory that is kept:
    so does the engine of a run in one process."""


def num_moments(optimizer: str, momentum: float) -> int:
    """2 for AdamW, 1 for SGD with momentum, 0 for plain SGD."""
    if optimizer == "adamw":
        return 2
    return 1 if momentum > 0 else 0


def zero_states(size: StageSize) -> States:
    """Bytes of a rank of a stage, by the paper's formula with DeepSpeed's fp32 copy."""
    copy = 1 if size.precision == "bf16" or size.zero_stage > 0 else 0
    value_bytes = _VALUE_BYTES[size.precision]
    optimizer = _FP32_BYTES * (size.num_moments + copy) * size.trainable
    of_sum = _FP32_BYTES if size.sums_in_fp32 else 0
    return States(
        _share(value_bytes * size.parameters, size.replicas, size.zero_stage >= 3),
        _share((value_bytes + of_sum) * size.trainable, size.replicas, size.zero_stage >= 2),
        _share(optimizer, size.replicas, size.zero_stage >= 1),
    )


def table_states(rows: int, width: int, trained_rows: int, num_moments: int) -> States:
    """Bytes of a replica of the tied table: fp32, whole on every rank of both stages. A gradient is
    kept of the rows that have optimizer state.

    Args:
        rows: size of the vocabulary.
        width: of an embedding.
        trained_rows: rows that have optimizer state here; 0 for a frozen table.
        num_moments: fp32 values that the optimizer keeps per trained value.
    """
    table = _FP32_BYTES * rows * width
    trained = _FP32_BYTES * trained_rows * width
    return States(table, trained, trained * num_moments)


def copy_bytes(
    trainable: int,
    replicas: int,
    rows: int,
    width: int,
    trained_rows: int,
    num_moments: int,
    ranks: int,
) -> int:
    """Host memory of the copy that a rank's share of checkpoints is written from, and which it
    keeps: whole fp32 parameters and moments of its stage, shared out over the stage's replicas, and
    the tied table with its tokens (8 bytes), shared out over all ranks. (Rows that nothing trains
    are the first rank's; they are counted as shared too.)"""
    stage = _FP32_BYTES * (1 + num_moments) * trainable
    table = (_FP32_BYTES * width + 8) * rows + _FP32_BYTES * width * num_moments * trained_rows
    return -(-stage // replicas) + -(-table // ranks)


def activation_bytes(layers: int, width: int, tokens: int, precision: Precision) -> int:
    """What a forward pass keeps for its backward pass, roughly: 34 bytes per layer, token and
    unit of width in 16 bits, twice that in fp32 (Korthikanti et al. 2022, Reducing Activation
    Recomputation in Large Transformer Models, equation 1, without the attention scores, which
    PyTorch's fast attention does not keep)."""
    return 17 * _VALUE_BYTES[precision] * layers * width * tokens


def _share(size_bytes: int, replicas: int, sharded: bool) -> int:
    """A rank's part, rounded up."""
    return -(-size_bytes // replicas) if sharded else size_bytes
