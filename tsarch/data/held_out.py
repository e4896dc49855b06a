"""A share of the training split in place of a validation split that a hub data set lacks."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tsarch.data.row_reader import RowReader, RowT
from tsarch.errors import UserError

_SEED = 0


def held_out(
    rows: Sequence[RowT], reader: RowReader[RowT], share: float, source: str
) -> dict[str, list[RowT]]:
    """The training split and a validation split of whole documents, the same at every run.

    A document with a label that the rest of the training split lacks stays there.

    Raises:
        UserError: there are too few documents.
    """
    documents: dict[str, list[RowT]] = {}
    for row in rows:
        documents.setdefault(row.origin.doc_id, []).append(row)
    names = list(documents)
    chosen = set(random.Random(_SEED).sample(names, round(share * len(names))))
    left = {name: len(own) for name, own in _labels(rows, reader).items()}
    kept = []
    for name in names:
        if name not in chosen:
            continue
        own = _labels(documents[name], reader)
        if all(left[label] > len(times) for label, times in own.items()):
            kept.append(name)
            for label, times in own.items():
                left[label] -= len(times)
    if not kept:
        what = f"has no validation split, and {share:.0%} of its {len(names):,} documents is none."
        raise UserError.single(source, what, "Raise data.validation_share.")
    held = set(kept)
    return {
        "train": [row for row in rows if row.origin.doc_id not in held],
        "validation": [row for row in rows if row.origin.doc_id in held],
    }


def _labels(rows: Sequence[RowT], reader: RowReader[RowT]) -> dict[str, list[str]]:
    """What has to be learned → every place where it is."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for name, place in reader.label_names(row):
            found.setdefault(name, []).append(place)
    return found
