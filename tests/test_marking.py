"""Answers beside what is right: what counts as which mistake, and how it is told."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import tsarch
from tests.generative_configs import generative_raw
from tests.test_pair import run_of
from tests.test_report import Page
from tsarch.config import MODES, LossConfig
from tsarch.config_loading import parse_config
from tsarch.data.rows import Origin, Place
from tsarch.launch.evaluation import show_evaluation
from tsarch.launch.training import run_training
from tsarch.marking.agreement import agreements
from tsarch.marking.counting import counted, label_scores
from tsarch.marking.entities import pairs
from tsarch.marking.labels import label_spans
from tsarch.marking.records import Marks, ScoreTable, Span, body_of, snippets
from tsarch.tasks.answers import Entity
from tsarch.tasks.relation import MarkedEntities
from tsarch.telling.predictions import show_sample
from tsarch.telling.report import write_report


def entity(kind: str, first: int, stop: int) -> Entity:
    return Entity(kind, first, stop, f"{first}-{stop}", 0.9)


@pytest.mark.parametrize(
    ("gold", "said", "kinds"),
    [
        ([entity("PER", 0, 2)], [entity("PER", 0, 2)], ["right"]),
        ([entity("PER", 0, 2)], [entity("ORG", 0, 2)], ["wrong_type"]),
        ([entity("PER", 0, 2)], [entity("PER", 1, 2)], ["wrong_boundary"]),
        ([entity("PER", 0, 2)], [entity("LOC", 1, 3)], ["wrong_type"]),
        ([entity("PER", 0, 2)], [], ["missed"]),
        ([], [entity("PER", 0, 2)], ["spurious"]),
        ([entity("PER", 0, 2)], [entity("PER", 2, 4)], ["missed", "spurious"]),
        # One that spans two right ones is that of its type; the other one is missed.
        (
            [entity("ORG", 0, 1), entity("PER", 1, 3)],
            [entity("PER", 0, 3)],
            ["missed", "wrong_boundary"],
        ),
        # The same words come before a longer overlap.
        (
            [entity("PER", 0, 4)],
            [entity("PER", 0, 3), entity("ORG", 3, 4)],
            ["wrong_boundary", "spurious"],
        ),
    ],
)
def test_what_is_wrong_with_an_entity(gold, said, kinds):
    assert sorted(pair.kind for pair in pairs(gold, said)) == sorted(kinds)


def test_every_entity_is_in_one_pair_however_they_overlap():
    random = np.random.default_rng(0)
    for _ in range(200):
        gold, said = (
            [
                entity("AB"[random.integers(2)], first, first + random.integers(1, 4))
                for first in range(0, 20, 4)
                if random.random() < 0.6
            ]
            for _ in range(2)
        )
        found = pairs(gold, said)
        assert [own.gold for own in found if own.gold] == gold
        assert sorted((o.said for o in found if o.said), key=lambda o: o.first) == said
        assert {o.gold for o in found if o.kind == "right"} == set(gold) & set(said)


def test_names_that_a_table_has_no_room_for_are_counted_together():
    names = [f"label{n}" for n in range(30)]
    cells = [(names[n], names[n]) for n in range(30)] + [(names[29], names[28])] * 3
    found = counted(cells, names)
    assert found.gold[:2] == ["label28", "label29"]
    assert found.gold[-1] == "28 others"
    assert sum(map(sum, found.counts)) == len(cells)
    at = found.gold.index("label29"), found.said.index("label28")
    assert found.counts[at[0]][at[1]] == 3
    assert not found.right[at[0]][at[1]]


@pytest.mark.slow
def test_scores_of_labels_are_those_of_scikit_learn():
    from sklearn.metrics import precision_recall_fscore_support

    random = np.random.default_rng(1)
    gold, said = (random.choice(list("abcd"), 60).tolist() for _ in range(2))
    both = [g for g, s in zip(gold, said, strict=True) if g == s]
    rows = {row[0]: row[1:] for row in label_scores(gold, said, both).rows}
    expected = precision_recall_fscore_support(gold, said, labels=list("abcd"))
    for place, name in enumerate("abcd"):
        assert rows[name][:4] == pytest.approx([own[place] for own in expected])


def test_agreement_says_who_is_right():
    def marks(said: list[str], worth: list[float]) -> Marks:
        table = ScoreTable([], [])
        return Marks([], 0, None, table, np.array(said, dtype=object), np.array(worth))

    (found,) = agreements(
        {"teacher": marks(list("aabc"), [1, 1, 0, 0]), "student": marks(list("abca"), [1, 0, 1, 0])}
    )
    assert (found.same, found.one_better, found.other_better, found.neither) == (1, 1, 1, 1)


def test_long_rows_are_shown_around_their_marks():
    words = [f"w{n}" for n in range(100)]
    shown = snippets(words, (Span(50, 52, "missed", "PER"),))
    assert [own.mark for own in shown] == ["", "missed", ""]
    assert shown[1].text == "w50 w51"
    assert shown[0].text.startswith("… w32")
    assert shown[2].text.endswith("w69 …")
    whole = snippets("a < b", (Span(0, 1, "gold", "x"),))
    assert "".join(own.text for own in whole) == "a < b"
    overlapping = snippets(words[:5], (Span(0, 3, "right", "A"), Span(1, 2, "missed", "B")))
    assert [own.text for own in overlapping] == ["w0 w1 w2", "w1", "w3 w4"]


@pytest.fixture(scope="module")
def ner_run(tmp_path_factory) -> Path:
    """A short run whose best weights tag something."""
    folder = tmp_path_factory.mktemp("ner")
    config = run_of(folder, "ner")
    longer = config.schedule.model_copy(update={"max_steps": 12})
    loss = LossConfig(label_weights="balanced")
    run_training(config.model_copy(update={"loss": loss, "schedule": longer}))
    return folder / "run"


def lines_of(run: Path, mode: Any = None) -> list[dict[str, Any]]:
    show_evaluation(run, "test", mode, errors=run / "errors.jsonl")
    return [json.loads(line) for line in (run / "errors.jsonl").open(encoding="utf-8")]


@pytest.mark.slow
def test_mistakes_are_those_of_what_predict_answers(ner_run):
    """Put together from mistakes and right entities, the answers are those of `predict`."""
    rows = [json.loads(line) for line in (ner_run.parent / "test.jsonl").open()]
    pair = tsarch.load(ner_run, device="cpu", overlap=False)  # long sentences as evaluated
    lines = lines_of(ner_run)
    for mode in MODES:
        own = [line for line in lines if line["mode"] == mode]
        assert [line["score"] for line in own] == sorted((x["score"] for x in own), reverse=True)
        for number, entities in enumerate(pair.predict(rows, mode), 1):
            here = [line for line in own if line["row"] == number]
            wrong = {
                (line["predicted"]["first"], line["predicted"]["stop"]): line["predicted"]["type"]
                for line in here
                if line["predicted"]
            }
            said = {(e.first, e.stop): e.type for e in entities}
            assert wrong.items() <= said.items()
            gold = [f"{t[2:]}" for t in rows[number - 1]["tags"] if t.startswith("B-")]
            missing = sum(line["gold"] is not None for line in here)
            assert len(said) - len(wrong) == len(gold) - missing
            assert all(line["place"].endswith(f"test.jsonl:{number}") for line in here)


@pytest.mark.slow
def test_a_run_shows_its_mistakes_in_its_report_and_on_the_terminal(ner_run, capsys):
    errors = json.loads((ner_run / "errors.json").read_text(encoding="utf-8"))
    summary = json.loads((ner_run / "summary.json").read_text())
    for mode, own in errors["scores"].items():
        row = np.array([row[1:] for row in own["rows"]])
        right, kinds = (row[:, 1] * row[:, 3]).sum(), errors["kinds"][mode]
        assert right == pytest.approx(kinds["right"])
        precision = right / max(row[:, 4].sum(), 1)
        assert precision == pytest.approx(summary["after"][mode]["precision"])
    assert len(errors["agreement"]) == 6
    errors["mistakes"]["joint"][0]["parts"][0]["text"] = "<script>alert(1)</script>"
    (ner_run / "errors.json").write_text(json.dumps(errors))
    page = write_report(ner_run).read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "Mistakes on the test split" in Page(page).text
    lines_of(ner_run, "student")
    told = capsys.readouterr().out
    assert "test split as student sees it" in told
    assert "mistakes of student:" in told


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "relation", "qa"])
def test_tasks_with_an_answer_a_row_have_mistakes_too(tmp_path, task):
    run_training(run_of(tmp_path, task))
    lines = lines_of(tmp_path / "run")
    errors = json.loads((tmp_path / "run" / "errors.json").read_text())
    after = json.loads((tmp_path / "run" / "summary.json").read_text())["after"]
    for mode in after:
        own = [line for line in lines if line["mode"] == mode]
        assert len({line["row"] for line in own}) == len(own)
        right = 1 - len(own) / errors["rows"]
        if task == "classification":
            assert right == pytest.approx(after[mode]["accuracy"])
        if task == "qa":
            assert right == pytest.approx(after[mode]["exact_match"])
        assert sum(map(sum, errors["counts"][mode]["counts"])) == errors["rows"]
    Page((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "model"), [("translation", "llama"), ("summarization", "t5"), ("dialogue", "gpt2")]
)
def test_of_generated_texts_the_worst_come_first(tmp_path, task, model):
    raw = generative_raw(tmp_path, task, model)
    raw["run"]["folder"] = str(tmp_path / "run")
    raw["schedule"] = {"max_steps": 3}
    raw["topology"] = {"runner": "local", "device": "cpu", "threads": 1}
    raw["decoding"] = {"max_texts": 3}
    run_training(parse_config(raw, "tiny"))
    lines = lines_of(tmp_path / "run", "student_alone")
    assert 0 < len(lines) <= 3
    assert {line["mode"] for line in lines} == {"student_alone"}
    assert [line["score"] for line in lines] == sorted(line["score"] for line in lines)
    text = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "The worst texts of" in Page(text).text.replace("  ", " ")
    assert "Of 3 of the split’s" in text


SAMPLE = {
    "mode": "joint",
    "split": "test",
    "kinds": {"joint": {"right": 1, "wrong_type": 2}},
    "sample": [
        {
            "parts": [
                {"text": "Ann", "mark": "wrong_type", "note": "ORG, is PER"},
                {"text": "sings \x1b[31m", "mark": "", "note": ""},
            ],
            "said": "",
            "gold": "",
            "right": False,
            "score": None,
            "question": "",
            "place": "folder/rows.jsonl:7",
        }
    ],
}


def test_the_sample_is_readable_without_colours_and_safe_for_terminals():
    plain, colours = io.StringIO(), io.StringIO()
    show_sample(Console(file=plain, width=100), SAMPLE)
    assert "✗  [Ann ORG, is PER] sings" in plain.getvalue()
    assert "rows.jsonl:7" in plain.getvalue()
    assert "1 right, 2 wrong type" in plain.getvalue()
    assert "\x1b" not in plain.getvalue()
    show_sample(
        Console(file=colours, width=100, force_terminal=True, color_system="standard"), SAMPLE
    )
    assert "\x1b[31m[Ann " in colours.getvalue()


def test_without_colours_by_wish(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    file = io.StringIO()
    show_sample(Console(file=file, width=100, force_terminal=True), SAMPLE)
    assert "\x1b[3" not in file.getvalue()


def test_entities_of_a_relation_are_marked_in_the_words_that_their_spans_count():
    row = MarkedEntities(
        Origin(Place("x", 1), "x"), ["The", "ship", "left", "Rome"], (1, 2), (3, 4), "from"
    )
    body = body_of(row)
    assert [body[own.start : own.stop] for own in label_spans(row)] == [["ship"], ["Rome"]]
