"""Texts in Chinese, which has no spaces: metrics count their characters as words."""

from __future__ import annotations

import re
from collections.abc import Sequence

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Chinese characters, as part of a regular expression's character class."""
_HAN = re.compile(f"[{HAN}]")
_BETWEEN = re.compile(rf"(?<=[{HAN}]) (?=[{HAN}])")
_CHINESE_SHARE = 1 / 3


def is_chinese(text: str) -> bool:
    """Whether at least a third of a text's letters and digits are Chinese characters."""
    letters = sum(map(str.isalnum, text))
    return letters > 0 and len(_HAN.findall(text)) >= _CHINESE_SHARE * letters


def joined(words: Sequence[str]) -> str:
    """Words with spaces between them, but for Chinese characters."""
    return _BETWEEN.sub("", " ".join(words))
