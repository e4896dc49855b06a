"""Stores of states (`tsarch read`) beside runs that are served."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from tsarch.errors import UserError
from tsarch.pair.state_folder import StateFolder


def open_stores(folders: Sequence[str]) -> dict[str, StateFolder]:
    """Revision of a pair → the store of its states.

    Raises:
        UserError: a folder is none, is damaged, or is the second one of a pair.
    """
    found: dict[str, StateFolder] = {}
    for folder in folders:
        store = StateFolder(Path(folder))
        if store.revision in found:
            hint = "Put both into one: tsarch read."
            raise UserError.single(f"store {folder}", "is the second one of its run.", hint)
        found[store.revision] = store
    return found


def check_stores(stores: Mapping[str, StateFolder], revisions: Collection[str]) -> None:
    """Check that each store is of a pair that is served.

    Raises:
        UserError: one is of other weights.
    """
    for revision, store in stores.items():
        if revision not in revisions:
            hint = "Let this version read the documents again: tsarch read."
            what = "has the states of none of these runs' weights."
            raise UserError.single(f"store {store.folder}", what, hint)
