"""A split in files of the cache, of which a process maps what it reads: made once, part by part,
and as large as the disk has room for."""

from __future__ import annotations

import hashlib
import json
import mmap
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from tsarch.data.cuts import CutCount, cut_counts
from tsarch.data.merging import OFFSETS, shifted
from tsarch.data.row_digest import RowDigest
from tsarch.data.split_size import SplitSize
from tsarch.errors import UserError
from tsarch.records import IntArray, TokenizedSplit

_ABOUT = "about.json"
_LENGTHS = "context_lengths"
_TOKEN_COUNTS, _LABEL_COUNTS = "token_counts", "label_counts"
_PAIRS = ("windows", "leads")
_AT_ONCE = 2**20


@dataclass(frozen=True)
class About:
    """What is known of a stored split without reading it."""

    size: SplitSize
    digest: str
    """As `RowDigest` has it."""
    fingerprint: str
    """Hash of all arrays."""
    num_cut_tokens: int
    names: dict[str, str]
    """What has to be learned (`RowReader.label_names`) → where it is first."""
    labels: tuple[str, ...]
    notes: tuple[str, ...]
    """Remarks for the user."""

    @classmethod
    def read(cls, path: Path) -> About:
        """What `write` wrote."""
        own = json.loads(path.read_text(encoding="utf-8"))
        texts = {name: tuple(own[name]) for name in ("labels", "notes")}
        return cls(**{**own, **texts, "size": SplitSize(**own["size"])})

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")


@dataclass(frozen=True)
class StoredSplit(TokenizedSplit):
    """A split whose arrays are mapped files. It has no `rows`, `cuts` and `pieces`."""

    about: About = field(kw_only=True)
    lengths: IntArray = field(kw_only=True)
    token_counts: IntArray = field(kw_only=True)
    """(tokens,) how often each of the vocabulary comes."""
    counted_labels: IntArray = field(kw_only=True)
    """(labels,) how many words have each label."""
    maps: tuple[mmap.mmap, ...] = field(kw_only=True, repr=False)
    """The files of the arrays."""

    @property
    def context_lengths(self) -> IntArray:
        """(num_contexts,) tokens of each context."""
        return self.lengths

    @property
    def distinct_tokens(self) -> IntArray:
        """(tokens,) all that there are, sorted."""
        return np.flatnonzero(self.token_counts)

    @property
    def num_cut_tokens(self) -> int:
        """Tokens of the rows that are in no context."""
        return self.about.num_cut_tokens

    def label_counts(self, num_labels: int) -> IntArray:
        """(num_labels,) how many words have each label."""
        missing = max(num_labels - len(self.counted_labels), 0)
        return np.pad(self.counted_labels, (0, missing))

    def check_labels(self, purpose: str) -> None:
        """Nothing: all have labels, or they would not be stored."""

    def release(self) -> None:
        """Let go of what has been read: it stays in the system's cache of files, if there is room.
        A process of any age then has no more of a split mapped than what it reads now."""
        for own in self.maps:
            own.madvise(mmap.MADV_DONTNEED)


def open_split(folder: Path) -> StoredSplit | None:
    """A split that was stored; None: there is none."""
    if not (folder / _ABOUT).exists():
        return None
    maps: list[mmap.mmap] = []
    arrays: dict[str, Any] = {}
    for path in sorted(folder.glob("*.int64")):
        with path.open("rb") as file:
            maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        values = np.frombuffer(maps[-1], dtype=np.int64)
        arrays[path.stem] = values.reshape(-1, 2) if path.stem in _PAIRS else values
    return StoredSplit(
        about=About.read(folder / _ABOUT),
        lengths=arrays.pop(_LENGTHS),
        token_counts=arrays.pop(_TOKEN_COUNTS),
        counted_labels=arrays.pop(_LABEL_COUNTS),
        maps=tuple(maps),
        **arrays,
    )


class SplitWriter:
    """Stores a split part by part, in a folder that is there when all of it is.

    Args:
        folder: where; its neighbour of the same name with a dot before is taken until then.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own = folder.with_name(f".{folder.name}")
        shutil.rmtree(self._own, ignore_errors=True)
        self._own.mkdir(parents=True)
        self._open = ExitStack()
        self._files: dict[str, IO[bytes]] = {}
        self._num_words = 0
        self.size = SplitSize()
        """Of all parts so far."""
        self._counts = {_TOKEN_COUNTS: _Counts(), _LABEL_COUNTS: _Counts()}
        self._digest, self._fingerprint = RowDigest(), hashlib.sha256()
        self.cuts: dict[tuple[str, bool], CutCount] = {}
        """What rows lose, by reason."""

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # of a full disk, which is told
            self._open.close()
        shutil.rmtree(self._own, ignore_errors=True)

    def append(self, part: TokenizedSplit) -> None:
        """Add what rows give that no document of another part is among.

        Raises:
            UserError: a word has no label, or the disk is full.
        """
        assert part.queries is None, "the config refuses it"
        part.check_labels("training")
        if not self._files:
            for name in OFFSETS:
                self._write(name, np.zeros(1, dtype=np.int64))
        for name, values in shifted(
            part, self.size.tokens, self._num_words, self.size.windows
        ).items():
            self._write(name, values)
        self._write(_LENGTHS, part.context_lengths)
        self._counts[_TOKEN_COUNTS].add(part.token_ids)
        self._counts[_LABEL_COUNTS].add(part.labels)
        self._digest.add(part.rows)
        for cut in cut_counts(part):
            before = self.cuts.get((cut.what, cut.is_read))
            self.cuts[cut.what, cut.is_read] = cut if before is None else before + cut
        self._num_words += part.num_words
        self.size += SplitSize.of(part)

    def share_of(self, token: int | None) -> float:
        """Share that a token has of all."""
        counts = self._counts[_TOKEN_COUNTS].values
        known = token is not None and token < len(counts)
        return float(counts[token] / max(counts.sum(), 1)) if known else 0.0

    def finish(
        self,
        names: dict[str, str],
        labels: tuple[str, ...],
        notes: tuple[str, ...],
        new_ids: Sequence[int] | None,
    ) -> None:
        """Put the folder in its place; see `About`.

        Args:
            new_ids: by label id of the parts the one that it becomes; None: they stay.
        """
        with self._telling():
            self._open.close()
        counts = {name: own.values for name, own in self._counts.items()}
        if new_ids is not None:
            self._relabel(np.array(new_ids, dtype=np.int64))
            found = np.zeros(len(new_ids), dtype=np.int64)
            found[list(new_ids)[: len(counts[_LABEL_COUNTS])]] = counts[_LABEL_COUNTS]
            counts[_LABEL_COUNTS] = found
        for name, values in counts.items():
            self._path(name).write_bytes(values.tobytes())
        self._fingerprint.update(repr(labels).encode())
        about = About(
            self.size,
            self._digest.hexdigest(),
            self._fingerprint.hexdigest(),
            sum(cut.num_tokens for cut in self.cuts.values() if not cut.is_read),
            names,
            labels,
            notes,
        )
        about.write(self._own / _ABOUT)
        shutil.rmtree(self._folder, ignore_errors=True)  # of what was broken off
        self._own.rename(self._folder)

    def _path(self, name: str) -> Path:
        return self._own / f"{name}.int64"

    def _write(self, name: str, values: IntArray) -> None:
        if name not in self._files:
            self._files[name] = self._open.enter_context(self._path(name).open("wb"))
        content = np.ascontiguousarray(values).tobytes()
        self._fingerprint.update(content)
        with self._telling():
            self._files[name].write(content)
            self._files[name].flush()

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where, what = f"data.streamed: {self._own}", f"can't be written: {error.strerror}."
            raise UserError.single(where, what, "Choose another data.cache_folder.") from None

    def _relabel(self, new_ids: IntArray) -> None:
        labels = np.memmap(self._path("labels"), dtype=np.int64, mode="r+")
        for start in range(0, len(labels), _AT_ONCE):
            labels[start : start + _AT_ONCE] = new_ids[labels[start : start + _AT_ONCE]]
        labels.flush()


class _Counts:
    """How often each of some numbers from 0 on comes."""

    def __init__(self) -> None:
        self.values = np.zeros(1, dtype=np.int64)

    def add(self, numbers: IntArray) -> None:
        found = np.bincount(numbers, minlength=len(self.values))
        found[: len(self.values)] += self.values
        self.values = found
