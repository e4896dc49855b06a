"""Nothing is cut in silence: long texts are read whole, far entities kept, and the rest is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import QUICKSTART_MODEL, ROOT, packing_spec, tiny_config, write_jsonl
from tests.tokenizer_kinds import KINDS, fast
from tsarch.blueprint import resolve
from tsarch.config import DataConfig
from tsarch.data.corpus import read_file
from tsarch.data.cuts import cut_notes, unknown_notes
from tsarch.data.packing import Sentence, pack
from tsarch.data.row_slices import slices_around
from tsarch.data.row_tokens import RowTokenizer
from tsarch.data.target_layout import SourceTargetLayout
from tsarch.data.text_places import PlacedTokens, word_starts
from tsarch.data.tokenizer import load_tokenizer, unknown_token
from tsarch.errors import UserError
from tsarch.prepare import prepare_data
from tsarch.records import TokenizedSplit
from tsarch.tasks.registry import row_reader

UNSPACED = {
    "Chinese": "磨坊在河邊，已經不轉動了。" * 30,
    "Thai": "โรงสีเก่าริมแม่น้ำ" * 30,
    "Japanese": "かわのほとりのふるいすいしゃ" * 30,
}


def split_of(
    folder: Path, task: str, rows: list[dict[str, Any]], tokenizer: Any, teacher: int, student: int
) -> TokenizedSplit:
    path = str(write_jsonl(folder / "rows.jsonl", rows))
    data = DataConfig(train=path, validation=path, test=path)
    reader = row_reader(task, data)
    spec = packing_spec(RowTokenizer(tokenizer, None, keep=False), teacher, student)
    layout = reader.layout(spec, ("x", "home"))
    return layout.pack(read_file(path, data, reader))


@pytest.mark.parametrize(
    ("kind", "language"),
    [
        (kind, language)
        for kind in KINDS
        for language in UNSPACED
        if kind != "WordPiece (BERT)" or language == "Chinese"
    ],
)
def test_a_text_without_spaces_is_read_whole(tmp_path, kind, language):
    """In contexts as long as asked for, each with votes at even distances."""
    tokenizer, text = fast(KINDS[kind]()), UNSPACED[language]
    rows = [{"text": text, "label": "x"}]
    split = split_of(tmp_path, "classification", rows, tokenizer, 64, 24)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    label = tokenizer.bos_token_id
    assert split.token_ids[split.token_ids != label].tolist() == ids
    assert split.num_contexts == -(-len(ids) // 63)
    assert split.context_lengths.max() <= 64
    assert split.num_cut_tokens == 0
    assert split.num_words == 5 * split.num_contexts
    assert np.diff(np.flatnonzero(split.words >= 0)).max() < 64


def test_texts_that_the_tokenizer_cannot_spell_are_told(tmp_path):
    """To WordPiece a run of more than a hundred letters is one unknown word."""
    tokenizer = fast(KINDS["WordPiece (BERT)"]())
    rows = [{"text": UNSPACED["Thai"], "label": "x"}]
    split = split_of(tmp_path, "classification", rows, tokenizer, 64, 24)
    unknown = unknown_token(tokenizer)
    assert split.token_ids.tolist() == [tokenizer.bos_token_id, unknown]
    (note,) = unknown_notes({"test": split}, unknown)
    assert note.startswith("test: 50% of the tokens are the unknown one")
    assert unknown_notes({"test": split}, None) == ()


def test_words_of_a_text_are_what_stands_between_spaces_or_tokens():
    def starts(text: str, *tokens: str) -> list[int]:
        stops = np.cumsum([len(token) for token in tokens]).tolist()
        begins = [stop - len(own.lstrip()) for stop, own in zip(stops, tokens, strict=True)]
        ends = [max(begin, stop) for begin, stop in zip(begins, stops, strict=True)]
        return word_starts(PlacedTokens(text, [0] * len(tokens), begins, ends))

    assert starts("don't go.", "don", "'t", " go", ".") == [0, -1, 1, -1]
    assert starts("磨坊 a1在b", "磨", "坊", " a", "1", "在", "b") == [0, 1, 2, -1, 3, 4]
    assert starts("a  b", "a", " ", " b") == [0, 1, -1], "a token of space goes with what follows"


def relation(num_between: int, entity: int = 1) -> dict[str, Any]:
    names = ["Ada"] * entity
    tokens = ["we", "met", *names, *(["far"] * num_between), *["Bern"] * entity, "today", "."]
    start = 2 + entity + num_between
    spans = {"head": [2, 2 + entity], "tail": [start, start + entity]}
    return {"tokens": tokens, **spans, "relation": "home"}


@pytest.mark.parametrize("num_between", [3, 19, 20, 60, 300])
def test_a_context_has_both_entities_however_far_apart(tmp_path, num_between):
    tokenizer = load_tokenizer(QUICKSTART_MODEL)
    rows = [relation(3), relation(num_between)]
    split = split_of(tmp_path, "relation", rows, tokenizer, 32, 30)
    assert split.num_contexts == 2
    assert split.context_lengths.max() <= 32
    words = tokenizer.convert_ids_to_tokens(split.token_ids[split.context_offsets[1] :].tolist())
    for mark, name in (("@", "ada"), ("#", "bern")):
        assert words.count(mark) == 2
        assert name in words[words.index(mark) :]
    assert words[words.index("@") - 1] == "[CLS]", "the label stands before the first"
    lost = sum(len(row["tokens"]) + 4 for row in rows) - (len(split.token_ids) - 2 * 3)
    assert split.num_cut_tokens == lost
    assert (split.num_cut_tokens > 0) == (num_between > 19)
    if num_between > 19:
        (note,) = cut_notes({"test": split})
        assert note == (
            "test: what is far from a relation's entities (teacher.max_tokens): "
            f"{lost} tokens of 1 of 2 rows ({tmp_path / 'rows.jsonl'}:2); nobody reads it"
        )


def test_entities_that_no_context_has_room_for_are_refused_by_row(tmp_path):
    rows = [relation(3), relation(5, entity=20), relation(3), relation(50, entity=30)]
    with pytest.raises(UserError) as caught:
        split_of(tmp_path, "relation", rows, load_tokenizer(QUICKSTART_MODEL), 32, 30)
    path = tmp_path / "rows.jsonl"
    assert [mistake.where for mistake in caught.value.mistakes] == [f"{path}:2", f"{path}:4"]
    assert "its entities have more tokens than the 29" in str(caught.value)


def test_a_window_without_the_second_entity_is_told(tmp_path):
    tokenizer = load_tokenizer(QUICKSTART_MODEL)
    split = split_of(tmp_path, "relation", [relation(3), relation(20)], tokenizer, 64, 16)
    assert split.num_cut_tokens == 0
    (cut,) = split.cuts
    assert (cut.rows, cut.is_read) == ((1,), True)
    # [CLS] and 15 tokens from the first entity on; the row has 29 after it.
    assert cut.num_tokens == 3 + 20 + 3 + 2 - 15
    assert "window with the first entity alone (student.max_tokens)" in cut.what


@given(
    st.lists(st.integers(1, 4), min_size=2, max_size=80),
    st.integers(0, 10**6),
    st.integers(2, 60),
)
def test_slices_have_all_marked_words_and_no_more_than_there_is_room_for(sizes, seed, room):
    rng = np.random.default_rng(seed)
    starts = [w if part == 0 else -1 for w, n in enumerate(sizes) for part in range(n)]
    spans = []
    for _ in range(2):
        first = int(rng.integers(len(sizes)))
        spans.append((first, min(first + int(rng.integers(1, 4)), len(sizes))))
    found = slices_around(starts, spans, room)
    needed = {word for start, stop in spans for word in range(start, stop)}
    size = sum(sizes[word] for word in needed)
    if found is None:
        lowest, highest = min(needed), max(needed)
        assert size > room or sum(sizes[lowest : highest + 1]) > room
        return
    kept = [place for start, stop in found for place in range(start, stop)]
    assert kept == sorted(set(kept)), "in order, none twice"
    assert len(kept) <= room
    assert needed <= {starts[place] for place in kept}
    for start, stop in found:
        assert starts[start] >= 0, "a slice starts with a word"
        assert stop == len(starts) or starts[stop] >= 0


def test_what_is_cut_is_told_by_split_reason_and_row(tmp_path):
    rows = [
        {"source": "the old mill " * (40 if number in (1, 3, 4, 5, 6) else 2), "target": "mill"}
        for number in range(8)
    ]
    split = split_of(tmp_path, "translation", rows, load_tokenizer(QUICKSTART_MODEL), 40, 20)
    (note,) = cut_notes({"train": split})
    path = tmp_path / "rows.jsonl"
    assert note.startswith("train: ends of sources longer than a context has room for")
    assert note.endswith(
        f"{split.num_cut_tokens} tokens of 5 of 8 rows ({path}:2, {path}:4, {path}:5 and 2 more); "
        "nobody reads it"
    )


def test_a_run_tells_what_is_cut(tmp_path):
    rows = [{"text": "mill " * (60 if label == "a" else 3), "label": label} for label in "abab"]
    path = str(write_jsonl(tmp_path / "c.jsonl", rows))
    data = dict.fromkeys(("train", "validation", "test"), path)
    config = tiny_config(
        tmp_path,
        data={**data, "tokenizer": str(ROOT / "configs" / "drcd" / "tokenizer")},
        task={"name": "classification"},
    )
    notes = prepare_data(resolve(config)).notes
    notes = [note for note in notes if "unknown" not in note]
    assert [note.partition(":")[0] for note in notes] == ["train", "validation", "test"]
    assert all("longer than a window (student.max_tokens)" in note for note in notes)
    assert all(f"2 of 4 rows ({path}:1, {path}:3); the teacher reads it" in note for note in notes)


@pytest.mark.parametrize("decoder_start", [None, 0])
@pytest.mark.parametrize("own", [{"source_prefix": "mill " * 12}, {"target_prefix": "mill " * 12}])
def test_prefixes_that_leave_no_room_are_refused(own, decoder_start):
    tokens = RowTokenizer(load_tokenizer(QUICKSTART_MODEL), None, keep=False)
    spec = packing_spec(tokens, 27, 16, decoder_start=decoder_start, **own)
    with pytest.raises(UserError) as caught:
        SourceTargetLayout(spec, keep_last=False)
    assert str(caught.value) == (
        "task.source_prefix, task.target_prefix: take 12 tokens and targets up to 8, which leaves "
        "7 of teacher.max_tokens (27) for sources. Shorten them, lower task.max_target_tokens, or "
        "raise teacher.max_tokens."
    )
    SourceTargetLayout(packing_spec(tokens, 28, 16, **own), keep_last=False)


def test_contexts_without_room_beside_special_tokens_are_refused():
    sentence = Sentence("d", [5, 6, 7], [0, 1, 2])
    with pytest.raises(UserError, match="leaves 1 tokens beside the tokenizer's 3 special ones"):
        pack([sentence], [[0, 0, 0]], [1], [2, 3], 4, 4)
