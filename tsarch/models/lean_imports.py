"""transformers' model classes, without importing what they need for other things than answering.

Whoever imports a model class of transformers imports accelerate (to spread models over devices) and
scipy.optimize (for losses of object detection): a fifth of the time, and 50 MB. Within
`lean_imports` the names that it takes from them are stand-ins: the real ones are imported when one
of them is used for the first time, so that nothing is missing to anybody.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_LATER = ("accelerate", "scipy.optimize")
_OF_FILES = ("__file__", "__path__", "__cached__", "__wrapped__", "__warningregistry__")
"""What Python itself asks modules for, whatever they are: stand-ins have none."""
_LOCK = threading.RLock()


@contextmanager
def lean_imports() -> Iterator[None]:
    """Within, these modules are imported when they are used, unless they already were."""
    with _LOCK:
        finder = _Finder()
        sys.meta_path.insert(0, finder)
        try:
            yield
        finally:
            sys.meta_path.remove(finder)
            _forget()


def import_models() -> None:
    """Import what model classes of transformers need, so: before whatever else imports them, in a
    process that compiles none."""
    with lean_imports():
        import transformers.generation.utils
        import transformers.modeling_utils  # noqa: F401


class _Finder(MetaPathFinder, Loader):
    """Finds stand-ins."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """One for each of these modules and what is in them."""
        if any(fullname == own or fullname.startswith(f"{own}.") for own in _LATER):
            return ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """See `_Module`."""
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to do."""


class _Module(ModuleType):
    """In place of a module."""

    def __getattr__(self, name: str) -> Any:
        if name in _OF_FILES:
            raise AttributeError(name)
        later = _Later(self.__name__, name)
        return later._real if name.startswith("__") else later


class _Later:
    """In place of a function or a class of a module."""

    def __init__(self, module: str, name: str) -> None:
        self._module = module
        self._name = name

    @property
    def _real(self) -> Any:
        with _LOCK:
            finders = [own for own in sys.meta_path if isinstance(own, _Finder)]
            sys.meta_path[:] = [own for own in sys.meta_path if own not in finders]
            _forget()
            try:
                return getattr(importlib.import_module(self._module), self._name)
            finally:
                sys.meta_path[:0] = finders

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._real(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._real, name)

    def __instancecheck__(self, own: object) -> bool:
        """What was never imported has no instances."""
        is_there = not isinstance(sys.modules.get(self._module), _Module | None)
        return is_there and isinstance(own, self._real)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type]:
        """In place of it as a base of a class: another one, until the first instance is made."""
        return (_base(self),)


def _base(later: _Later) -> type:
    class Root:
        """A class whose bases can be changed has another one than `object`."""

    class Base(Root):
        def __new__(cls, *arguments: Any, **named: Any) -> Any:
            if Root in Base.__bases__:
                Base.__bases__ = (later._real,)
            return super().__new__(cls)

    return Base


def _forget() -> None:
    """Take stand-ins away, so that whoever imports these modules next gets them themselves."""
    for name in [name for name, own in sys.modules.items() if isinstance(own, _Module)]:
        del sys.modules[name]
        package, _, last = name.rpartition(".")
        if isinstance(getattr(sys.modules.get(package), last, None), _Module):
            delattr(sys.modules[package], last)
