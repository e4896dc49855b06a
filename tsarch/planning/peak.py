"""The products a second that a profiled rank could have computed at most."""

from __future__ import annotations

import re

from tsarch.planning.hardware import GPUS
from tsarch.planning.op_timing import cpu_hardware


def peak_flops_s(device: str, threads: int, in_bf16: bool) -> float | None:
    """Of a GPU of that name its maker's figure; of `cpu` what this machine reaches with so many
    threads, measured in a fraction of a second; None: of a GPU that isn't known."""
    if device == "cpu":
        hardware = cpu_hardware(threads)
    else:
        words = re.findall(r"[a-z0-9]+", device.lower())
        known = (own for own in GPUS.values() if own.name.split("-")[0] in words)
        found = next(known, None)
        if found is None:
            return None
        hardware = found
    return hardware.bf16_flops_s if in_bf16 else hardware.fp32_flops_s
