"""A hash that tells a split's data from another's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from tsarch.data.rows import Row


def rows_digest(rows: Iterable[Row]) -> str:
    """`RowDigest` of all rows at once."""
    digest = RowDigest()
    digest.add(rows)
    return digest.hexdigest()


class RowDigest:
    """Of rows in order and of which of them are a document, however they are tokenised and wherever
    they lie."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._document: str | None = None
        self._num_documents = 0

    def add(self, rows: Iterable[Row]) -> None:
        """Further rows."""
        for row in rows:
            if row.origin.doc_id != self._document:
                self._document = row.origin.doc_id
                self._num_documents += 1
            self._digest.update(f"{self._num_documents - 1} {row!r}\n".encode())

    def hexdigest(self) -> str:
        """Of all so far."""
        return self._digest.hexdigest()
