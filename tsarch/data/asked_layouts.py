"""Layouts of rows whose teacher reads without what is asked, each text once for all its rows."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

from tsarch.data.asked_passages import grouped
from tsarch.data.asked_rows import AskedRow, Frame, Span, pack_asked_rows
from tsarch.data.cuts import with_places
from tsarch.data.layouts import LabelledWords, PackingSpec, sentences_of
from tsarch.data.packing import Sentence
from tsarch.data.passages import pair_specials
from tsarch.data.pieces import with_breaks
from tsarch.data.query_passages import LONG_PASSAGES, QueryPassage
from tsarch.data.text_places import PlacedTokens, word_starts
from tsarch.data.tokenizer import label_token, special_tokens
from tsarch.errors import Mistake, UserError
from tsarch.records import IGNORED, TokenizedSplit

_UNREAD = "what of a passage a window has no room for (student.max_tokens)"
_EDGES = re.compile(r"^[\W_]+|[\W_]+$")


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


@dataclass(frozen=True)
class _Text:
    """A passage, or a query, in words."""

    tokens: PlacedTokens
    starts: list[int]
    """Per token the word that starts there, or −1; words are no longer than what reads them."""

    @cached_property
    def bounds(self) -> list[int]:
        """(words + 1,) first token of each word, and the end."""
        return [*(n for n, word in enumerate(self.starts) if word >= 0), len(self.starts)]

    @cached_property
    def plain(self) -> list[str]:
        """Its words as they are compared, without case and the marks around them."""
        places = range(len(self.bounds) - 1)
        own = [self.tokens.text[slice(*self.characters((n, n + 1)))] for n in places]
        return [_EDGES.sub("", word).casefold() for word in own]

    def characters(self, words: Span) -> Span:
        """Where words [start, stop) stand in the text."""
        bounds, (start, stop) = self.bounds, words
        return self.tokens.starts[bounds[start]], self.tokens.stops[bounds[stop] - 1]

    def shared(self, words: Collection[str]) -> list[Span]:
        """Its longest runs of these words, [start, stop)."""
        places, own = range(len(self.plain)), self.plain
        runs = itertools.groupby(places, lambda place: own[place] in words)
        found = [list(run) for is_shared, run in runs if is_shared]
        return [(run[0], run[-1] + 1) for run in found]


class AskedPassageLayout:
    """Passages to a context each, the same one once, and the queries about it to a window each
    (`pack_asked_rows`): a query, the tokenizer's tokens between two texts, and what fits of the
    passage. The order is that of `QueryPassageLayout`.

    The teacher, which reads no query, learns which words a passage shares with the queries that it
    is relevant to: how much a word matters (Dai and Callan 2019, "Context-aware sentence/passage
    term importance estimation for first stage retrieval").
    """

    def __init__(self, spec: PackingSpec, labels: Sequence[str]) -> None:
        self._spec = spec
        self._label_ids = {label: index for index, label in enumerate(labels)}
        self._between = pair_specials(spec.tokens.tokenizer)[0].between
        self._around = special_tokens(spec.tokens.tokenizer)

    def pack(self, rows: Sequence[QueryPassage]) -> TokenizedSplit:
        """Contexts and windows.

        Raises:
            UserError: a query has no token, or leaves its passage no room in a window; names every
                such row.
        """
        spec, is_last = self._spec, self._spec.label_last
        queries = list(spec.tokens.placed([row.query for row in rows]))
        self._check(rows, queries)
        groups = grouped([row.passage for row in rows], spec.queries_per_context)
        passages = self._passages(rows, queries, groups)
        of_row = {
            number: passage
            for passage, group in zip(passages, groups, strict=True)
            for number in group
        }
        asking = {row.query: self._asking(own) for row, own in zip(rows, queries, strict=True)}
        frame = Frame(
            *self._around,
            asking,
            label_token(spec.tokens.tokenizer),
            is_last,
            cut_off=LONG_PASSAGES,
            of="passage",
            unread=_UNREAD,
        )
        packed = pack_asked_rows(
            [
                Sentence(rows[group[0]].origin.doc_id, own.tokens.token_ids, own.starts)
                for own, group in zip(passages, groups, strict=True)
            ],
            groups,
            [self._asked(row, queries[n], of_row[n]) for n, row in enumerate(rows)],
            frame,
            spec.teacher_max_tokens,
            spec.student_max_tokens,
        )

        def characters(row: int, own: Span) -> Span:
            behind = 0 if is_last else 1  # the query
            return of_row[row].characters((own[0] - behind, own[1] - behind))

        cuts = with_places(packed.cuts, "passage", characters)
        return replace(packed, rows=tuple(rows), cuts=cuts)

    def _asking(self, query: PlacedTokens) -> list[int]:
        """What stands in a window beside the passage and the label's token."""
        if self._spec.label_last:
            return [*self._between, *query.token_ids]
        return [*query.token_ids, *self._between]

    def _check(self, rows: Sequence[QueryPassage], queries: Sequence[PlacedTokens]) -> None:
        room, mistakes = self._spec.student_max_tokens - 1 - len(self._between), []
        for row, query in zip(rows, queries, strict=True):
            place = str(row.origin.place)
            if not query.token_ids:
                mistakes.append(Mistake(place, "the tokenizer has no token for its query."))
            elif len(query.token_ids) >= room:
                what = f"its query leaves no room for a passage: {room:,} tokens have room."
                mistakes.append(Mistake(place, what, "Set a larger student.max_tokens."))
        if mistakes:
            raise UserError(mistakes)

    def _passages(
        self,
        rows: Sequence[QueryPassage],
        queries: Sequence[PlacedTokens],
        groups: Sequence[Sequence[int]],
    ) -> list[_Text]:
        """The passage of each group."""
        spec, found = self._spec, []
        context_room = spec.teacher_max_tokens - sum(map(len, self._around))
        placed = spec.tokens.placed([rows[group[0]].passage for group in groups])
        for own, group in zip(placed, groups, strict=True):
            asking = max(len(self._asking(queries[number])) for number in group)
            room = min(context_room, spec.student_max_tokens - 1 - asking)
            found.append(_Text(own, with_breaks(word_starts(own), max(room, 1))))
        return found

    def _asked(self, row: QueryPassage, query: PlacedTokens, passage: _Text) -> AskedRow:
        words: list[int | str] = list(range(len(passage.bounds) - 1))
        place = len(words) if self._spec.label_last else 0
        words.insert(place, row.query)
        is_relevant = row.label is not None and int(row.label) > 0
        return AskedRow(
            words,
            (),
            ((place, place + 1),),
            place,
            IGNORED if row.label is None else self._label_ids[row.label],
            str(row.origin.place),
            passage.shared({*_Text(query, word_starts(query)).plain} - {""}) if is_relevant else (),
        )
