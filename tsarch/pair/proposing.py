"""Which tokens may come next in a text, guessed from the text itself, and how many are worth it.

A model checks several tokens in one pass, which often costs little more than one token does. Texts
repeat what their source says, so what followed the last few tokens when they came before is a good
guess (Saxena 2023, "Prompt Lookup Decoding"). A wrong one costs time and changes nothing: the text
is the one that the model writes by itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

SIZES = (3, 2, 1)
"""Tokens that have come before in the same order: the most that there are."""
MOST_PROPOSED = 8
"""Tokens at a time."""
_FORGETS = 0.98
"""Weight of what was counted a pass ago."""
_PRIOR = {3: 0.7, 2: 0.5, 1: 0.3}
"""Share of right tokens before any was counted, as if seen four times."""
_PRIOR_WEIGHT = 4.0
_PRIOR_COST = 0.05
"""Of a further token, in passes of one token, before any was measured: little, so that it is."""
_TRIES_EVERY = 48
"""Passes between two of another width than the best: costs change."""
_MIN_GAIN = 1.03
"""Tokens for the time of one that a width must promise."""


@dataclass(frozen=True)
class Proposal:
    """What may come next in a text."""

    tokens: list[int]
    size: int
    """Tokens before it that have come before, see `SIZES`."""


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
    _seconds: dict[tuple[int, int], deque[float]] = field(default_factory=dict)
    """(texts, width) → of the last passes."""
    _num_passes: int = 0

    def choose(self, proposals: Sequence[Proposal | None]) -> int:
        """How many tokens to propose for every text that has a proposal; 0: a plain pass."""
        self._num_passes += 1
        if not self.adapts or not self.most:
            return self.most
        rates = [0.0 if own is None else self.rate(own.size) for own in proposals]
        if not any(rates):
            return 0
        num_texts = len(proposals)
        if (num_texts, 1) not in self._seconds and not self._nearest(num_texts):
            return 0  # what a plain pass takes is measured first
        gains = [self._gain(rates, k) for k in range(self.most + 1)]
        best = max(range(len(gains)), key=gains.__getitem__)
        best = best if gains[best] >= _MIN_GAIN else 0
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
        self._seconds.setdefault((num_texts, width), deque(maxlen=7)).append(seconds)

    def cost(self, num_texts: int, width: int) -> float:
        """What a pass of `width` tokens takes, in passes of one token."""
        known = {w: median(s) for (n, w), s in self._seconds.items() if n == num_texts}
        if 1 not in known or len(known) == 1:
            near = self._nearest(num_texts)
            known = {w: median(s) for (n, w), s in self._seconds.items() if n == near} or {1: 1.0}
        one = known[1]
        if width in known:
            return known[width] / one
        wider = [w for w in known if w > 1]
        if not wider:
            return 1.0 + _PRIOR_COST * (width - 1)
        nearest = min(wider, key=lambda own: abs(own - width))
        slope = max((known[nearest] - one) / (nearest - 1), 0.0)
        return 1.0 + slope * (width - 1) / one

    def plain_seconds(self, num_texts: int) -> float | None:
        """What a plain pass takes, as measured last; None: there was none."""
        own = self._seconds.get((num_texts, 1))
        return median(own) if own else None

    def _nearest(self, num_texts: int) -> int | None:
        """The number of texts nearest to it of which most widths were measured."""
        widths: dict[int, set[int]] = {}
        for number, width in self._seconds:
            widths.setdefault(number, set()).add(width)
        fit = [n for n, own in widths.items() if 1 in own]
        if not fit:
            return None
        return min(fit, key=lambda n: (len(widths[n]) == 1, abs(n - num_texts)))

    def _gain(self, rates: Sequence[float], num_tokens: int) -> float:
        """Tokens for the time of one, if so many are proposed."""
        wanted = sum(sum(rate**i for i in range(num_tokens + 1)) for rate in rates)
        return wanted / len(rates) / self.cost(len(rates), num_tokens + 1)
