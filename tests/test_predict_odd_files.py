"""`tsarch predict` on files as people have them, pipes, and calls that end too early."""

from __future__ import annotations

import bz2
import csv
import errno
import gzip
import io
import itertools
import json
import lzma
import os
import random
import re
import signal
import threading
import zipfile
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tsarch
from tests.helpers import ROOT
from tests.test_pair import run_of
from tests.test_predict_files import ROWS, rows_of
from tsarch.config import DataConfig
from tsarch.data.plain_text import text_rows
from tsarch.errors import UserError
from tsarch.inputs.files import InputFile, input_files
from tsarch.inputs.reading import Reading
from tsarch.launch.cli import main
from tsarch.launch.training import run_training
from tsarch.prediction import journal, pieces
from tsarch.prediction.batch import predict_files

pytestmark = pytest.mark.slow
NER = {"tokens": "tokens", "tags": "tags", "doc_id": "doc_id", "sent_id": "sent_id"}
TEXTS = {"text": "text", "label": "label", "doc_id": "doc_id", "sent_id": "sent_id"}
QUESTIONS = {"id": "id", "context": "context", "question": "question", "answers": "answers"}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ner")
    run_training(run_of(folder, "ner"))
    return folder / "run"


@pytest.fixture(scope="module")
def pair(run):
    return tsarch.load(run, device="cpu")


def read(path: Path, task: str = "ner", **data) -> list[tuple]:
    """(value, or what is wrong) of the inputs of a file."""
    columns = {"ner": NER, "classification": TEXTS, "qa": QUESTIONS}[task]
    reading = Reading(task, columns, DataConfig(**data))
    return [own.value or own.problem for own in InputFile(str(path), reading)]


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


LINE = '{"tokens": ["Rome"]}\n'
ONE = [{"tokens": ["Rome"]}]


def zipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("rows.jsonl", content)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("no-newline.jsonl", LINE.strip()),
        ("crlf.jsonl", LINE.replace("\n", "\r\n")),
        ("mac.jsonl", LINE.replace("\n", "\r")),
        ("mark.jsonl", b"\xef\xbb\xbf" + LINE.encode()),
        ("utf-16.jsonl", LINE.encode("utf-16")),
        ("rows.jsonl.gz", gzip.compress(LINE.encode())),
        ("rows.jsonl.bz2", bz2.compress(LINE.encode())),
        ("rows.jsonl.xz", lzma.compress(LINE.encode())),
        ("rows.jsonl.zip", zipped(LINE.encode())),
        ("not-packed.jsonl.gz", LINE),
        ("list.json", f"[{LINE}]"),
        ("indented.json", json.dumps(ONE, indent=2)),
        ("held.json", json.dumps({"data": ONE})),
        ("words.conll", "Rome B-LOC\n\n"),
        ("words.txt", "Rome B-LOC\n\n"),
    ],
)
def test_one_row_is_read_however_it_is_written(tmp_path, name, content):
    found = read(written(tmp_path, name, content))
    assert [own["tokens"] for own in found] == [["Rome"]]
    assert all("tags" not in own for own in found)


@pytest.mark.parametrize(
    ("task", "name", "content", "expected"),
    [
        ("ner", "a.txt", "Maria saw Rome.\n\n  \nx", ["Maria saw Rome.", "x"]),
        ("ner", "a.csv", "text,n\nMaria,1\n", ["Maria"]),
        ("ner", "a.jsonl", '{"text": "x", "label": [[0, 1, "PER"]]}', ["x"]),
        ("ner", "a.json", '[{"data": {"text": "x"}, "annotations": []}]', ["x"]),
        ("ner", "a.jsonl", '"x"\n', ["x"]),
        ("classification", "a.tsv", "n\ttext\n1\tx\n", [{"n": "1", "text": "x"}]),
        ("classification", "a.csv", "text;n\nx;1\n", [{"n": "1", "text": "x"}]),
        ("classification", "a.csv", 'text\n"x\ny"\n', [{"text": "x\ny"}]),
    ],
)
def test_texts_and_tables(tmp_path, task, name, content, expected):
    assert read(written(tmp_path, name, content), task) == expected


def test_the_words_of_counted_lines(tmp_path):
    content = "1-2\tRome.\t_\n1\tRome\t_\n2\t.\t_\n\n"
    assert read(written(tmp_path, "a.conllu", content)) == [{"tokens": ["Rome", "."]}]


def test_questions_below_their_passages(tmp_path):
    questions = [{"id": "1", "question": "Who?"}, {"id": "2", "question": "Where?"}]
    passage = {"context": "Ann sings in Rome.", "qas": questions}
    content = json.dumps({"version": "2", "data": [{"title": "t", "paragraphs": [passage]}]})
    found = read(written(tmp_path, "squad.json", content), "qa")
    assert [own["question"] for own in found] == ["Who?", "Where?"]
    assert {own["context"] for own in found} == {"Ann sings in Rome."}


def test_a_folder_of_brat_is_its_texts(tmp_path):
    for name in ("a", "b"):
        written(tmp_path, f"{name}.txt", f"Maria {name}.\nRome.\n")
        written(tmp_path, f"{name}.ann", "T1\tPER 0 5\tMaria\n")
    files = input_files([str(tmp_path)], is_tagged=True)
    assert [read(Path(own)) for own in files] == [["Maria a.\nRome.\n"], ["Maria b.\nRome.\n"]]
    with pytest.raises(UserError, match="is a folder"):
        input_files([str(tmp_path)])


def test_the_config_says_what_a_file_does_not(tmp_path):
    path = written(tmp_path, "a.csv", "body|n\ncaf\xe9|1\n".encode("latin-1"))
    options = {"encoding": "latin-1", "delimiter": "|", "columns": {"text": "body"}}
    (found,) = InputFile(str(path), Reading("classification", TEXTS, DataConfig(**options)))
    assert (found.value, found.row) == ({"text": "café"}, {"body": "café", "n": "1"})


def test_bad_rows_stand_where_they_were(tmp_path):
    lines = [b'{"text": "a"}', b"{broken", b'{"text": "\xff"}', b"[1]", b'{"text": "b\\ufffd"}']
    path = written(tmp_path, "a.jsonl", b"\n".join(lines))
    first, second, third, fourth, last = read(path, "classification")
    assert (first, last) == ({"text": "a"}, {"text": "b\ufffd"})
    assert second.startswith("is not JSON")
    assert third == "is not UTF-8 text."
    assert fourth.startswith("is not a JSON object")
    table = written(tmp_path, "a.csv", b'text\na\n"b\n\xff"\nc\n')
    assert read(table, "classification") == [{"text": "a"}, "is not UTF-8 text.", {"text": "c"}]
    words = written(tmp_path, "a.conll", b"a O\n\xff O\n\nb O\n")
    assert read(words) == ["is not UTF-8 text.", {"tokens": ["b"]}]


def test_what_stands_before_damage_is_read(tmp_path):
    content = gzip.compress("".join(f'{{"text": "{n}"}}\n' for n in range(50_000)).encode())
    found = read(written(tmp_path, "a.jsonl.gz", content[: len(content) // 2]), "classification")
    assert found[:-1] == [{"text": str(n)} for n in range(len(found) - 1)]
    assert len(found) > 1000
    assert "it is damaged" in found[-1]
    found = read(written(tmp_path, "a.csv", 'text,n\nok,1\n"open,2\n'), "classification")
    assert found[0] == {"text": "ok", "n": "1"}
    assert "is not CSV" in found[1]
    found = read(written(tmp_path, "b.json", '[{"text": "a"}, {"text": oops}]'), "classification")
    assert found[0] == {"text": "a"}
    assert "is not JSON" in found[1]


@pytest.mark.parametrize("number", [300, 60_000])
def test_all_rows_before_damage_are_answered_wherever_it_is(run, tmp_path, number, capsys):
    """In the first part of a file too, from which its format is told."""
    noise = random.Random(0)
    lines = "".join(f'{{"text": "Bob {noise.random()}", "n": {n}}}\n' for n in range(number))
    packed = gzip.compress(lines.encode())[: 2_000 if number == 300 else 300_000]
    unpacked = zlib.decompressobj(wbits=31).decompress(packed)
    path = written(tmp_path, "a.jsonl.gz", packed)
    found = read(path, "classification")
    assert len(found) - 1 == unpacked.count(b"\n")
    if number == 300:
        own = ["--input", str(path), "--output", str(tmp_path / "o.jsonl")]
        assert command(str(run), *own) == 2, "nothing is left out unless that is asked for"
        assert "it is damaged" in capsys.readouterr().err
        assert command(str(run), *own, "--skip-bad") == 0
        *rows, last = map(json.loads, (tmp_path / "o.jsonl").read_text().splitlines())
        assert [row["n"] for row in rows] == list(range(unpacked.count(b"\n")))
        assert "it is damaged" in last["problem"]


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_halves_of_characters_in_other_columns_are_written_escaped(pair, tmp_path, kind):
    row = r'{"text": "Bob", "x": "\ud800", "y": ["\udfff"], "z\ud801": "é"}'
    output = tmp_path / f"o.{kind}"
    predict_files(pair, [str(written(tmp_path, "a.jsonl", row + "\n"))], output)
    table = (
        pq.read_table(output).to_pylist()
        if kind == "parquet"
        else list(
            csv.DictReader(output.open(encoding="utf-8"), delimiter="\t" if kind == "tsv" else ",")
        )
    )
    assert {name: table[0][name] for name in ("x", "y", r"z\ud801")} == {
        "x": r"\ud800",
        "y": r'["\udfff"]',
        r"z\ud801": "é",
    }


@pytest.mark.parametrize("end", ["\n", " "])
def test_lists_are_read_part_by_part(tmp_path, end):
    rows = [{"text": f"{n} é " * 9} for n in range(20_000)]
    body = f",{end}".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path = written(tmp_path, "a.json", f"[{body}]")
    reading = Reading("classification", TEXTS)
    file = InputFile(str(path), reading)
    places = []
    for own, expected in zip(file, rows, strict=True):
        assert own.value == expected
        places.append(file.position)
    assert places[100] < file.size / 4
    assert places == sorted(places)


def test_nested_columns_and_numbers_that_json_has_not(pair, tmp_path):
    table = {"text": ["Maria saw Rome."], "meta": [{"k": [1, 2]}], "v": [float("nan")]}
    pq.write_table(pa.table(table), tmp_path / "in.parquet")
    predict_files(pair, [str(tmp_path / "in.parquet")], tmp_path / "out.jsonl")
    line = (tmp_path / "out.jsonl").read_text()
    row = json.loads(line, parse_constant=pytest.fail)
    assert (row["meta"], row["v"]) == ({"k": [1, 2]}, None)


def test_empty_files_have_no_inputs(pair, tmp_path):
    result = predict_files(pair, [str(written(tmp_path, "a.jsonl", ""))], tmp_path / "o.jsonl")
    assert (result.inputs, (tmp_path / "o.jsonl").read_text()) == (0, "")
    assert "is empty" in result.notes[0]


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["predict", *arguments])
    return int(caught.value.code or 0)


def test_pipes_at_both_ends(run, pair, tmp_path, monkeypatch, capfdbinary):
    content = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    predict_files(pair, [str(written(tmp_path, "a.jsonl", content))], tmp_path / "o.jsonl")
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "wb") as out:
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(out))
        assert command(str(run), "--input", "-", "--output", "-") == 0
    with os.fdopen(read_end, "rb") as file:
        assert file.read() == (tmp_path / "o.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("output", "message"),
    [("in.jsonl", "is among the inputs"), ("/proc/out.jsonl", "can't be written")],
)
def test_outputs_that_cannot_be(run, tmp_path, capsys, output, message):
    path = written(tmp_path, "in.jsonl", LINE)
    own = str(tmp_path / output) if not output.startswith("/") else output
    assert command(str(run), "--input", str(path), "--output", own) == 2
    assert message in capsys.readouterr().err
    assert path.read_text() == LINE


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_what_another_call_goes_on_with(run, tmp_path, monkeypatch, capsys, number):
    monkeypatch.setattr(pieces, "INPUTS", 8)
    path = written(tmp_path, "in.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS))
    paths = ["--input", str(path), "--output"]
    assert command(str(run), *paths, str(tmp_path / "whole.jsonl")) == 0
    add = journal.Journal.add

    def add_and_be_told(self, *arguments):
        add(self, *arguments)
        if self.inputs == 24:
            os.kill(os.getpid(), number)

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` ignores it
    try:
        with monkeypatch.context() as patch:
            patch.setattr(journal.Journal, "add", add_and_be_told)
            assert command(str(run), *paths, str(tmp_path / "out.jsonl")) == 128 + number
    finally:
        signal.signal(signal.SIGINT, handler)
    assert "the same command goes on from there" in capsys.readouterr().err.replace("\n", " ")
    assert command(str(run), *paths, str(tmp_path / "out.jsonl")) == 0
    assert "by an earlier call" in capsys.readouterr().err
    assert rows_of(tmp_path / "out.jsonl") == rows_of(tmp_path / "whole.jsonl")
    assert len(list(tmp_path.iterdir())) == 3


def test_damaged_notes_of_an_earlier_call_are_told(pair, tmp_path):
    path = str(written(tmp_path, "in.jsonl", LINE))
    written(tmp_path, "out.jsonl.part", "")
    written(tmp_path, "out.jsonl.part.json", '{"job": ')
    with pytest.raises(UserError, match="Give --restart to begin anew"):
        predict_files(pair, [path], tmp_path / "out.jsonl")
    predict_files(pair, [path], tmp_path / "out.jsonl", restart=True)
    assert len(rows_of(tmp_path / "out.jsonl")) == 1


def test_a_full_disk_is_one_message(pair, tmp_path, monkeypatch):
    path = written(tmp_path, "in.jsonl", LINE)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"No space left on device\. Make room") as caught:
        predict_files(pair, [str(path)], tmp_path / "out.jsonl")
    assert len(caught.value.mistakes) == 1


def test_texts_of_ones_own_are_split_as_where_they_are_predicted(pair):
    text = "Maria Rossi saw Dr. Berg in Rome. Then she slept!"
    rows = text_rows(text, "notes/1")
    assert rows == tsarch.text_rows(text, "notes/1")
    assert [row["sent_id"] for row in rows] == [0, 1]
    (of_text,) = pair.predict([text])
    by_sentence = pair.predict(rows)
    assert [own.score for own in of_text] == [own.score for row in by_sentence for own in row]


def test_the_page_shows_what_its_example_prints(capsys):
    page = (ROOT / "docs" / "predicting-files.md").read_text(encoding="utf-8")
    code, expected = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", page, re.S).groups()
    exec(code, {})
    assert capsys.readouterr().out == expected


def test_pieces_end_between_documents_unless_one_is_too_long(tmp_path):
    names = [*"aaabbb", *"c" * 200, "d"]
    lines = "".join(
        json.dumps({"text": n, "doc_id": name}) + "\n"
        for n, name in ((str(n), name) for n, name in enumerate(names))
    )
    path = str(written(tmp_path, "a.jsonl", lines))
    reading = Reading("classification", TEXTS)

    def made(skipped: int) -> list[tuple[str, ...]]:
        own = pieces.pieces([InputFile(path, reading)], pieces.Limits(4), skipped)
        return [tuple(given.row["text"] for given in piece.inputs) for piece in own]

    whole = made(0)
    assert [len(piece) for piece in whole] == [6, 128, 72, 1]
    assert [text for piece in whole for text in piece] == [str(n) for n in range(len(names))]
    assert made(6) == whole[1:]


def test_what_reads_ahead_tells_its_error_and_ends_with_its_reader():
    def items():
        yield from range(3)
        raise UserError.single("here", "is wrong.")

    found = []
    with pytest.raises(UserError, match="is wrong"):
        found.extend(own for own in pieces.read_ahead(items()))
    endless = pieces.read_ahead(itertools.count())
    assert next(endless) == 0
    endless.close()
    assert "read-ahead" not in {thread.name for thread in threading.enumerate()}


def test_a_pattern_that_the_shell_has_resolved(run, tmp_path):
    paths = [str(written(tmp_path, f"{n}.jsonl", LINE)) for n in range(3)]
    output = str(tmp_path / "out.jsonl")
    assert command(str(run), "--input", *paths, "--output", output) == 0
    assert len(rows_of(tmp_path / "out.jsonl")) == 3
