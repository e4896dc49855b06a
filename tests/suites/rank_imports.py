"""What processes find imported when they start: it takes each of them four seconds otherwise."""

from __future__ import annotations

import os

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed  # noqa: F401
import peft  # noqa: F401
import torch  # noqa: F401

import tsarch.stage.build
import tsarch.stage.deepspeed_engine  # noqa: F401
