"""Tags of words in the usual schemes, told from each other and made IOB2."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

SCHEMES = ("iob2", "iob1", "bioes", "bilou", "bmes", "io")


@dataclass(frozen=True)
class _Ends:
    """Letters of a scheme that marks where entities end."""

    inside: str
    last: str
    single: str


_ENDS = {"bioes": _Ends("I", "E", "S"), "bilou": _Ends("I", "L", "U"), "bmes": _Ends("M", "E", "S")}


def scheme_of(rows: Sequence[Sequence[str]]) -> str:
    """The scheme that the fewest rows break; the first of `SCHEMES` where it's the same.

    IOB1 only where no row breaks it in its strictest form: a B- after another type's tag tells of
    IOB2, and the I- that begins an entity there is a mistake.
    """
    best, fewest = SCHEMES[0], len(rows) + 1
    has_outside = any("O" in tags for tags in rows)
    for scheme in SCHEMES:
        if scheme == "io" and not has_outside:
            continue  # such as parts of speech
        broken = sum(first_broken(tags, scheme) is not None for tags in rows)
        if scheme == "iob1" and not all(map(_is_strict_iob1, rows)):
            continue
        if broken < fewest:
            best, fewest = scheme, broken
        if not broken:
            break
    return best


def _is_strict_iob1(tags: Sequence[str]) -> bool:
    pairs = itertools.pairwise(["O", *tags])
    return all(previous[1:] == tag[1:] for previous, tag in pairs if tag[:2] == "B-")


def first_broken(tags: Sequence[str], scheme: str) -> int | None:
    """The first tag that the scheme doesn't allow where it stands, from 0; None: all are sound."""
    if scheme in _ENDS:
        return _first_broken_end(tags, _ENDS[scheme])
    sound = _SOUND[scheme]
    previous = "O"
    for place, tag in enumerate(tags):
        if tag != "O" and not sound(tag, previous):
            return place
        previous = tag
    return None


def _sound_iob2(tag: str, previous: str) -> bool:
    if tag[:2] == "I-":
        return len(tag) > 2 and previous[1:] == tag[1:]
    return tag[:2] == "B-" and len(tag) > 2


def _sound_iob1(tag: str, previous: str) -> bool:
    return tag[:2] in ("B-", "I-") and len(tag) > 2  # conlleval takes both at a start, too


def _sound_io(tag: str, previous: str) -> bool:
    return bool(tag) and tag[1:2] != "-"


_SOUND: dict[str, Callable[[str, str], bool]] = {
    "iob2": _sound_iob2,
    "iob1": _sound_iob1,
    "io": _sound_io,
}


def _first_broken_end(tags: Sequence[str], ends: _Ends) -> int | None:
    open_type: str | None = None
    for place, tag in enumerate([*tags, "O"]):
        letter, dash, kind = tag[:1], tag[1:2], tag[2:]
        goes_on = letter in (ends.inside, ends.last) and kind == open_type
        starts = letter in ("B", ends.single) and open_type is None
        if tag == "O":
            if open_type is not None:
                return place - 1
        elif dash != "-" or not kind or not (goes_on or starts):
            return place
        open_type = kind if letter in ("B", ends.inside) and tag != "O" else None
    return None


def to_iob2(tags: Sequence[str], scheme: str) -> list[str]:
    """Sound tags of a scheme as IOB2."""
    if scheme == "iob2":
        return list(tags)
    if scheme in _ENDS:
        ends = _ENDS[scheme]
        letters = {ends.inside: "I", ends.last: "I", ends.single: "B", "B": "B"}
        return [tag if tag == "O" else letters[tag[0]] + tag[1:] for tag in tags]
    if scheme == "io":
        tags = [tag if tag == "O" else f"I-{tag}" for tag in tags]
    result = []
    previous = "O"
    for tag in tags:
        starts = tag.startswith("I-") and previous[1:] != tag[1:]
        result.append("B" + tag[1:] if starts else tag)
        previous = tag
    return result
