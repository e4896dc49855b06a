"""Passages that the teacher reads once, and questions that the student alone asks of them."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tsarch
from tests.equal_losses import check_equal_losses
from tests.helpers import ROOT, local_crew, tiny_config, tiny_raw, write_jsonl
from tests.test_export import export
from tests.test_qa import check_equal_evaluation, measured, passage_tokens, tiny_qa
from tests.test_state_store import ended, stored
from tsarch.blueprint import resolve
from tsarch.config import Config
from tsarch.config_loading import parse_config
from tsarch.data.asked_passages import PassageFrame, pack_asked_passages
from tsarch.data.asked_rows import AskedRow, pack_asked_rows
from tsarch.data.asked_rows import Frame as RowFrame
from tsarch.data.feed import Feed
from tsarch.data.packing import Sentence
from tsarch.data.partition import context_tokens, context_windows
from tsarch.data.passage_packer import pack_passages
from tsarch.data.passages import Limits, PairTypes, PassageTokens, Specials, WordSpan
from tsarch.data.row_tokens import RowTokenizer
from tsarch.data.window_passes import evaluation_passes
from tsarch.errors import UserError
from tsarch.launch.training import run_training
from tsarch.losses.asked import AskedSpanObjective
from tsarch.prepare import packing_spec, prepare_data
from tsarch.records import IGNORED, SPAN_END, SPAN_START, TokenizedSplit
from tsarch.run.evaluate import selection_score
from tsarch.run.saved_run import evaluate_run
from tsarch.serving.local_engine import Loading, LocalEngine
from tsarch.serving.metrics import Metrics
from tsarch.tasks.registry import make_task, row_reader
from tsarch.tasks.span_search import SpanWindows
from tsarch.topology import Stage, Topology

SPECIALS, TYPES = Specials([1], [2], [3]), PairTypes([0], 0, [0], 1, [1])
FRAME = PassageFrame(([1], [3]), SPECIALS, TYPES)


def tiny_read_once(folder: Path, **sections: dict[str, object]) -> Config:
    """`tiny_qa`, the teacher without the questions."""
    own: dict[str, Any] = {
        "task": {"name": "qa", "query": "student"},
        "distillation": {"weight": 0.0},
        "schedule": {"epochs": 4},
    }
    return tiny_qa(folder, **{**own, **sections})


def tiny_documents(folder: Path, **sections: dict[str, object]) -> Config:
    """Pairs of entities of a few documents, the teacher without the marks."""
    (folder / "rows").mkdir()
    data: dict[str, object] = {"queries_per_context": 8}
    for split in ("train", "validation", "test"):
        lines = (ROOT / "configs" / "redocred" / f"{split}.jsonl").read_text("utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        short = [row for row in rows if len(row["tokens"]) < 150][:4]
        for row in short:
            row["relations"] = [
                {**own, "relation": "NA" if own["relation"] == "NA" else "related"}
                for own in row["relations"][:12]
            ]
        data[split] = str(write_jsonl(folder / "rows" / f"{split}.jsonl", short))
    config = dict(tiny_raw(folder)["teacher"]["config"], max_position_embeddings=512)
    own: dict[str, Any] = {
        "data": data,
        "task": {"name": "relation", "query": "student"},
        "distillation": {"weight": 0.0},
        "schedule": {"epochs": 4},
        "teacher": {"config": config, "max_tokens": 320},
    }
    names = {**own, **sections}
    return tiny_config(folder, **{n: {**own.get(n, {}), **sections.get(n, {})} for n in names})


BOUNDARY: dict[str, Any] = {"teacher": {"boundary_layer": 1}, "student": {"shortcut": False}}
"""States leave inside the teacher and enter inside the student."""


def tiny_split(folder: Path, **sections: dict[str, object]) -> Config:
    """`tiny_read_once` with a boundary inside both models."""
    names = {**BOUNDARY, **sections}
    own = {n: {**BOUNDARY.get(n, {}), **sections.get(n, {})} for n in names}
    return tiny_read_once(folder, **own)


def tiny_scored(folder: Path, **sections: dict[str, object]) -> Config:
    """`tiny_read_once` with a scorer that chooses windows."""
    student = {"scorer": {"dimensions": 8}, **sections.pop("student", {})}
    return tiny_read_once(folder, student=student, **sections)


TINY = {
    "qa": tiny_read_once,
    "relation": tiny_documents,
    "boundary": tiny_split,
    "scored": tiny_scored,
}


@st.composite
def asked(draw) -> tuple[TokenizedSplit, list[PassageTokens], list[list[int]], Limits]:
    """Questions about a few passages, mixed, and which are about which."""
    limits = Limits(draw(st.integers(14, 60)), draw(st.integers(16, 40)), draw(st.integers(0, 20)))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    passages = [
        [rng.integers(5, 90, size=n).tolist() for n in rng.integers(1, 4, size=size)]
        for size in draw(st.lists(st.integers(1, 50), min_size=1, max_size=3))
    ]
    groups: list[list[int]] = [[] for _ in passages]
    rows: list[PassageTokens] = []
    spans: list[list[WordSpan]] = []
    for own in [*range(len(passages)), *rng.integers(len(passages), size=3).tolist()]:
        groups[own].append(len(rows))
        rows.append(passage_tokens(rng.integers(5, 90, size=3).tolist(), passages[own]))
        first = int(rng.integers(len(passages[own])))
        spans.append([(first, min(first + 2, len(passages[own]) - 1))][: int(rng.integers(2))])
    split = pack_asked_passages(rows, groups, spans, FRAME, limits, 0)
    return split, rows, groups, limits


@given(asked())
def test_a_passage_is_read_once_and_alone_and_asked_about_behind_it(made):
    split, rows, groups, limits = made
    assert split.queries is not None
    sources = split.queries.sources
    assert split.context_lengths.max() <= limits.context
    for context in range(split.num_contexts):
        own = context_tokens(split, context)
        assert split.token_ids[own[[0, -1]]].tolist() == [1, 3]
        assert (split.words[own] == -1).all()
        assert np.array_equal(sources[own], own)
        assert split.types_at(own).tolist() == [0] + [1] * (len(own) - 1)
        for window in context_windows(split, context):
            places, fed = split.window_places(window), split.window_sources(window)
            assert len(places) == split.window_length(window) <= limits.window
            assert split.token_ids[places[0]] == 1
            assert (fed[: -np.diff(split.windows[window])[0]] == -1).all(), "the question"
            inside = fed >= 0
            assert np.isin(fed[inside], own).all()
            assert np.array_equal(split.token_ids[fed[inside]], split.token_ids[places[inside]])
            assert split.types_at(places).tolist() == inside.astype(int).tolist()
    for group in groups:
        starts = {tuple(sources[piece.places[0]] for piece in split.pieces[row]) for row in group}
        assert len(starts) == 1, "one reading for all questions"
    for row, (start, stop) in enumerate(zip(split.sentence_offsets, split.sentence_offsets[1:])):
        words = [split.words[piece.places[:-1]] for piece in split.pieces[row]]
        assert np.array_equal(np.concatenate(words), np.arange(start, stop))
        seen = {n for piece in split.pieces[row] for n in range(*piece.bounds[[0, -1], [0, 1]])}
        assert seen == set(range(len(rows[row].words)))


@given(asked())
def test_tiles_read_every_word_of_every_question_once(made):
    split, _, _, limits = made
    tiled = split.with_windows(SpanWindows().tiles(split, limits.window))
    words = [tiled.window_words(window) for window in range(len(tiled.windows))]
    found = np.concatenate(words)
    assert sorted(found[found >= 0].tolist()) == list(range(split.num_words))
    for context in range(split.num_contexts):
        for window in context_windows(tiled, context):
            fed = tiled.window_sources(window)
            assert np.isin(fed[fed >= 0], context_tokens(split, context)).all()


@st.composite
def asked_rows(draw) -> tuple[TokenizedSplit, list[AskedRow], list[list[int]], int]:
    """Pairs of spans of a few documents, mixed."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    documents, groups, rows = [], [], []
    for size in draw(st.lists(st.integers(8, 40), min_size=1, max_size=3)):
        pieces = rng.integers(1, 4, size=size).tolist()
        starts = [word if n == 0 else -1 for word, own in enumerate(pieces) for n in range(own)]
        ids = rng.integers(10, 90, size=len(starts)).tolist()
        documents.append(Sentence(str(size), ids, starts))
        groups.append(list(range(len(rows), len(rows) + int(rng.integers(1, 4)))))
        for _ in groups[-1]:
            a, b = sorted(rng.choice(size, 2, replace=False).tolist())
            words = [*range(a), "@", a, "@", *range(a + 1, b), "#", b, "#", *range(b + 1, size)]
            marked = ((a, a + 3), (b + 2, b + 5))
            spans = [(a, a + 1), (b, b + 1)]
            rows.append(AskedRow(words, spans, marked, a, len(rows) % 3, "x"))
    window, last = draw(st.integers(14, 60)), draw(st.booleans())
    frame = RowFrame([1], [2], {"@": [3], "#": [4]}, 5, last)
    return pack_asked_rows(documents, groups, rows, frame, 130, window), rows, groups, window


@given(asked_rows())
def test_a_pair_has_one_window_with_marks_that_no_state_feeds(made):
    split, rows, groups, limit = made
    assert split.queries is not None
    assert split.num_contexts == len(groups)
    assert split.labels.tolist() == [row.label for row in rows]
    for context, group in enumerate(groups):
        own, words = context_tokens(split, context), []
        bits = split.queries.context_labels[own]
        assert (bits[[0, -1]] == IGNORED).all()
        starts = {start for row in group for start, _ in rows[row].spans}
        assert np.flatnonzero(bits[bits != IGNORED] & SPAN_START).tolist() == sorted(starts)
        for window in context_windows(split, context):
            places, fed = split.window_places(window), split.window_sources(window)
            assert len(places) <= limit
            tokens, inside = split.token_ids[places], fed >= 0
            assert sorted(tokens[~inside].tolist()) == [3, 3, 4, 4, 5]
            assert np.array_equal(tokens[inside], split.token_ids[fed[inside]])
            assert np.isin(fed[inside], own[1:-1]).all()
            (at,) = np.flatnonzero(split.window_words(window) >= 0)
            assert tokens[at] == 5
            words.append(int(split.window_words(window)[at]))
        assert words == group


def test_a_pair_that_a_context_or_window_has_no_room_for_is_named():
    document = Sentence("d", list(range(10, 30)), list(range(20)))
    frame = RowFrame([1], [2], {"@": [3], "#": [4]}, 5, False)
    words = [0, "@", 1, "@", *range(2, 9), "#", *range(9, 15), "#", *range(15, 20)]
    row = AskedRow(words, [(1, 2), (9, 15)], ((1, 4), (11, 19)), 1, 0, "x:3")
    with pytest.raises(UserError, match=r"x:3: its entities lie behind the 12 tokens"):
        pack_asked_rows([document], [[0]], [row], frame, 14, 40)
    with pytest.raises(UserError, match=r"x:3: its entities have more tokens than the 9"):
        pack_asked_rows([document], [[0]], [row], frame, 40, 10)
    split = pack_asked_rows([document], [[0]], [row], frame, 20, 40)
    assert split.num_cut_tokens == 2


def test_windows_and_labels_are_those_of_a_teacher_that_reads_the_question():
    words = [[token] for token in range(10, 40)]
    rows = [passage_tokens([5, 20], words), passage_tokens([6, 30], words)]
    spans = [[(4, 6)], [(20, 20), (2, 3)]]
    limits = Limits(60, 20, 4)
    own = pack_asked_passages(rows, [[0, 1]], spans, FRAME, limits, 0)
    both = pack_passages(rows, spans, SPECIALS, limits, 0, TYPES)
    assert own.num_contexts == 1
    assert np.array_equal(own.labels, both.labels)
    assert np.array_equal(own.sentence_offsets, both.sentence_offsets)
    for window in range(len(both.windows)):
        one, other = own.window_places(window), both.window_places(window)
        assert np.array_equal(own.token_ids[one], both.token_ids[other])
        assert np.array_equal(own.window_words(window), both.window_words(window))
    assert own.queries is not None
    learned = own.queries.context_labels[context_tokens(own, 0)]
    expected = np.zeros(30, dtype=int)
    expected[[4, 6, 20]] = SPAN_START, SPAN_END, SPAN_START | SPAN_END
    assert learned.tolist() == [IGNORED, *expected.tolist(), IGNORED]


@given(asked(), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(1, 3))
def test_a_state_travels_once_and_arrives_at_its_token(made, groups, students, m, slices):
    """Send each token as its 'hidden state' and look where it ends up."""
    split, _, _, _ = made
    teachers = groups * slices
    contexts, topology = np.arange(split.num_contexts), Topology.pair(teachers, students, slices)
    feed = Feed(
        split, topology, m, lambda _: contexts, lambda _, c: evaluation_passes(split, c), False
    )
    plan, read = feed.plan(0), 0
    for micro_batch in range(m):
        sent = {}
        for t in range(teachers):
            part = feed.context_batch(0, micro_batch, Stage.TEACHER, t)
            for rank, places in part.outgoing.items():
                sent[t, rank] = plan.token_ids[part.rows].flatten()[places]
        for s in range(students):
            routes = feed.routes_to(0, micro_batch, teachers + s, Stage.TEACHER)
            assert all((np.diff(route.places) > 0).all() for route in routes)
            none = np.zeros(0, dtype=np.int64)
            came = np.concatenate([none, *(sent[r.source, teachers + s] for r in routes)])
            for batch in feed.window_batches(0, micro_batch, Stage.STUDENT, s):
                ids, fed = plan.token_ids[batch.rows], batch.boundary >= 0
                assert np.array_equal(came[batch.boundary[fed]], ids[fed])
                passage = (batch.types == 1) & (batch.mask == 1)
                assert np.array_equal(fed, passage & (batch.fed[:, None] == 1))
                read += int((batch.words >= 0).sum())
    assert split.queries is not None
    assert plan.num_labels == (split.queries.context_labels != IGNORED).sum()
    assert read == 2 * plan.num_window_labels


def test_a_passage_that_is_asked_again_is_not_tokenised_again(tmp_path, monkeypatch):
    blueprint = resolve(tiny_read_once(tmp_path))
    rows = prepare_data(blueprint).splits["test"].rows
    reader = row_reader("qa", blueprint.data)
    fresh, known = (
        reader.layout(packing_spec(blueprint, keep_tokens=False), ("answer",)) for _ in range(2)
    )
    wanted = fresh.pack(rows[:2])
    known.pack(rows)
    tokenised: list[str] = []
    tokenise = RowTokenizer._tokenize_placed

    def told(self: RowTokenizer, texts: list[str]) -> Any:
        tokenised.extend(texts)
        return tokenise(self, texts)

    monkeypatch.setattr(RowTokenizer, "_tokenize_placed", told)
    found = known.pack(rows[:2])
    assert np.array_equal(found.token_ids, wanted.token_ids)
    assert np.array_equal(found.words, wanted.words)
    assert tokenised == [row.question for row in rows[:2]]


def test_asked_spans_are_a_yes_or_no_a_word():
    labels = torch.tensor([[IGNORED, SPAN_START, 0, SPAN_START | SPAN_END]])
    logits = torch.randn(1, 4, 2)
    found = AskedSpanObjective().losses(logits, labels, torch.zeros(1, 1))
    wanted = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    probability = torch.sigmoid(logits[0, 1:])
    expected = -(wanted * probability.log() + (1 - wanted) * (1 - probability).log()).mean(-1)
    torch.testing.assert_close(found[0, 1:], expected)
    assert found[0, 0] == 0


@pytest.mark.parametrize(
    ("sections", "what"),
    [
        ({"task": {"name": "ner", "query": "student"}}, "is for qa, relation, ranking, not for"),
        ({"distillation": {"weight": 0.5}}, "distillation.weight can't be asked"),
        ({"distillation": {"hidden_weight": 0.5}}, "distillation.hidden_weight can't be asked"),
        ({"evaluation": {"monitor": "teacher"}}, "evaluation.monitor: teacher can't be asked"),
    ],
)
def test_what_a_teacher_without_the_question_cannot_do_is_refused(tmp_path, sections, what):
    asked = {"task": {"name": "qa", "query": "student"}, "distillation": {"weight": 0.0}}
    with pytest.raises(UserError, match=what):
        tiny_config(tmp_path, **{**asked, **sections})
    raw = tiny_raw(tmp_path, **asked)
    with pytest.raises(UserError, match="needs the sections `teacher` and `student`"):
        parse_config({**raw, "teacher": None}, "tiny")


def test_only_the_student_has_modes_and_decides_on_the_best_weights(tmp_path):
    blueprint = resolve(tiny_read_once(tmp_path))
    assert blueprint.modes == ("student", "student_alone")
    assert blueprint.monitor == "student"
    assert blueprint.altered(evaluation={"monitor": "mean"}).monitor == "mean"
    task = make_task("qa", ("answer",), blueprint.task)
    metrics = {"student": {"f1": 0.6}, "student_alone": {"f1": 0.2}}
    assert selection_score(task, metrics, "mean") == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("task", "schedule"),
    [("qa", "overlapped"), ("qa", "joint"), ("relation", "joint"), ("boundary", "joint")],
)
def test_training_improves_both_losses(tmp_path, task, schedule):
    check_both_losses_improve(TINY[task](tmp_path, schedule={"name": schedule, "epochs": 12}))


def check_both_losses_improve(config: Config) -> None:
    """In 24 steps; the student alone has modes."""
    crew = local_crew(config)
    reports = [report for own in crew.train(0, 24) for report in own]
    for stage in ("teacher", "student"):
        losses = [r.losses.means[stage] for r in reports if stage in r.losses.means]
        assert np.mean(losses[-4:]) < np.mean(losses[:4])
    found, _ = measured(config, crew)
    assert set(found.metrics) == {"student", "student_alone"}


@pytest.mark.slow
def test_many_pairs_are_asked_of_a_document_that_was_read_once(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    sections = {"run": {"folder": str(folder)}, "schedule": {"max_steps": 3}}
    run_training(tiny_documents(tmp_path, topology={"runner": "local"}, **sections))
    pair = tsarch.load(folder, device="cpu")
    row = json.loads((tmp_path / "rows" / "test.jsonl").open().readline())
    pairs = [(tuple(own["head"]), tuple(own["tail"])) for own in row["relations"]]
    assert len(pairs) > 8, "more than a context is asked"
    rows = [{"tokens": row["tokens"], "head": head, "tail": tail} for head, tail in pairs]
    wanted = {mode: pair.predict(rows, mode) for mode in pair.modes}
    context = pair.read(row["tokens"])
    monkeypatch.setattr("tsarch.pair.pair.Pair.encode", None)
    for mode, answers in wanted.items():
        found = context.predict(pairs, mode)
        assert [own.name for own in found] == [own.name for own in answers]
        assert [o.score for o in found] == pytest.approx([o.score for o in answers], abs=1e-6)
    assert context.predict(pairs[0]).head == wanted["student"][0].head
    with pytest.raises(UserError, match="is no pair of spans"):
        context.predict("Who?")
    with pytest.raises(UserError, match=r"query 1.*outside the"):
        context.predict(((0, 1), (0, 999)))


@pytest.fixture(scope="module", params=["qa", "boundary"])
def run(tmp_path_factory, request) -> Path:
    """A short run whose student finds some span."""
    folder = tmp_path_factory.mktemp("read_once")
    config = TINY[request.param](
        folder,
        run={"folder": str(folder / "run")},
        topology={"runner": "local"},
        schedule={"max_steps": 3, "name": "joint", "micro_batches": 2},
    )
    summary = run_training(config)
    assert set(summary["after"]) == {"student", "student_alone"}
    return folder / "run"


def questions_of(run: Path) -> tuple[str, list[str]]:
    """A passage of the test split and its questions."""
    rows = [json.loads(line) for line in (run.parent / "rows" / "test.jsonl").open()]
    passage = max({row["context"] for row in rows}, key=len)
    return passage, [row["question"] for row in rows if row["context"] == passage]


@pytest.mark.slow
def test_a_run_evaluates_again_from_its_folder(run):
    again = evaluate_run(run, "test").evaluation
    assert again.metrics == json.loads((run / "summary.json").read_text())["after"]


def kept(pair: Any, passage: str, folder: Path, patch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """A passage that was read, and the same from a file; from now on no teacher reads."""
    context = pair.read(passage)
    context.save(folder / "passage.safetensors")
    patch.setattr("tsarch.pair.pair.Pair.encode", None)
    return context, pair.load_context(folder / "passage.safetensors")


@pytest.mark.slow
def test_a_passage_that_was_read_is_asked_without_the_teacher(run, tmp_path, monkeypatch):
    pair = tsarch.load(run, device="cpu")
    passage, questions = questions_of(run)
    rows = [{"context": passage, "question": own} for own in questions]
    wanted = {mode: pair.predict(rows, mode) for mode in pair.modes}
    context, again = kept(pair, passage, tmp_path, monkeypatch)
    for own in (context, again):
        for mode, answers in wanted.items():
            assert own.predict(questions, mode) == answers
        assert own.predict(questions[0]) == wanted["student"][0]
        assert own.predict([]) == []
    with pytest.raises(UserError, match=r"query 2.*ends of questions longer"):
        context.predict(["Who?", "who " * 500])
    with pytest.raises(UserError, match="mode teacher"):
        context.predict("Who?", "teacher")


@pytest.mark.slow
def test_passages_are_read_into_a_store_and_asked_from_there(run, tmp_path, capsys):
    source, answers = str(run.parent / "rows" / "test.jsonl"), []
    store = str(stored(run, source, tmp_path / "store", "--states", "fp32"))
    told = capsys.readouterr().err
    found = re.search(r"(\d+) inputs: the teacher read (\d+) contexts", told)
    assert found is not None
    assert int(found[2]) < int(found[1])
    for further in (["--store", store], []):
        output = tmp_path / f"{len(further)}.jsonl"
        given = ["--input", source, "--output", str(output), "--on-unread", "mark", *further]
        assert ended("predict", str(run), *given) == 0, capsys.readouterr().err
        answers.append(output.read_bytes())
    assert answers[0] == answers[1]
    told = capsys.readouterr().err
    assert f"{found[2]} contexts from the store, 0 read by the teacher" in told


@pytest.mark.slow
def test_a_served_passage_is_read_once_for_a_hundred_questions(run):
    metrics = Metrics()
    engine = LocalEngine({"qa": run}, Loading("cpu"), metrics=metrics)
    passage, questions = questions_of(run)
    read = engine._served["qa"].pair.prepare([{"context": passage, "question": "?"}]).split

    async def ask() -> None:
        for number in range(100):
            question = f"{questions[0]} {number}"
            await engine.predict("qa", [{"context": passage, "question": question}], None)
        await engine.close()

    asyncio.run(ask())
    counted = metrics.registry.get_sample_value
    assert counted("tsarch_cache_misses_total", {"run": "qa"}) == read.num_contexts
    assert counted("tsarch_cache_hits_total", {"run": "qa"}) == 99 * read.num_contexts


@pytest.mark.slow
def test_graphs_answer_as_the_run_and_a_teacher_is_no_model_by_itself(run, tmp_path):
    target = tmp_path / "exported"
    export(run, target, onnx=True)
    about = json.loads((target / "export.json").read_text())
    assert "doesn't read what is asked" in about["refused"]["teacher/"]
    assert {"student_alone/", "onnx/student.onnx"} <= set(about["parts"])
    passage, questions = questions_of(run)
    context = tsarch.load(target, backend="onnx").read(passage)
    wanted = tsarch.load(run, device="cpu").read(passage)
    for mode in ("student", "student_alone"):
        for own, other in zip(
            context.predict(questions, mode), wanted.predict(questions, mode), strict=True
        ):
            assert own.score == pytest.approx(other.score, abs=1e-3)


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.replicas(1, 2)
@pytest.mark.parametrize("task", TINY)
def test_ranks_give_the_losses_of_one_process(tmp_path, crews, task):
    check_equal_losses(TINY[task](tmp_path), (1, 2), crews)


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.replicas(3, 2)
def test_evaluation_is_the_same_at_any_replica_count(tmp_path, crews):
    check_equal_evaluation(tiny_read_once(tmp_path), crews)
