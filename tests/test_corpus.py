"""Reading and checking data: every format gives the same corpus, every mistake has its place."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import WIKIGOLD, write_jsonl
from tsarch.config import DataConfig
from tsarch.data.corpus import Corpus, read_split, read_splits
from tsarch.data.formats.conll import read_conll
from tsarch.data.formats.text import at_hand
from tsarch.errors import Mistake, UserError
from tsarch.tasks.classification import ClassificationReader
from tsarch.tasks.ner import NerReader, TaggedSentence
from tsarch.tasks.tag_schemes import to_iob2

SPLITS = ("train", "validation", "test")
GOOD: dict[str, Any] = {
    "doc_id": "a",
    "sent_id": 0,
    "tokens": ["Ann", "saw", "New", "York"],
    "tags": ["B-PER", "O", "B-LOC", "I-LOC"],
}
ROWS = [
    GOOD,
    {"doc_id": "b", "sent_id": 0, "tokens": ["1896"], "tags": ["O"]},
    {"doc_id": "a", "sent_id": 1, "tokens": ["NA", "Bob"], "tags": ["O", "B-PER"]},
    {"doc_id": "b", "sent_id": 1, "tokens": ["[", "5", "]"], "tags": ["O", "O", "O"]},
]
ORDERED = [ROWS[0], ROWS[2], ROWS[1], ROWS[3]]


def config(folder: Path, **fields: Any) -> DataConfig:
    """Three good splits in `folder`, where `fields` says nothing else."""
    files = {split: folder / f"good-{split}.jsonl" for split in SPLITS}
    for split, path in files.items():
        if split not in fields and "hub" not in fields:
            write_jsonl(path, [GOOD])
            fields[split] = str(path)
    return DataConfig(cache_folder=str(folder / "cache"), **fields)


def contents(
    corpus: Corpus[TaggedSentence], split: str = "train"
) -> list[tuple[str, list[str], list[str]]]:
    return [(row.origin.doc_id, row.words, row.tags) for row in corpus.rows[split]]


def expected(rows: list[dict[str, Any]]) -> list[tuple[str, list[str], list[str]]]:
    return [(row["doc_id"], row["tokens"], row["tags"]) for row in rows]


def read(data: DataConfig) -> Corpus[TaggedSentence]:
    """The splits of named entities."""
    return read_splits(data, NerReader(data))


def mistakes(data: DataConfig) -> list[str]:
    """The messages that reading `data` ends with."""
    with pytest.raises(UserError) as caught:
        read(data)
    return [str(mistake) for mistake in caught.value.mistakes]


def write_csv(path: Path, rows: list[dict[str, Any]], as_json: bool) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            lists = {
                name: json.dumps(row[name]) if as_json else " ".join(row[name])
                for name in ("tokens", "tags")
            }
            writer.writerow({**row, **lists})
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    from datasets import Dataset

    Dataset.from_list(rows).to_parquet(str(path))
    return path


def written(folder: Path, kind: str) -> Path:
    """ROWS in one of the formats."""
    if kind == "jsonl":
        return write_jsonl(folder / "rows.jsonl", ROWS)
    if kind == "parquet":
        return write_parquet(folder / "rows.parquet", ROWS)
    return write_csv(folder / f"{kind}.csv", ROWS, as_json=kind == "csv-json")


@pytest.mark.parametrize("kind", ["jsonl", "csv-json", "csv-words", "parquet"])
def test_every_format_gives_the_same_corpus(tmp_path, kind):
    corpus = read(config(tmp_path, train=str(written(tmp_path, kind))))
    assert contents(corpus) == expected(ORDERED)
    assert contents(corpus, "test") == expected([GOOD])
    assert corpus.labels == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
    assert corpus.notes == ()


def test_wikigold_is_sound():
    files = {split: str(WIKIGOLD / f"{split}.jsonl") for split in SPLITS}
    corpus = read(DataConfig(**files))
    assert [len(corpus.rows[split]) for split in SPLITS] == [1278, 134, 284]
    types = ("LOC", "MISC", "ORG", "PER")
    assert corpus.labels == ("O", *(f"{p}-{t}" for t in types for p in "BI"))


@pytest.mark.parametrize(
    ("numbers", "order"),
    [
        ([2, 10, 1], [2, 0, 1]),
        (["2", "10", "1"], [2, 0, 1]),
        (["x", "c", "a"], [0, 1, 2]),
        ([2, None, 1], [0, 1, 2]),
    ],
    ids=["numbers", "text-of-numbers", "names-keep-rows", "unknown-keep-rows"],
)
def test_sentences_are_in_the_order_of_sent_id(tmp_path, numbers, order):
    rows = [
        {"doc_id": "d", "sent_id": number, "tokens": [str(place)], "tags": ["O"]}
        for place, number in enumerate(numbers)
    ]
    path = write_jsonl(tmp_path / "x.jsonl", [*rows, GOOD])
    tokens = [tokens for _, tokens, _ in contents(read(config(tmp_path, train=str(path))))]
    assert tokens == [*([str(place)] for place in order), GOOD["tokens"]]


def test_rows_without_doc_id_are_documents_of_their_own(tmp_path):
    bare = {"tokens": ["a"], "tags": ["O"]}
    rows = [bare, bare, {**bare, "doc_id": None}, {**bare, "doc_id": None}, GOOD]
    path = write_jsonl(tmp_path / "x.jsonl", rows)
    rows = read(config(tmp_path, train=str(path))).rows["train"]
    names = [row.origin.doc_id for row in rows]
    assert len(set(names)) == 5


def test_columns_may_have_other_names(tmp_path):
    names = {"doc_id": "document", "sent_id": "number", "tokens": "words", "tags": "ner"}
    rows = [{names[key]: value for key, value in row.items()} for row in ROWS]
    files = {split: str(write_jsonl(tmp_path / f"{split}.jsonl", rows)) for split in SPLITS}
    assert contents(read(config(tmp_path, columns=names, **files))) == expected(ORDERED)
    files["train"] = str(write_jsonl(tmp_path / "train.jsonl", ROWS))
    found = mistakes(config(tmp_path, columns={"doc_id": "documnt"}, train=files["train"]))
    assert any("no column `documnt`, which data.columns.doc_id names" in text for text in found)


def test_conll_documents_comments_and_odd_characters():
    text = (
        "-DOCSTART- -X- -X- O\r\n\r\n# text = a title\nEU NNP I-NP B-ORG\nsays VBZ I-VP O\n\n"
        "# # I-NP O\n5 CD I-NP O\n# # I-NP O\n\n\n# newdoc id = 2\n"
        "a\u2028b NN I-NP O\n\u00a0 NN I-NP O"
    )
    found = list(read_conll(at_hand(text)))
    assert [(s.line, s.document, s.column(0), [w[-1] for w in s.words]) for s in found] == [
        (4, "1", ["EU", "says"], ["B-ORG", "O"]),
        (7, "1", ["#", "5", "#"], ["O", "O", "O"]),
        (13, "2", ["a\u2028b", "\u00a0"], ["O", "O"]),
    ]
    (only,) = read_conll(at_hand("New York\tB-LOC\n#tag\tO\n"))
    assert only.document is None
    assert only.words == [["New York", "B-LOC"], ["#tag", "O"]]


def test_conll_corpus_names_the_line_of_the_word(tmp_path):
    good = tmp_path / "good.conll"
    good.write_text("\ufeffAnn B-PER\nsaw O\n\nNew B-LOC\nYork I-LOC\n", encoding="utf-8")
    corpus = read(config(tmp_path, train=str(good)))
    assert [tokens for _, tokens, _ in contents(corpus)] == [["Ann", "saw"], ["New", "York"]]
    assert len({row.origin.doc_id for row in corpus.rows["train"]}) == 2
    bad = tmp_path / "bad.conll"
    bad.write_text("Ann B-PER\n\nsaw O\nYork\n\nNew O\nYork I-LOC\n", encoding="utf-8")
    found = mistakes(config(tmp_path, train=str(bad)))
    assert found[0] == f"{bad}:4: tag 2 is ``, not O, B-TYPE or I-TYPE."
    assert found[1].startswith(f"{bad}:7: tag 2 is `I-LOC` after `O`")


def hub_folder(folder: Path, names: tuple[str, ...], tags: list[int]) -> Path:
    """A local stand-in for a hub data set with numbered classes."""
    from datasets import ClassLabel, Dataset, Features, List, Value

    classes = List(ClassLabel(names=["O", "B-X", "I-X"]))
    features = Features({"tokens": List(Value("string")), "ner_tags": classes})
    folder.mkdir()
    for name in names:
        rows = {"tokens": [["a", "b"]], "ner_tags": [tags]}
        Dataset.from_dict(rows, features=features).to_parquet(str(folder / f"{name}.parquet"))
    return folder


def test_hub_set_with_class_numbers(tmp_path):
    hub = hub_folder(tmp_path / "hub", ("train", "dev", "test"), [1, 2])
    data = config(tmp_path, hub=str(hub), columns={"tags": "ner_tags"})
    corpus = read(data)
    assert corpus.labels == ("O", "B-X", "I-X")
    for split in SPLITS:
        assert [row[1:] for row in contents(corpus, split)] == [(["a", "b"], ["B-X", "I-X"])]


def test_mistakes_of_hub_sets(tmp_path):
    hub = hub_folder(tmp_path / "hub", ("train", "test"), [0, -1])
    found = mistakes(config(tmp_path, hub=str(hub), columns={"tags": "ner_tags"}))
    assert found == [
        f"{hub} (train):row 1: `ner_tags` has -1 as item 2, not a string.",
        f"{hub} (test):row 1: `ner_tags` has -1 as item 2, not a string.",
    ]
    found = mistakes(config(tmp_path, hub=str(hub)))
    assert "no column `tags`. Columns: tokens, ner_tags. Set data.columns" in found[0]
    (only,) = mistakes(config(tmp_path, hub="./nowhere"))
    assert only.startswith("data.hub: ./nowhere: can't be loaded: ")


def test_a_hub_set_without_validation_is_validated_on_a_share_of_train(tmp_path):
    from datasets import Dataset

    hub = tmp_path / "hub"
    hub.mkdir()
    rows = [
        {"text": f"text {n} {sentence}", "label": "rare" if n == 3 else f"l{n % 2}", "doc_id": n}
        for n in range(30)
        for sentence in range(2)
    ]
    for name in ("train", "test"):
        Dataset.from_list(rows).to_parquet(str(hub / f"{name}.parquet"))
    data = DataConfig(hub=str(hub), cache_folder=str(tmp_path / "cache"), validation_share=0.2)
    reader = ClassificationReader(data)
    corpus = read_splits(data, reader)
    held, kept = (
        {row.origin.doc_id for row in corpus.rows[own]} for own in ("validation", "train")
    )
    assert len(held) in (5, 6)
    assert held | kept == set(map(str, range(30)))
    assert not held & kept, "a document is in one of both"
    assert "3" in kept, "a label that only it has stays in train"
    assert corpus.notes[0] == (
        f"validation: data.hub has no such split: {2 * len(held)} of the 60 training rows are "
        "taken for it, the same at every run (data.validation_share)"
    )
    again, notes = read_split("validation", data, reader, corpus.labels)
    assert again == corpus.rows["validation"]
    assert notes == corpus.notes[:1]
    assert read_split("train", data, reader, corpus.labels)[0] == corpus.rows["train"]
    few = data.model_copy(update={"validation_share": 0.01})
    with pytest.raises(UserError, match=r"has no validation split, and 1% of its 30 documents"):
        read_splits(few, reader)


def test_a_hub_split_whose_labels_are_kept_back(tmp_path):
    hub = hub_folder(tmp_path / "hub", ("train", "dev"), [1, 2])
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["a", "b"])})
    for name, labels in (("train", [0, 1]), ("dev", [0, 1]), ("test", [-1, -1])):
        rows = {"text": ["x", "y"], "label": labels}
        Dataset.from_dict(rows, features=features).to_parquet(str(hub / f"{name}.parquet"))
    data = DataConfig(hub=str(hub), cache_folder=str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"\(test\): has no labels: `label` is −1 in every row"):
        read_splits(data, ClassificationReader(data))


LINES = [
    ('{"tokens": ["a"], "tags": ["O"]', "is not JSON: "),
    ("[1]", "is not a JSON object. JSON Lines has one object {…} a line."),
    ('{"tokens": ["a"]}', "has no column `tags`. Columns: tokens. Set data.columns"),
    ('{"tags": ["O"]}', "has no column `tokens`. Columns: tags. "),
    ('{"tokens": ["a", "b"], "tags": ["O"]}', "has 2 tokens but 1 tags."),
    ('{"tokens": [], "tags": []}', "has no tokens."),
    ('{"tokens": "a b", "tags": ["O"]}', "`tokens` is 'a b', not a list of strings."),
    ('{"tokens": ["a", 5], "tags": ["O", "O"]}', "`tokens` has 5 as item 2, not a string."),
    ('{"tokens": ["a"], "tags": [null]}', "`tags` has None as item 1, not a string."),
    ('{"tokens": ["a"], "tags": ["LOC"]}', "tag 1 is `LOC`, not O, B-TYPE or I-TYPE."),
    ('{"tokens": ["a"], "tags": ["B-"]}', "tag 1 is `B-`, not O, B-TYPE or I-TYPE."),
    (
        '{"tokens": ["a", "b"], "tags": ["B-PER", "I-LOC"]}',
        "tag 2 is `I-LOC` after `B-PER`, which IOB2 doesn't allow. "
        "If the file is IOB1, set `data.tag_scheme: iob1`.",
    ),
    ('{"tokens": ["\\ud83d"], "tags": ["O"]}', "has half a surrogate pair"),
    (json.dumps(GOOD), "sentence 0 of document a was at FILE:1 already."),
]


@pytest.mark.parametrize(("line", "text"), LINES)
def test_a_broken_line_is_named(tmp_path, line, text):
    path = tmp_path / "train.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n\n  \n{line}\n", encoding="utf-8")
    (only,) = mistakes(config(tmp_path, train=str(path)))
    assert only.startswith(f"{path}:4: " + text.replace("FILE", str(path)))


def test_all_mistakes_of_all_splits_are_named_at_once(tmp_path):
    train = tmp_path / "train.jsonl"
    train.write_text("\n".join(line for line, _ in LINES) + "\n", encoding="utf-8")
    both = write_jsonl(tmp_path / "both.jsonl", [{"doc_id": "a"}])
    found = mistakes(config(tmp_path, train=str(train), validation=str(both), test="none.jsonl"))
    places = [text.split(": ")[0] for text in found]
    # The last line is good where the same sentence wasn't there before.
    assert places[:-3] == [f"{train}:{number}" for number in range(1, len(LINES))]
    assert places[-3:-1] == [f"{both}:1", f"{both}:1"]
    assert found[-1] == "data.test: none.jsonl: can't be read: No such file or directory."


@pytest.mark.parametrize(
    ("name", "content", "bad", "other"),
    [
        ("x.jsonl", b'\xe9\n{"tags": []}\n{"tokens": ["\xff"], "tags": ["O"]}\n', (1, 3), 2),
        ("x.conll", b"Caf\xe9 O\n\na LOC\n\n\xff\xfe O\n", (1, 5), 3),
        ("x.csv", b"tokens,tags\n\xe9,O\na,O O\n\xff,O\n", (2, 4), 3),
    ],
)
def test_lines_that_are_not_utf8_hide_no_other_mistake(tmp_path, name, content, bad, other):
    path = tmp_path / name
    path.write_bytes(content)
    found = mistakes(config(tmp_path, train=str(path)))
    first, second = bad
    assert found[0].startswith(
        f"{path}:{first}: is not UTF-8 text, nor are lines {second}. "
        "Name its encoding: with `data.encoding: cp1252` it says '"
    )
    assert found[1].startswith(f"{path}:{other}: ")
    assert all("in no sound row of train" in text for text in found[2:])


def test_labels_are_looked_for_in_the_sound_rows_of_a_broken_split(tmp_path):
    train = tmp_path / "train.jsonl"
    train.write_text(f"oops\n{json.dumps(GOOD)}\n", encoding="utf-8")
    other = str(write_jsonl(tmp_path / "other.jsonl", [{**GOOD, "tags": ["B-ORG", *"OOO"]}]))
    found = mistakes(config(tmp_path, train=str(train), test=other))
    assert found[0].startswith(f"{train}:1: is not JSON")
    assert found[1:] == [
        f"{other}:1: label `ORG` is in test but in no sound row of train (labels of train: "
        "LOC, PER)."
    ]


def test_many_mistakes_of_one_kind_in_a_file_are_one_message(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("oops\n" * 70 + json.dumps(GOOD), encoding="utf-8")
    (found,) = mistakes(config(tmp_path, train=str(path)))
    assert found.startswith(f"{path}:1: is not JSON")
    assert found.endswith("(69 more like it, such as line 2 and line 3.)")


def test_the_wrong_tag_scheme_is_one_message_with_the_values_of_others(tmp_path):
    words = ["Ann", "saw", "Rome"]
    tags = [["I-PER", "O", "I-LOC"], ["I-ORG", "O", "O"]]
    rows = [{"tokens": words, "tags": tags[n % 2]} for n in range(60)]
    path = write_jsonl(tmp_path / "train.jsonl", [GOOD, *rows])
    first, *others = mistakes(config(tmp_path, train=str(path), tag_scheme="iob2"))
    assert first == (
        f"{path}:2: tag 1 is `I-PER` after `O`, which IOB2 doesn't allow. If the file is IOB1, set "
        "`data.tag_scheme: iob1`. (59 more like it, such as line 3 (`I-ORG`) and line 4.)"
    )
    assert all("not in train" in other or "no sound row" in other for other in others)


def test_a_few_mistakes_of_one_kind_are_shown_one_by_one(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("oops\n" * 3 + json.dumps(GOOD) + "\n", encoding="utf-8")
    found = mistakes(config(tmp_path, train=str(path)))
    assert [text.partition(": ")[0] for text in found[:3]] == [f"{path}:{n}" for n in (1, 2, 3)]


def test_mistakes_of_several_files_and_of_no_file_are_not_one():
    lines = [Mistake(f"{name}:{n}", "is odd.") for name in ("a1", "a2") for n in range(5)]
    keys = [Mistake(f"key.{n}", f"is {n}.") for n in range(5)]
    error = UserError([*lines, *keys])
    found = [str(mistake) for mistake in error.mistakes]
    assert found[:2] == [
        f"{name}:0: is odd. (4 more like it, such as line 1 and line 2.)" for name in ("a1", "a2")
    ]
    assert found[2:] == [str(key) for key in keys]


def test_a_long_list_of_mistakes_is_cut():
    error = UserError(Mistake(f"key.{n}", "is odd.") for n in range(70))
    assert len(error.mistakes) == 51
    assert str(error.mistakes[-1]) == "…: and 20 more mistakes."
    again = pickle.loads(pickle.dumps(error))
    assert again.mistakes == error.mistakes


def test_what_is_wrong_with_every_row_of_several_files_is_said_once(tmp_path):
    for split in SPLITS:
        rows = [{"words": ["a"], "tags": ["O"]}] * 4
        write_jsonl(tmp_path / f"{split}.jsonl", rows)
    files = {split: str(tmp_path / f"{split}.jsonl") for split in SPLITS}
    (only,) = mistakes(config(tmp_path, **files))
    assert only == (
        f"{files['train']}:1: has no column `tokens`. The same is wrong in all the 4 rows that "
        "were looked at. Columns: words, tags. Set data.columns if names differ. So it is with "
        f"{files['validation']}, {files['test']}."
    )


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("x.jsonl", None, "data.train: FILE: can't be read: No such file or directory."),
        ("x.jsonl", "folder", "data.train: FILE: can't be read: Is a directory."),
        ("x.jsonl", b"", "data.train: FILE: is empty."),
        ("x.conll", b" \n\n", "data.train: FILE: is empty."),
        ("x.conll", b"# text = nothing more\n", "data.train: FILE: has no rows."),
        ("x.csv", b"tokens,tags\n", "data.train: FILE: has no rows."),
        ("x.jsonl", b'{"tokens": 1}\n{"t\xe9"}', "FILE:1: `tokens` is 1, not a list"),
        ("x.csv", b"tokens,tags\n\xe9,O\n", "FILE:2: is not UTF-8 text. Name its"),
        ("x.doc", b"x", "FILE: has an ending that names no known format. Set data.format"),
        ("x.parquet", b"PAR1 no PAR1", "FILE: can't be read as parquet: "),
        ("x.csv", b"tokens:tags\na:O\n", "FILE: has no column `tokens` and no column `tags`. Col"),
        (
            "x.csv",
            b'tokens,tags\n"a\nb",O\n\na b,O O,O\n',
            "FILE:5: has 3 cells, the header has 2.",
        ),
        ("x.csv", b'tokens,tags\n"a\nb",O\n\na b,O\n', "FILE:5: has 2 tokens but 1 tags."),
        ("x.csv", b"tokens,tags\n['a,O\n", 'FILE:2: `tokens` is "[\'a", not a list'),
        ("x.csv", b"tokens,tags\na\n", "FILE:2: has 1 tokens but 0 tags."),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, content, text):
    path = tmp_path / name
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    found = mistakes(config(tmp_path, train=str(path)))
    assert found[0].startswith(text.replace("FILE", str(path)))


def test_csv_with_an_index_column(tmp_path):
    path = tmp_path / "pandas.csv"
    path.write_text(",tokens,tags\n0,Ann saw,B-PER O\n1,New York,B-LOC I-LOC\n", encoding="utf-8")
    rows = contents(read(config(tmp_path, train=str(path))))
    assert [row[1:] for row in rows] == [
        (["Ann", "saw"], ["B-PER", "O"]),
        (["New", "York"], ["B-LOC", "I-LOC"]),
    ]


def test_two_empty_files_and_a_missing_name_are_all_named(tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    found = mistakes(DataConfig(train=str(empty), validation=str(empty)))
    assert found == [
        f"data.train: {empty}: is empty. So it is with data.validation: {empty}.",
        "data.test: is missing.",
    ]


def test_labels_that_a_split_lacks(tmp_path):
    rows = [GOOD, {**GOOD, "doc_id": "z", "tags": ["B-ORG", "I-ORG", "B-MISC", "O"]}]
    more = str(write_jsonl(tmp_path / "more.jsonl", rows))
    found = mistakes(config(tmp_path, validation=more))
    assert found == [
        f"{more}:2: label `ORG` is in validation but not in train (labels of train: LOC, PER).",
        f"{more}:2: label `MISC` is in validation but not in train (labels of train: LOC, PER).",
    ]
    found = mistakes(config(tmp_path, validation=more, test=more))
    assert "label `ORG` is in validation and test but not in train" in found[0]
    assert len(found) == 2
    corpus = read(config(tmp_path, train=more, test=more))
    assert corpus.notes == (
        "label ORG is not in the validation split",
        "label MISC is not in the validation split",
    )


def test_a_rewritten_file_is_read_again(tmp_path):
    path = write_csv(tmp_path / "x.csv", ROWS, as_json=True)
    assert len(read(config(tmp_path, train=str(path))).rows["train"]) == 4
    write_csv(path, ROWS[:3], as_json=True)
    assert len(read(config(tmp_path, train=str(path))).rows["train"]) == 3


def test_iob1_files_are_converted(tmp_path):
    rows = [{**GOOD, "tags": ["I-PER", "O", "I-LOC", "B-LOC"]}]
    path = write_jsonl(tmp_path / "iob1.jsonl", rows)
    files = dict.fromkeys(SPLITS, str(path))
    assert "IOB1" in mistakes(config(tmp_path, tag_scheme="iob2", **files))[0]
    for scheme in ("iob1", "auto"):
        corpus = read(config(tmp_path, tag_scheme=scheme, **files))
        assert contents(corpus)[0][2] == ["B-PER", "O", "B-LOC", "B-LOC"]
    assert corpus.notes == ("train, validation, test: tags are IOB1, read as IOB2",)


@given(st.lists(st.tuples(st.sampled_from(["", "X", "Y"]), st.integers(1, 3)), max_size=12))
def test_iob1_and_iob2_name_the_same_entities(entities):
    """Entities as (type, number of words); the empty type is outside."""
    iob1: list[str] = []
    iob2: list[str] = []
    for name, length in entities:
        if not name:
            iob1 += ["O"] * length
            iob2 += ["O"] * length
            continue
        touches = bool(iob1) and iob1[-1][2:] == name
        iob1 += [f"B-{name}" if touches else f"I-{name}", *[f"I-{name}"] * (length - 1)]
        iob2 += [f"B-{name}", *[f"I-{name}"] * (length - 1)]
    assert to_iob2(iob1, "iob1") == iob2
    assert to_iob2(iob2, "iob1") == iob2
