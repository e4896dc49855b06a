"""Which scripts texts are in: it decides what metrics take for a word."""

from __future__ import annotations

from enum import StrEnum

import regex

from tsarch.data.words import KANA, SPACELESS
from tsarch.tasks.chinese import is_chinese

_WORD = regex.compile(
    rf"(?=[\p{{L}}\p{{N}}])[{SPACELESS}]\p{{M}}*|(?:(?![{SPACELESS}])[\p{{L}}\p{{M}}\p{{N}}])+"
)
_LETTER = regex.compile(r"\p{L}")
_SHARE = 1 / 3
"""Of the letters, from which on a script counts for the whole text."""
_KANA_SHARE = 0.1
"""Of Chinese characters and kana together, from which on they are Japanese."""
_FOREIGN_SHARE = 0.005
"""Of letters that aren't ASCII, up to which texts count as English: names and loan words. German,
Italian and others that write few of them have twice as many and more."""


class Writing(StrEnum):
    """How texts are written, as far as words are concerned."""

    ASCII = "ascii"
    """With the letters a to z, as English."""
    SPACED = "spaced"
    """With others too, and with spaces between words."""
    KOREAN = "korean"
    """With spaces, and endings at the words."""
    CHINESE = "chinese"
    JAPANESE = "japanese"
    SPACELESS = "spaceless"
    """Another script without spaces between words, such as Thai."""


def writing(text: str) -> Writing:
    """What most of a text's letters are."""
    letters = "".join(_LETTER.findall(text))
    if not letters:
        return Writing.ASCII

    def count(scripts: str) -> int:
        return len(regex.findall(f"[{scripts}]", letters))

    kana, han = count(KANA), count(r"\p{Han}")
    if kana + han >= _SHARE * len(letters) and kana >= _KANA_SHARE * (kana + han):
        return Writing.JAPANESE
    if is_chinese(text):
        return Writing.CHINESE
    if count(SPACELESS) >= _SHARE * len(letters):
        return Writing.SPACELESS
    if count(r"\p{Hangul}") >= _SHARE * len(letters):
        return Writing.KOREAN
    num_foreign = sum(not letter.isascii() for letter in letters)
    return Writing.SPACED if num_foreign > _FOREIGN_SHARE * len(letters) else Writing.ASCII


def words_of(text: str) -> list[str]:
    """Runs of letters and digits of any script with their accents; of scripts without spaces every
    letter."""
    return list(_WORD.findall(text))
