"""What the driver knew at the last cuts that ranks keep in memory."""

from __future__ import annotations

from collections.abc import Collection

from tsarch.checkpoint.driver_state import DriverState, parse_progress

_NUM_KEPT = 6
"""More than ranks have cuts of: they may be some behind."""


class KeptStates:
    """Of a run, over all its restarts."""

    def __init__(self) -> None:
        self._texts: dict[int, str] = {}

    def taken(self, step: int, state: DriverState, kept: Collection[int] = ()) -> None:
        """All ranks have taken the cut of `step`; they still have those of the steps `kept`. (As
        text, so that nobody changes it later.)"""
        self._texts.pop(step, None)
        self._texts[step] = state.model_dump_json()
        for old in set(list(self._texts)[:-_NUM_KEPT]).difference(kept):
            del self._texts[old]

    def at(self, step: int) -> DriverState | None:
        """What the driver knew at a cut; None: nobody remembers."""
        text = self._texts.get(step)
        return None if text is None else parse_progress(text)
