"""Targets that finished runs give to another one: a teacher that reads the questions to one that
doesn't, several teachers to a student."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tsarch
from tests.equal_losses import check_equal_losses
from tests.helpers import local_crew, tiny_config
from tests.test_classification_and_relation import tiny_task
from tests.test_multiple_choice import tiny_choices
from tests.test_qa import tiny_qa
from tests.test_read_once import tiny_documents, tiny_split
from tests.test_resume import amid_an_epoch, check_resumption
from tsarch.blueprint import resolve
from tsarch.config import Config
from tsarch.data.rows import Origin, Place
from tsarch.errors import UserError
from tsarch.launch.training import run_training
from tsarch.prepare import packing_spec, prepare_data
from tsarch.records import Piece, TokenizedSplit
from tsarch.tasks.classification import LabelledText
from tsarch.tasks.span_search import best_spans
from tsarch.taught import label_targets, mean_of, span_targets, taught_by, teaching_runs

HERE = {"topology": {"runner": "local", "threads": 1}, "evaluation": {"before": False}}


def row_of(pieces: list[list[int]]) -> TokenizedSplit:
    """A row whose words, named by their first characters, are in these contexts."""
    nothing = np.zeros(0, dtype=np.int64)
    own = tuple(
        Piece(np.arange(len(starts) + 1), np.array([[at, at + 1] for at in starts]))
        for starts in pieces
    )
    num = sum(map(len, pieces))
    fields = dict.fromkeys(("token_ids", "words", "context_offsets", "window_offsets"), nothing)
    return TokenizedSplit(
        **fields,
        windows=np.zeros((0, 2), dtype=np.int64),
        labels=np.zeros(num, dtype=np.int64),
        sentence_offsets=np.array([0, num]),
        pieces=(own,),
    )


def test_a_word_in_two_contexts_counts_once_and_is_found_by_its_place():
    read = row_of([[0, 2, 4], [4, 6]])
    logits = np.array([[1, 0], [2, 0], [3, 0], [5, 1], [0, 2]], dtype=np.float32)
    found = span_targets(read, logits, row_of([[0, 2], [2, 4, 6, 8]]))
    best = np.array([[1, 0], [2, 0], [5, 1], [0, 2]], dtype=np.float64)
    logs = best - np.log(1 + np.exp(best).sum(0))
    np.testing.assert_allclose(found[:-1], logs[[0, 1, 1, 2, 3]], rtol=1e-6)
    assert (found[-1] == -1e4).all(), "a word that the run hasn't read"


def pieces(cuts: set[int], size: int) -> TokenizedSplit:
    """A text of so many characters in words that are cut there."""
    edges = [0, *sorted(own for own in cuts if own < size), size]
    split = row_of([edges[:-1]])
    ((own,),) = split.pieces
    return replace(split, pieces=((replace(own, bounds=np.array([*pairwise(edges)])),),))


@given(
    st.sets(st.integers(1, 19)), st.sets(st.integers(1, 19)), st.integers(0, 19), st.integers(0, 19)
)
def test_an_answer_starts_and_ends_at_the_same_characters_in_other_tokens(ours, theirs, a, b):
    """Words of `read` are tokens of another tokenizer, and its teacher is sure of an answer."""
    read, train, span = pieces(theirs, 20), pieces(ours, 20), (min(a, b), max(a, b))
    known, words = read.pieces[0][0].bounds, train.pieces[0][0].bounds
    answer = [int(np.searchsorted(known[:, 1], place, side="right")) for place in span]
    logits = np.full((len(known), 2), -40.0, dtype=np.float32)
    logits[answer, [0, 1]] = 40.0
    found = np.exp(span_targets(read, logits, train).astype(np.float64))
    starts, stops = known[answer[0], 0], known[answer[1], 1] - 1
    for column, character in enumerate((starts, stops)):
        best = words[found[:, column].argmax()]
        assert best[0] <= character < best[1]
        assert found[:, column].sum() == pytest.approx(1, abs=1e-6)


@pytest.fixture(scope="module")
def teacher_run(tmp_path_factory) -> Path:
    """A short run whose teacher reads the questions."""
    folder = tmp_path_factory.mktemp("teaches")
    sections = {**HERE, "run": {"folder": str(folder / "run")}, "schedule": {"max_steps": 3}}
    run_training(tiny_qa(folder, **sections))
    return folder / "run"


def taught(folder: Path, by: Path, **sections: dict[str, object]) -> Config:
    """A run that is taught by another one."""
    return tiny_split(folder, distillation={"weight": 0.5, "from_run": str(by)}, **sections)


@pytest.mark.slow
def test_targets_are_what_the_run_says(teacher_run, tmp_path):
    blueprint = resolve(taught(tmp_path, teacher_run))
    prepared = prepare_data(blueprint)
    assert prepared.taught is not None
    train = prepared.splits["train"]
    rows = [json.loads(line) for line in (tmp_path / "rows" / "train.jsonl").open()]
    pair = tsarch.load(teacher_run, device="cpu")
    said, read = pair.predict(rows, "teacher"), pair.prepare(rows).split
    assert read is not None
    compared = 0
    for number, answer in enumerate(said):
        start, stop = train.sentence_offsets[number : number + 2]
        logs = prepared.taught.targets[start:stop].astype(np.float64)
        # Of a passage in several parts start and end may be surest in other ones.
        if len(train.pieces[number]) == len(read.pieces[number]) == 1:
            none = 1 - np.exp(logs).sum(0)
            best = best_spans(train.pieces[number], logs - np.log(none), 1)[0]
            assert best.score == pytest.approx(answer.score, abs=1e-3)
            compared += 1
    assert compared > 2
    again = prepare_data(blueprint)
    assert again.taught is not None
    assert np.array_equal(again.taught.targets, prepared.taught.targets)
    assert len(list((tmp_path / "cache" / "targets").iterdir())) == 1


@pytest.mark.slow
def test_a_student_learns_what_the_run_says(teacher_run, tmp_path):
    sections = {"schedule": {"epochs": 20, "name": "joint"}}
    crew = local_crew(taught(tmp_path, teacher_run, **sections))
    reports = [report for own in crew.train(0, 30) for report in own]
    found = [r.losses.means["distillation"] for r in reports if r.stage == "student"]
    assert 0 < np.mean(found[-4:]) < np.mean(found[:4])


@pytest.mark.slow
def test_relations_are_taught_by_label(tmp_path):
    (tmp_path / "a").mkdir()
    sections = {"run": {"folder": str(tmp_path / "run")}, "schedule": {"max_steps": 2}}
    run_training(tiny_documents(tmp_path / "a", task={"query": "both"}, **HERE, **sections))
    (tmp_path / "b").mkdir()
    distilled = {"weight": 0.5, "from_run": str(tmp_path / "run")}
    config = tiny_documents(tmp_path / "b", distillation=distilled)
    prepared = prepare_data(resolve(config))
    assert prepared.taught is not None
    shape = prepared.splits["train"].num_words, len(prepared.labels)
    assert prepared.taught.targets.shape == shape
    np.testing.assert_allclose(np.exp(prepared.taught.targets).sum(1), 1, rtol=1e-4)
    rows = [report for own in local_crew(config).train(0, 2) for report in own]
    found = [r.losses.means for r in rows if "student" in r.losses.means]
    assert len(found) == 2
    assert all(own["distillation"] > 0 for own in found)


def check_refused(config: Config, from_run: str) -> None:
    """A run doesn't go on with another teacher."""
    own = config.distillation.model_copy(update={"from_run": from_run})
    with pytest.raises(UserError, match="is not what"):
        run_training(config.model_copy(update={"distillation": own}), resume=True)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["sequential", "overlapped", "joint"])
def test_a_taught_run_goes_on_amid_an_epoch(teacher_run, tmp_path, schedule):
    config = taught(tmp_path, teacher_run, **amid_an_epoch(schedule, tmp_path))
    moved = check_resumption(config, tmp_path)
    ended = tmp_path / "ended"
    (ended / "summary.json").unlink()
    other = shutil.copytree(teacher_run, tmp_path / "other")
    (other / "model" / "task.json").open("a").write(" ")
    check_refused(moved, str(other))


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.replicas(1, 2)
def test_ranks_are_taught_the_same(teacher_run, tmp_path, crews):
    check_equal_losses(taught(tmp_path, teacher_run), (1, 2), crews)


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory) -> list[str]:
    """Two short runs of entities, the second of another size and seed."""
    folders = []
    for number in range(2):
        folder = tmp_path_factory.mktemp(f"teaches{number}")
        sections = {
            **HERE,
            "run": {"folder": str(folder / "run"), "seed": number},
            "schedule": {"max_steps": 2},
            "teacher": {"max_tokens": 96 - 32 * number},
        }
        run_training(tiny_config(folder, **sections))
        folders.append(str(folder / "run"))
    return folders


def several(folder: Path, by: list[str] | str, **sections: dict[str, object]) -> Config:
    """A run of entities that other ones teach."""
    return tiny_config(folder, distillation={"weight": 0.5, "from_run": by}, **sections)


def test_the_mean_is_of_probabilities():
    first, second = np.array([[0.9, 0.1]]), np.array([[0.3, 0.7]])
    found = mean_of([np.log(first).astype(np.float32), np.log(second).astype(np.float32)])
    np.testing.assert_allclose(np.exp(found), [[0.6, 0.4]], rtol=1e-6)
    never = np.full((1, 2), -1e4, dtype=np.float32)
    assert (mean_of([never, never]) == -1e4).all()
    np.testing.assert_allclose(np.exp(mean_of([never, never + 1e4])), 0.5)
    assert mean_of([never]) is never


@pytest.mark.slow
def test_several_teachers_give_their_mean(two_runs, tmp_path):
    targets, revisions = [], []
    for by in (two_runs[0], two_runs[1], two_runs):
        prepared = prepare_data(resolve(several(tmp_path, by)))
        assert prepared.taught is not None
        targets.append(prepared.taught.targets)
        revisions.append(prepared.taught.revision)
    mean = (np.exp(targets[0]) + np.exp(targets[1])) / 2
    np.testing.assert_allclose(np.exp(targets[2]), mean, rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(np.exp(targets[2]).sum(1), 1, rtol=1e-4)
    assert revisions[2] == "+".join(sorted(revisions[:2])), "in whatever order"
    assert len(list((tmp_path / "cache" / "targets").iterdir())) == 2
    pair = tsarch.load(two_runs[0], device="cpu")
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").open()]
    assert len(targets[0]) == sum(len(row["tokens"]) for row in rows)
    assert pair.predict(rows[:1], "teacher") is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    "schedule",
    [
        pytest.param("sequential", marks=pytest.mark.thorough),
        "overlapped",
        pytest.param("joint", marks=pytest.mark.thorough),
    ],
)
def test_a_run_of_several_teachers_goes_on_amid_an_epoch(two_runs, tmp_path, schedule):
    config = several(tmp_path, two_runs, **amid_an_epoch(schedule, tmp_path))
    moved = check_resumption(config, tmp_path)
    ended = tmp_path / "ended"
    if schedule == "overlapped":
        (ended / "summary.json").unlink()
        check_refused(moved, two_runs[0])


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.replicas(1, 2)
def test_ranks_are_taught_the_same_by_several(two_runs, tmp_path, crews):
    check_equal_losses(several(tmp_path, two_runs), (1, 2), crews)


def test_a_label_that_stands_elsewhere_is_what_the_run_says_of_the_row():
    def split(*sizes: int) -> TokenizedSplit:
        own = row_of([])
        offsets = np.cumsum([0, *sizes])
        rows = tuple(LabelledText(Origin(Place("f", n), str(n)), "a b", "x") for n in range(2))
        return replace(own, sentence_offsets=offsets, rows=rows, labels=np.zeros(offsets[-1]))

    scores = np.array([[0.2, 0.8], [0.4, 0.6], [0.9, 0.1]], dtype=np.float32)
    same = split(2, 1)
    assert label_targets(same, scores, same) is scores
    found = label_targets(same, scores, split(2, 3))
    np.testing.assert_allclose(found, scores[[0, 1, 2, 2, 2]])
    found = label_targets(same, scores, split(3, 1))
    np.testing.assert_allclose(found, [[0.3, 0.7]] * 3 + [[0.9, 0.1]], rtol=1e-6)


def test_a_question_whose_start_only_one_run_reads_is_taught_by_its_end():
    row = SimpleNamespace(question_words=4)

    def split(*sizes: int) -> TokenizedSplit:
        return replace(row_of([]), sentence_offsets=np.cumsum([0, *sizes]), rows=(row, row))

    scores = np.arange(7, dtype=np.float32)[:, None]
    found = label_targets(split(3, 4), scores, split(5, 2))
    assert found[:, 0].tolist() == [0, 0, 0, 1, 2, 5, 6]


@pytest.mark.slow
def test_questions_longer_than_one_runs_windows_are_taught(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    sections = {"schedule": {"max_steps": 1}, "run": {"folder": str(tmp_path / "run")}}
    long = {"teacher": {"max_tokens": 64}, "student": {"max_tokens": 64}}
    run_training(tiny_choices(tmp_path / "a", **HERE, **sections, **long))
    distilled = {"weight": 0.5, "from_run": str(tmp_path / "run")}
    short = {**long, "student": {"max_tokens": 24}}
    prepared = prepare_data(resolve(tiny_choices(tmp_path / "b", distillation=distilled, **short)))
    assert prepared.taught is not None
    np.testing.assert_allclose(np.exp(prepared.taught.targets).sum(1), 1, rtol=1e-4)


@pytest.mark.slow
def test_targets_of_other_rows_are_computed_anew(tmp_path):
    """Rows that this run's tokenizer can't tell apart, but another run's might."""
    sections = {"schedule": {"max_steps": 1}, "run": {"folder": str(tmp_path / "run")}}
    config = tiny_task(tmp_path, "classification", **HERE, **sections)
    run_training(config)
    other = config.model_copy(
        update={
            "distillation": config.distillation.model_copy(
                update={"weight": 0.5, "from_run": str(tmp_path / "run")}
            )
        }
    )
    assert isinstance(config.data.train, str)
    train = Path(config.data.train)
    for number, change in enumerate((str, str, str.upper), 1):
        rows = [json.loads(line) for line in train.open()]
        changed = [{**row, "text": change(row["text"])} for row in rows]
        train.write_text("".join(json.dumps(row) + "\n" for row in changed))
        prepare_data(resolve(other))
        kept = list((tmp_path / "cache" / "targets").iterdir())
        assert len(kept) == max(number - 1, 1)


@pytest.mark.slow
def test_runs_with_contexts_of_another_length_teach(tmp_path):
    (tmp_path / "a").mkdir()
    sections = {"schedule": {"max_steps": 1}, "run": {"folder": str(tmp_path / "run")}}
    short = {"teacher": {"max_tokens": 12}, "student": {"max_tokens": 12}}
    run_training(tiny_task(tmp_path / "a", "classification", **HERE, **sections, **short))
    distilled = {"weight": 0.5, "from_run": str(tmp_path / "run")}
    prepared = prepare_data(resolve(tiny_task(tmp_path, "classification", distillation=distilled)))
    assert prepared.taught is not None
    train, targets = prepared.splits["train"], np.exp(prepared.taught.targets)
    np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-4)
    pair = tsarch.load(tmp_path / "run", device="cpu")
    texts = [{"text": row.text, "doc_id": row.origin.doc_id} for row in train.rows]
    said = pair.predict(texts, "teacher")
    for number, answer in enumerate(said):
        own = targets[slice(*train.sentence_offsets[number : number + 2])].mean(0)
        found = [answer.scores[label] for label in prepared.labels]
        np.testing.assert_allclose(own, found, atol=1e-4)


@pytest.mark.parametrize(
    ("sections", "what"),
    [
        ({"task": {"name": "qa", "query": "student"}, "weight": 0.0}, "needs a distillation.w"),
        ({"task": {"name": "ner"}, "weight": 0.0}, "needs a distillation.w"),
        ({"task": {"name": "translation"}, "weight": 1.0}, "task.name: translation can't be"),
        ({"data": {"unlabelled": "x.txt"}, "weight": 1.0}, "data.unlabelled can't be"),
    ],
)
def test_what_cannot_be_taught_is_refused(tmp_path, sections, what):
    weight = sections.pop("weight")
    distilled = {"weight": weight, "from_run": ["runs/x", "runs/y"]}
    with pytest.raises(UserError, match=what):
        tiny_config(tmp_path, **sections, distillation=distilled)


def test_all_runs_that_are_not_there_are_named_before_anything_is_read(tmp_path):
    config = several(tmp_path, [str(tmp_path / "nowhere"), str(tmp_path / "gone")], **HERE)
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(UserError) as caught:
        run_training(config)
    found = [str(own) for own in caught.value.mistakes]
    assert len(found) == 2
    for name, told in zip(("nowhere", "gone"), found, strict=True):
        assert told.startswith(f"distillation.from_run: {tmp_path / name}: can't be read")


@pytest.mark.slow
@pytest.mark.parametrize("file", ["teacher.safetensors", "embedding.safetensors"])
def test_runs_without_whole_weights_are_refused(two_runs, tmp_path, file):
    other = shutil.copytree(two_runs[0], tmp_path / "other")
    whole = (other / "model" / file).read_bytes()
    config = several(tmp_path, str(other))
    (other / "model" / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="its weights can't be read"):
        prepare_data(resolve(config))
    (other / "model" / file).unlink()
    with pytest.raises(UserError, match=rf"has no weights \(model/{file} is missing"):
        prepare_data(resolve(config))


@pytest.mark.slow
def test_a_plan_asks_nobody(two_runs, tmp_path, monkeypatch):
    def asked(*arguments):
        raise AssertionError("the run was asked")

    monkeypatch.setattr("tsarch.taught._targets", asked)
    prepared = prepare_data(resolve(several(tmp_path, two_runs)), asks=False)
    assert prepared.taught is None
    with pytest.raises(UserError, match="can't be read"):
        prepare_data(resolve(several(tmp_path, str(tmp_path / "nowhere"))), asks=False)


@pytest.mark.slow
def test_labels_of_another_order_are_other_targets(two_runs, tmp_path):
    """The same words and label ids, whose names have changed places."""
    first = prepare_data(resolve(several(tmp_path, two_runs[0])))
    runs = teaching_runs(resolve(several(tmp_path, two_runs[0])))
    order = ("O", *sorted(first.labels[1:], reverse=True))
    train = first.splits["train"]
    spec_of = partial(packing_spec, keep_tokens=False)
    data = resolve(several(tmp_path, two_runs[0])).data
    other = taught_by(runs, data, train, order, spec_of)
    assert first.taught is not None
    assert other is not None
    moved = [first.labels.index(label) for label in order]
    assert np.array_equal(other.targets, first.taught.targets[:, moved])
