"""A store: a folder of the teacher's states of documents, which is read where it is asked, and
written a file at a time. Any number of processes may write into one at once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from tsarch.clock import now_s
from tsarch.errors import UserError
from tsarch.pair.state_files import EncodedStates, StateFile, StoredAs, write_states
from tsarch.pair.states import States

_ENDING = ".safetensors"
_FILE_BYTES = 128 << 20
"""A file is written once it has so many."""
_FILE_S = 30.0
"""And after so long: what an interrupted call has to do again."""
_GOES_ON = "What was written before stays: the same command goes on from there."


class StateFolder:
    """The states in a folder. A `StateStore` that keeps nothing more; threads may share it.

    Args:
        revision: of the pair that asks; None: whichever the first file is of.

    Raises:
        UserError: it is no store, has damaged files, or is another pair's.
    """

    def __init__(self, folder: Path, revision: str | None = None) -> None:
        files = _files(folder)
        if not files:
            hint = f"Make it one: tsarch read RUN --input FILE --output {folder}"
            raise UserError.single(f"store {folder}", "is none: it has no states.", hint)
        self.folder = folder
        self.revision = revision or files[0].revision
        for own in files:
            own.check_revision(self.revision)
        self.size = StoreSize.of(files)
        self._places = {key: (own, n) for own in files for n, key in enumerate(own.keys)}
        self.hits = 0
        """Contexts that were asked for and are there."""
        self.misses = 0

    def keys(self) -> set[bytes]:
        """Of the contexts that are there."""
        return set(self._places)

    def get(self, context: bytes) -> States | None:
        """The states of a context, by `context_key`.

        Raises:
            UserError: they are damaged.
        """
        place = self._places.get(context)
        if place is None:
            self.misses += 1
            return None
        self.hits += 1
        file, number = place
        return file.states(number)

    def put(self, context: bytes, states: States) -> None:
        """Nothing: `StateWriter` writes."""


class StateWriter:
    """Puts states of contexts into a folder, which may have some already.

    Args:
        stored_as: how; all of a folder are alike.
        revision: of the pair that makes them.
        dimensions: that states have in the folder; None: all.

    Raises:
        UserError: the folder can't be made, has damaged files, or is another pair's.
    """

    def __init__(
        self, folder: Path, stored_as: StoredAs, revision: str, dimensions: int | None = None
    ) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            what = f"can't be made: {error.strerror or error}."
            raise UserError.single(f"store {folder}", what) from None
        files = _files(folder)
        for own in files:
            own.check_revision(revision)
            if (own.stored_as, own.dimensions) != (stored_as, dimensions):
                raise UserError.single(f"store {folder}", *_stored_otherwise(own))
        self._folder, self._stored_as, self._revision = folder, stored_as, revision
        self.projection = files[0].projection if files else None
        """To the `dimensions`; None: there are no states yet that it was found for."""
        self.known = {key for own in files for key in own.keys}
        """Contexts that needn't be read any more."""
        self._pending: dict[bytes, EncodedStates] = {}
        self._num_bytes = 0
        self._written_s = now_s()

    def add(self, context: bytes, states: EncodedStates) -> None:
        """Take a context, unless it is there."""
        if context in self.known:
            return
        self.known.add(context)
        self._pending[context] = states
        self._num_bytes += states.num_bytes
        if self._num_bytes >= _FILE_BYTES or now_s() - self._written_s >= _FILE_S:
            self.flush()

    def flush(self) -> None:
        """Write what was taken.

        Raises:
            UserError: it can't be written.
        """
        if self._pending:
            name = hashlib.sha256(b"".join(self._pending)).hexdigest()[:32]
            path = self._folder / (name + _ENDING)
            own = self._pending, self._stored_as, self._revision
            write_states(path, *own, projection=self.projection, hint=_GOES_ON)
        self._pending, self._num_bytes, self._written_s = {}, 0, now_s()

    def size(self) -> StoreSize:
        """Of all that is written."""
        return StoreSize.of(_files(self._folder))


@dataclass(frozen=True)
class StoreSize:
    """How much a store has."""

    contexts: int
    tokens: int
    num_bytes: int

    @classmethod
    def of(cls, files: list[StateFile]) -> StoreSize:
        """Of the files of one."""
        return cls(
            sum(len(own.keys) for own in files),
            sum(own.num_tokens for own in files),
            sum(own.num_bytes for own in files),
        )

    @property
    def bytes_a_token(self) -> float:
        """On the disk."""
        return self.num_bytes / max(self.tokens, 1)


def _stored_otherwise(file: StateFile) -> tuple[str, str]:
    """What a file has, and how to go on with it."""
    if file.dimensions is None:
        options = f"--states {file.stored_as} without --dimensions"
        return (
            f"has {file.stored_as} states of all dimensions.",
            f"Take {options}, or another folder.",
        )
    what = f"has {file.stored_as} states of {file.dimensions} dimensions."
    options = f"--states {file.stored_as} --dimensions {file.dimensions}"
    return what, f"Take {options}, or another folder."


def _files(folder: Path) -> list[StateFile]:
    """The files of a store, which one that is being written isn't yet."""
    names = sorted(folder.glob(f"[!.]*{_ENDING}")) if folder.is_dir() else []
    return [StateFile(own) for own in names]
