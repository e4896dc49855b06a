"""The teacher's states of contexts in files: of one document that was read, and of stores of many.

A file is safetensors', so that it is mapped into memory and only what is asked for is read. Its
contexts lie one after another:

    keys (contexts, 32)             what states follow from beside the weights: `context_key`
    offsets (contexts + 1)          first token of each
    checks (contexts)               CRC-32 of each context's bytes
    hidden (tokens, width)          fp32, bits of bf16, or int8; or as many components, see below
    predictions (tokens, outputs)   fp32; bits of bf16 where `hidden` isn't fp32
    scales (tokens)                 of int8 alone: what one step is worth in each row
    projection_mean (width)         of states in fewer dimensions alone: `Projection`
    projection_basis (dimensions, width)
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from tsarch.errors import UserError, one_line
from tsarch.pair.projection import Projection
from tsarch.pair.states import Numbers, States
from tsarch.records import Array, FloatArray

StoredAs = Literal["fp32", "bf16", "int8"]
_FORMAT = "2"
_LARGEST = 127
_PARTS = ["hidden", "predictions"]
READ_AGAIN = "Delete it, and let the teacher read again."
"""What to do about a file of states that is damaged."""


@dataclass(frozen=True)
class EncodedStates:
    """States of a context as a file has them."""

    hidden: Array
    """(tokens, width), or (tokens, dimensions) of a projection."""
    predictions: Array
    """(tokens, outputs)."""
    scales: FloatArray | None = None
    """(tokens,); of int8 alone."""

    @classmethod
    def of(
        cls, states: States, stored_as: StoredAs, projection: Projection | None = None
    ) -> EncodedStates:
        """States, to be stored. bf16 rounds to the nearest even; int8 has a scale a row, its
        largest magnitude / 127.

        Args:
            projection: what is stored in place of the states are their components.
        """
        hidden, predictions = _array(states.hidden), _array(states.predictions)
        if projection is not None:
            hidden = projection.down(hidden)
        if stored_as == "fp32":
            return cls(hidden, predictions)
        if stored_as == "bf16":
            return cls(_bf16_bits(hidden), _bf16_bits(predictions))
        scales = np.abs(hidden).max(-1, initial=0) / _LARGEST
        steps = np.rint(hidden / np.where(scales == 0, 1, scales)[:, None])
        return cls(steps.astype(np.int8), _bf16_bits(predictions), scales)

    def states(self, projection: Projection | None = None) -> States:
        """In fp32; `projection`: the one that they were stored with."""
        hidden = _from_bits(self.hidden)
        if self.scales is not None:
            hidden = hidden * self.scales[:, None]
        if projection is not None:
            hidden = projection.up(hidden)
        return States(hidden, _from_bits(self.predictions))

    def parts(self) -> dict[str, Array]:
        """Arrays by their names in a file."""
        own = {"hidden": self.hidden, "predictions": self.predictions}
        return own if self.scales is None else {**own, "scales": self.scales}

    @property
    def num_bytes(self) -> int:
        """Of all numbers."""
        return sum(own.nbytes for own in self.parts().values())

    @property
    def check(self) -> int:
        """CRC-32 of all bytes."""
        found = 0
        for own in self.parts().values():
            found = zlib.crc32(np.ascontiguousarray(own).data, found)
        return found


class StateFile:
    """A file of states, mapped into memory; threads may share it.

    Raises:
        UserError: it can't be read, or is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            what = "is a folder, not a file of states." if path.is_dir() else "doesn't exist."
            raise UserError.single(str(path), what)
        try:
            self._file = cast(Any, safe_open(path, "np"))
            about = self._file.metadata() or {}
        except Exception as error:  # safetensors raises errors of its own
            hint = "If it was a file of states, delete it, and let the teacher read again."
            raise UserError.single(str(path), f"can't be read: {one_line(error)}.", hint) from None
        if about.get("format") != _FORMAT or about.get("states") not in get_args(StoredAs):
            raise UserError.single(str(path), "is no file of a teacher's states.")
        self.revision: str = about["revision"]
        self.stored_as: StoredAs = about["states"]
        self.document: str | None = about.get("document")
        """JSON of the document, where it is one that was read by itself."""
        self.projection: Projection | None = None
        """Of states that are stored in fewer dimensions."""
        if "projection" in about:
            self.projection = Projection.of_parts(self._file.get_tensor)
            if self.projection.check != int(about["projection"]):
                raise UserError.single(str(path), "is damaged.", READ_AGAIN)
        self.keys: list[bytes] = [own.tobytes() for own in self._file.get_tensor("keys")]
        self._offsets: list[int] = self._file.get_tensor("offsets").tolist()
        self._checks: list[int] = self._file.get_tensor("checks").tolist()

    @property
    def num_tokens(self) -> int:
        """Of all contexts."""
        return self._offsets[-1]

    @property
    def num_bytes(self) -> int:
        """Of the file."""
        return self.path.stat().st_size

    @property
    def dimensions(self) -> int | None:
        """That states are stored in; None: all."""
        return None if self.projection is None else self.projection.dimensions

    def states(self, number: int) -> States:
        """Of a context.

        Raises:
            UserError: its bytes aren't those that were written.
        """
        start, stop = self._offsets[number : number + 2]
        names = [*_PARTS, "scales"] if self.stored_as == "int8" else _PARTS
        own = EncodedStates(**{name: self._file.get_slice(name)[start:stop] for name in names})
        if own.check != self._checks[number]:
            raise UserError.single(str(self.path), "is damaged.", READ_AGAIN)
        return own.states(self.projection)

    def check_revision(self, revision: str) -> None:
        """Check whose states these are.

        Raises:
            UserError: they are another pair's.
        """
        if self.revision != revision:
            what = "has the states of another pair, or of other weights of this one."
            hint = "Let this pair read the documents again."
            raise UserError.single(str(self.path), what, hint)


def write_states(
    path: Path,
    contexts: Mapping[bytes, EncodedStates],
    stored_as: StoredAs,
    revision: str,
    further: Mapping[str, str] | None = None,
    projection: Projection | None = None,
    hint: str = "",
) -> None:
    """Write a file of states beside its place, then put it there: whoever looks finds it whole.

    Args:
        contexts: key → states, at least one.
        revision: of the pair that made them.
        further: what else the file says of itself.
        projection: that the states are stored with.
        hint: what can be done where it can't be written.

    Raises:
        UserError: it can't be written.
    """
    own = list(contexts.values())
    lengths = [len(states.hidden) for states in own]
    tensors = {
        "keys": np.frombuffer(b"".join(contexts), dtype=np.uint8).reshape(len(own), -1),
        "offsets": np.cumsum([0, *lengths]),
        "checks": np.array([states.check for states in own], dtype=np.uint32),
    }
    for part in own[0].parts():
        tensors[part] = np.concatenate([states.parts()[part] for states in own])
    about = {"format": _FORMAT, "revision": revision, "states": stored_as, **(further or {})}
    if projection is not None:
        tensors |= projection.parts()
        about["projection"] = str(projection.check)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            file.write(save(tensors, about))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        what = f"can't be written: {error.strerror or error}."
        raise UserError.single(str(path), what, hint) from None
    finally:
        aside.unlink(missing_ok=True)


def _array(numbers: Numbers) -> FloatArray:
    """(…) numbers of torch or NumPy in fp32."""
    own: Any = numbers if isinstance(numbers, np.ndarray) else numbers.float().cpu().numpy()
    return np.asarray(own, dtype=np.float32)


def _bf16_bits(numbers: FloatArray) -> Array:
    """(…) the upper halves of fp32 numbers, rounded to the nearest even."""
    bits = np.ascontiguousarray(numbers).view(np.uint32)
    rounded: Array = ((bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16).astype(np.uint16)
    return rounded


def _from_bits(stored: Array) -> FloatArray:
    """(…) stored numbers in fp32."""
    if stored.dtype == np.uint16:
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32)
