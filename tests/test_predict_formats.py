"""Every example of docs/data-formats.md can be read to be predicted, too."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.helpers import ROOT, write_jsonl
from tsarch.config import DataConfig
from tsarch.data.sources import column_names
from tsarch.inputs.files import InputFile, input_files
from tsarch.inputs.reading import Reading
from tsarch.inputs.rows import as_rows
from tsarch.inputs.sound_rows import sound_rows
from tsarch.prediction.asked import asking
from tsarch.tasks.registry import row_reader

WORDS = ["Lena", "Vogt", "moved", "to", "New", "Haven", "."]
TEXT = "Lena Vogt moved to New Haven. She works for Brightwell Ltd."
CASES: list[tuple[str, str, int, Any, dict[str, Any]]] = [
    ("ner", "conll-2003.conll", 4, WORDS, {}),
    ("ner", "annotators.iob2", 4, WORDS, {}),
    ("ner", "bioes.conll", 4, WORDS, {}),
    ("ner", "two-tags.tsv", 4, WORDS, {"format": "conll"}),
    (
        "ner",
        "word-a-row.csv",
        4,
        WORDS,
        {"columns": {"tokens": "Word", "tags": "Tag", "sent_id": "Sentence #"}},
    ),
    ("ner", "webanno.tsv", 1, ["Lena", "Vogt", "lives", "in", "Ulm", "."], {}),
    ("ner", "doccano.jsonl", 2, TEXT, {}),
    ("ner", "prodigy.jsonl", 2, TEXT, {}),
    ("ner", "label-studio.json", 2, TEXT, {}),
    ("ner", "brat", 2, TEXT + "\n", {}),
    ("classification", "list.json", 4, "Good, and cheap", {}),
    ("classification", "rows.jsonl.gz", 4, "Good, and cheap", {}),
    ("classification", "semicolons.csv", 4, "Good, and cheap", {"encoding": "cp1252"}),
    ("classification", "no-header.csv", 4, "Good, and cheap", {"columns": {"text": "3"}}),
    ("classification", "tabs.tsv", 4, '"Good, and cheap', {"columns": {"text": "sentence"}}),
    ("qa", "squad.json", 2, "Lena Vogt moved to New Haven in 1998.", {}),
    ("qa", "answers.jsonl", 2, "Lena Vogt moved to New Haven in 1998.", {}),
    ("relation", "tacred.json", 2, [0, 2], {}),
    ("relation", "docred.json", 6, [0, 2], {}),
    ("relation", "pairs.jsonl", 4, [0, 1], {}),
    ("relation", "opennre.jsonl", 2, [0, 2], {}),
    ("relation", "marked.jsonl", 2, [0, 2], {}),
    (
        "translation",
        "translation.jsonl",
        3,
        "I see a cat.",
        {"columns": {"source": "translation.en"}},
    ),
    ("translation", "parallel.en", 3, "I see a cat.", {}),
    ("dialogue", "messages.jsonl", 2, ["Be brief.", "I need a table"], {}),
    ("dialogue", "sharegpt.json", 2, ["I need a table"], {}),
    ("dialogue", "sgd.json", 2, ["I need a table"], {}),
    ("dialogue", "multiwoz.json", 3, ["I need a table"], {}),
    ("dialogue", "dailydialog.txt", 4, ["I need a table"], {}),
]
"""Task, file, inputs, what the first one says, how it is read."""
TELLING = {
    "ner": "tokens",
    "classification": "text",
    "qa": "context",
    "relation": "head",
    "translation": "source",
    "dialogue": "history",
}


@pytest.mark.parametrize(("task", "name", "number", "first", "options"), CASES)
def test_it_is_read_without_labels(task, name, number, first, options):
    columns = column_names(row_reader(task, DataConfig(), labelled=False))
    reading = Reading(task, columns, DataConfig(**options))
    files = input_files([str(ROOT / "configs" / "formats" / name)], "tags" in columns)
    found = [own for file in files for own in InputFile(file, reading)]
    assert [own.problem for own in found] == [""] * number
    value = found[0].value
    assert (value if isinstance(value, str) else value[TELLING[task]]) == first


def written_rows(tmp_path: Path, task: str, row: dict[str, Any]) -> list[dict[str, Any]]:
    columns = column_names(row_reader(task, DataConfig(), labelled=False))
    path = write_jsonl(tmp_path / "rows.jsonl", [row])
    return [own.row for own in InputFile(str(path), Reading(task, columns))]


@pytest.mark.parametrize(
    ("task", "row", "kept"),
    [
        (
            "relation",
            {
                "doc_id": "D1",
                "url": "http://x",
                "tokens": ["Ann", "sings"],
                "relations": [{"head": [0, 1], "tail": [1, 2], "relation": "P17", "note": "n1"}],
            },
            {"doc_id": "D1", "url": "http://x", "relation": "P17", "note": "n1"},
        ),
        (
            "relation",
            {
                "id": "7",
                "docid": "d",
                "token": ["Ann", "sings"],
                "relation": "r",
                "subj_start": 0,
                "subj_end": 0,
                "obj_start": 1,
                "obj_end": 1,
            },
            {"id": "7", "docid": "d", "relation": "r"},
        ),
        (
            "qa",
            {"title": "T", "paragraphs": [{"context": "c", "qas": [{"id": "1", "question": "q"}]}]},
            {"title": "T", "id": "1"},
        ),
    ],
)
def test_rows_of_other_layouts_keep_what_they_say_beside(tmp_path, task, row, kept):
    (found,) = written_rows(tmp_path, task, row)
    assert kept.items() <= found.items()


def test_ids_may_repeat_where_nothing_is_scored():
    rows = [{"id": "1", "context": "Ann sings.", "question": "Who?"}] * 2
    reader = row_reader("qa", DataConfig(), labelled=False)
    found, read = sound_rows(as_rows(rows, "qa", reader), reader)
    assert not found.problems
    assert [row.question for row in read] == ["Who?", "Who?"]


@pytest.mark.parametrize(
    ("task", "given", "asked"),
    [
        ("qa", "Ann sings.", {"context": "Ann sings.", "question": "?"}),
        (
            "qa",
            {"context": "Ann sings.", "n": 1},
            {"context": "Ann sings.", "question": "?", "n": 1},
        ),
        ("qa", {"context": "c", "question": "Who?"}, {"context": "c", "question": "Who?"}),
        ("relation", {"tokens": ["a"]}, {"tokens": ["a"], "head": [0, 1], "tail": [0, 1]}),
    ],
)
def test_documents_are_read_without_what_is_asked_of_them(task, given, asked):
    columns = column_names(row_reader(task, DataConfig(), labelled=False))
    pair: Any = SimpleNamespace(task=task, columns=columns, span_ends="exclusive", asks_later=True)
    assert asking(pair, given) == asked
    pair.asks_later = False
    assert asking(pair, given) == given
