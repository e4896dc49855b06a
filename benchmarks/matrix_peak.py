"""How many matrix products this machine can do, and how many a token of the job needs."""

from __future__ import annotations

import time

import torch
from torch import nn

from benchmarks.common import torch_threads
from benchmarks.sides import CORES
from tsarch.blueprint import Blueprint
from tsarch.stage.build import outline_model

_WIDTH = 2048
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def peak_flops(precision: str, seconds: float = 2.0) -> float:
    """Floating-point operations a second of square products, with all of the benchmark's cores: the
    fastest one of `seconds`."""
    a, b = (torch.randn(_WIDTH, _WIDTH).to(_DTYPES[precision]) for _ in range(2))
    fastest_s = float("inf")
    with torch_threads(CORES):
        end_s = time.perf_counter() + seconds
        while time.perf_counter() < end_s:
            started_s = time.perf_counter()
            a @ b
            fastest_s = min(fastest_s, time.perf_counter() - started_s)
    return 2.0 * _WIDTH**3 / fastest_s


def flops_per_token(blueprint: Blueprint) -> float:
    """Operations of the products that training needs for a real token which both models read once:
    2 a weight of their linear layers in the forward pass, 4 in the backward pass. Attention (a
    tenth more at 128 tokens) and heads are left out."""
    models = (outline_model(blueprint, stage, 1) for stage in blueprint.stages)
    layers = (m for model in models for m in model.modules() if isinstance(m, nn.Linear))
    return 6.0 * sum(layer.weight.numel() for layer in layers)
