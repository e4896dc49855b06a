"""Whether the groups across both stages still hold: what a rank does when another one is gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Lifeline:
    """Of one rank. While it is held, a call that fails because the other side is gone is no error
    at once, and those after it are left out: the rank goes on, with zeros in place of what should
    have come, to where its stage's ranks can stop together and its engine is between two steps.
    What it computes meanwhile counts for nothing."""

    def __init__(self) -> None:
        self.error: RuntimeError | None = None
        """What failed first."""
        self._is_held = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within, the rank goes on; at the end the error is raised, if there was one."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
        if self.error is not None:
            raise self.error

    def attempt(self, call: Callable[[], object]) -> bool:
        """Do what talks to other ranks; whether it was done.

        Raises:
            RuntimeError: it wasn't, and nobody holds the line.
        """
        if self._is_held and self.error is not None:
            return False
        try:
            call()
        except RuntimeError as error:
            if not self._is_held:
                raise
            self.error = error
            return False
        return True
