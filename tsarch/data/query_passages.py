"""Queries with a passage each, which may be what is looked for: to contexts and windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from tsarch.data.cuts import Cutting
from tsarch.data.layouts import PackingSpec, rows_with_labels
from tsarch.data.packing import Sentence
from tsarch.data.passages import pair_specials
from tsarch.data.rows import Row
from tsarch.data.text_places import PlacedTokens, word_starts
from tsarch.data.tokenizer import special_tokens
from tsarch.errors import Mistake, UserError
from tsarch.records import IGNORED, TokenizedSplit

LONG_PASSAGES = "ends of passages longer than a context (teacher.max_tokens)"


class QueryPassage(Row, Protocol):
    """A passage beside a query, with one label."""

    @property
    def query(self) -> str:
        """What is looked for."""

    @property
    def passage(self) -> str:
        """What may have it."""

    @property
    def label(self) -> str | None:
        """Name of the label; None: not known."""


class QueryPassageLayout:
    """A context and a window a row (`pack_rows`): the query, the tokenizer's tokens between two
    texts, and the passage, whose end is cut if it is too long.

    For models that see earlier tokens only (`PackingSpec.label_last`) the query stands last, so
    that a window that can't hold the row has the whole query in any case.
    """

    def __init__(self, spec: PackingSpec, labels: Sequence[str]) -> None:
        self._spec = spec
        self._label_ids = {label: index for index, label in enumerate(labels)}
        tokenizer = spec.tokens.tokenizer
        self._between = pair_specials(tokenizer)[0].between
        around = sum(map(len, special_tokens(tokenizer))) + 1  # with the label's token
        self._room = spec.teacher_max_tokens - around - len(self._between)

    def pack(self, rows: Sequence[QueryPassage]) -> TokenizedSplit:
        """Contexts and windows.

        Raises:
            UserError: a query leaves its passage no room in a context; names every such row.
        """
        queries = list(self._spec.tokens.placed([row.query for row in rows]))
        passages = list(self._spec.tokens.placed([row.passage for row in rows]))
        rooms = [self._room - len(own.token_ids) for own in queries]
        wrong = [row for row, room in zip(rows, rooms, strict=True) if room < 1]
        if wrong:
            what = f"its query leaves no room for a passage: {self._room:,} tokens have room."
            hint = "Set a larger teacher.max_tokens."
            raise UserError(Mistake(str(own.origin.place), what, hint) for own in wrong)
        cutting = Cutting()
        sentences = []
        for number, row in enumerate(rows):
            query, passage, room = queries[number], passages[number], rooms[number]
            sentences.append(self._sentence(row, query, passage, room))
            if (ends := len(passage.token_ids) - room) > 0:
                cut = [(passage.starts[room], passage.stops[-1])]
                cutting.add(LONG_PASSAGES, number, ends, spans=cut, of="passage")
        labels = [IGNORED if row.label is None else self._label_ids[row.label] for row in rows]
        packed = rows_with_labels(self._spec, sentences, labels)
        return replace(packed, rows=tuple(rows), cuts=(*packed.cuts, *cutting.cuts()))

    def _sentence(
        self, row: QueryPassage, query: PlacedTokens, passage: PlacedTokens, room: int
    ) -> Sentence:
        own = [
            (query.token_ids, word_starts(query)),
            (passage.token_ids[:room], word_starts(passage)[:room]),
        ]
        (first, words), (second, further) = own[::-1] if self._spec.label_last else own
        num_words = max(words, default=-1) + 1
        starts = [start if start < 0 else start + num_words for start in further]
        return Sentence(
            row.origin.doc_id,
            [*first, *self._between, *second],
            [*words, *[-1] * len(self._between), *starts],
        )
