"""A training split in files (`data.streamed`) is the one in memory, and trains the same."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.equal_losses import check_equal_losses
from tests.generative_configs import generative_config
from tests.helpers import WIKIGOLD, random_split, tiny_config, tiny_raw, write_jsonl
from tests.test_resume import end_at, local, rows
from tsarch.blueprint import resolve
from tsarch.config import Config
from tsarch.config_loading import parse_config
from tsarch.data import streaming
from tsarch.data.stored_split import SplitWriter, StoredSplit
from tsarch.errors import InterruptedRunError, UserError
from tsarch.launch.training import run_training
from tsarch.prepare import Prepared, prepare_data
from tsarch.run.resume import data_fingerprint

SLOW = pytest.mark.slow
STREAMED = {"streamed": True}


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven rows are read at a time."""
    monkeypatch.setattr(streaming, "_ROWS", 7)


def both(config: Config) -> tuple[Prepared, Prepared]:
    """The data in memory, and with a streamed training split."""
    streamed = config.model_copy(update={"data": config.data.model_copy(update=STREAMED)})
    return prepare_data(resolve(config)), prepare_data(resolve(streamed))


STREAMED = {"streamed": True}


def check_same(held: Prepared, streamed: Prepared) -> None:
    one, other = held.splits["train"], streamed.splits["train"]
    assert isinstance(other, StoredSplit)
    for own in dataclasses.fields(one):
        value = getattr(one, own.name)
        if isinstance(value, np.ndarray):
            assert value.tolist() == getattr(other, own.name).tolist(), own.name
    assert one.context_lengths.tolist() == other.context_lengths.tolist()
    assert one.distinct_tokens.tolist() == other.distinct_tokens.tolist()
    counts = [own.label_counts(len(held.labels)).tolist() for own in (one, other)]
    assert counts[0] == counts[1]
    assert streamed.labels == held.labels
    assert streamed.sizes == held.sizes
    assert streamed.digests == held.digests
    assert set(streamed.notes) == set(held.notes)
    assert one.num_cut_tokens == other.num_cut_tokens


def test_the_files_hold_what_memory_would(tmp_path, small_parts):
    check_same(*both(tiny_config(tmp_path, student={"max_tokens": 8})))


def test_labels_get_their_numbers_once_all_are_known(tmp_path, small_parts):
    raw = tiny_raw(tmp_path, task={"name": "classification"}, loss={"label_weights": "balanced"})
    labels = ["zebra", "mole", "ape"]
    texts = [{"text": f"a text of {n} words", "label": labels[n * 3 // 30]} for n in range(30)]
    for split in ("train", "validation", "test"):
        raw["data"][split] = str(write_jsonl(tmp_path / f"{split}.jsonl", texts))
    held, streamed = both(parse_config(raw, "tiny"))
    check_same(held, streamed)
    assert streamed.labels == ("ape", "mole", "zebra")
    assert streamed.label_weights == held.label_weights


def test_targets_and_parquet_are_streamed_too(tmp_path, small_parts):
    import pandas

    config = generative_config(tmp_path, "summarization", "llama")
    path = str(tmp_path / "train.parquet")
    pandas.read_json(config.data.train, lines=True).to_parquet(path)
    files = config.data.model_copy(update={"train": path})
    check_same(*both(config.model_copy(update={"data": files})))


def test_who_comes_later_reads_no_row(tmp_path, small_parts, monkeypatch):
    config = tiny_config(tmp_path, data=STREAMED)
    first = prepare_data(resolve(config))
    monkeypatch.setattr(streaming, "file_rows", None)
    again = prepare_data(resolve(config))
    assert data_fingerprint(again) == data_fingerprint(first)
    assert again.sizes == first.sizes
    Path(str(config.data.train)).touch()
    with pytest.raises(TypeError):
        prepare_data(resolve(config))


def test_a_full_disk_is_one_message(tmp_path, small_parts):
    writer = SplitWriter(tmp_path / "split")
    full = open("/dev/full", "wb")  # noqa: SIM115 - the writer closes it
    writer._files["labels"] = writer._open.enter_context(full)
    with writer, pytest.raises(UserError, match="can't be written: No space left"):
        writer.append(random_split(0))
    assert list(tmp_path.iterdir()) == []


def sentences(*documents: str) -> list[dict[str, Any]]:
    return [{"doc_id": own, "tokens": ["Ann", "ran"], "tags": ["B-PER", "O"]} for own in documents]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (sentences(*"aaabbbccc", "a"), r"train\.jsonl:10: is of a document that was over.*:1\."),
        ([*sentences(*"abcdefgh"), {"tokens": ["x"], "tags": ["Q"]}], r"train\.jsonl:9: "),
        ([], "is empty"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, monkeypatch, train, message):
    monkeypatch.setattr(streaming, "_ROWS", 2)
    config = tiny_config(tmp_path, data=STREAMED)
    write_jsonl(Path(str(config.data.train)), train)
    with pytest.raises(UserError, match=message):
        prepare_data(resolve(config))
    assert [path.suffix for path in (tmp_path / "cache" / "streamed").iterdir()] == [".lock"]


def test_a_line_of_another_encoding_is_named(tmp_path, small_parts):
    config = tiny_config(tmp_path, data=STREAMED)
    with Path(str(config.data.train)).open("ab") as file:
        file.write(b'{"tokens": ["caf\xe9"], "tags": ["O"]}\n')
    with pytest.raises(UserError, match=r"train\.jsonl:61: is not UTF-8 text"):
        prepare_data(resolve(config))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"cache": False}, "leave out `cache`"),
        ({"train": ["a.en", "a.de"]}, "not two"),
        ({"hub": "own/set", "train": None, "validation": None, "test": None}, "as Parquet"),
    ],
)
def test_what_cannot_be_streamed_is_refused(tmp_path, data, message):
    with pytest.raises(UserError, match=message):
        tiny_config(tmp_path, data={**STREAMED, **data})


def test_rows_that_are_gathered_are_not_streamed(tmp_path):
    task = {"name": "relation", "query": "student"}
    with pytest.raises(UserError, match="leave out one of the two"):
        tiny_config(tmp_path, data=STREAMED, task=task)


def many_blocks(folder: Path, **sections: Any) -> dict[str, Any]:
    """Sections of a run on contexts of a sentence each, 16 of which are shuffled together."""
    lines = (WIKIGOLD / "train.jsonl").read_text(encoding="utf-8").splitlines()[:60]
    plain = [json.loads(line) for line in lines]
    for number, row in enumerate(plain):
        row["doc_id"] = str(number)
    path = write_jsonl(folder / "apart.jsonl", plain)
    data = {"train": str(path), "shuffled_contexts": 16, **STREAMED}
    return {"data": data, **sections}


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.replicas(2, 1)
def test_losses_are_the_same_at_any_number_of_ranks(tmp_path, crews, small_parts):
    check_equal_losses(tiny_config(tmp_path, **many_blocks(tmp_path)), (2, 1), crews)


@SLOW
def test_a_run_that_was_ended_amid_an_epoch_goes_on_bit_by_bit(tmp_path, monkeypatch, small_parts):
    folders = []
    for name, streams in (("held", False), ("whole", True), ("ended", True)):
        sections = many_blocks(tmp_path)
        sections["data"]["streamed"] = streams
        config = local(tmp_path, name, **sections)
        if name == "ended":
            with monkeypatch.context() as patch:
                end_at(patch, 5)
                with pytest.raises(InterruptedRunError):
                    run_training(config)
        run_training(config, resume=name == "ended")
        folders.append(tmp_path / name)
    held, whole, ended = map(rows, folders)
    assert whole == held
    assert ended == whole
    assert held[5]["epoch"] == held[4]["epoch"]


@SLOW
def test_memory_does_not_grow_with_the_rows(tmp_path, monkeypatch):
    """What reading and packing hold at most, and what a rank holds after it."""
    monkeypatch.setattr(streaming, "_ROWS", 100)
    peaks, held = [], []
    for size in (500, 500, 5_000):  # the first one imports
        config = tiny_config(tmp_path, data=STREAMED)
        data = config.data
        for path, number in ((data.train, size), (data.validation, 5), (data.test, 5)):
            write_jsonl(Path(str(path)), sentences(*map(str, range(number))))
        tracemalloc.start()
        prepared = prepare_data(resolve(config))
        held_bytes, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert prepared.sizes["train"].rows == size
        peaks.append(peak)
        held.append(held_bytes)
    few = 16 * 5_000  # bytes; a row held would take hundreds
    assert peaks[2] < 1.3 * peaks[1] + few
    assert held[2] < 1.3 * held[1] + few
