"""Layouts of rows whose teacher reads without what is asked, each text once for all its rows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from tsarch.data.asked_passages import grouped
from tsarch.data.asked_rows import AskedRow, Frame, pack_asked_rows
from tsarch.data.layouts import LabelledWords, PackingSpec, sentences_of
from tsarch.data.tokenizer import label_token, special_tokens
from tsarch.records import IGNORED, TokenizedSplit


class AskedWords(LabelledWords, Protocol):
    """A row whose words are those of a document with marks put in."""

    @property
    def document(self) -> Sequence[str]:
        """Words of the document."""

    @property
    def asked(self) -> Sequence[tuple[int, int]]:
        """Words [start, stop) of the document that the label is about."""

    @property
    def marks(self) -> frozenset[int]:
        """Places of the marks in `words`."""


class AskedWordsLayout:
    """Documents that rows are about to a context each, and the rows to a window each
    (`pack_asked_rows`)."""

    def __init__(self, spec: PackingSpec, labels: Sequence[str]) -> None:
        self._spec = spec
        self._label_ids = {label: index for index, label in enumerate(labels)}

    def pack(self, rows: Sequence[AskedWords]) -> TokenizedSplit:
        """Contexts and windows.

        Raises:
            UserError: marked spans of a row lie behind the end of a context, or have more tokens
                than a window.
        """
        spec = self._spec
        groups = grouped([tuple(row.document) for row in rows], spec.queries_per_context)
        firsts = [rows[group[0]] for group in groups]
        documents = sentences_of(spec.tokens, firsts, [row.document for row in firsts])
        asked = [self._asked(row) for row in rows]
        marks = sorted({word for row in asked for word in row.words if isinstance(word, str)})
        mark_tokens, _ = spec.tokens.words([[mark] for mark in marks])
        frame = Frame(
            *special_tokens(spec.tokens.tokenizer),
            dict(zip(marks, mark_tokens, strict=True)),
            label_token(spec.tokens.tokenizer),
            spec.label_last,
        )
        packed = pack_asked_rows(
            documents,
            groups,
            asked,
            frame,
            spec.teacher_max_tokens,
            spec.student_max_tokens,
        )
        return replace(packed, rows=tuple(rows))

    def _asked(self, row: AskedWords) -> AskedRow:
        marks, numbers = row.marks, itertools.count()
        words = [word if place in marks else next(numbers) for place, word in enumerate(row.words)]
        label = IGNORED if row.label is None else self._label_ids[row.label]
        place = str(row.origin.place)
        return AskedRow(words, row.asked, row.marked, row.focus, label, place)
