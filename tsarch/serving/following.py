"""Runs that are refitted while they are served."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from tsarch.serving.engine import Engine, ServiceError


async def follow(engine: Engine, every_s: float) -> None:
    """Serve each run's current version, looking for it every so often; until it is cancelled."""
    while True:
        await asyncio.sleep(every_s)
        for run in engine.runs():
            with suppress(ServiceError):  # it is in the log, and the old version goes on
                await engine.reload(run.name)
