"""Copies of tensors in host memory, so that training can go on while they are written."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Keep = Callable[[str, Tensor], None]
"""Takes a copy of a tensor under a name."""
Files = dict[str, dict[str, Tensor]]
"""File → name → tensor."""


class HostCopies:
    """Copies by file and name. Their memory is used again: new pages would cost more than the
    copying itself. Pinned where the tensors come from a GPU."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, str], Tensor] = {}
        self._files: Files = {}
        self._on_gpu = False

    def begin(self) -> None:
        """Forget what was kept; the memory stays."""
        self._files = {}
        self._on_gpu = False

    def into(self, file: str) -> Keep:
        """A `Keep` for one file."""

        def keep(name: str, tensor: Tensor) -> None:
            self._keep(file, name, tensor.detach())

        return keep

    def finish(self) -> Files:
        """All copies, complete."""
        if self._on_gpu:
            torch.cuda.synchronize()
        return self._files

    def _keep(self, file: str, name: str, tensor: Tensor) -> None:
        buffer = self._buffers.get((file, name))
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(
                tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.is_cuda
            )
            self._buffers[file, name] = buffer
        buffer.copy_(tensor, non_blocking=tensor.is_cuda)
        self._on_gpu = self._on_gpu or tensor.is_cuda
        self._files.setdefault(file, {})[name] = buffer
