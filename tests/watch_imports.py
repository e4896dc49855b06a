"""What a forkserver imports once, so that the processes of `test_refit_watch.py` needn't."""

from __future__ import annotations

import tsarch.launch.refit
import tsarch.refit.watching
import tsarch.run.loop
import tsarch.telling.drawing
import tsarch.telling.report

__all__ = ["tsarch"]
