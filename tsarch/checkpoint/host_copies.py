"""Copies of tensors in host memory, so that training can go on while they are written, or without
any writing, and so that ranks can go back to them."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from tsarch.checkpoint.slots import DATA, Header, HeldSlots, read_header, write_header

Keep = Callable[[str, Tensor], None]
"""Takes a copy of a tensor under a name."""
Files = dict[str, dict[str, Tensor]]
"""File → name → tensor."""
_Index = dict[str, dict[str, tuple[str, list[int], int]]]
"""File → name → type, shape and first byte."""
_ALIGNMENT = 64
_GROWTH_BYTES = 2**21


class HostCopies:
    """The last cuts of a rank, each in a slot of its own. The slots' memory is used again: new
    pages would cost more than the copying itself. Pinned where the tensors come from a GPU."""

    def __init__(self, paths: Sequence[str] = (), num_in_turn: int = 1) -> None:
        """
        Args:
            paths: of the slots, which somebody else holds too; none: own ones.
            num_in_turn: slots that are used in turn; with two of them the cut before is whole while
                one is taken. One more while others need older cuts (see `begin`).
        """
        self._num_in_turn = num_in_turn
        self._held = _opened(paths)
        self._slots = [_Slot(file) for file in self._held.files]
        self._current = self._slots[0]
        self._written: _Slot | None = None

    def begin(self, step: int, kept: Collection[int] = ()) -> None:
        """Start a cut, in place of the oldest that isn't being written and isn't one of `kept`, two
        steps at most."""
        free = [slot for slot in self._slots if slot is not self._written]
        in_turn = free[: self._num_in_turn + bool(kept)]
        left_alone = {slot.step: slot for slot in in_turn if slot.step in kept}.values()
        self._current = min(
            (slot for slot in in_turn if slot not in left_alone), key=lambda slot: slot.step
        )
        self._current.begin(step)

    def into(self, file: str) -> Keep:
        """A `Keep` for one file."""

        def keep(name: str, tensor: Tensor) -> None:
            self._current.keep(file, name, tensor.detach())

        return keep

    def finish(self) -> Files:
        """The cut is whole; its copies, which stay as they are until the next but one begins."""
        self._current.finish()
        return self._current.files

    def forget_after(self, step: int) -> None:
        """The run has gone back to the cut of `step`: those after it will be taken again."""
        for slot in self._slots:
            if slot.step > step:
                slot.forget()

    def hold(self) -> None:
        """The cut is being written: leave its copies as they are until `release`."""
        self._written = self._current

    def release(self) -> None:
        """It has been written."""
        self._written = None


class _Slot:
    """A cut in memory that other processes see too."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._bytes = torch.empty(0, dtype=torch.uint8)
        self._end = DATA
        self._on_gpu = False
        self._index: _Index = {}
        header = read_header(self._file)
        self.step = header.step if header is not None and header.is_whole else -1
        """Of the cut that it holds; -1: of none."""
        self.files: Files = {}

    def begin(self, step: int) -> None:
        """Forget what it holds; the memory stays."""
        write_header(self._file, Header(step, False, 0, 0))
        self.step, self.files, self._index = step, {}, {}
        self._end, self._on_gpu = DATA, False

    def keep(self, file: str, name: str, tensor: Tensor) -> None:
        """Copy a tensor."""
        start = -(-self._end // _ALIGNMENT) * _ALIGNMENT
        self._end = start + tensor.nbytes
        self._on_gpu = self._on_gpu or tensor.is_cuda
        self._grow(self._end)
        copy = self._bytes[start : self._end].view(tensor.dtype).view(tensor.shape)
        copy.copy_(tensor, non_blocking=tensor.is_cuda)
        self.files.setdefault(file, {})[name] = copy
        dtype = str(tensor.dtype).removeprefix("torch.")
        self._index.setdefault(file, {})[name] = (dtype, list(tensor.shape), start)

    def finish(self) -> None:
        """All that belongs to the cut is copied."""
        if self._on_gpu:
            torch.cuda.synchronize()
        text = json.dumps(self._index).encode()
        os.pwrite(self._file, text, self._end)
        write_header(self._file, Header(self.step, True, self._end, len(text)))

    def forget(self) -> None:
        """Hold no cut any more."""
        write_header(self._file, Header(-1, False, 0, 0))
        self.step = -1

    def _grow(self, size: int) -> None:
        """Have at least so many bytes; what is there stays where it is in the file."""
        if size <= len(self._bytes):
            return
        size = max(size, 2 * len(self._bytes))
        size = max(-(-size // _GROWTH_BYTES) * _GROWTH_BYTES, os.fstat(self._file).st_size)
        os.ftruncate(self._file, size)
        self._bytes = torch.frombuffer(mmap.mmap(self._file, size), dtype=torch.uint8)
        if self._on_gpu:
            cudart: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
            cudart.cudaHostRegister(self._bytes.data_ptr(), size, 0)


class KeptTensors(Mapping[str, Tensor]):
    """The tensors of a file of a cut in memory: copies, so that what goes on from them doesn't
    change the cut."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name].clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _opened(paths: Sequence[str]) -> HeldSlots:
    with suppress(OSError):  # not Linux: then nobody else sees them
        if paths:
            return HeldSlots.opened(paths)
    return HeldSlots.make()


def read_slot(path: str, step: int) -> Files:
    """The tensors of a cut in memory, as they are there.

    Raises:
        OSError: nobody holds it any more.
        ValueError: another cut is there, or a part of one.
    """
    file = os.open(path, os.O_RDONLY)
    try:
        header = read_header(file)
        if header is None or not header.is_whole or header.step != step:
            raise ValueError(f"{path} doesn't hold the cut of step {step}")
        index = json.loads(os.pread(file, header.index_bytes, header.index_start))
        mapped = mmap.mmap(file, os.fstat(file).st_size, access=mmap.ACCESS_COPY)
    finally:
        os.close(file)
    raw = torch.frombuffer(mapped, dtype=torch.uint8)
    return {
        name: {key: _view(raw, *place) for key, place in tensors.items()}
        for name, tensors in index.items()
    }


def _view(raw: Tensor, dtype_name: str, shape: list[int], start: int) -> Tensor:
    dtype: torch.dtype = getattr(torch, dtype_name)
    nbytes = dtype.itemsize * torch.Size(shape).numel()
    return raw[start : start + nbytes].view(dtype).view(shape)
