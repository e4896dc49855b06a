"""The task `code`: rows, texts of several lines, metrics, the data that comes with it."""

from __future__ import annotations

import ast
import csv
import json
import textwrap
from pathlib import Path
from typing import Any

import pytest

from benchmarks.code_data import Function, functions, split_rows
from tests.generative_configs import generative_config, tokenizer_folder
from tests.helpers import ROOT
from tsarch.config import MODES, DataConfig, TaskConfig
from tsarch.data.corpus import read_rows
from tsarch.data.tokenizer import load_tokenizer
from tsarch.launch.training import run_training
from tsarch.marking.texts import text_scores
from tsarch.tasks.base import is_writing
from tsarch.tasks.code import edit_similarity, is_python
from tsarch.tasks.registry import make_task, row_reader

DATA = ROOT / "configs" / "python_code"
ROW = {"description": "The sum.", "start": "def add(a, b):", "code": "c = a + b\nreturn c"}


def read(*rows: dict[str, Any]) -> Any:
    return read_rows(list(rows), row_reader("code", DataConfig()))


def test_the_student_reads_the_start_and_the_description_may_be_absent() -> None:
    whole, short = read(ROW, {**ROW, "description": None})
    assert (whole.parts, short.parts) == (("The sum.", "def add(a, b):"), ("def add(a, b):",))
    assert whole.reads_last
    assert short.reads_last
    reader = row_reader("code", DataConfig())
    assert reader.raw(whole) == ROW
    assert reader.raw(short) == {"start": ROW["start"], "code": ROW["code"]}


def test_lines_stay_lines(tmp_path: Path) -> None:
    task = make_task("code", ())
    assert is_writing(task)
    tokenizer = load_tokenizer(str(tokenizer_folder(tmp_path)))
    text = "\n for x in y:\n    print(x)  \n\n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert task.spelled([ids], tokenizer) == ["for x in y:\n    print(x)"]


def test_an_indented_body_is_what_it_is_without_its_indentation() -> None:
    task = make_task("code", ())
    assert is_writing(task)
    body = "\n    if x:\n        return y\n\n    return z\n"
    plain = textwrap.dedent(body).strip()
    assert task.as_written(body) == plain
    found = task.text_metrics([body, plain], [[plain], [body]])
    assert found == {"exact_match": 1.0, "edit_similarity": 1.0, "valid_syntax": 1.0}


def test_metrics_are_counted_by_hand() -> None:
    task = make_task("code", ())
    assert is_writing(task)
    texts = ["return a", "if a\n  b", "x = 1\n", ""]
    references = [["return a"], ["if a:\n  b"], ["x = 2", "x = 10"], ["y"]]
    assert task.text_metrics(texts, references) == pytest.approx(
        {
            "exact_match": 1 / 4,
            "edit_similarity": (1 + (1 - 1 / 17) + (1 - 1 / 11) + 0) / 4,
            "valid_syntax": 2 / 4,
        }
    )
    other = make_task("code", (), TaskConfig(name="code", language=None))
    assert is_writing(other)
    assert set(other.text_metrics(texts, references)) == {"exact_match", "edit_similarity"}
    assert set(other.text_marks) == {"exact_match", "edit_similarity"}
    (row,) = read(ROW)
    assert text_scores(task, [row], [ROW["code"]]) == ("edit_similarity", [1.0])


def test_similarity_is_insertions_and_deletions_over_all_characters() -> None:
    assert edit_similarity("", "") == 1.0
    assert edit_similarity("abc", "") == 0.0
    assert edit_similarity("abcd", "abxd") == pytest.approx(6 / 8)  # out c, in x
    assert edit_similarity("ab", "ba") == pytest.approx(2 / 4)


@pytest.mark.parametrize(
    ("text", "is_right"),
    [
        ("return x", True),
        ("yield", True),
        ("'\\d'", True),  # an odd escape warns
        ("", False),
        ("  \n", False),
        ("return x)", False),
        ("a\x00b", False),
        ("(" * 500, False),
        ("-" * 100_000 + "1", False),
    ],
)
def test_what_parses_is_python(text: str, is_right: bool) -> None:
    assert is_python(text) is is_right


@pytest.mark.slow
def test_a_run_learns_code(tmp_path: Path) -> None:
    config = generative_config(
        tmp_path, "code", "llama", schedule={"epochs": 6}, topology={"runner": "local"}
    )
    summary = run_training(config)
    for mode in MODES:
        before, after = summary["before"][mode], summary["after"][mode]
        assert set(before) == {"perplexity", "exact_match", "edit_similarity", "valid_syntax"}
        assert after["perplexity"] < 0.7 * before["perplexity"]
    assert summary["samples"][0]["reference"].startswith("return\n")
    assert summary["signatures"]["valid_syntax"].startswith("ast.parse of Python 3.")


SOURCE = '''
class A:
    @property
    def name(self) -> str:
        """The name of the thing.

        More about it.
        """
        # Made of two.
        own = self._first
        return own + self._last

    def one_line(self): "It is nothing at all."; return 1

    def raises(self):
        """Always raises an error."""
        raise ValueError

    def bare(self):
        return self.name
'''


def test_functions_with_docstrings_become_rows() -> None:
    (found,) = functions("mine", "a.py", SOURCE)
    assert found == Function(
        "mine",
        "a.py",
        4,
        "The name of the thing.",
        "def name(self) -> str:",
        "# Made of two.\nown = self._first\nreturn own + self._last",
    )


def test_a_file_is_in_one_split_and_no_body_comes_twice() -> None:
    rows = [
        Function("p", f"{n % 400}.py", n, "d", "def f():", f"return {n % 3000}")
        for n in range(4000)
    ]
    splits = split_rows(rows)
    assert [len(own) for own in splits.values()] == [80, 160, 1600]
    files = [{row.file for row in own} for own in splits.values()]
    assert sum(map(len, files)) == len(set.union(*files))
    bodies = [row.code for own in splits.values() for row in own]
    assert len(bodies) == len(set(bodies))


def test_the_data_names_its_packages_and_their_licences() -> None:
    with (DATA / "packages.csv").open(encoding="utf-8") as file:
        packages = {own["package"]: own for own in csv.DictReader(file)}
    assert set(packages) == {path.stem for path in (DATA / "licences").iterdir()}
    allowed = {"MIT", "BSD-2-Clause", "BSD-3-Clause", "Apache-2.0", "PSF-2.0"}
    assert {own["licence"] for own in packages.values()} <= allowed
    bodies: set[str] = set()
    for split in ("train", "validation", "test"):
        lines = (DATA / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        counts = {name: int(own[split]) for name, own in packages.items()}
        found = [row["from"].partition(": ")[0] for row in rows]
        assert {name: found.count(name) for name in packages} == counts
        for row in rows:
            ast.parse(f"{row['start']}\n{textwrap.indent(row['code'], '    ')}")
        own = {row["code"] for row in rows}
        assert len(own) == len(rows)
        assert not own & bodies
        bodies |= own
