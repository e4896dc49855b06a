"""The inference benchmark's own arithmetic: entities, scores, and the table."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.inference_plan import Plan, SideSpec, missing_sides, sides
from benchmarks.inference_sides import spans_at, tagged_spans
from benchmarks.inference_table import entity_f1, markdown, summarized
from benchmarks.sections import write_section

TURN = {
    "startup_s": 2.0,
    "loaded_bytes": 10**8,
    "rows_per_s": 100.0,
    "cpu_ms": 8.0,
    "alone_ms": [1.0, 2.0, 9.0],
    "loaded_ms": [4.0, 4.0],
    "loaded_rows_per_s": 120.0,
    "peak_bytes": 3 * 10**8,
    "f1": 0.5,
}


def test_entities_by_characters_become_words():
    tokens = ["Ada", "Lovelace", "(", "London", ")"]
    assert spans_at(tokens, [("PER", 0, 12), ("LOC", 15, 21)]) == [("PER", 0, 2), ("LOC", 3, 4)]
    assert spans_at(tokens, [("PER", 4, 7)]) == [("PER", 1, 2)]
    assert spans_at(tokens, [("PER", 12, 13)]) == []


def test_tags_become_entities():
    tags = ["B-PER", "I-PER", "O", "I-LOC", "B-LOC", "B-LOC", "I-PER"]
    assert tagged_spans(dict(enumerate(tags))) == [("PER", 0, 2), ("LOC", 4, 5), ("LOC", 5, 6)]
    assert tagged_spans({0: "B-PER", 2: "I-PER"}) == [("PER", 0, 1)], "a word is in between"


def test_f1_counts_whole_entities():
    gold = [[("PER", 0, 2), ("LOC", 3, 4)], [("ORG", 0, 1)]]
    assert entity_f1(gold, gold) == 1.0
    assert entity_f1(gold, [[["PER", 0, 2], ["LOC", 3, 5]], []]) == pytest.approx(2 / 5)
    assert entity_f1(gold, [[], []]) == 0.0


def test_the_table_is_made_of_medians_and_says_which_goals_are_met():
    slow = {**TURN, "rows_per_s": 40.0, "cpu_ms": 25.0, "peak_bytes": 9 * 10**8}
    fast = [{**TURN, "rows_per_s": speed} for speed in (90.0, 100.0, 400.0)]
    found = summarized({"student_alone": fast, "pipeline": [slow] * 3}, missing_sides())
    assert found["sides"]["student_alone"]["rows_per_s"] == 100.0
    assert found["sides"]["student_alone"]["alone_ms_p50"] == 2.0
    specs = [SideSpec("student_alone", "ours", {}), SideSpec("pipeline", "theirs", {})]
    text = markdown(found, specs, 3, 2, 284)
    assert "| ours | 0.5000 | 100 | 8.0 | 2.0 / 9.0 | 120, 4.0 / 4.0 | 300 MB | 2.0 s |" in text
    assert "`student_alone`, rows/s: 2.50 × `pipeline` (goal 2.5; by CPU time 3.12)" in text
    assert "`student_alone` int8, rows/s: not available" in text
    assert "- No optimum: optimum-onnx 0.1.0, the newest, needs transformers below 4.58" in text


def test_the_section_of_a_page_is_replaced(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- inference: begin -->\nold\n<!-- inference: end -->\nb\n")
    write_section(page, "inference", "new\n")
    write_section(page, "inference", "newer\n")
    text = "a\n<!-- inference: begin -->\nnewer\n<!-- inference: end -->\nb\n"
    assert page.read_text() == text


def test_sides_are_named_once(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("benchmarks.inference_plan._export", lambda plan, say: True)
    monkeypatch.setattr("benchmarks.inference_plan._spacy_python", lambda plan, say: "python")
    found = sides(Plan(Path("run"), tmp_path, 2), lambda _: None)
    names = [own.name for own in found]
    assert len(set(names)) == len(names)
    assert {"teacher", "student_alone", "pipeline", "reading", "keeping", "spacy"} <= set(names)
