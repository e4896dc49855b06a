"""How many words texts have: what stands between spaces, and every letter of scripts without."""

from __future__ import annotations

import regex

KANA = r"\p{Hiragana}\p{Katakana}ー"
SPACELESS = (
    rf"\p{{Han}}\p{{Bopomofo}}{KANA}\p{{Yi}}\p{{Thai}}\p{{Lao}}\p{{Khmer}}\p{{Myanmar}}"
    r"\p{Tibetan}\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Tham}\p{Tai_Viet}\p{Javanese}\p{Balinese}"
)
"""Scripts without spaces between words, for a regular expression's character class."""
_WORD = regex.compile(rf"[{SPACELESS}]\p{{M}}*|(?:(?![{SPACELESS}])\S)+")


def num_words(*texts: str) -> int:
    """Words of texts together."""
    return sum(len(text.split() if text.isascii() else _WORD.findall(text)) for text in texts)
