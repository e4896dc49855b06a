"""Which tokens may come next in a text, guessed from the text itself, and how many are worth it.

A model checks several tokens in one pass, which often costs little more than one token does. Texts
repeat what their source says, so what followed the last few tokens when they came before is a good
guess (Saxena 2023, "Prompt Lookup Decoding"). A wrong one costs time and changes nothing: the text
is the one that the model writes by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

SIZES = (3, 2, 1)
"""Tokens that have come before in the same order: the most that there are."""
DRAFTED = 0
"""In place of a size: a drafter proposes."""
MOST_PROPOSED = 8
"""Tokens at a time."""
_FORGETS = 0.98
"""Weight of what was counted a pass ago."""
_PRIOR = {3: 0.7, 2: 0.5, 1: 0.3, DRAFTED: 0.5}
"""Share of right tokens before any was counted, as if seen four times."""
_PRIOR_WEIGHT = 4.0
_PRIOR_COST = 0.05
"""Of a further token, in passes of one token, before any was measured: little, so that it is."""
_TRIES_EVERY = 48
"""Passes between two of another width than the best: costs change."""
_NUM_MEASURED = 7
"""Passes whose median is taken."""
_MIN_GAIN = 1.03
"""Tokens for the time of one that a width must promise."""


@dataclass(frozen=True)
class Proposal:
    """What may come next in a text."""

    tokens: list[int]
    size: int
    """Tokens before it that have come before, see `SIZES`; `DRAFTED`: a drafter's, whose tokens
    are asked for when their number is chosen."""


class TextSoFar:
    """A text that grows, with what followed every few tokens when they came last."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}
        for token in tokens:
            self.append(token)

    def append(self, token: int) -> None:
        """Go on with a token."""
        place = len(self.tokens)
        for size in SIZES:
            if size <= place:
                self._next[tuple(self.tokens[place - size :])] = place
        self.tokens.append(token)

    def proposal(self, num_tokens: int) -> Proposal | None:
        """So many tokens that may come next; what repeats itself is taken to go on so."""
        if num_tokens < 1:
            return None
        for size in SIZES:
            place = self._next.get(tuple(self.tokens[-size:])) if size <= len(self.tokens) else None
            if place is not None:
                period = len(self.tokens) - place
                found = [self.tokens[place + i % period] for i in range(num_tokens)]
                return Proposal(found, size)
        return None


@dataclass
class Pace:
    """How many tokens to propose: as many as promise most tokens a second, from what share of them
    was right and what passes took.

    Args:
        adapts: else always `most`.
    """

    most: int = MOST_PROPOSED
    adapts: bool = True
    _right: dict[int, float] = field(default_factory=dict)
    _seen: dict[int, float] = field(default_factory=dict)
    _seconds: dict[tuple[int, int], tuple[float, ...]] = field(default_factory=dict)
    """(texts, width) → of the last passes."""
    _medians: dict[int, dict[int, float]] = field(default_factory=dict)
    """Texts → width → their median."""
    _drafting: dict[int, tuple[float, ...]] = field(default_factory=dict)
    """Texts → seconds a token that a drafter proposed, the last times."""
    _num_passes: int = 0

    def choose(self, proposals: Sequence[Proposal | None]) -> int:
        """How many tokens to propose for every text that has a proposal; 0: a plain pass."""
        self._num_passes += 1
        if not self.adapts:
            return self.most
        sizes = Counter(own.size for own in proposals if own is not None)
        num_texts = len(proposals)
        near = self._nearest(num_texts)
        if not sizes or near is None:
            return 0  # what a plain pass takes is measured first
        if len(self._medians[near]) == 1:
            return 1  # then what one more token takes, before many are tried in a large batch
        wanted = dict.fromkeys(sizes, 1.0)
        best, most = 0, _MIN_GAIN
        for num_tokens in range(1, self.most + 1):
            wanted = {size: 1.0 + self.rate(size) * own for size, own in wanted.items()}
            further = sum(number * (wanted[size] - 1.0) for size, number in sizes.items())
            taken = self.cost(num_texts, num_tokens + 1)
            if DRAFTED in sizes:
                taken += num_tokens * self.draft_cost(num_texts)
            gain = (1.0 + further / num_texts) / taken
            if gain > most:
                best, most = num_tokens, gain
        if self._num_passes % _TRIES_EVERY == 0:
            return 0 if best else 1
        return best

    def rate(self, size: int) -> float:
        """Share of right tokens after so many that have come before."""
        right = self._right.get(size, 0.0) + _PRIOR_WEIGHT * _PRIOR[size]
        return right / (self._seen.get(size, 0.0) + _PRIOR_WEIGHT)

    def judged(self, size: int, num_right: int, num_proposed: int) -> None:
        """Note how many of a text's proposed tokens were right, up to the first that wasn't."""
        num_seen = min(num_right + 1, num_proposed)
        self._right[size] = self._right.get(size, 0.0) * _FORGETS + num_right
        self._seen[size] = self._seen.get(size, 0.0) * _FORGETS + num_seen

    def took(self, num_texts: int, width: int, seconds: float) -> None:
        """Note what a pass took."""
        last = (*self._seconds.get((num_texts, width), ()), seconds)[-_NUM_MEASURED:]
        self._seconds[num_texts, width] = last
        self._medians[num_texts] = {**self._medians.get(num_texts, {}), width: median(last)}

    def drafted(self, num_texts: int, num_tokens: int, seconds: float) -> None:
        """Note what a drafter took to propose so many tokens for every text."""
        last = (*self._drafting.get(num_texts, ()), seconds / num_tokens)[-_NUM_MEASURED:]
        self._drafting[num_texts] = last

    def draft_cost(self, num_texts: int) -> float:
        """What a drafter takes for a token of every text, in passes of one token."""
        near = self._nearest(num_texts)
        if near is None or not self._drafting:
            return _PRIOR_COST
        nearest = min(list(self._drafting), key=lambda n: abs(n - num_texts))
        return median(self._drafting[nearest]) / self._medians[near][1]

    def cost(self, num_texts: int, width: int) -> float:
        """What a pass of `width` tokens takes, in passes of one token; between widths that were
        measured as if each token cost the same, and as with other numbers of texts if need be."""
        near = self._nearest(num_texts)
        known = {1: 1.0} if near is None else self._medians[near]
        if width in known:
            return known[width] / known[1]
        wider = [own for own in known if own > 1]
        if not wider:
            return 1.0 + _PRIOR_COST * (width - 1)
        nearest = min(wider, key=lambda own: abs(own - width))
        slope = max(known[nearest] / known[1] - 1.0, 0.0) / (nearest - 1)
        return 1.0 + slope * (width - 1)

    def _nearest(self, num_texts: int) -> int | None:
        """The number of texts of which passes are known, of one token and, at best, of more."""
        fit = {n: len(own) > 1 for n, own in list(self._medians.items()) if 1 in own}
        if fit.get(num_texts):
            return num_texts
        return min(fit, key=lambda n: (not fit[n], abs(n - num_texts)), default=None)
