"""docs/data-formats.md: every command reads its example as it is meant, and trains on it."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.test_docs import blocks, run
from tsarch.blueprint import resolve
from tsarch.config_loading import load_config
from tsarch.prepare import Prepared, prepare_data

PAGE = ROOT / "docs" / "data-formats.md"
COMMANDS = [command for block in blocks(PAGE) for command in block.commands]
TRAINED = ("brat", "squad.json", "parallel.en", "messages.jsonl")
"""Of these a run is done in every test; of the others in `make test-all`."""


def file_of(command: str) -> str:
    return command.rpartition("data.test=")[2].strip("[]'").partition(",")[0]


def prepared(command: str, cache: Path) -> Prepared:
    """The data of a command's run."""
    _, name, config, *arguments = shlex.split(command)
    assert name == "train"
    overrides = [own for own in arguments if own != "--set"]
    overrides.append(f"data.cache_folder={cache}")
    return prepare_data(resolve(load_config(ROOT / config, overrides)))


EXPECTED = {
    "conll-2003.conll": (4, "LOC ORG PER", ""),
    "annotators.iob2": (4, "LOC ORG PER", "the word is column 2, its tag column 3"),
    "two-tags.tsv": (4, "LOC ORG PER", "the word is column 2, its tag column 3"),
    "bioes.conll": (4, "LOC ORG PER", "tags are BIOES"),
    "word-a-row.csv": (4, "LOC ORG PER", "a word a row"),
    "doccano.jsonl": (4, "LOC ORG PER", "as doccano's"),
    "prodigy.jsonl": (4, "LOC ORG PER", "Prodigy's"),
    "label-studio.json": (4, "LOC ORG PER", "Label Studio's JSON"),
    "brat": (4, "LOC ORG PER", "BRAT"),
    "webanno.tsv": (1, "LOC PER", "WebAnno"),
    "semicolons.csv": (4, "no yes", "semicolons"),
    "no-header.csv": (4, "1 2", ""),
    "tabs.tsv": (4, "0 1", ""),
    "list.json": (4, "false true", "one JSON document"),
    "rows.jsonl.gz": (4, "no yes", ""),
    "grades.tsv": (4, "0 2", ""),
    "candidates.jsonl": (5, "0 1 2", "queries with lists of passages"),
    "ms-marco.jsonl": (4, "0 1", "queries with lists of passages"),
    "positives.jsonl": (5, "0 1", "queries with positive and negative passages"),
    "squad.json": (2, "answer no_answer", "SQuAD"),
    "answers.jsonl": (2, "answer", ""),
    "tacred.json": (2, "no_relation per:city_of_birth", "TACRED"),
    "docred.json": (6, "NA P108 P19", "DocRED"),
    "pairs.jsonl": (4, "NA born_in works_for", "list of pairs"),
    "opennre.jsonl": (2, "NA place of birth", "OpenNRE"),
    "marked.jsonl": (2, "born_in no_relation", "marked head and tail"),
    "inclusive.jsonl": (2, "born_in no_relation", ""),
    "translation.jsonl": (3, "", ""),
    "parallel.en": (3, "", "two parallel files"),
    "messages.jsonl": (2, "", "messages with roles"),
    "sharegpt.json": (2, "", "ShareGPT"),
    "sgd.json": (2, "", "turns with speakers"),
    "multiwoz.json": (3, "", "MultiWOZ"),
    "dailydialog.txt": (4, "", "lists of turns"),
}
"""File → rows, names to learn, what the log says."""


@pytest.mark.parametrize("command", COMMANDS, ids=file_of)
def test_every_example_is_read_by_its_command(tmp_path, command):
    num_rows, names, said = EXPECTED[file_of(command)]
    data = prepared(command, tmp_path)
    assert len(data.splits["train"].rows) == num_rows
    labels = {label.partition("-")[2] or label for label in data.labels} - {"O"}
    if "task.name" in command:
        labels = set(data.labels)
    assert " ".join(sorted(labels)) == names
    assert any(said in note for note in data.notes) or not said


def test_every_example_has_its_command():
    folder = ROOT / "configs" / "formats"
    files = {path.name for path in folder.iterdir()} - {"labels.yaml", "texts.yaml"}
    files -= {"parallel.sv"}
    assert files == {file_of(command) for command in COMMANDS} == set(EXPECTED)


def check_run(tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "configs" / "formats", tmp_path / "configs" / "formats")
    shutil.copytree(ROOT / "configs" / "tatoeba", tmp_path / "configs" / "tatoeba")
    run(tmp_path, f"{command} --set data.cache_folder=cache", monkeypatch)
    assert (tmp_path / "runs" / "formats" / "summary.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if file_of(c) in TRAINED], ids=file_of)
def test_examples_are_trained_on(tmp_path, command, monkeypatch):
    check_run(tmp_path, command, monkeypatch)


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("command", [c for c in COMMANDS if file_of(c) not in TRAINED], ids=file_of)
def test_all_examples_are_trained_on(tmp_path, command, monkeypatch):
    check_run(tmp_path, command, monkeypatch)
