"""Operations of torch without values: which there are, what they compute, move and hold.

Floating-point tensors are fake (torch's `FakeTensorMode`: shapes, strides, dtypes, no memory),
while whole numbers and masks are real. So code whose shapes depend on labels and masks runs as it
does in training, on a model of any size, and all that is done is recorded, operation by operation.
"""

from __future__ import annotations

import logging
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    FakeTensor,
    FakeTensorMode,
    in_kernel_invocation_manager,
)
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

_LOGGER = logging.getLogger("torch._subclasses.fake_tensor")
_CPU = torch.device("cpu")
_ATEN = torch.ops.aten
_CPU_ATTENTION = _ATEN._scaled_dot_product_flash_attention_for_cpu
_CPU_ATTENTION_BACKWARD = _ATEN._scaled_dot_product_flash_attention_for_cpu_backward
_INDEXED = (_ATEN.index.Tensor, _ATEN.index_put.default, _ATEN.index_put_.default)
_GROUPED = _ATEN._grouped_mm
_FREE = (
    *(_ATEN.empty, _ATEN.empty_like, _ATEN.empty_strided, _ATEN.new_empty),
    *(_ATEN.new_empty_strided, _ATEN.detach, _ATEN.alias, _ATEN.lift_fresh),
)
"""Operations that touch no values."""


@dataclass(frozen=True)
class Shape:
    """A tensor of an operation, without its values."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Of its elements; those that an expanded dimension repeats count once."""
        number = 1
        for size, stride in zip(self.sizes, self.strides, strict=True):
            number *= size if stride else 1
        return number * self.dtype.itemsize


@dataclass(frozen=True)
class Op:
    """An operation with the shapes that it is given and gives; equal ones take equal time."""

    name: str
    """As torch has it: `aten.addmm.default`."""
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]
    flops: int
    moved_bytes: int
    """Read and written."""
    scalars: str
    """Of its arguments what are no tensors."""

    @property
    def dtype(self) -> torch.dtype | None:
        """Of what is computed."""
        floating = [s.dtype for s in (*self.outputs, *self.inputs) if s.dtype.is_floating_point]
        return floating[0] if floating else None


class Ledger:
    """Bytes of the fake tensors that are alive."""

    def __init__(self) -> None:
        self.live = 0
        self._storages: dict[int, weakref.ref[Any]] = {}

    def note(self, tensor: Tensor) -> None:
        """Count a tensor's storage, until nobody has it any more."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            return
        nbytes = storage.nbytes()
        self.live += nbytes

        def gone(_: Any) -> None:
            self._storages.pop(key, None)
            self.live -= nbytes

        self._storages[key] = weakref.ref(storage, gone)


Example = tuple[Any, Any, Any]
"""Function that does what an operation does on tensors of no matter what values, arguments and
keywords, tensors as `Shape`."""
_Key = tuple[Any, tuple[Shape, ...], tuple[Any, ...]]
"""Function, tensors and other arguments (with their types: 1 equals True) of an operation."""
_TEMPLATES: dict[_Key, tuple[Shape, ...]] = {}
"""Operation → the tensors that it gives, which depends on nothing else."""


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within `dry`: runs every operation on fake tensors and notes it under the current `phase`."""

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.phase = ""
        self.ops: dict[str, Counter[Op]] = {}
        """Phase → operations and how often."""
        self.examples: dict[Op, Example] = {}
        self.ledger = Ledger()
        self.peaks: dict[str, int] = {}
        """Phase → most bytes alive above `ground`."""
        self.most: dict[str, int] = {}
        """Phase → most bytes alive."""
        self.ground = 0
        self.failed: Any = None
        """The operation that couldn't be run, if one couldn't."""
        self._fake = fake
        self._known: dict[_Key, Op] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation."""
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:  # asked of fake tensors alone
            return _CPU
        if func is _ATEN._local_scalar_dense.default:
            return _scalar(args[0])
        if func in _INDEXED:
            args = (args[0], _places(args[1]), *args[2:])
        leaves = _leaves(args, kwargs)
        given = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        is_drawn = torch.Tag.nondeterministic_seeded in func.tags
        are_known = not is_drawn and not any(isinstance(own, FakeTensor) for own in given)
        key = (
            func,
            tuple(_shape(leaf) for leaf in given),
            tuple((type(leaf), leaf) for leaf in leaves if not isinstance(leaf, Tensor)),
        )
        result = None
        if are_known and given and not _floating(given):
            with _disable_current_modes():
                result = func(*args, **kwargs)
            if _floating(_made(result)):
                result = None
        if result is None and func.is_view and not are_known:
            result = self._view(func, args, kwargs)
        if result is None:
            result = self._again(key)
        if result is None:
            result = self._run(func, args, kwargs)
            self._remember(key, given, result)
        if are_known and not given and not _floating(_made(result)):
            with _disable_current_modes():
                result = func(*args, **kwargs)
        self._look(key, args, kwargs, result)
        return result

    def _look(self, key: _Key, args: Any, kwargs: Any, result: Any) -> None:
        """Note what an operation has made, and the operation."""
        func = key[0]
        for tensor in _made(result):
            self.ledger.note(tensor)
        self.most[self.phase] = max(self.most.get(self.phase, 0), self.ledger.live)
        above = self.ledger.live - self.ground
        if above > self.peaks.get(self.phase, 0):
            self.peaks[self.phase] = above
        if self.phase and is_work(func):
            self._note(key, args, kwargs, result)

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """An operation as fake mode does it."""
        if func.overloadpacket == _GROUPED:
            return _grouped(*args, **kwargs)
        try:
            return func(*args, **kwargs)
        except Exception:
            self.failed = func
            raise

    def _view(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A view as fake mode makes it, without what it looks up before: half of all operations."""
        with in_kernel_invocation_manager(self._fake):
            meta = func(*args, **kwargs)
            if not isinstance(meta, Tensor):
                return type(meta)(FakeTensor(self._fake, own, _CPU) for own in meta)
            return FakeTensor(self._fake, meta, _CPU)

    def _again(self, key: _Key) -> Any:
        """What an operation gives, by what an equal one gave before; None: there was none. (Fake
        mode has a cache too, that takes twice as long.)"""
        shapes = _TEMPLATES.get(key)
        if shapes is None:
            return None
        made = []
        with torch._C._DisableTorchDispatch():
            for own in shapes:
                meta = torch.empty_strided(own.sizes, own.strides, dtype=own.dtype, device="meta")
                made.append(FakeTensor(self._fake, meta, _CPU))
        return made[0] if len(made) == 1 else tuple(made)

    def _remember(self, key: _Key, given: list[Tensor], result: Any) -> None:
        """Note what an operation gives, if that is new tensors alone."""
        func = key[0]
        if func.is_view or func._schema.is_mutable:
            return
        whole = result if isinstance(result, tuple) else (result,)
        if len(whole) == 1 and isinstance(result, tuple):
            return
        if not all(isinstance(own, FakeTensor) and own.device.type == "cpu" for own in whole):
            return
        old = {tensor.untyped_storage()._cdata for tensor in given}
        new = [own.untyped_storage() for own in whole]
        if old.isdisjoint(own._cdata for own in new) and all(
            own.storage_offset() == 0 for own in whole
        ):
            _TEMPLATES[key] = tuple(map(_shape, whole))

    def _note(self, key: _Key, args: Any, kwargs: Any, result: Any) -> None:
        """Enter an operation under the current phase."""
        func, inputs, scalars = key
        op = self._known.get(key)
        if op is None:
            outputs = tuple(map(_shape, _made(result)))
            flops, moved = _flops(func, args, kwargs, result), _moved_bytes(func, inputs, outputs)
            op = self._known[key] = Op(str(func), inputs, outputs, flops, moved, str(scalars))
            does = _in_like_groups if func.overloadpacket == _GROUPED else func
            self.examples[op] = does, *tree_map_only(Tensor, _shape, (args, kwargs))
        self.ops.setdefault(self.phase, Counter())[op] += 1


@contextmanager
def dry() -> Iterator[Recorder]:
    """Within: no tensor has floating-point values, and what is done is recorded."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    recorder = Recorder(fake)
    level = _LOGGER.level
    _LOGGER.setLevel(logging.CRITICAL)  # it tells what is raised too
    try:
        with fake, recorder:
            yield recorder
    finally:
        _LOGGER.setLevel(level)


def is_work(func: Any) -> bool:
    """Whether an operation computes or moves anything."""
    return not func.is_view and func.overloadpacket not in _FREE


def _scalar(tensor: Tensor) -> Any:
    """A number that code looks at; of what isn't known one that is as good as any."""
    if not isinstance(tensor, FakeTensor):
        with _disable_current_modes():
            return tensor.item()
    if tensor.dtype is torch.bool:
        return True
    return 1.0 if tensor.dtype.is_floating_point else 1


def _leaves(args: Any, kwargs: Any) -> list[Any]:
    """Arguments, those in lists too: operations have no deeper ones."""
    leaves: list[Any] = []
    for given in (*args, *kwargs.values()):
        if isinstance(given, list | tuple):
            leaves += given
        else:
            leaves.append(given)
    return leaves


def _floating(tensors: list[Tensor]) -> bool:
    return any(tensor.dtype.is_floating_point for tensor in tensors)


def _made(result: Any) -> list[Tensor]:
    """Tensors that an operation gives."""
    if isinstance(result, Tensor):
        return [result]
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


def _places(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Indices of which masks are numbers: how many they choose is in their values."""
    places: list[Tensor | None] = []
    for index in indices:
        if index is None or index.dtype is not torch.bool or isinstance(index, FakeTensor):
            places.append(index)
            continue
        with _disable_current_modes():
            places += index.nonzero(as_tuple=True)
    return places


def _shape(tensor: Tensor) -> Shape:
    return Shape(tuple(tensor.shape), tensor.stride(), tensor.dtype)


def _grouped(
    a: Tensor,
    b: Tensor,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Products of groups of rows, each with a matrix of its own, as a layer of experts has them.
    (Torch has a rule too, that takes bf16 alone.)"""
    rows, columns = a.shape[-2], b.shape[-1]
    groups = a.shape[0] if offs is None else offs.shape[0]
    sizes = (groups, rows, columns) if a.ndim == b.ndim else (rows, columns)
    return torch.empty(sizes, dtype=out_dtype or a.dtype)


def _in_like_groups(a: Tensor, b: Tensor, offs: Tensor | None = None, *rest: Any) -> Tensor:
    """The same on real tensors, in groups of as many rows each."""
    if offs is not None:
        rows, groups = a.shape[0 if a.ndim == 2 and b.ndim == 3 else -1], len(offs)
        rows = b.shape[-1] if a.ndim == 3 else rows
        offs = torch.arange(1, groups + 1).mul_(rows).div_(groups, rounding_mode="floor").int()
    return torch._grouped_mm(a, b, offs, *rest)


def _grouped_flops(a: Tensor, b: Tensor) -> int:
    """Each row, which is a token at one of its experts, is multiplied with one matrix alone."""
    if a.ndim == 3 and b.ndim == 2:
        return 2 * a.shape[1] * a.shape[2] * b.shape[1]
    return 2 * a.numel() * b.shape[-1]


def _flops(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    """As torch's `FlopCounterMode` counts them; it leaves out attention on CPUs, and experts."""
    packet = func.overloadpacket
    if packet == _GROUPED:
        return _grouped_flops(*args[:2])
    if packet == _CPU_ATTENTION:
        return int(sdpa_flop_count(*(t.shape for t in args[:3])))  # type: ignore[no-untyped-call]
    if packet == _CPU_ATTENTION_BACKWARD:
        return int(sdpa_backward_flop_count(*(t.shape for t in args[:4])))  # type: ignore[no-untyped-call]
    count = flop_registry.get(packet)
    return 0 if count is None else int(count(*args, **kwargs, out_val=result))


def _moved_bytes(func: Any, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int:
    """Inputs read once and outputs written once; of tables only the rows that are looked up."""
    written = sum(own.nbytes for own in outputs)
    if func.overloadpacket in (_ATEN.index, _ATEN.embedding, _ATEN.gather, _ATEN.index_select):
        return 2 * written + sum(own.nbytes for own in inputs[1:])
    return written + sum(own.nbytes for own in inputs)
