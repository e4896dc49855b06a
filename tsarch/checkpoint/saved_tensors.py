"""Tensors of safetensors files by name, read one by one when they are asked for.

What is read views its file, whose pages count as this process's as long as the file is open: it is
opened anew from time to time, so that reading all of a large file takes little memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

_MOST_BYTES = 64_000_000
"""Read from a file until it is opened anew."""


class Joined(Mapping[str, Tensor]):
    """The tensors of several mappings as one; a name is in one of them only."""

    def __init__(self, parts: Iterable[Mapping[str, Tensor]]) -> None:
        self._parts = {name: part for part in parts for name in part}

    def __getitem__(self, name: str) -> Tensor:
        return self._parts[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


class SavedTensors(Mapping[str, Tensor]):
    """The tensors of several files as one mapping; a name is in one file only."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._files: dict[str, _File] = {}
        for path in paths:
            file = _File(path)
            self._files |= dict.fromkeys(file.names, file)

    def __getitem__(self, name: str) -> Tensor:
        return self._files[name].read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


class _File:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._open()
        self.names: list[str] = self._file.keys()

    def read(self, name: str) -> Tensor:
        """A view of the file, which lasts as long as it is wanted."""
        if self._num_bytes > _MOST_BYTES:
            self._open()
        tensor: Tensor = self._file.get_tensor(name)
        self._num_bytes += tensor.nbytes
        return tensor

    def _open(self) -> None:
        self._file: Any = safe_open(self._path, framework="pt")
        self._num_bytes = 0
