"""`tsarch read`: the teacher's states of files' documents, into a store, each of them once. What is
there isn't read again, so an interrupted call goes on, and files can be added."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, replace

from tsarch.data.sources import STDIN
from tsarch.errors import Mistake, UserError
from tsarch.inputs.files import InputFile
from tsarch.inputs.reading import Reading
from tsarch.pair.projection import Projection
from tsarch.pair.state_files import EncodedStates, StoredAs
from tsarch.pair.state_folder import StateWriter
from tsarch.prediction.asked import asking
from tsarch.prediction.batch import BatchProgress
from tsarch.prediction.pieces import Piece
from tsarch.prediction.trained_pair import TrainedPair
from tsarch.prediction.working import Working


@dataclass(frozen=True)
class ReadPiece:
    """What the teacher makes of a piece."""

    contexts: Iterable[tuple[bytes, EncodedStates]]
    """Those that weren't known, by their keys; read while they are gone through."""
    inputs: int
    problems: list[Mistake]
    begun_bytes: int
    bytes_read: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ReadResult:
    """What became of files."""

    inputs: int
    bad: int
    contexts: int
    """That the teacher read."""
    notes: tuple[str, ...]
    """On how files were read."""


def read_piece(
    pair: TrainedPair,
    piece: Piece,
    known: Container[bytes],
    stored_as: StoredAs,
    projection: Projection | None = None,
) -> ReadPiece:
    """The states of a piece's documents, but for contexts that are known."""
    bad = [own for own in piece.inputs if own.value is None]
    sound = [(own.place, own.value) for own in piece.inputs if own.value is not None]
    prepared = pair.prepare([asking(pair, value) for _, value in sound])
    problems = [Mistake(own.place, own.problem) for own in bad]
    problems += [Mistake(sound[n][0], what) for n, what in prepared.inputs.problems.items()]
    read = pair.read_missing(prepared, known)
    return ReadPiece(
        ((key, EncodedStates.of(states, stored_as, projection)) for key, states in read),
        len(piece.inputs),
        problems,
        piece.begun_bytes,
        piece.bytes_read,
        piece.notes,
    )


def read_whole_piece(
    pair: TrainedPair,
    piece: Piece,
    known: Container[bytes],
    stored_as: StoredAs,
    projection: Projection | None = None,
) -> ReadPiece:
    """As `read_piece`, all of it now: to be sent from where it was read."""
    own = read_piece(pair, piece, known, stored_as, projection)
    return replace(own, contexts=list(own.contexts))


@dataclass(frozen=True)
class ReadingJob:
    """Files whose documents are to be read.

    Args:
        skip_bad: go on where an input can't be read.
    """

    files: Sequence[str]
    reading: Reading
    writer: StateWriter
    skip_bad: bool

    def run(
        self, working: Working[ReadPiece], on_progress: Callable[[BatchProgress], None]
    ) -> ReadResult:
        """Read them.

        Raises:
            UserError: an input can't be read, or the store can't be written. What was read so far
                is kept.
        """
        sizes = [InputFile(path, self.reading).size for path in self.files]
        num_bytes = 0 if STDIN in self.files else sum(sizes)
        inputs = bad = contexts = 0
        notes: dict[str, None] = {}
        try:
            for own in working(self.files, self.reading, 0):
                if own.problems and not self.skip_bad:
                    raise UserError(own.problems)
                contexts += self._add(own.contexts)
                inputs, bad = inputs + own.inputs, bad + len(own.problems)
                notes.update(dict.fromkeys(own.notes))
                on_progress(BatchProgress(inputs, own.bytes_read, num_bytes, own.begun_bytes))
        finally:
            self.writer.flush()
        return ReadResult(inputs, bad, contexts, tuple(notes))

    def _add(self, contexts: Iterable[tuple[bytes, EncodedStates]]) -> int:
        count = 0
        for key, states in contexts:
            self.writer.add(key, states)
            count += 1
        return count
