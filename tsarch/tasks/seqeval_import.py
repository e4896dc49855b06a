"""seqeval's scores by entity, without scikit-learn.

All that seqeval takes from it is a class of warnings, and to import that takes half a second. Who
imports scikit-learn itself, before or later, gets it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

_PACKAGE, _MODULE, _WARNING = "sklearn", "sklearn.exceptions", "UndefinedMetricWarning"


@contextmanager
def _with_the_warning_alone() -> Iterator[None]:
    """Within, that is all there is of scikit-learn, unless it already was imported."""
    if _PACKAGE in sys.modules:
        yield
        return
    module = ModuleType(_MODULE)
    setattr(module, _WARNING, type(_WARNING, (UserWarning,), {"__module__": _MODULE}))
    sys.modules |= {_PACKAGE: ModuleType(_PACKAGE), _MODULE: module}
    try:
        yield
    finally:
        del sys.modules[_PACKAGE], sys.modules[_MODULE]


with _with_the_warning_alone():
    from seqeval.metrics import accuracy_score, f1_score
    from seqeval.metrics.v1 import precision_recall_fscore_support  # the strict one
    from seqeval.scheme import IOB2

__all__ = ["IOB2", "accuracy_score", "f1_score", "precision_recall_fscore_support"]
