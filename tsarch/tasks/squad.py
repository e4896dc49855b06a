"""Exact match and F1 of answers, by the rules of the reference scripts.

English and others: SQuAD 1.1's and 2.0's `evaluate` (Rajpurkar et al. 2016, 2018): lower case, no
ASCII punctuation, no articles, words between spaces; F1 of the bags of words. Chinese: CMRC 2018's
`evaluate` (Cui et al. 2019), with which DRCD is scored too: F1 of the longest common run of
characters, and of NLTK's words of what isn't Chinese (not cut into sentences first). Japanese, Thai
and others without spaces between words: F1 of the bags of letters, as JSQuAD's evaluation (Kurihara
et al. 2022), and of words of other letters, without any marks. Of several right answers the one
counts that scores best.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tsarch.tasks.scripts import Writing, words_of

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_HAN = re.compile("[\u4e00-\u9fa5]")
_CHINESE_PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
_CHINESE_PARTS = re.compile("[\u4e00-\u9fa5]|[^\u4e00-\u9fa5]+")


@dataclass(frozen=True)
class Score:
    """How good an answer is, 0 to 1."""

    exact: float
    f1: float


def score_answer(predicted: str, answers: Sequence[str], passage: Writing) -> Score:
    """Score of an answer, "" for none, against the right ones; without any, only "" is right.
    `passage`: how the passage is written.

    SQuAD 2.0's script leaves right answers out that are empty once normalised, and so does this.
    """
    if passage is Writing.CHINESE and answers:
        pairs = [_chinese_score(predicted, answer) for answer in answers]
    elif passage in (Writing.JAPANESE, Writing.SPACELESS) and answers:
        pairs = [_letters_score(predicted, answer) for answer in answers]
    else:
        kept = [answer for answer in answers if normalized(answer)]
        pairs = [_squad_score(predicted, answer) for answer in kept or [""]]
    return Score(max(own.exact for own in pairs), max(own.f1 for own in pairs))


def normalized(answer: str) -> str:
    """SQuAD's `normalize_answer`."""
    bare = answer.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def _squad_score(predicted: str, answer: str) -> Score:
    own, gold = normalized(predicted), normalized(answer)
    own_words, gold_words = own.split(), gold.split()
    if not own_words or not gold_words:
        return Score(float(own == gold), float(own == gold))
    shared = sum((Counter(own_words) & Counter(gold_words)).values())
    return Score(float(own == gold), _f1(shared, len(own_words), len(gold_words)))


def _letters_score(predicted: str, answer: str) -> Score:
    own, gold = (
        words_of(unicodedata.normalize("NFC", text).lower()) for text in (predicted, answer)
    )
    if not own or not gold:
        return Score(*[float(predicted.strip() == answer.strip())] * 2)
    shared = sum((Counter(own) & Counter(gold)).values())
    return Score(float(own == gold), _f1(shared, len(own), len(gold)))


def _chinese_score(predicted: str, answer: str) -> Score:
    own, gold = _without_punctuation(predicted), _without_punctuation(answer)
    own_units, gold_units = _chinese_units(own), _chinese_units(gold)
    shared = _longest_common_run(own_units, gold_units)
    return Score(float(own == gold), _f1(shared, len(own_units), len(gold_units)))


def _without_punctuation(text: str) -> str:
    return "".join(c for c in text.lower().strip() if c not in _CHINESE_PUNCTUATION)


def _chinese_units(text: str) -> list[str]:
    parts = _CHINESE_PARTS.findall(text)
    return [unit for part in parts for unit in ([part] if _HAN.match(part) else _words(part))]


def _words(text: str) -> list[str]:
    words: list[str] = _word_tokenizer().tokenize(text)
    return words


@lru_cache(maxsize=1)
def _word_tokenizer() -> Any:
    from nltk.tokenize import NLTKWordTokenizer

    return NLTKWordTokenizer()


def _longest_common_run(one: Sequence[str], other: Sequence[str]) -> int:
    longest = 0
    lengths = [0] * (len(other) + 1)
    for unit in one:
        previous = 0
        for place, compared in enumerate(other, 1):
            previous, lengths[place] = lengths[place], previous + 1 if unit == compared else 0
            longest = max(longest, lengths[place])
    return longest


def _f1(shared: int, num_own: int, num_gold: int) -> float:
    if shared == 0:
        return 0.0
    precision, recall = shared / num_own, shared / num_gold
    return 2 * precision * recall / (precision + recall)
