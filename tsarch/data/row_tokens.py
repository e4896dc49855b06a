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
from tsarch.data.text_places import PlacedTokens
from tsarch.data.tokenizer import tokenizer_digest, word_lead
from tsarch.records import Array, IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FORMAT = "5"
"""Part of the cache's key: a new value whenever what is stored changes."""
_PLACES = "starts", "stops"
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
        """Tokens of rows given as words, and for every token the word that starts there, or −1.

        They are the tokens of the words as they stand in a text, after a space each; where one of
        them would go over a border between words, those of the row's words one by one.
        """
        found = self._found("words", rows, self._tokenize_words)
        offsets = found["offsets"]
        return TokenLists(found["token_ids"], offsets), TokenLists(found["starts"], offsets)

    def texts(self, texts: Sequence[str]) -> TokenLists:
        """Tokens of texts as a whole, as they are after a space."""
        if not texts:
            return TokenLists(np.empty(0, dtype=np.int32), np.zeros(1, dtype=np.int64))
        found = self._found("texts", texts, self._tokenize_texts)
        return TokenLists(found["token_ids"], found["offsets"])

    def text_spans(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Characters [start, stop) of the tokens that `texts` gives for each text."""
        led = [self.after_space(text) for text in texts]
        found = []
        for text, own, (_, offsets) in zip(texts, led, self._encoded(led), strict=True):
            lead = len(own) - len(text)
            found.append([(max(a - lead, 0), max(b - lead, 0)) for a, b in offsets])
        return found

    def placed(self, texts: Sequence[str]) -> Iterator[PlacedTokens]:
        """Tokens of texts as the tokenizer gives them, and where they stand. A text that has none
        gets the unknown one."""
        if not texts:
            return
        found = self._found("placed", texts, self._tokenize_placed)
        own = (TokenLists(found[name], found["offsets"]) for name in ("token_ids", *_PLACES))
        for text, ids, starts, stops in zip(texts, *own, strict=True):
            yield PlacedTokens(text, ids, starts, stops)

    def after_space(self, text: str) -> str:
        """A text as it stands after a space, where the tokenizer sees a difference."""
        return text if text.startswith(" ") else self._lead + text

    @cached_property
    def _lead(self) -> str:
        return word_lead(self.tokenizer)

    def _tokenize_words(self, rows: Sequence[Sequence[str]]) -> Arrays:
        unknown = self.tokenizer.unk_token_id or 0
        joined = [_Joined.of(words, self._lead) for words in rows]
        token_ids: list[list[int]] = []
        starts: list[list[int]] = []
        for own, (ids, offsets) in zip(joined, self._encoded([own.text for own in joined])):
            word_ids = own.words_of(offsets)
            if word_ids is None:
                ids, word_ids = self._one_by_one(own)
            ids, own_starts = _with_all_words(ids, word_ids, own.num_words, unknown)
            token_ids.append(ids)
            starts.append(own_starts)
        return {"token_ids": _flat(token_ids), "starts": _flat(starts), "sizes": _sizes(token_ids)}

    def _one_by_one(self, joined: _Joined) -> tuple[list[int], list[int]]:
        """Tokens of a row's words, each by itself, and the word of each token."""
        texts = [self._lead + joined.text[start:stop] for start, stop in joined.bounds.tolist()]
        token_ids: list[int] = []
        word_ids: list[int] = []
        for word, (ids, _) in zip(joined.numbers, self._encoded(texts), strict=True):
            token_ids += ids
            word_ids += [word] * len(ids)
        return token_ids, word_ids

    def _tokenize_texts(self, texts: Sequence[str]) -> Arrays:
        ids = [own for own, _ in self._encoded([self.after_space(text) for text in texts])]
        return {"token_ids": _flat(ids), "sizes": _sizes(ids)}

    def _tokenize_placed(self, texts: Sequence[str]) -> Arrays:
        unknown = self.tokenizer.unk_token_id or 0
        token_ids: list[list[int]] = []
        offsets: list[tuple[int, int]] = []
        for text, (ids, own) in zip(texts, self._encoded(texts), strict=True):
            token_ids.append(ids or [unknown])
            offsets += [_without_spaces(text, *each) for each in own or [(0, len(text))]]
        starts, stops = np.array(offsets, dtype=np.int32).reshape(-1, 2).T
        sizes = _sizes(token_ids)
        return {"token_ids": _flat(token_ids), "starts": starts, "stops": stops, "sizes": sizes}

    def _encoded(self, texts: Sequence[str]) -> Iterator[tuple[list[int], list[tuple[int, int]]]]:
        """Tokens of each text, and the characters [start, stop) of each token."""
        if not texts:
            return iter(())
        encoded = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            truncation=False,
            verbose=False,
            return_offsets_mapping=True,
        )
        return zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)

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
    with tqdm(total=len(rows), desc="Tokenising", unit=" rows", disable=None, leave=None) as bar:
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


def _without_spaces(text: str, start: int, stop: int) -> tuple[int, int]:
    """A span without the spaces at its ends; where it has nothing else, no character."""
    own = text[start:stop]
    start = stop - len(own.lstrip())
    return start, start + len(own.strip())


@dataclass(frozen=True)
class _Joined:
    """The text that a row's words make, a space before each but the first."""

    text: str
    numbers: list[int]
    """Of the words that are in it: all but those that are nothing but space."""
    bounds: IntArray
    """(words, 2) characters [start, stop) of each of them."""
    num_words: int
    """Of the row."""

    @classmethod
    def of(cls, words: Sequence[str], lead: str) -> _Joined:
        """Of the words, with `lead` before the first."""
        numbers = [number for number, word in enumerate(words) if word.strip()]
        sizes = np.array([len(words[number]) for number in numbers], dtype=np.int64)
        starts = len(lead) + np.cumsum(sizes + 1) - sizes - 1
        text = lead + " ".join(words[number] for number in numbers)
        return cls(text, numbers, np.stack([starts, starts + sizes], axis=1), len(words))

    def words_of(self, offsets: Sequence[tuple[int, int]]) -> list[int] | None:
        """Word of every token, of those between words the next one; None: a token has parts of two
        words."""
        if not offsets:
            return []
        own = np.array(offsets, dtype=np.int64)
        stops = self.bounds[:, 1]
        words = np.searchsorted(stops, own[:, 0], side="right").clip(max=len(stops) - 1)
        if (own[:, 1] > stops[words] + 1).any():
            return None
        return [self.numbers[word] for word in words.tolist()]


def _with_all_words(
    ids: list[int], word_ids: list[int], num_words: int, unknown: int
) -> tuple[list[int], list[int]]:
    """Give words without a token (such as a lone control character) the unknown token."""
    by_word: list[list[int]] = [[] for _ in range(num_words)]
    for token, word in zip(ids, word_ids, strict=True):
        by_word[word].append(token)
    result, starts = [], []
    for word, tokens in enumerate(by_word):
        tokens = tokens or [unknown]
        result += tokens
        starts += [word] + [-1] * (len(tokens) - 1)
    return result, starts
