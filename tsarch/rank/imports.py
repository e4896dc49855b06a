"""What every rank needs imported: seconds of work that need not wait until a rank is told what it
is. Nothing is computed, and no device is touched."""

from __future__ import annotations

import os

from tsarch.host_memory import collect_seldom
from tsarch.models.lean_imports import import_models
from tsarch.rank.preloaded import has_gpu

collect_seldom()
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
if not has_gpu():
    os.environ["DS_ACCELERATOR"] = "cpu"

import_models()

import tsarch.rank.assembly  # noqa: E402 - collecting seldom is for these
import tsarch.rank.generate  # noqa: E402
import tsarch.stage.deepspeed_import  # noqa: E402, F401
