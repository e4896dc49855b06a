"""Files of a run that may have been changed, cut or damaged since it wrote them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tsarch.errors import UserError

_DAMAGE = (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)


@contextmanager
def intact(path: Path) -> Iterator[None]:
    """Within, what goes wrong with a file is that it isn't what a run writes.

    Raises:
        UserError: something did.
    """
    try:
        yield
    except UserError:
        raise
    except (*_DAMAGE, RecursionError):
        what = "is damaged: it isn't what a run writes."
        raise UserError.single(str(path), what, "Restore the file, or remove it.") from None
