"""The table of every task's gains."""

from __future__ import annotations

import json

from benchmarks import seeds
from benchmarks.processes import SideError
from benchmarks.seeds import Gain, gains, markdown
from tsarch.config import MODES


def summary(before: float, after: float) -> dict[str, object]:
    metrics = {"perplexity": 1 / before, "bleu": before}, {"perplexity": 1 / after, "bleu": after}
    return {
        when: dict.fromkeys(MODES, own)
        for when, own in zip(("before", "after"), metrics, strict=True)
    }


def test_a_gain_must_be_more_than_the_spread():
    good, bad = summary(0.1, 0.5), summary(0.4, 0.3)
    assert all(gain.is_beyond_spread for gain in gains("qa", [good, good]))
    rows = gains("qa", [good, bad])
    first = [(row.mode, row.metric) for row in rows[:2]]
    assert first == [("teacher", "perplexity"), ("teacher", "bleu")]
    assert not any(row.is_beyond_spread for row in rows)
    assert len(rows) == 2 * len(MODES)


def test_the_table_shows_means_extremes_and_what_is_not_beyond_the_spread():
    good = Gain("qa", "student", "f1", [0.1, 0.2, 0.3], [0.5, 0.6, 0.7], False)
    bad = Gain("qa", "teacher", "f1", [0.1, 0.2, 0.6], [0.5, 0.6, 0.7], False)
    one = Gain("qa", "teacher", "perplexity", [4000.0], [20.0], True)
    f1, perplexity = markdown([bad, good, one]).splitlines()[-2:]
    cells = "0.3000 → 0.6000 (0.5000–0.7000)* | 0.2000 → 0.6000 (0.5000–0.7000)"
    assert f1 == f"| qa | f1 | 3 | {cells} | – | – |"
    assert perplexity == "| qa | perplexity | 1 | 4000 → 20.00 | – | – | – |"


def test_a_run_that_fails_is_told_and_a_finished_one_not_done_again(tmp_path, monkeypatch):
    def fail(module: str, arguments: list[str], *_: object, **__: object) -> None:
        assert module == "tsarch.launch.train"
        assert arguments[0] == "configs/qa.yaml"
        assert f"run.folder={tmp_path / 'qa-seed1'}" in arguments
        raise SideError("no memory")

    monkeypatch.setattr(seeds, "RUNS", tmp_path)
    monkeypatch.setattr(seeds, "run_module", fail)
    assert seeds.train("qa", 1) == f"{tmp_path / 'qa-seed1'} failed: no memory"
    (tmp_path / "qa-seed1").mkdir()
    (tmp_path / "qa-seed1" / "summary.json").touch()
    assert seeds.train("qa", 1) is None


def test_only_finished_runs_count(tmp_path, monkeypatch):
    monkeypatch.setattr(seeds, "RUNS", tmp_path)
    (tmp_path / "qa-seed0").mkdir()
    (tmp_path / "qa-seed2").mkdir()
    (tmp_path / "qa-seed2" / "summary.json").write_text(json.dumps({"steps": 3}), "utf-8")
    assert seeds.summaries("qa") == [{"steps": 3}]


def test_a_config_without_runs_keeps_its_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(seeds, "RUNS", tmp_path)
    earlier = seeds.earlier_gains()
    assert {gain.config for gain in earlier} <= set(seeds.CONFIGS)
    kept = earlier[0].config
    found = seeds.own_gains(kept, earlier)
    assert found == [gain for gain in earlier if gain.config == kept]
    (tmp_path / f"{kept}-seed0").mkdir()
    (tmp_path / f"{kept}-seed0" / "summary.json").write_text(json.dumps(summary(0.1, 0.5)))
    assert len(seeds.own_gains(kept, earlier)) == 2 * len(MODES)
