"""Plain text to sentences and words, by rules that training on text of one's own can share.

Words: runs between spaces, cut at punctuation, each mark of which is a word; a Chinese character is
a word. Sentences end at line breaks, after `.`, `!`, `?` or `…` (and closing quotes or brackets)
where a space and no small letter follows (but not after an initial, as in J. Smith, or a title such
as Mr.), and after `。`, `！` or `？`.
"""

from __future__ import annotations

import itertools
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from tsarch.records import IntArray

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

_ABBREVIATED = r"(?<!\b\w)(?<!\bMr)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bMrs)(?<!\bProf)"
_SENTENCE_END = re.compile(
    rf"(?:{_ABBREVIATED}\.|[!?…])[.!?…]*[\"'”’»)\]]*(?=[ \t\u00a0]+[^\sa-zà-öø-ÿ])"
    r"|[。！？]+[”’」』）]*"
    r"|[\n\r\u2028\u2029]+"
)


def word_bounds(text: str) -> IntArray:
    """(words, 2) characters [start, stop) of a text's words."""
    bounds = [bounds for _, bounds in _splitter().pre_tokenize_str(text)]
    return np.array(bounds, dtype=np.int64).reshape(-1, 2)


def sentence_bounds(text: str) -> list[tuple[int, int]]:
    """Characters [start, stop) of a text's sentences, without the spaces around them."""
    cuts = [0, *(match.end() for match in _SENTENCE_END.finditer(text)), len(text)]
    found = []
    for start, stop in itertools.pairwise(cuts):
        own = text[start:stop]
        start += len(own) - len(own.lstrip())
        if own.strip():
            found.append((start, start + len(own.strip())))
    return found


def text_rows(text: str, doc_id: str) -> list[dict[str, Any]]:
    """A text as rows of `ner` without tags, one for each sentence, as where it is predicted: words
    as `tokens`, `doc_id`, and the sentence's number as `sent_id`; for data of one's own."""
    rows: list[dict[str, Any]] = []
    for number, (start, stop) in enumerate(sentence_bounds(text)):
        own = text[start:stop]
        words = [own[first:last] for first, last in word_bounds(own).tolist()]
        rows.append({"tokens": words, "doc_id": doc_id, "sent_id": number})
    return rows


@lru_cache(maxsize=1)
def _splitter() -> PreTokenizer:
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import BertPreTokenizer, Sequence, Split

    chinese = Split(Regex(r"\p{Han}"), "isolated")
    splitter: PreTokenizer = Sequence([chinese, BertPreTokenizer()])
    return splitter
