"""Options that several commands have."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class ModeName(StrEnum):
    """Prediction modes."""

    TEACHER = "teacher"
    STUDENT = "student"
    JOINT = "joint"
    STUDENT_ALONE = "student_alone"


class Device(StrEnum):
    """Where to compute."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Precision(StrEnum):
    """Arithmetic."""

    FP32 = "fp32"
    BF16 = "bf16"
    INT8 = "int8"


class Backend(StrEnum):
    """Who computes."""

    TORCH = "torch"
    ONNX = "onnx"


PrecisionOption = Annotated[
    Precision, typer.Option(help="Arithmetic: bf16 is torch's, int8 onnx's.")
]
BackendOption = Annotated[
    Backend,
    typer.Option(help="Who computes: torch, or onnx (of a folder of `tsarch export`)."),
]
