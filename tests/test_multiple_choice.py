"""Questions with choices: what rows may be, and what is answered."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.equal_losses import check_equal_losses
from tests.helpers import QUICKSTART_MODEL, ROOT, packing_spec, read_task, tiny_config, write_jsonl
from tests.test_answers import packed, random_scores, raw_rows
from tsarch.config import Config, DataConfig, TaskConfig
from tsarch.config_loading import load_config
from tsarch.data.choice_layout import ChoiceLayout
from tsarch.data.corpus import read_rows
from tsarch.data.row_tokens import RowTokenizer
from tsarch.data.tokenizer import load_tokenizer
from tsarch.errors import UserError
from tsarch.export.onnx import _compared
from tsarch.records import TokenizedSplit
from tsarch.seeding import generator
from tsarch.tasks.multiple_choice import LABELS, ChoiceTask
from tsarch.tasks.registry import row_reader

ROW: dict[str, Any] = {"question": "a wheel is part of", "choices": ["a car", "a song", "tea"]}


def read(**changes: Any) -> Any:
    return read_rows([{**ROW, "answer": 0, **changes}], row_reader("multiple_choice", DataConfig()))


@pytest.mark.parametrize("answer", [1, "1", "a song"])
def test_an_answer_is_a_number_or_the_choice_itself(answer):
    (row,) = read(answer=answer)
    assert row.answer == 1
    assert " ".join(row.words) == "a wheel is part of * a car * a song * tea"
    assert [row.words[n] for n in row.firsts] == ["a", "a", "tea"]
    assert row.words[row.question_words] == "*"
    assert [tag for tag in row.tags if tag != "O"] == ["wrong", "right", "wrong"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": 3}, "is 3, not one of the 3 choices"),
        ({"answer": True}, "is True, not one of"),
        ({"answer": 1.0}, r"is 1\.0, not one of"),
        ({"answer": "x"}, "is 'x', not one of"),
        ({"choices": ["a"]}, "among two at least"),
        ({"choices": ["a", "a"]}, "the same one twice"),
        ({"choices": ["a", " "]}, "has an empty one"),
        ({"choices": "a"}, "not a list of strings"),
    ],
)
def test_rows_that_make_no_choice_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        read(**changes)


SUMS = ["2", "4", "6"]


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        (["2", "0"], [2, 0]),  # "0" is no choice, so both are numbers
        (["2", "6"], [0, 2]),  # 6 is no number of a choice
        ([2, "6"], [2, 2]),  # JSON says of itself that it is a number
        (["1", "a song"], [1, 1]),
    ],
)
def test_texts_are_numbers_or_choices_all_alike(answers, found):
    choices = [ROW["choices"] if answer == "a song" else SUMS for answer in answers]
    rows = [{**ROW, "choices": c, "answer": a} for c, a in zip(choices, answers, strict=True)]
    read_all = read_rows(rows, row_reader("multiple_choice", DataConfig()))
    assert [row.answer for row in read_all] == found


@pytest.mark.parametrize("answers", [["2"], ["2", "0", "6"]])
def test_texts_that_may_be_both_are_refused(answers):
    rows = [{**ROW, "choices": SUMS, "answer": own} for own in answers]
    with pytest.raises(UserError, match=r"row 1: `answer` is '2', a choice, and as a number the c"):
        read_rows(rows, row_reader("multiple_choice", DataConfig()))


QUESTION = " ".join(["so"] * 20 + ["end", "of", "it"])
CHOICES = "* a car * a song * tea"


def packed_long(teacher: int, student: int, **changes: Any) -> TokenizedSplit:
    tokens = RowTokenizer(load_tokenizer(QUICKSTART_MODEL), None, False)
    rows = [*read(question=QUESTION, answer=1), *read()]
    spec = packing_spec(tokens, teacher, student, **changes)
    return ChoiceLayout(spec, LABELS).pack(rows)


def windows_of(split: TokenizedSplit) -> list[str]:
    tokenizer = load_tokenizer(QUICKSTART_MODEL)
    return [tokenizer.decode(split.token_ids[slice(*own)]) for own in split.windows]


@pytest.mark.parametrize(
    ("teacher", "student", "cut"),
    [
        (40, 40, None),
        (40, 13, (True, 18, ((),))),  # the teacher has room for all of it
        (15, 40, (False, 18, (((0, 18),),))),
    ],
)
def test_of_a_long_question_the_start_is_left_out_and_no_choice(teacher, student, cut):
    split = packed_long(teacher, student)
    read_of_it = QUESTION if cut is None else " ".join(QUESTION.split()[18:])
    assert windows_of(split) == [f"{read_of_it} {CHOICES}", f"{ROW['question']} {CHOICES}"]
    assert [(own.is_read, own.num_tokens, own.spans) for own in split.cuts] == [cut] * bool(cut)
    names = [LABELS[n] for n in split.labels]
    told = ["wrong", "right", "wrong", "right", "wrong", "wrong"]
    assert [own for own in names if own != "O"] == told
    certain = np.array([[own == "right"] * 3 for own in names], dtype=np.float32)
    answers = ChoiceTask(LABELS).answers(split, certain)
    assert [own.name for (own,) in answers] == ["a song", "a car"]


def test_choices_that_no_window_has_room_for_are_named():
    with pytest.raises(
        UserError, match=r"its choices have 8 tokens, more than the 7 .*student\.max"
    ):
        packed_long(40, 7)


def test_a_causal_model_is_refused():
    with pytest.raises(UserError, match="before a causal model has read the choice"):
        packed_long(40, 40, label_last=True)


def test_the_shipped_questions_tell_nothing_by_their_choices():
    data = load_config(ROOT / "configs" / "multiple-choice.yaml").data
    rows = read_task("multiple_choice", data).rows
    assert not {row.question for row in rows["train"]} & {row.question for row in rows["test"]}
    right = [row.choices[row.answer] for row in rows["train"]]
    shown = [choice for row in rows["train"] for choice in row.choices]
    # Who always takes what is right most often, elsewhere, is right about as often as by chance.
    best = [max(row.choices, key=lambda c: right.count(c) / max(shown.count(c), 1))
            for row in rows["test"]]  # fmt: skip
    hits = [own == row.choices[row.answer] for own, row in zip(best, rows["test"], strict=True)]
    assert sum(hits) / len(hits) < 0.4
    places = [sum(row.answer == n for row in rows["train"]) / len(right) for n in range(4)]
    assert max(places) < 0.3


def tiny_choices(folder: Path, **sections: Any) -> Config:
    lines = (ROOT / "configs" / "wordnet" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "rows.jsonl").write_text("\n".join(lines[:60]) + "\n", encoding="utf-8")
    files = dict.fromkeys(("train", "validation", "test"), str(folder / "rows.jsonl"))
    return tiny_config(folder, task={"name": "multiple_choice"}, data=files, **sections)


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.replicas(2, 1)
def test_ranks_have_the_losses_of_one_process(tmp_path, crews):
    beside = write_jsonl(tmp_path / "beside.jsonl", [ROW] * 20)
    config = tiny_choices(tmp_path, schedule={"epochs": 3, "micro_batches": 2})
    data = config.data.model_copy(update={"unlabelled": str(beside)})
    check_equal_losses(config.model_copy(update={"data": data}), (2, 1), crews)


@pytest.mark.parametrize("task_name", ["multiple_choice", "ranking"])
def test_what_graphs_are_compared_by_is_the_tasks_own_metric(task_name):
    """Not that of the likeliest label of each word, where a task decides otherwise."""
    rng = generator(0, task_name)
    split, task = packed(task_name, raw_rows(task_name, rng))
    scores = random_scores(task_name, split, rng)
    models: Any = SimpleNamespace(
        task_file=SimpleNamespace(task=task_name, labels=task.labels),
        blueprint=SimpleNamespace(task=TaskConfig(name=task_name)),
    )
    sample: Any = SimpleNamespace(split=split, is_labelled=True)
    found = _compared(models, sample, "teacher", (scores, 1.0), (scores, 1.0))
    expected = task.metrics(split, task.decided(scores))[task.main_metric]
    assert found.own_value == found.run_value == pytest.approx(expected)
