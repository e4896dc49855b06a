"""Metrics of generated texts, by the reference libraries. Chinese counts by characters."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from tsarch.tasks.base import Metrics, References
from tsarch.tasks.chinese import HAN, is_chinese

_WORDS = re.compile(rf"[{HAN}]|[^\W{HAN}]+|[^\w\s]")


def are_chinese(references: References) -> bool:
    """Whether references are in Chinese."""
    return is_chinese(" ".join(text for own in references for text in own))


def bleu(hypotheses: Sequence[str], references: References) -> float:
    """Corpus BLEU, 0 to 100 (Papineni et al. 2002), by sacrebleu with its tokenizer `13a`, of
    Chinese references with `zh`. Signature: `bleu_signature`."""
    return float(_bleu(references).corpus_score(list(hypotheses), _streams(references)).score)


def bleu_signature(hypotheses: Sequence[str], references: References) -> str:
    """sacrebleu's signature of what `bleu` computes."""
    metric = _bleu(references)
    metric.corpus_score(list(hypotheses), _streams(references))
    return str(metric.get_signature())


def _bleu(references: References):  # type: ignore[no-untyped-def]
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize="zh" if are_chinese(references) else "13a")


def _streams(references: References) -> list[list[str | None]]:
    """As sacrebleu wants them: the first of every text, the second (or None), and so on."""
    return [list(stream) for stream in itertools.zip_longest(*references)]


def chrf(hypotheses: Sequence[str], references: References) -> float:
    """Corpus chrF2, 0 to 100 (Popović 2015), by sacrebleu."""
    from sacrebleu.metrics import CHRF

    return float(CHRF().corpus_score(list(hypotheses), _streams(references)).score)


def rouge(hypotheses: Sequence[str], references: References) -> Metrics:
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004), 0 to 1, by rouge-score with its stemmer;
    of Chinese references by characters. Of several references the one with the best F1 counts."""
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    names = ("rouge1", "rouge2", "rougeL")
    tokenizer = _Characters() if are_chinese(references) else DefaultTokenizer(use_stemmer=True)
    scorer = RougeScorer(names, tokenizer=tokenizer)
    scores = [scorer.score_multi(r, h) for h, r in zip(hypotheses, references, strict=True)]
    return {name: sum(own[name].fmeasure for own in scores) / len(scores) for name in names}


class _Characters:
    """rouge-score's tokenizer interface: every Chinese character is a token."""

    def tokenize(self, text: str) -> list[str]:
        """Characters, words and marks."""
        return words(text)


def words(text: str) -> list[str]:
    """Words, lower-cased, Chinese characters and other marks one by one."""
    return _WORDS.findall(text.lower())


def distinct(texts: Sequence[str], length: int) -> float:
    """Different n-grams of `length` words over all n-grams of all texts, 0 to 1."""
    grams = [
        gram for own in map(words, texts) for gram in zip(*(own[start:] for start in range(length)))
    ]
    return len(set(grams)) / max(len(grams), 1)
