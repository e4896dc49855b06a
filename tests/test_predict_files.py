"""`tsarch predict`: files in, answers out, in order and only once."""

from __future__ import annotations

import csv
import gzip
import json
import re
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tsarch
from tests.helpers import write_jsonl
from tests.test_pair import run_of
from tsarch.config import LossConfig
from tsarch.errors import UserError
from tsarch.launch.cli import main
from tsarch.launch.prediction import progress_console
from tsarch.launch.training import run_training
from tsarch.prediction import pieces
from tsarch.prediction.batch import as_json, predict_files

ROWS = [{"id": n, "tokens": f"Maria Rossi saw {n} ships in Rome .".split()} for n in range(50)]


def run_that_finds_entities(folder: Path) -> Path:
    """A short run of `ner` that labels some words."""
    config = run_of(folder, "ner")
    loss = LossConfig(label_weights="balanced")
    run_training(config.model_copy(update={"loss": loss}))
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return run_that_finds_entities(tmp_path_factory.mktemp("ner"))


@pytest.fixture(scope="module")
def pair(run):
    return tsarch.load(run, device="cpu")


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_command_writes_what_python_says(run, pair, tmp_path, capsys):
    source = write_jsonl(tmp_path / "in.jsonl", ROWS)
    output = tmp_path / "out.jsonl"
    paths = ["--input", str(source), "--output", str(output)]
    with pytest.raises(SystemExit) as caught:
        main(["predict", str(run), *paths, "--mode", "student"])
    assert caught.value.code == 0
    expected = [as_json(own) for own in pair.predict(ROWS, "student")]
    assert rows_of(output) == [
        {**row, "prediction": own} for row, own in zip(ROWS, expected, strict=True)
    ]
    assert any(expected)
    assert "50 inputs answered by student" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def write_inputs(folder: Path, kind: str) -> Path:
    path = folder / f"in.{kind}"
    texts = [" ".join(row["tokens"]) for row in ROWS]
    match kind:
        case "jsonl":
            return write_jsonl(path, ROWS)
        case "jsonl.gz":
            path.write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode()))
        case "txt":
            path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
        case "parquet":
            pq.write_table(pa.Table.from_pylist(ROWS), path)
        case _:
            delimiter = "\t" if kind == "tsv" else ","
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, delimiter=delimiter)
                writer.writerows([["id", "tokens"], *([n, t] for n, t in enumerate(texts))])
    return path


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "txt", "csv", "tsv", "parquet"])
def test_every_kind_of_input_gives_the_same_entities(pair, tmp_path, kind):
    output = tmp_path / "out.jsonl"
    result = predict_files(pair, [str(write_inputs(tmp_path, kind))], output)
    assert (result.inputs, result.bad) == (50, 0)
    expected = pair.predict(ROWS)
    for row, own in zip(rows_of(output), expected, strict=True):
        assert [e["text"] for e in row["prediction"]] == [e.text for e in own]


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_tables_hold_predictions_as_json(pair, tmp_path, kind):
    output = tmp_path / f"out.{kind}"
    predict_files(pair, [str(write_inputs(tmp_path, "jsonl"))], output)
    if kind == "parquet":
        rows = pq.read_table(output).to_pylist()
    else:
        with output.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, delimiter="," if kind == "csv" else "\t"))
    assert [json.loads(row["prediction"]) for row in rows] == [
        as_json(own) for own in pair.predict(ROWS)
    ]
    assert [row["id"] for row in rows] == [str(n) for n in range(50)]


def test_a_parquet_input_can_be_joined_with_its_answers(pair, tmp_path, monkeypatch):
    """Though the call was interrupted, in one schema."""
    monkeypatch.setattr(pieces, "INPUTS", 8)
    rows = [{**row, "id": n, "at": datetime(2026, 1, 1, n % 24)} for n, row in enumerate(ROWS)]
    files = [tmp_path / name for name in ("a.parquet", "b.parquet")]
    for part, file in zip((rows[:20], rows[20:]), files):
        pq.write_table(pa.Table.from_pylist(part), file)
    output = tmp_path / "out.parquet"

    def interrupt(own: object) -> None:
        raise KeyboardInterrupt

    names = [str(file) for file in files]
    with pytest.raises(KeyboardInterrupt):
        predict_files(pair, names, output, on_progress=interrupt)
    assert predict_files(pair, names, output).skipped > 0
    found, whole = pq.read_table(output), pq.read_table(files[0])
    for name in ("id", "at"):
        assert found.schema.field(name).type == whole.schema.field(name).type
        assert found.column(name).to_pylist() == [row[name] for row in rows]
    assert (
        whole.select(["id", "at"])
        .join(found.select(["id", "prediction"]), "id", join_type="inner")
        .num_rows
        == 20
    )


def test_globs_name_files_in_order(pair, tmp_path):
    for n in (2, 1, 3):
        write_jsonl(tmp_path / f"part-{n}.jsonl", [{"tokens": [str(n)]}])
    predict_files(pair, [str(tmp_path / "part-*.jsonl")], tmp_path / "out.jsonl")
    assert [row["tokens"] for row in rows_of(tmp_path / "out.jsonl")] == [["1"], ["2"], ["3"]]


def test_an_interrupted_call_goes_on_where_it_was(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "INPUTS", 8)
    source = str(write_inputs(tmp_path, "jsonl"))
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    predict_files(pair, [source], whole)
    seen = []

    def stop_at_24(progress):
        seen.append(progress.inputs)
        if progress.inputs == 24:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_files(pair, [source], output, on_progress=stop_at_24)
    assert not output.exists()
    with (tmp_path / "out.jsonl.part").open("a") as part:
        part.write('{"half a li')  # as a process leaves it that was killed
    with pytest.raises(UserError, match="begun with other files, another run or another mode"):
        predict_files(pair, [source], output, "teacher")
    seen.clear()
    result = predict_files(pair, [source], output, on_progress=lambda p: seen.append(p.inputs))
    assert seen[0] == 32
    assert result.skipped == 24
    assert output.read_text() == whole.read_text()


def test_a_document_is_never_torn_between_chunks(pair, tmp_path, monkeypatch):
    rows = [{**row, "doc_id": row["id"] // 20} for row in ROWS]
    source = str(write_jsonl(tmp_path / "in.jsonl", rows))
    predict_files(pair, [source], tmp_path / "whole.jsonl")
    monkeypatch.setattr(pieces, "INPUTS", 7)
    predict_files(pair, [source], tmp_path / "torn.jsonl")
    whole, torn = (rows_of(tmp_path / f"{name}.jsonl") for name in ("whole", "torn"))
    for a, b in zip(whole, torn, strict=True):
        for x, y in zip(a["prediction"], b["prediction"], strict=True):
            assert x["score"] == pytest.approx(y["score"], abs=1e-5)


def test_bad_inputs_are_named_and_left_out_only_if_asked(pair, tmp_path):
    source = tmp_path / "in.jsonl"
    lines = [
        '{"tokens": ["Rome"]}',
        "{broken",
        '{"tokens": []}',
        "[1]",
        '{"words": ["x"]}',
        '"a b"',
    ]
    source.write_text("\n".join(lines))
    output = tmp_path / "out.jsonl"
    with pytest.raises(UserError) as caught:
        predict_files(pair, [str(source)], output)
    places = [mistake.where.rpartition(":")[2] for mistake in caught.value.mistakes]
    assert places == ["2", "3", "4", "5"]
    assert not output.exists()
    result = predict_files(pair, [str(source)], output, skip_bad=True)
    assert (result.inputs, result.bad) == (6, 4)
    found = rows_of(output)
    assert ["problem" in row for row in found] == [False, True, True, True, True, False]
    assert found[4]["words"] == ["x"]
    assert "no column `tokens`" in found[4]["problem"]


@pytest.mark.parametrize(
    ("source", "output", "message"),
    [
        ("none.jsonl", "out.jsonl", "names no file"),
        ("a.doc", "out.jsonl", "ending that names no known format"),
        ("a.jsonl", "out.xls", r"Endings are \.jsonl, \.csv, \.tsv and \.parquet"),
        ("a.jsonl", "no/out.jsonl", "is not a folder"),
    ],
)
def test_wrong_paths_end_with_one_message(run, tmp_path, capsys, source, output, message):
    (tmp_path / "a.doc").write_text("x")
    write_jsonl(tmp_path / "a.jsonl", ROWS[:1])
    paths = ["--input", str(tmp_path / source), "--output", str(tmp_path / output)]
    with pytest.raises(SystemExit) as caught:
        main(["predict", str(run), *paths])
    assert caught.value.code == 2
    assert re.search(message, capsys.readouterr().err.replace("\n", " "))


def test_plain_values_name_their_kind(pair):
    (found,) = pair.predict(["Maria Rossi saw Rome ."])
    assert as_json(found) == [{"kind": "entity", **asdict(entity)} for entity in found]


def test_what_was_not_read_stands_in_the_rows(run, pair, tmp_path, capsys):
    rows = [*ROWS[:2], {"tokens": ["Rome", "zq" * 45]}]
    source, output = write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    given = ["predict", str(run), "--input", str(source), "--output", str(output)]
    for more, status in ((), 2), (("--on-unread", "parts"), 2), (("--on-unread", "mark"), 0):
        with pytest.raises(SystemExit) as caught:
            main([*given, *more])
        assert caught.value.code == status
    told = capsys.readouterr().err
    assert "3: can't be read whole" in told.replace("\n", " ")
    assert "is for translation and summarization, not for ner" in told
    assert "1 of them were read in part" in told
    expected = [as_json(own) for own in pair.predict(rows, on_unread="mark")]
    found = [row["prediction"] for row in rows_of(output)]
    assert found == expected
    assert found[2]["kind"] == "partly_read"
    assert (found[2]["unread"][0]["start"], found[2]["unread"][0]["of"]) == (1, "words")


def test_names_of_files_are_shown_as_they_are(capsys):
    name = "rows[red]:100:[/b].jsonl"
    progress_console().print(f"2 inputs answered: {name}")
    assert capsys.readouterr().err == f"2 inputs answered: {name}\n"
