"""What is made of files piece by piece, in order: here, or by copies of the pair elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from tsarch.inputs.files import InputFile
from tsarch.inputs.reading import Reading
from tsarch.prediction.pieces import Limits, Piece, pieces, read_ahead
from tsarch.prediction.trained_pair import TrainedPair

Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)

Work = Callable[[TrainedPair, Piece], Result]
"""What a pair makes of a piece."""


class Working(Protocol[Result_co]):
    """Reads files and makes something of their pieces."""

    def __call__(self, files: Sequence[str], reading: Reading, skipped: int) -> Iterator[Result_co]:
        """Of all inputs of files but the first ones, in order."""


def working_here(pair: TrainedPair, work: Work[Result]) -> Working[Result]:
    """In this process; the next pieces are read meanwhile."""

    def made(files: Sequence[str], reading: Reading, skipped: int) -> Iterator[Result]:
        opened = [InputFile(path, reading) for path in files]
        for piece in read_ahead(pieces(opened, Limits.of(pair.task), skipped)):
            yield work(pair, piece)

    return made
