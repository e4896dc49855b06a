"""Metrics of texts in any script: what is identical gets full marks, what differs doesn't."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from tsarch.data.words import num_words
from tsarch.tasks import text_metrics
from tsarch.tasks.scripts import Writing, words_of
from tsarch.tasks.squad import Score, score_answer
from tsarch.tasks.text_metrics import (
    bleu,
    bleu_signature,
    bleu_tokenizer,
    chrf,
    distinct,
    missing_tokenizer,
    rouge,
    rouge_signature,
    written,
)

TEXTS = {
    "russian": ("Вчера в порту бросил якорь старый парусник", Writing.SPACED, "13a"),
    "greek": ("Χθες στο λιμάνι έδεσε ένα παλιό ιστιοφόρο", Writing.SPACED, "13a"),
    "arabic": ("رست أمس في الميناء سفينة شراعية قديمة", Writing.SPACED, "13a"),
    "hebrew": ("אתמול עגנה בנמל ספינת מפרש ישנה", Writing.SPACED, "13a"),
    "hindi": ("कल बंदरगाह में एक पुराना जहाज़ आया", Writing.SPACED, "13a"),
    "german": ("Größere Flöße müssen längs der Küste fahren", Writing.SPACED, "13a"),
    "korean": ("어제 항구에 오래된 범선이 들어왔다", Writing.KOREAN, "13a"),
    "chinese": ("昨天一艘旧帆船停在港口", Writing.CHINESE, "zh"),
    "kana": ("きのうみなとにふるいふねがきた", Writing.JAPANESE, "char"),
    "kanji": ("昨日、港に古い帆船が着きました。", Writing.JAPANESE, "char"),
    "thai": ("เมื่อวานเรือใบเก่าจอดที่ท่าเรือ", Writing.SPACELESS, "char"),
    "khmer": ("ម្សិលមិញសំពៅចាស់មួយបានចូលចត", Writing.SPACELESS, "char"),
    "burmese": ("မနေ့ကရွက်လှေအိုဆိုက်ကပ်ခဲ့သည်", Writing.SPACELESS, "char"),
    "english": ("An old sailing ship has anchored in the port", Writing.ASCII, "13a"),
}


@pytest.fixture(autouse=True)
def without_mecab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


@pytest.mark.parametrize(("text", "kind", "tokenizer"), TEXTS.values(), ids=TEXTS)
def test_identical_texts_get_full_marks_and_others_do_not(text, kind, tokenizer):
    references = [[text]]
    assert written(references) is kind
    assert f"tok:{tokenizer}|" in bleu_signature([text], references)
    assert bleu([text], references) == pytest.approx(100)
    assert chrf([text], references) == pytest.approx(100)
    assert rouge([text], references) == {"rouge1": 1.0, "rouge2": 1.0, "rougeL": 1.0}
    other = text[len(text) // 2 :]
    assert bleu([other], references) < 99
    assert 0 < rouge([other], references)["rouge1"] < 1


def test_words_are_letters_of_any_script():
    assert rouge(["Größe"], [["Grüße"]])["rouge1"] == 0.0
    assert words_of("Größe, señor: 5½!") == ["Größe", "señor", "5½"]
    assert words_of("पुराना जहाज़") == ["पुराना", "जहाज़"]
    decomposed = "Gro\u0308\u00dfe"
    assert rouge([decomposed], [["Gr\u00f6\u00dfe"]])["rouge1"] == 1.0


def test_english_is_measured_as_by_rouge_score_itself():
    """Loan words and typographic marks don't make it another language."""
    hypotheses = ["The café's “old” ships anchored — twice", "Ships were running"] * 30
    references = [["The old ships' café anchors 2 times and then they all leave the port"]] * 60
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    scores = [scorer.score(r[0], h) for h, r in zip(hypotheses, references, strict=True)]
    expected = {n: np.mean([own[n].fmeasure for own in scores]) for n in scores[0]}
    found = rouge(hypotheses, references)
    assert {name: pytest.approx(value) for name, value in expected.items()} == found
    long = [[f"{references[0][0]} {TEXTS['english'][0] * 6}"]]
    assert rouge_signature(long).startswith("tok:default|stemmer:porter|")
    assert rouge_signature([["Größe"]]).startswith("tok:words|stemmer:porter-of-a-to-z|")


def test_mecab_is_taken_where_it_is_installed(monkeypatch):
    kana = [[TEXTS["kana"][0]]]
    assert missing_tokenizer(kana) == "ja-mecab isn't installed (pip install 'sacrebleu[ja]')"
    monkeypatch.setattr(text_metrics.importlib.util, "find_spec", lambda name: object())
    assert bleu_tokenizer(Writing.JAPANESE) == "ja-mecab"
    assert bleu_tokenizer(Writing.KOREAN) == "ko-mecab"
    assert missing_tokenizer(kana) == ""
    assert missing_tokenizer([["English"]]) == ""


def test_the_script_of_most_letters_counts():
    thai, english = TEXTS["thai"][0], TEXTS["english"][0]
    assert written([[thai], [english]]) is Writing.SPACELESS
    assert written([[thai], [english] * 9]) is Writing.SPACED
    assert written([["12 34"]]) is Writing.ASCII


def test_words_are_counted_and_distinct_in_scripts_without_spaces():
    assert num_words("An old ship, 2 masts.") == 5
    assert num_words("旧帆船 here") == 4
    assert distinct(["เรือเรือ"], 1) == 0.5
    assert distinct(["पुराना पुराना"], 1) == 0.5


@pytest.mark.parametrize(
    ("answer", "part", "passage"),
    [
        ("古い帆船", "帆船", Writing.JAPANESE),
        ("เรือใบเก่า", "เรือใบ", Writing.SPACELESS),
    ],
)
def test_answers_without_spaces_are_scored_by_letters(answer, part, passage):
    assert score_answer(answer, [answer], passage) == Score(1.0, 1.0)
    assert score_answer(f"「{answer}」。", [answer], passage) == Score(1.0, 1.0)
    found = score_answer(part, [answer], passage)
    assert found.exact == 0.0
    assert 0.6 < found.f1 < 0.9
    assert score_answer("", [answer], passage) == Score(0.0, 0.0)
    assert score_answer("", [], passage) == Score(1.0, 1.0)
    assert score_answer("。", ["。"], passage) == Score(1.0, 1.0)
