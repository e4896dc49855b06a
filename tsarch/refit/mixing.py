"""Which of the new rows are trained on and which are held out, and which of the old come again.

What is decided of a document hangs on what its rows say (not on their labels, order or file), so
that the same row falls on the same side whenever it comes. Beyond that, a row that was ever held
out is never trained on, and a row that was trained on is never held out.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from tsarch.data.rows import Row
from tsarch.errors import UserError
from tsarch.refit.rows import Document, PlainRows

_VALIDATION = 0.5
"""Of new data so much of the held-out share helps to choose the best weights besides."""
_BITS = 64


@dataclass(frozen=True)
class OldRows:
    """What a run has read before."""

    train: Sequence[Document]
    """Of its training split, and of the data of refits that its version came from; none: nothing
    is replayed."""
    validation: Sequence[Document]
    test: Sequence[Document]
    held_out: frozenset[str]
    """Keys of all rows that refits have held out."""
    trained: frozenset[str]
    """Keys of all rows that were trained on."""


@dataclass(frozen=True)
class Mix:
    """The rows of a refit."""

    new_train: tuple[Document, ...]
    new_validation: tuple[Document, ...]
    held_out: tuple[Document, ...]
    replayed: tuple[Document, ...]
    notes: tuple[str, ...]


def mix(
    new: Sequence[Document],
    old: OldRows,
    plain: PlainRows,
    held_out: float,
    replay: float,
    seed: str,
    source: str,
) -> Mix:
    """Split new documents and draw old ones.

    Args:
        held_out: share of the new documents that are only measured.
        replay: share of the old training documents that come again.
        seed: of the draw.
        source: where the new rows come from, for messages.

    Raises:
        UserError: too little is new to train on, or to measure.
    """
    sides = _sides(new, plain, held_out, source)
    measured = plain.keys(row for own in (*old.validation, *old.test) for row in own.rows)
    measured |= old.held_out
    held, num_trained = _without(sides["held_out"], plain, old.trained)
    kept = plain.keys(row for own in held for row in own.rows)
    train, num_measured = _without(sides["train"], plain, measured | kept)
    validation, _ = _without(sides["validation"], plain, measured | kept | old.trained)
    replayed, _ = _without(_drawn(old.train, replay, seed), plain, measured | kept)
    if not train:
        what = "has no row to train on: all are held out, or in the run's validation or test data."
        raise UserError.single(source, what, "Give other data, or less to --held-out.")
    if held_out > 0 and not held:
        what = "has no row to hold out that the run wasn't trained on already."
        raise UserError.single(source, what, "Give other data, or --held-out 0 to measure none.")
    notes = [
        f"{number:,} rows of {source} {what}"
        for number, what in (
            (num_measured, "are measured on elsewhere, and not trained on"),
            (num_trained, "were trained on before, and not held out"),
        )
        if number
    ]
    return Mix(train, validation, held, replayed, tuple(notes))


def _sides(
    documents: Sequence[Document], plain: PlainRows, share: float, source: str
) -> dict[str, list[Document]]:
    """New documents by what becomes of them."""
    sides: dict[str, list[Document]] = {"train": [], "validation": [], "held_out": []}
    places = [_place(own, plain) for own in documents]
    if share > 0 and len(set(places)) < 2:
        what = "is one document: it can't be trained on and held out."
        raise UserError.single(source, what, "Give more, or --held-out 0 to measure none.")
    least = max(share, min(places)) if share > 0 else -1.0
    for own, place in zip(documents, places, strict=True):
        if share > 0 and place <= least:
            sides["held_out"].append(own)
        elif place < share * (1 + _VALIDATION):
            sides["validation"].append(own)
        else:
            sides["train"].append(own)
    if not sides["train"]:
        sides["train"], sides["validation"] = sides["validation"], []
    return sides


def _place(document: Document, plain: PlainRows) -> float:
    """A number in [0, 1) that a document always has."""
    digest = hashlib.sha256("".join(plain.key(row) for row in document.rows).encode())
    return int(digest.hexdigest()[: _BITS // 4], 16) / float(1 << _BITS)


def _drawn(documents: Sequence[Document], share: float, seed: str) -> list[Document]:
    """A share of documents, at least one, in order."""
    if share <= 0 or not documents:
        return []
    number = max(1, round(share * len(documents)))
    chosen = random.Random(seed).sample(range(len(documents)), number)
    return [documents[place] for place in sorted(chosen)]


def _without(
    documents: Sequence[Document], plain: PlainRows, keys: set[str] | frozenset[str]
) -> tuple[tuple[Document, ...], int]:
    """Documents without rows that are known, and how many those are."""
    kept: list[Document] = []
    dropped = 0
    for own in documents:
        rows: tuple[Row, ...] = tuple(row for row in own.rows if plain.key(row) not in keys)
        dropped += len(own.rows) - len(rows)
        if rows:
            kept.append(Document(own.name, rows))
    return tuple(kept), dropped
