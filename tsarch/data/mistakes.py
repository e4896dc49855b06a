"""Mistakes of data as they are shown: in the order of lines, those of whole files once."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

from tsarch.errors import Mistake

_KINDS = 4
"""Kinds of mistakes that a row of a whole file of them may have."""
_ALL = "The same is wrong in all the"
_PLACE = re.compile(r":(?:row |item )?(\d+)$")
_OWN = re.compile(r"(?<=is not JSON: ).*|`[^`]*`|'[^']*'|\"[^\"]*\"|\d+")
"""What a row itself says in a message."""


def in_order(mistakes: Sequence[Mistake]) -> list[Mistake]:
    """A split's mistakes in the order of its lines; those of no line come last."""
    return sorted(mistakes, key=_line)


def _line(mistake: Mistake) -> float:
    place = _PLACE.search(mistake.where)
    return float("inf") if place is None else int(place[1])


def of_whole_file(mistakes: Sequence[Mistake], guess: str | None) -> list[Mistake]:
    """The mistakes of a split without a sound row, with a guess at what its file is; one where all
    are alike."""
    first = mistakes[0]
    hint = first.hint if guess is None or guess in first.hint else f"{first.hint} {guess}".strip()
    kinds: dict[tuple[str, str], list[Mistake]] = {}
    for mistake in mistakes:
        kinds.setdefault(_kind(mistake), []).append(mistake)
    counts = {len(own) for own in kinds.values()}
    if len(kinds) <= _KINDS and len(counts) == 1 and min(counts) > 2:  # every row has the same
        what = " and ".join(own[0].what.removesuffix(".") for own in kinds.values())
        what += f". {_ALL} {counts.pop():,} rows that were looked at."
        return [Mistake(first.where, what, hint)]
    return [Mistake(first.where, first.what, hint), *mistakes[1:]]


def of_several_files(mistakes: Sequence[Mistake]) -> list[Mistake]:
    """A mistake of whole files once for all of them; the same one twice is one."""
    groups: dict[Hashable, list[Mistake]] = {}
    for mistake in dict.fromkeys(mistakes):
        whole = _ALL in mistake.what or _PLACE.search(mistake.where) is None
        same = (_kind(mistake)[1], _OWN.sub("…", mistake.hint))
        groups.setdefault(same if whole else mistake, []).append(mistake)
    told = []
    for first, *others in groups.values():
        files = ", ".join(_PLACE.sub("", own.where) for own in others)
        hint = f"{first.hint} So it is with {files}.".lstrip() if others else first.hint
        told.append(Mistake(first.where, first.what, hint))
    return told


def _kind(mistake: Mistake) -> tuple[str, str]:
    """File and kind of a mistake."""
    return _PLACE.sub("", mistake.where), _OWN.sub("…", mistake.what)
