"""Names of labels: those that look the same are the same, or are told apart for the user."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping

from tsarch.errors import Mistake

CLEANED = (
    "{} rows have labels with spaces or invisible characters around them, or in another form of "
    "Unicode than C, the first is {}: read without, in form C"
)
_LOOKALIKES = str.maketrans(
    "АВЕКМНОРСТУХаеорсухіјѕԁһԛԝΑΒΕΖΗΙΚΜΝΟΡΤΥΧο‐‑–—−’‘ʼ",
    "ABEKMHOPCTYXaeopcyxijsdhqwABEZHIKMNOPTYXo-----'''",
)
"""Cyrillic and Greek letters, dashes and apostrophes that look like ASCII's."""


def cleaned(name: str) -> str:
    """A name in Unicode's normal form C, without white space and invisible characters around it."""
    if name.isascii() and name == name.strip() and name.isprintable():
        return name
    normal = unicodedata.normalize("NFC", name)
    start, stop = 0, len(normal)
    while start < stop and _is_blank(normal[start]):
        start += 1
    while start < stop and _is_blank(normal[stop - 1]):
        stop -= 1
    return normal[start:stop]


def _is_blank(character: str) -> bool:
    return character.isspace() or unicodedata.category(character) in ("Cf", "Cc")


def check_alike(names: Mapping[str, str]) -> list[Mistake]:
    """Names (→ their places) of which two look the same."""
    seen: dict[str, str] = {}
    mistakes = []
    for name, place in names.items():
        first = seen.setdefault(_looks(name), name)
        if first != name:
            what = f"label `{name}` looks like `{first}` ({names[first]}), but is another: "
            what += f"{_differing(name, first)} against {_differing(first, name)}."
            mistakes.append(Mistake(place, what, "Write both the same way."))
    return mistakes


def _looks(name: str) -> str:
    """What is seen of a name."""
    plain = "".join(map(_usual_form, name)).translate(_LOOKALIKES)
    visible = (c for c in plain if unicodedata.category(c) not in ("Cf", "Cc") or c.isspace())
    return " ".join("".join(visible).split())


def _usual_form(character: str) -> str:
    """A character without what sets it apart by width or breaking only."""
    kind = unicodedata.decomposition(character).partition(" ")[0]
    alike = kind in ("<wide>", "<narrow>", "<noBreak>", "<compat>")
    return unicodedata.normalize("NFKC", character) if alike else character


def _differing(name: str, other: str) -> str:
    """The code points of a name where it differs from another."""
    shorter = min(len(name), len(other))
    start = next((n for n, (a, b) in enumerate(zip(name, other)) if a != b), shorter)
    end = 0
    while end < shorter - start and name[-1 - end] == other[-1 - end]:
        end += 1
    own = name[start : len(name) - end]
    return " ".join(f"U+{ord(c):04X} {unicodedata.name(c, '')}".rstrip() for c in own) or "nothing"
