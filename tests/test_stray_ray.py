"""No Ray starts by itself: a call without one fails."""

from __future__ import annotations

import subprocess
import sys

CALL = """
from tsarch.launch.training import quieten
quieten()
import ray
try:
    ray.put(1)
except ray.exceptions.RaySystemError:
    print("is initialized" if ray.is_initialized() else "refused")
"""


def test_a_call_without_a_ray_starts_none():
    done = subprocess.run([sys.executable, "-c", CALL], capture_output=True, text=True, timeout=120)
    assert done.stdout == "refused\n", done.stdout + done.stderr
