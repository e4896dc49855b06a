"""Entities in place of others of their type (Dai & Adel 2020, "An Analysis of Simple Data
Augmentation for Named Entity Recognition", section 3.3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from tsarch.augmentation.labelled_rows import Labelled
from tsarch.data.tag_spans import entities
from tsarch.errors import UserError
from tsarch.seeding import generator

Pool = Mapping[str, tuple[tuple[str, ...], ...]]
"""Type of entity → the words of those that there are, in order."""


def entity_pool(rows: Iterable[Labelled]) -> Pool:
    """The entities of rows.

    Raises:
        UserError: there is none to be swapped with another one.
    """
    found: dict[str, set[tuple[str, ...]]] = {}
    for own in rows:
        for kind, start, stop in entities(own.row.tags):
            found.setdefault(kind, set()).add(tuple(own.row.words[start:stop]))
    if all(len(own) < 2 for own in found.values()):
        what = "has no two different entities of one type, so none can be swapped."
        raise UserError.single("--input", what, "Give rows with entities in their tags.")
    return {kind: tuple(sorted(own)) for kind, own in sorted(found.items())}


def swapped(own: Labelled, pool: Pool, seed: int, copy: int) -> Labelled | None:
    """A row with other entities in the places of its own; None: it has none that could be.

    An entity that comes again in a document has the same one in its place again.
    """
    words: list[str] = []
    tags: list[str] = []
    done, document = 0, own.doc_id if own.doc_id is not None else own.place
    for kind, start, stop in entities(own.row.tags):
        name = tuple(own.row.words[start:stop])
        others = [each for each in pool.get(kind, ()) if each != name]
        if not others:
            continue
        # A text, which tells entities apart whatever is in them.
        rng = generator(seed, repr(("swap", document, kind, name)), copy)
        chosen = others[int(rng.integers(len(others)))]
        words += [*own.row.words[done:start], *chosen]
        tags += [*own.row.tags[done:start], f"B-{kind}", *[f"I-{kind}"] * (len(chosen) - 1)]
        done = stop
    if done == 0:
        return None
    row = replace(own.row, words=words + own.row.words[done:], tags=tags + own.row.tags[done:])
    return replace(own, row=row)
