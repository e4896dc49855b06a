"""Passages that the teacher reads once, and queries that the student alone compares with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tsarch
from tests.equal_losses import check_equal_losses
from tests.helpers import tiny_config, write_jsonl
from tests.test_export import export
from tests.test_ranking import BAD, GOOD, QUERY, packed, spelled
from tests.test_read_once import check_both_losses_improve, kept
from tests.test_state_store import ended, stored
from tsarch.config import Config
from tsarch.data.partition import context_tokens
from tsarch.errors import UserError
from tsarch.launch.training import run_training
from tsarch.records import IGNORED, SPAN_END, SPAN_START, TokenizedSplit
from tsarch.run.saved_run import evaluate_run

ANN, RAIN = "Ann sings in Rome.", "It rains there, in Rome."
PLACES = ("Rome", "Paris", "Oslo", "Riga", "Bonn", "Cork", "Bath", "Lyon")


def asked(*rows: dict[str, Any], **limits: Any) -> TokenizedSplit:
    """The rows with `task.query: student`."""
    return packed(list(rows), query="student", **{"queries_per_context": 8, **limits})


def learned(split: TokenizedSplit, context: int) -> list[int]:
    assert split.queries is not None
    found: list[int] = split.queries.context_labels[context_tokens(split, context)].tolist()
    return found


def tiny_candidates(folder: Path, **sections: dict[str, Any]) -> Config:
    """Queries for places; each passage is a candidate of three."""
    (folder / "rows").mkdir()
    data: dict[str, Any] = {"queries_per_context": 8}
    for split in ("train", "validation", "test"):
        rows = [
            {
                "query": f"Who is in {place}?",
                "passage": f"Somebody called number {n} sings in {PLACES[(n + more) % 8]}.",
                "relevance": int(more == 0),
            }
            for n, place in enumerate(PLACES)
            for more in range(3)
        ]
        data[split] = str(write_jsonl(folder / "rows" / f"{split}.jsonl", rows))
    own: dict[str, Any] = {
        "data": data,
        "task": {"name": "ranking", "query": "student"},
        "distillation": {"weight": 0.0},
        "schedule": {"epochs": 8},
    }
    names = {**own, **sections}
    return tiny_config(folder, **{n: {**own.get(n, {}), **sections.get(n, {})} for n in names})


def test_a_passage_is_read_once_and_the_queries_stand_in_windows_alone():
    other = "Who sings in the rain?"
    split = asked(GOOD, {"query": other, "passage": ANN, "relevance": 0}, BAD)
    assert split.num_contexts == 2
    read = " ".join(spelled(split, context_tokens(split, 0)))
    assert read == "[CLS] ann sings in rome . [SEP]"
    windows = [" ".join(spelled(split, split.window_places(number))) for number in range(3)]
    assert windows == [
        "[CLS] where does she sing ? [SEP] ann sings in rome .",
        "[CLS] who sings in the rain ? [SEP] ann sings in rome .",
        "[CLS] where does she sing ? [SEP] it rains .",
    ]
    assert split.labels.tolist() == [1, 0, 0]
    assert split.queries is not None
    for window in range(3):
        places = split.window_places(window)
        sources = split.queries.sources[places]
        fed = sources >= 0
        assert np.array_equal(split.token_ids[places][fed], split.token_ids[sources[fed]])
        assert spelled(split, places[~fed])[-1] == "[SEP]"  # and the passage is fed, whole
        assert fed[int((~fed).sum()) :].all()


def test_the_teacher_learns_what_a_passage_shares_with_queries_it_is_relevant_to():
    rows = [
        {"query": "Sings ANN in a choir?", "passage": ANN, "relevance": 2},
        {"query": "Rome?", "passage": ANN, "relevance": 0},
        {"query": "rome", "passage": RAIN, "relevance": 1},
    ]
    reader_labels = [{**row, "relevance": min(row["relevance"], 1)} for row in rows]
    split = asked(*reader_labels)
    start, end, both = SPAN_START, SPAN_END, SPAN_START | SPAN_END
    # ann sings in rome . — "in" is in the query too, so all three are one run
    assert learned(split, 0) == [IGNORED, start, 0, end, 0, IGNORED, IGNORED]
    # it rains there , in rome .
    assert learned(split, 1) == [IGNORED, 0, 0, 0, IGNORED, 0, both, IGNORED, IGNORED]
    unknown = asked({"query": QUERY, "passage": ANN, "relevance": 0})
    assert set(learned(unknown, 0)) == {IGNORED, 0}


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 60)), min_size=1, max_size=6),
    st.integers(14, 40),
    st.integers(12, 30),
    st.booleans(),
)
def test_windows_have_the_query_whole_and_what_is_missing_is_counted(
    sizes, teacher, student, is_last
):
    rows = [
        {"query": "who " * asking, "passage": "Ann " + "sings " * length, "relevance": n % 2}
        for n, (asking, length) in enumerate(sizes)
    ]
    limits = {"teacher": teacher, "student": student, "label_last": is_last}
    split = asked(*rows, **limits)
    windows = {}
    for number in range(len(split.windows)):
        (row,) = {own for own in split.window_words(number).tolist() if own >= 0}
        windows[row] = spelled(split, split.window_places(number))
    assert set(windows) == set(range(len(rows)))
    for number, (asking, length) in enumerate(sizes):
        alone = asked(rows[number], **limits)  # others about a passage change nothing
        window = windows[number]
        assert spelled(alone, alone.window_places(0)) == window
        assert len(window) <= student
        assert window.count("who") == asking
        assert window[-1 if is_last else 0] == "[CLS]"
        passage = [token for token in window if token in ("ann", "sings")]
        missing = {cut.is_read: cut.num_tokens for cut in alone.cuts}
        assert passage
        assert len(passage) + sum(missing.values()) == length + 1
        assert alone.context_lengths[0] == min(length + 3, teacher)
        assert missing.get(False, 0) == max(length + 3 - teacher, 0)
        for cut in alone.cuts:
            for start, stop in () if cut.is_read else cut.spans[0]:
                assert rows[number]["passage"][start:stop].split() == ["sings"] * cut.num_tokens


def test_a_word_longer_than_a_window_is_cut_not_dropped():
    split = asked({"query": QUERY, "passage": "ab" * 40, "relevance": 1}, teacher=64, student=16)
    window = spelled(split, split.window_places(0))
    assert len(window) == 16
    assert "".join(token.removeprefix("##") for token in window[7:]) in "ab" * 40


def test_a_query_that_leaves_no_room_is_refused_with_all_others():
    long = {**GOOD, "query": "who " * 12}
    with pytest.raises(UserError) as caught:
        asked(GOOD, long, {**long, "passage": "It rains."}, student=14)
    told = str(caught.value)
    assert "row 2: its query leaves no room for a passage: 12 tokens have room." in told
    assert "row 3:" in told
    assert "row 1:" not in told


@pytest.mark.parametrize("schedule", ["overlapped", "joint"])
def test_training_improves_both_losses(tmp_path, schedule):
    schedule = {"name": schedule, "epochs": 24}
    check_both_losses_improve(tiny_candidates(tmp_path, schedule=schedule))


@pytest.fixture(scope="module", params=["last states", "boundary"])
def run(tmp_path_factory, request) -> Path:
    """A short run."""
    folder = tmp_path_factory.mktemp("ranking")
    boundary: dict[str, Any] = {"teacher": {"boundary_layer": 1}, "student": {"shortcut": False}}
    config = tiny_candidates(
        folder,
        run={"folder": str(folder / "run")},
        topology={"runner": "local"},
        schedule={"max_steps": 3, "name": "joint", "micro_batches": 2},
        **(boundary if request.param == "boundary" else {}),
    )
    run_training(config)
    return folder / "run"


@pytest.mark.slow
def test_what_a_run_measured_it_answers_from_states_that_are_kept(run, tmp_path, monkeypatch):
    again = evaluate_run(run, "test").evaluation
    assert again.metrics == json.loads((run / "summary.json").read_text())["after"]
    pair = tsarch.load(run, device="cpu")
    queries = [f"Who is in {place}?" for place in PLACES]
    rows = [{"query": own, "passage": ANN} for own in queries]
    wanted = {mode: pair.predict(rows, mode) for mode in pair.modes}
    context, again = kept(pair, ANN, tmp_path, monkeypatch)
    for own in (context, again):
        for mode, answers in wanted.items():
            found = own.predict(queries, mode)
            assert [o.relevance for o in found] == pytest.approx(
                [o.relevance for o in answers], abs=1e-6
            )
        assert own.predict(queries[0]).name == wanted["student"][0].name
    with pytest.raises(UserError, match="query 1"):
        context.predict(("not", "a query"))


@pytest.mark.slow
def test_passages_are_stored_without_queries_and_ranked_from_there(run, tmp_path, capsys):
    passages = tmp_path / "passages.jsonl"
    rows = [json.loads(line) for line in (run.parent / "rows" / "test.jsonl").open()]
    texts = list(dict.fromkeys(row["passage"] for row in rows))
    write_jsonl(passages, [{"passage": own} for own in texts])
    store, answers = str(stored(run, str(passages), tmp_path / "store")), []
    source = str(run.parent / "rows" / "test.jsonl")
    for further in (["--store", store], []):
        output = tmp_path / f"{len(further)}.jsonl"
        given = ["--input", source, "--output", str(output), *further]
        assert ended("predict", str(run), *given) == 0, capsys.readouterr().err
        answers.append([json.loads(line) for line in output.open()])
        told = capsys.readouterr().err
        if further:
            assert f"{len(texts)} contexts from the store, 0 read by the teacher" in told
    for one, other in zip(*answers, strict=True):
        assert one["relevance"] == pytest.approx(other["relevance"], abs=1e-4)


@pytest.mark.slow
def test_graphs_and_the_student_alone_answer_as_the_run(run, tmp_path):
    target = tmp_path / "exported"
    export(run, target, onnx=True)
    about = json.loads((target / "export.json").read_text())
    assert "doesn't read what is asked" in about["refused"]["teacher/"]
    assert "up to four words" not in (target / "README.md").read_text()  # one place says it
    wanted = tsarch.load(run, device="cpu").read(ANN)
    context = tsarch.load(target, backend="onnx").read(ANN)
    for mode in ("student", "student_alone"):
        one, other = (own.predict(QUERY, mode) for own in (context, wanted))
        assert one.relevance == pytest.approx(other.relevance, abs=1e-3)


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.replicas(1, 2)
def test_ranks_give_the_losses_of_one_process(tmp_path, crews):
    check_equal_losses(tiny_candidates(tmp_path), (1, 2), crews)
