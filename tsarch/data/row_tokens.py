"""Rows to tokens, once: the result is kept in a folder by the content of data and tokenizer."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tsarch.data.cache import Arrays, cache_root, store_arrays, stored_arrays
from tsarch.data.tokenizer import tokenizer_digest
from tsarch.records import Array, IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FORMAT = "4"
"""Part of the cache's key: a new value whenever what is stored changes."""
_BATCH = 1000
"""Rows that the tokenizer takes at a time."""


@dataclass(frozen=True)
class TokenLists:
    """A list of tokens for every row, in flat arrays."""

    values: Array
    offsets: IntArray
    """(rows + 1,) where each list starts in `values`."""

    def __iter__(self) -> Iterator[list[int]]:
        for start, stop in itertools.pairwise(self.offsets.tolist()):
            yield self.values[start:stop].tolist()

    def __len__(self) -> int:
        return len(self.offsets) - 1


class RowTokenizer:
    """Tokenises rows with a fast tokenizer.

    Args:
        cache_folder: where results are kept (None: `~/.cache/tsarch`); several processes may use it
            at once.
        keep: keep them. Without, nothing is read or written.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, cache_folder: str | None, keep: bool = True
    ) -> None:
        self.tokenizer = tokenizer
        self._cache_folder = cache_folder
        self._keep = keep

    def words(self, rows: Sequence[Sequence[str]]) -> tuple[TokenLists, TokenLists]:
        """Tokens of rows given as words, and for every token the word that starts there, or −1."""
        found = self._found("words", rows, self._tokenize_words)
        offsets = found["offsets"]
        return TokenLists(found["token_ids"], offsets), TokenLists(found["starts"], offsets)

    def texts(self, texts: Sequence[str]) -> TokenLists:
        """Tokens of texts as a whole."""
        if not texts:
            return TokenLists(np.empty(0, dtype=np.int32), np.zeros(1, dtype=np.int64))
        found = self._found("texts", texts, self._tokenize_texts)
        return TokenLists(found["token_ids"], found["offsets"])

    def _tokenize_words(self, rows: Sequence[Sequence[str]]) -> Arrays:
        encoded = self.tokenizer(
            [list(words) for words in rows],
            is_split_into_words=True,
            add_special_tokens=False,
            truncation=False,
            verbose=False,
        )
        unknown = self.tokenizer.unk_token_id or 0
        token_ids: list[list[int]] = []
        starts: list[list[int]] = []
        for place, words in enumerate(rows):
            own = encoded["input_ids"][place], encoded.word_ids(place)
            ids, own_starts = _with_all_words(*own, len(words), unknown)
            token_ids.append(ids)
            starts.append(own_starts)
        return {"token_ids": _flat(token_ids), "starts": _flat(starts), "sizes": _sizes(token_ids)}

    def _tokenize_texts(self, texts: Sequence[str]) -> Arrays:
        encoded = self.tokenizer(
            list(texts), add_special_tokens=False, truncation=False, verbose=False
        )
        ids = encoded["input_ids"]
        return {"token_ids": _flat(ids), "sizes": _sizes(ids)}

    def _found(
        self, kind: str, rows: Sequence[Any], tokenize: Callable[[Sequence[Any]], Arrays]
    ) -> Arrays:
        """The rows' tokens, from the cache if they are there."""
        if not self._keep:
            return _in_batches(rows, tokenize)
        folder = cache_root(self._cache_folder) / "tokenized"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self._key(kind, rows)}.npz"
        found = stored_arrays(path)
        if found is None:
            found = _in_batches(rows, tokenize)
            store_arrays(path, found)
        return found

    @cached_property
    def _digest(self) -> str:
        return tokenizer_digest(self.tokenizer)  # takes a tenth of a second

    def _key(self, kind: str, rows: Sequence[Any]) -> str:
        digest = hashlib.sha256(repr((_FORMAT, kind, self._digest)).encode())
        for start in range(0, len(rows), _BATCH):
            digest.update(json.dumps(rows[start : start + _BATCH]).encode())
        return digest.hexdigest()[:32]


def _in_batches(rows: Sequence[Any], tokenize: Callable[[Sequence[Any]], Arrays]) -> Arrays:
    """What `tokenize` makes of all rows, with `offsets` in place of `sizes`."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    parts = []
    with tqdm(total=len(rows), desc="Tokenising", unit=" rows", disable=None) as bar:
        for start in range(0, len(rows), _BATCH):
            batch = rows[start : start + _BATCH]
            parts.append(tokenize(batch))
            bar.update(len(batch))
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    sizes = found.pop("sizes")
    return {**found, "offsets": np.concatenate([[0], np.cumsum(sizes)])}


def _flat(lists: Sequence[Sequence[int]]) -> Array:
    return np.fromiter(itertools.chain.from_iterable(lists), dtype=np.int32)


def _sizes(lists: Iterable[Sequence[int]]) -> IntArray:
    return np.array([len(own) for own in lists], dtype=np.int64)


def _with_all_words(
    ids: list[int], word_ids: list[int | None], num_words: int, unknown: int
) -> tuple[list[int], list[int]]:
    """Give words without a token (such as a lone control character) the unknown token."""
    by_word: list[list[int]] = [[] for _ in range(num_words)]
    for token, word in zip(ids, word_ids):
        if word is not None:
            by_word[word].append(token)
    result, starts = [], []
    for word, tokens in enumerate(by_word):
        tokens = tokens or [unknown]
        result += tokens
        starts += [word] + [-1] * (len(tokens) - 1)
    return result, starts
