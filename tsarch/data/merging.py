"""Splits of rows that have nothing to do with one another, as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tsarch.records import Cut, IntArray, Piece, Queries, TokenizedSplit

OFFSETS = ("context_offsets", "window_offsets", "sentence_offsets")
_PLAIN = ("token_ids", "words", "windows", "labels", *OFFSETS)


def merged(splits: Sequence[TokenizedSplit]) -> TokenizedSplit:
    """What packing the rows of all splits together gives, where no document is in two of them."""
    if len(splits) == 1:
        return splits[0]
    tokens = _starts([len(own.token_ids) for own in splits])
    words = _starts([own.num_words for own in splits])
    rows = _starts([len(own.rows) for own in splits])
    windows = _starts([len(own.windows) for own in splits])
    parts = list(zip(splits, tokens, rows, strict=False))
    arrays = [shifted(*own) for own in zip(splits, tokens, words, windows, strict=False)]
    start = {name: [np.zeros(1, dtype=np.int64)] for name in OFFSETS}
    plain = {
        name: np.concatenate([*start.get(name, []), *(own[name] for own in arrays)])
        for name in _PLAIN
    }
    return TokenizedSplit(
        **plain,
        cuts=tuple(_moved_cut(cut, int(at)) for own, _, at in parts for cut in own.cuts),
        leads=_leads(splits, tokens),
        rows=tuple(row for own in splits for row in own.rows),
        pieces=tuple(
            tuple(_moved_piece(piece, int(at)) for piece in row)
            for own, at, _ in parts
            for row in own.pieces
        ),
        token_types=_types(splits),
        answered=_answered(splits, tokens),
        queries=_queries(splits, tokens),
    )


def shifted(own: TokenizedSplit, tokens: int, words: int, windows: int) -> dict[str, IntArray]:
    """The arrays of a split as they are in a larger one, in which so many tokens, words and windows
    come before it. Those of `OFFSETS` lack their first number, which what comes before has."""
    arrays = {
        "token_ids": own.token_ids,
        "words": np.where(own.words < 0, own.words, own.words + words),
        "context_offsets": own.context_offsets[1:] + tokens,
        "windows": own.windows + tokens,
        "window_offsets": own.window_offsets[1:] + windows,
        "labels": own.labels,
        "sentence_offsets": own.sentence_offsets[1:] + words,
    }
    if own.leads is not None:
        arrays["leads"] = own.leads + tokens
    if own.token_types is not None:
        arrays["token_types"] = own.token_types
    return arrays


def _starts(lengths: Sequence[int]) -> IntArray:
    """(parts + 1,) where each part starts, and the end."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _moved_cut(cut: Cut, rows: int) -> Cut:
    return replace(cut, rows=tuple(row + rows for row in cut.rows))


def _moved_piece(piece: Piece, tokens: int) -> Piece:
    return replace(piece, places=piece.places + tokens)


def _leads(splits: Sequence[TokenizedSplit], tokens: IntArray) -> IntArray | None:
    found = [
        own.leads + at for own, at in zip(splits, tokens, strict=False) if own.leads is not None
    ]
    return np.concatenate(found) if found else None


def _queries(splits: Sequence[TokenizedSplit], tokens: IntArray) -> Queries | None:
    parts = zip(splits, tokens, strict=False)
    found = [(own.queries, at) for own, at in parts if own.queries is not None]
    if not found:
        return None
    return Queries(
        np.concatenate([own.context_stops + at for own, at in found]),
        np.concatenate([np.where(o.sources < 0, o.sources, o.sources + at) for o, at in found]),
        np.concatenate([own.context_labels for own, _ in found]),
    )


def _answered(splits: Sequence[TokenizedSplit], tokens: IntArray) -> IntArray | None:
    if all(own.answered is None for own in splits):
        return None
    found = zip(splits, tokens, strict=False)
    return np.concatenate(
        [o.windows + t if o.answered is None else o.answered + t for o, t in found]
    )


def _types(splits: Sequence[TokenizedSplit]) -> IntArray | None:
    if all(own.token_types is None for own in splits):
        return None
    zeros = [np.zeros_like(own.token_ids) for own in splits]
    found = zip(splits, zeros, strict=True)
    return np.concatenate([z if own.token_types is None else own.token_types for own, z in found])
