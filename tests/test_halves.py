"""A pair whose halves are in different processes answers as one that is whole."""

from __future__ import annotations

from typing import Any

import pytest

import tsarch
from tests.test_pair import run_of
from tsarch.launch.training import run_training
from tsarch.prediction.batch import as_json
from tsarch.prediction.loading import load_halves
from tsarch.prediction.trained_pair import TrainedPair

INPUTS: dict[str, list[Any]] = {
    "ner": ["Maria Rossi flew to Paris . John stayed in Rome .", ["Rome", "is", "far"]],
    "classification": ["a good film", {"text": "a bad one"}],
    "relation": [{"tokens": ["Rome", "lies", "in", "Italy"], "head": [0, 1], "tail": [3, 4]}],
    "qa": [{"context": "Rome lies in Italy . Paris is far .", "question": "Where is Rome ?"}] * 2,
}


def numbers_apart(answer: Any) -> tuple[Any, list[float]]:
    """An answer without its numbers, and they."""
    if isinstance(answer, tuple | list):
        parts = [numbers_apart(own) for own in answer]
        return [own for own, _ in parts], [number for _, own in parts for number in own]
    if isinstance(answer, dict):
        parts = [numbers_apart(own) for own in answer.values()]
        return [list(answer), *(own for own, _ in parts)], [n for _, own in parts for n in own]
    return (None, [answer]) if isinstance(answer, float) else (answer, [])


def check_equal(found: Any, expected: Any) -> None:
    """Equal but for rounding."""
    (own, numbers), (others, other_numbers) = numbers_apart(found), numbers_apart(expected)
    assert own == others
    assert numbers == pytest.approx(other_numbers, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "task",
    [
        "ner",
        "qa",
        *(
            pytest.param(task, marks=pytest.mark.thorough)
            for task in ("classification", "relation")
        ),
    ],
)
def test_the_student_answers_with_states_of_a_teacher_elsewhere(tmp_path, task):
    run_training(run_of(tmp_path, task))
    whole = tsarch.load(tmp_path / "run", device="cpu")
    front, teacher, student = (
        load_halves(tmp_path / "run", halves, "cpu") for halves in ((), ["contexts"], ["windows"])
    )
    prepared = [front.prepare([own]) for own in INPUTS[task]]
    states = teacher.states(prepared)

    def answers(pair: TrainedPair, *arguments: Any) -> list[Any]:
        return [as_json(own[0]) for own, _ in pair.answer(prepared, *arguments)]

    check_equal(answers(teacher, "teacher"), answers(whole, "teacher"))
    for mode in ("student", "joint", "student_alone"):
        given = [states] if student.reads_contexts(mode) else []
        check_equal(answers(student, mode, *given), answers(whole, mode))
    assert student.reads_contexts("student_alone") == (task == "qa"), "it finds the windows"
    with pytest.raises(AssertionError, match="without its models"):
        front.predict(INPUTS[task])
