"""A training split that may be larger than memory: its rows are read, checked and tokenised some at
a time, once, into files of the cache that every rank maps."""

from __future__ import annotations

import hashlib
import itertools
import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tsarch.config import DataConfig
from tsarch.data.cache import cache_root, code_digest
from tsarch.data.corpus import (
    by_document,
    check_twice,
    checked,
    names_of,
    raise_mistakes,
    source_of,
    unknown_names,
)
from tsarch.data.cuts import cut_note, unknown_note
from tsarch.data.formats.findings import Findings
from tsarch.data.layouts import PackingSpec
from tsarch.data.row_reader import RowReader
from tsarch.data.rows import Place, Row
from tsarch.data.sources import file_rows, named_files
from tsarch.data.stored_split import SplitWriter, StoredSplit, open_split
from tsarch.data.tokenizer import tokenizer_digest, unknown_token
from tsarch.errors import UserError
from tsarch.seeding import generator

_FORMAT = "1"
_ROWS = 2**13
"""That are read, and then tokenised, at a time."""
_READING = ("train", "format", "encoding", "delimiter", "quoting", "tag_scheme", "span_ends",
            "odd_words", "columns")  # fmt: skip
"""Keys of `data` that rows depend on."""
_NUMBER_BITS = 40


@dataclass(frozen=True)
class Streaming:
    """How the training split of a run is read and packed."""

    data: DataConfig
    reader: RowReader[Any]
    spec: PackingSpec
    """Its tokens are kept nowhere but in the split's files."""
    labels: tuple[str, ...] | None
    """Those of a trained model that goes on; None: those of the split."""
    has_label_ids: bool
    """Whether the split's labels are numbers of `RowReader.labels`."""

    @cached_property
    def split(self) -> StoredSplit:
        """The split, from the cache; made if it isn't there, by one process of those that want it.

        Raises:
            UserError: the data holds mistakes: those of the first rows that hold any.
        """
        from filelock import FileLock

        folder = cache_root(self.data.cache_folder) / "streamed" / self._key()
        found = open_split(folder)
        if found is None:
            folder.parent.mkdir(exist_ok=True)
            with FileLock(folder.with_suffix(".lock")):
                found = open_split(folder) or self._stored(folder)
        return found

    def _key(self) -> str:
        """Of all that the split depends on; files are told by their size and when they changed."""
        files = [Path(own).resolve() for own in named_files(str(self.data.train))]
        states = [(str(own), own.stat()) for own in files if own.is_file()]
        spec = {name: own for name, own in vars(self.spec).items() if name != "tokens"}
        own = {
            "format": _FORMAT,
            "code": code_digest("data", "tasks"),
            "files": [(name, state.st_size, state.st_mtime_ns) for name, state in states],
            "data": self.data.model_dump(mode="json", include=set(_READING)),
            "reader": type(self.reader).__qualname__,
            "spec": spec,
            "tokenizer": tokenizer_digest(self.spec.tokens.tokenizer),
            "labels": self.labels,
        }
        return hashlib.sha256(json.dumps(own, sort_keys=True, default=repr).encode()).hexdigest()[
            :32
        ]

    def _stored(self, folder: Path) -> StoredSplit:
        findings, names = Findings(split="train"), dict[str, str]()
        packed_with: tuple[str, ...] = ()
        with SplitWriter(folder) as writer:
            for number, rows in enumerate(self._documents(findings)):
                for name, place in names_of(rows, self.reader).items():
                    names.setdefault(name, place)
                if self.labels is not None:
                    findings.mistakes += unknown_names(names, self.reader, self.labels)
                    raise_mistakes(findings)
                packed_with = self.labels or self.reader.labels(list(names))
                writer.append(self.reader.layout(self._spec(number), packed_with).pack(rows))
            labels = self.labels or self.reader.labels(sorted(names))
            moves = self.has_label_ids and packed_with != labels
            new_ids = [labels.index(own) for own in packed_with] if moves else None
            notes = (*findings.notes, *self._notes(writer))
            writer.finish(names, labels, notes, new_ids)
        found = open_split(folder)
        assert found is not None
        return found

    def _spec(self, number: int) -> PackingSpec:
        """For one of the parts that are packed: each has random numbers of its own."""
        if number == 0:
            return self.spec
        seed = int(generator(self.spec.seed, "parts", number).integers(2**63))
        return replace(self.spec, seed=seed)

    def _notes(self, writer: SplitWriter) -> Iterator[str]:
        for cut in writer.cuts.values():
            yield cut_note("train", writer.size.rows, cut)
        yield from unknown_note("train", writer.share_of(unknown_token(self.spec.tokens.tokenizer)))

    def _documents(self, findings: Findings) -> Iterator[list[Row]]:
        """Rows of some documents each time, checked and in order."""
        from tqdm import tqdm  # type: ignore[import-untyped]

        source, seen = source_of("train", self.data), _Seen()
        found = file_rows(
            self.data.train, "data.train", self.data, self.reader, findings, streamed=True
        )
        kept: list[Row] = []
        with tqdm(desc="Reading train", unit=" rows", disable=None) as bar:
            while raw := list(itertools.islice(found, _ROWS)):
                rows = checked(iter(raw), self.reader, source, findings)
                raise_mistakes(findings)
                ordered = by_document([*kept, *rows])
                kept = [row for row in ordered if row.origin.doc_id == rows[-1].origin.doc_id]
                done = [row for row in ordered if row.origin.doc_id != rows[-1].origin.doc_id]
                yield from self._once(done, seen, findings)
                bar.update(len(raw))
        raise_mistakes(findings)
        if not kept:
            raise UserError.single(source, "has no rows.")
        yield from self._once(kept, seen, findings)
        if (again := seen.again()) is not None:
            what = "is of a document that was over, or has an id that was taken, at {}."
            hint = "Sort the file: the rows of a document (data.columns.doc_id) stand together."
            raise UserError.single(str(again[1]), what.format(again[0]), hint)

    def _once(self, rows: list[Row], seen: _Seen, findings: Findings) -> Iterator[list[Row]]:
        """Rows of whole documents, if there are any, which are in the split for the first time."""
        document, here = None, dict[tuple[str, ...], Place]()
        for row in rows:
            origin = row.origin
            findings.mistakes += check_twice(origin, here)
            if origin.doc_id != document and origin.doc_id != origin.place.name:
                seen.add(f"document {origin.doc_id}", origin.place)
            if origin.unique_id is not None:
                seen.add(f"id {origin.unique_id}", origin.place)
            document = origin.doc_id
        raise_mistakes(findings)
        if rows:
            yield rows


class _Seen:
    """Names that may come once, at 16 bytes each: 64 bits of a hash, and the place."""

    def __init__(self) -> None:
        self._hashes, self._places = array("Q"), array("Q")
        self._last: list[Place] = []
        """The last place in each source."""

    def add(self, name: str, place: Place) -> None:
        """One more."""
        if not self._last or self._last[-1].source != place.source:
            self._last.append(place)
        digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
        self._hashes.append(int.from_bytes(digest))
        self._places.append(len(self._last) - 1 << _NUMBER_BITS | place.number)

    def again(self) -> tuple[Place, Place] | None:
        """Where a name that comes again was before, and where it comes again."""
        hashes = np.frombuffer(self._hashes, dtype=np.uint64)
        order = np.argsort(hashes, kind="stable")
        same = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
        if len(same) == 0:
            return None
        found = int(same[np.argmin(order[same + 1])])
        return self._place(int(order[found])), self._place(int(order[found + 1]))

    def _place(self, number: int) -> Place:
        own = self._places[number]
        source = self._last[own >> _NUMBER_BITS]
        return replace(source, number=own & ((1 << _NUMBER_BITS) - 1), part=())
