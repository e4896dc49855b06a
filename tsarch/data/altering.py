"""Training rows altered token for token: a pure function of seed and epoch, and of the split."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tsarch.data.near_words import Near, NearWords, whole_words, word_marks
from tsarch.data.tag_spans import entities
from tsarch.records import FloatArray, IntArray, TokenizedSplit
from tsarch.seeding import generator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DoubleArray = NDArray[np.float64]
Truths = NDArray[np.bool_]
Spelling = tuple[int, ...]
"""Tokens of an entity."""


@dataclass(frozen=True)
class Mentions:
    """The entities of a split that have others to be swapped with."""

    pools: tuple[tuple[Spelling, ...], ...]
    """Entities of one type whose words have the same numbers of tokens, in order."""
    pool: IntArray
    """(groups,) pool of each group: what a context has of one entity."""
    own: IntArray
    """(groups,) which of its pool it is."""
    groups: IntArray
    """(mentions,) group of each."""
    starts: IntArray
    """(mentions,) place of the first token."""
    num_entities: int
    """Of the split, those without others too."""


@dataclass(frozen=True)
class Replaceable:
    """The tokens of a split that others are near."""

    places: IntArray
    """(tokens,) where they stand."""
    kinds: IntArray
    """(tokens,) which token it is, of those that there are."""
    choices: IntArray
    """(kinds, most) what may stand for each."""
    reach: DoubleArray
    """(kinds, most) summed shares of the choices, up to 1."""


@dataclass(frozen=True)
class Alteration:
    """What becomes of a split's tokens in every epoch."""

    seed: int
    token_ids: IntArray
    """(num_tokens,) as they are."""
    swap: float
    mentions: Mentions | None
    mask: float
    replaceable: Replaceable | None

    def of_epoch(self, epoch: int) -> IntArray:
        """(num_tokens,) token ids."""
        found = self.token_ids.copy()
        if self.mentions is not None:
            self._swap(found, self.mentions, generator(self.seed, "swap", epoch))
        if self.replaceable is not None:
            self._mask(found, self.replaceable, generator(self.seed, "mask", epoch))
        return found

    def _swap(self, found: IntArray, own: Mentions, rng: np.random.Generator) -> None:
        sizes = np.array([len(pool) for pool in own.pools], dtype=np.int64)[own.pool]
        is_swapped = rng.random(len(own.pool)) < self.swap
        other = (rng.random(len(own.pool)) * (sizes - 1)).astype(np.int64)
        other += other >= own.own
        for group, start in zip(own.groups.tolist(), own.starts.tolist(), strict=True):
            if is_swapped[group]:
                tokens = own.pools[own.pool[group]][other[group]]
                found[start : start + len(tokens)] = tokens

    def _mask(self, found: IntArray, own: Replaceable, rng: np.random.Generator) -> None:
        replaced = np.flatnonzero(rng.random(len(own.places)) < self.mask)
        kinds, draws = own.kinds[replaced], rng.random(len(replaced))
        chosen = (own.reach[kinds] < draws[:, None]).sum(1).clip(max=own.choices.shape[1] - 1)
        found[own.places[replaced]] = own.choices[kinds, chosen]

    @property
    def note(self) -> str:
        """What can change, for the user."""
        told = []
        if self.mentions is not None:
            num = len(self.mentions.starts)
            told.append(f"{num:,} of {self.mentions.num_entities:,} entities can be swapped")
        if self.replaceable is not None:
            told.append(f"{len(self.replaceable.places):,} words have others near them")
        return f"augmentation: {', '.join(told)}"


def mentions_of(split: TokenizedSplit, labels: Sequence[str], special: Collection[int]) -> Mentions:
    """The entities that can be swapped, of a split whose labels are tags of words.

    Args:
        special: token ids that no word has.
    """
    starts, stops = word_places(split, special)
    pools: dict[tuple[str, Spelling], dict[Spelling, int]] = {}
    found: list[tuple[tuple[str, Spelling], Spelling, int]] = []
    num_entities = 0
    for first, last in itertools.pairwise(split.sentence_offsets.tolist()):
        tags = [labels[label] for label in split.labels[first:last]]
        for kind, start, stop in entities(tags):
            num_entities += 1
            own = slice(first + start, first + stop)
            if not _is_whole(starts[own], stops[own]):
                continue
            key = kind, tuple((stops[own] - starts[own]).tolist())
            begin = int(starts[own.start])
            tokens = tuple(split.token_ids[begin : stops[own.stop - 1]].tolist())
            pools.setdefault(key, {}).setdefault(tokens, 0)
            found.append((key, tokens, begin))
    kept = {key: tuple(sorted(own)) for key, own in sorted(pools.items()) if len(own) > 1}
    numbers = {key: number for number, key in enumerate(kept)}
    places = {key: {tokens: n for n, tokens in enumerate(own)} for key, own in kept.items()}
    groups: dict[tuple[int, int, int], int] = {}
    mentions = []
    for key, tokens, begin in found:
        if key in kept:
            context = int(np.searchsorted(split.context_offsets, begin, side="right")) - 1
            group = (context, numbers[key], places[key][tokens])
            mentions.append((groups.setdefault(group, len(groups)), begin))
    own_groups = np.array(list(groups), dtype=np.int64).reshape(-1, 3)
    pairs = np.array(mentions, dtype=np.int64).reshape(-1, 2)
    return Mentions(
        tuple(kept.values()),
        own_groups[:, 1],
        own_groups[:, 2],
        pairs[:, 0],
        pairs[:, 1],
        num_entities,
    )


def word_places(split: TokenizedSplit, special: Collection[int]) -> tuple[IntArray, IntArray]:
    """(num_words,) places of each word's first token and of the one after its last; −1: it isn't
    read."""
    is_end = np.isin(split.token_ids, list(special)) | (split.words != -1)
    is_end[split.context_offsets[:-1]] = True
    ends = np.append(np.flatnonzero(is_end), len(split.token_ids))
    places = np.flatnonzero(split.words >= 0)
    starts = np.full(split.num_words, -1, dtype=np.int64)
    stops = np.full(split.num_words, -1, dtype=np.int64)
    numbers = split.words[places]
    starts[numbers] = places
    stops[numbers] = ends[np.searchsorted(ends, places, side="right")]
    return starts, stops


def _is_whole(starts: IntArray, stops: IntArray) -> bool:
    """Whether words stand one after the other in one context."""
    return bool((starts >= 0).all()) and bool((starts[1:] == stops[:-1]).all())


def replaceable_words(
    split: TokenizedSplit,
    tokenizer: PreTrainedTokenizerBase,
    table: FloatArray,
    outside: int | None,
) -> Replaceable:
    """The words of one token that others are near in a table.

    Args:
        outside: label of words outside entities; None: words have no labels of their own.
    """
    words = {row: word for word, row in whole_words(tokenizer).items() if row < len(table)}
    is_word = np.zeros(max(len(table), len(tokenizer)), dtype=np.bool_)
    is_word[list(words)] = True
    places = _free_places(split, is_word, _inside_words(tokenizer, len(is_word)), outside)
    tokens = np.unique(split.token_ids[places]).tolist()
    found = zip(tokens, NearWords(table, words).near(tokens), strict=True)
    return replaceable_of(
        split.token_ids, places, {token: _of_case(words, token, own) for token, own in found}
    )


def _of_case(words: Mapping[int, str], token: int, near: Near) -> Near:
    """Those that begin with a capital as the word does, or as it doesn't."""
    is_upper = words[token][:1].isupper()
    return [own for own in near if words[own[0]][:1].isupper() == is_upper]


def _inside_words(tokenizer: PreTrainedTokenizerBase, size: int) -> Truths:
    """(size,) which tokens go on with the word before them."""
    marks, found = word_marks(tokenizer), np.zeros(size, dtype=np.bool_)
    for piece, row in tokenizer.get_vocab().items():
        starts_word = piece[:1] in marks if marks else not piece.startswith("##")
        found[row] = not starts_word and (not marks or piece[:1].isalnum())
    return found


def _free_places(
    split: TokenizedSplit, is_word: Truths, goes_on: Truths, outside: int | None
) -> IntArray:
    """Places of tokens that are a word each and may be another one."""
    followed = np.append(goes_on[split.token_ids[1:]], False)
    followed[split.context_offsets[1:] - 1] = False
    free = is_word[split.token_ids] & ~followed
    if outside is not None:
        free &= split.labels_of(split.words) == outside
    return np.flatnonzero(free)


def replaceable_of(token_ids: IntArray, places: IntArray, near: Mapping[int, Near]) -> Replaceable:
    """The places whose tokens have others near them; a nearer one is taken oftener."""
    known = sorted(token for token, own in near.items() if own)
    most = max((len(near[token]) for token in known), default=1)
    choices = np.zeros((len(known), most), dtype=np.int64)
    reach = np.ones((len(known), most))
    for number, token in enumerate(known):
        rows, cosines = zip(*near[token], strict=True)
        choices[number, : len(rows)] = rows
        choices[number, len(rows) :] = rows[-1]
        reach[number, : len(rows)] = np.cumsum(cosines) / sum(cosines)
    kept = places[np.isin(token_ids[places], known)]
    return Replaceable(kept, np.searchsorted(known, token_ids[kept]), choices, reach)
