"""Words and texts get the tokens that the model was trained on, whatever its tokenizer's kind."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.tokenizer_kinds import KINDS, SENTENCES, fast
from tsarch.data.passages import pair_specials
from tsarch.data.plain_tokenizer import PlainTokenizer, plain_tokenizer_ids
from tsarch.data.row_tokens import RowTokenizer
from tsarch.data.tokenizer import (
    end_token,
    label_token,
    load_tokenizer,
    special_tokens,
    unknown_token,
    word_lead,
)

WORDS = ["They", "walk", "to", "the", "mill", ",", "to", "the", "mill", "(?)", "don", "'t", "1950"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A saved tokenizer of each kind."""
    root = tmp_path_factory.mktemp("tokenizers")
    found = {}
    for number, (kind, make) in enumerate(KINDS.items()):
        found[kind] = root / str(number)
        fast(make()).save_pretrained(str(found[kind]))
    return found


def word_tokens(tokenizer: Any, words: list[str]) -> list[list[int]]:
    """The tokens of every word of a row."""
    made = RowTokenizer(tokenizer, None, keep=False).words([words])
    (ids,), (starts,) = (list(own) for own in made)
    begins = [*(place for place, word in enumerate(starts) if word >= 0), len(ids)]
    assert [word for word in starts if word >= 0] == list(range(len(words)))
    return [ids[start:stop] for start, stop in itertools.pairwise(begins)]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "tokens of two words"])
def test_words_have_the_tokens_that_they_have_in_a_text(folders, kind):
    tokenizer = load_tokenizer(str(folders[kind]))
    plain = AutoTokenizer.from_pretrained(str(folders[kind]))
    text = plain("x " + " ".join(WORDS), add_special_tokens=False)["input_ids"]
    before = plain("x", add_special_tokens=False)["input_ids"]
    assert text[: len(before)] == before
    own = word_tokens(tokenizer, WORDS)
    assert list(itertools.chain.from_iterable(own)) == text[len(before) :]
    assert own[2] == own[6], "`to`, wherever it stands"


@pytest.mark.parametrize("kind", KINDS)
def test_a_word_has_the_same_tokens_at_the_start_of_a_row(folders, kind):
    tokenizer = load_tokenizer(str(folders[kind]))
    inside = word_tokens(tokenizer, ["mill", "every", "mill"])
    assert inside[0] == inside[2]


def test_a_token_never_belongs_to_two_words(folders):
    tokenizer = load_tokenizer(str(folders["tokens of two words"]))
    words = ["They", "walk", "to", "the", "mill"]
    text = tokenizer(" " + " ".join(words), add_special_tokens=False)["input_ids"]
    pieces = [token for own in word_tokens(tokenizer, words) for token in own]
    assert len(text) < len(pieces), "the text itself has tokens of two words"
    alone = [tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in words]
    assert word_tokens(tokenizer, words) == alone


@pytest.mark.parametrize("kind", KINDS)
def test_odd_words_keep_their_neighbours_apart(folders, kind):
    """Words without a character that can be seen, and words with spaces in them."""
    tokenizer = load_tokenizer(str(folders[kind]))
    words = ["", "mill", " ", "the\u00a0old mill", "\u200b", "mill"]
    own = word_tokens(tokenizer, words)
    unknown = tokenizer.unk_token_id or 0
    assert own[0] == own[2] == [unknown]
    assert own[1] == own[5]


@pytest.mark.parametrize(
    ("kind", "lead"),
    [
        ("WordPiece (BERT)", ""),
        ("byte-level (RoBERTa, ModernBERT)", " "),
        ("byte-level with its own space", ""),
        ("Metaspace always (XLM-R)", ""),
        ("spaces replaced (Gemma, mmBERT)", " "),
        ("spaces replaced, one put before (Llama 2)", ""),
    ],
)
def test_who_needs_a_space_before_the_first_word(folders, kind, lead):
    assert word_lead(load_tokenizer(str(folders[kind]))) == lead


def test_texts_of_generative_tasks_stand_after_a_space(folders):
    tokenizer = load_tokenizer(str(folders["byte-level (RoBERTa, ModernBERT)"]))
    tokens = RowTokenizer(tokenizer, None, keep=False)
    first, second = tokens.texts(["the mill", " the mill"])
    assert first == second
    assert tokenizer.convert_ids_to_tokens(first)[0] == "Ġthe"


@pytest.mark.parametrize("name", ["RobertaTokenizer", "GPT2Tokenizer", "Qwen2Tokenizer"])
def test_classes_of_their_own_read_words_as_a_text_too(tmp_path, name):
    """These obey `add_prefix_space`, which others ignore: nobody is asked."""
    import transformers

    model = json.loads(KINDS["byte-level (RoBERTa, ModernBERT)"]().to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    made = getattr(transformers, name)(vocab=model["vocab"], merges=merges)
    made.save_pretrained(str(tmp_path))
    tokenizer = load_tokenizer(str(tmp_path))
    plain = AutoTokenizer.from_pretrained(str(tmp_path))
    own = word_tokens(tokenizer, SENTENCES[2].split())
    text = plain(f" {SENTENCES[2]}", add_special_tokens=False)["input_ids"]
    assert [token for tokens in own for token in tokens] == text
    assert plain.convert_ids_to_tokens(text)[0].startswith("Ġ")


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_without_transformers_gives_the_same(folders, kind):
    own, folder = load_tokenizer(str(folders[kind])), folders[kind]
    known = plain_tokenizer_ids(own, folder)
    assert known is not None
    plain = PlainTokenizer(folder, known)
    given = {"add_special_tokens": False, "return_offsets_mapping": True}
    expected = own(SENTENCES, truncation=False, verbose=False, **given)
    found = plain(SENTENCES, truncation=False, verbose=False, **given)
    assert found["input_ids"] == expected["input_ids"]
    assert found["offset_mapping"] == expected["offset_mapping"]
    assert special_tokens(plain) == special_tokens(own)
    assert pair_specials(plain) == pair_specials(own)
    for name in (label_token, end_token, unknown_token, word_lead):
        assert name(plain) == name(own)
    file = folder / "tokenizer.json"
    text = file.read_text(encoding="utf-8")
    raw = json.loads(text)
    other = {"type": "Replace", "pattern": {"String": "m"}, "content": "n"}
    file.write_text(json.dumps({**raw, "normalizer": other}), encoding="utf-8")
    try:
        assert plain_tokenizer_ids(own, folder) is None
    finally:
        file.write_text(text, encoding="utf-8")
