"""Text without labels beside labelled rows: what is read, mixed and learned of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.equal_losses import check_equal_losses
from tests.helpers import WIKIGOLD, local_crew, tiny_config, tiny_raw, write_jsonl
from tests.test_classification_and_relation import tiny_task
from tests.test_qa import tiny_qa
from tests.test_resume import amid_an_epoch, check_resumption
from tsarch.blueprint import resolve
from tsarch.config import Config
from tsarch.config_loading import parse_config
from tsarch.data.loader import BatchPlan, Limits
from tsarch.data.mixing import MixedPlan
from tsarch.errors import UserError
from tsarch.feeds import batch_plan, training_feed
from tsarch.launch.training import run_training
from tsarch.losses.token import confidence
from tsarch.prepare import prepare_data

TEXTS = """Ada Lovelace met Charles Babbage in London. They spoke of engines.

The University of Oxford is older than Mexico. Dr. Smith knows it!
In 1969 Neil Armstrong walked on the Moon, and Michael Collins waited.
"""


def texts(folder: Path) -> list[str]:
    """A plain text, and rows of WikiGold whose tags nobody may read."""
    (folder / "more.txt").write_text(TEXTS, encoding="utf-8")
    lines = (WIKIGOLD / "train.jsonl").read_text(encoding="utf-8").splitlines()[60:90]
    rows = [{**json.loads(line), "tags": ["B-NOBODY"]} for line in lines]
    write_jsonl(folder / "rows-1.jsonl", rows[:15])
    write_jsonl(folder / "rows-2.jsonl", rows[15:])
    return [str(folder / "more.txt"), str(folder / "rows-*.jsonl")]


def tiny(folder: Path, **sections: Any) -> Config:
    """WikiGold, and other text without labels."""
    data = {"unlabelled": texts(folder), **sections.pop("data", {})}
    return tiny_config(folder, data=data, **sections)


def losses(config: Config, num_steps: int = 3) -> list[dict[str, float]]:
    """Parts of the loss of each step."""
    found: dict[int, dict[str, float]] = {}
    for reports in local_crew(config).train(0, num_steps):
        for report in reports:
            if report.step is not None:
                found.setdefault(report.step, {}).update(report.losses.means)
    return [found[step] for step in sorted(found)]


def test_plain_text_and_rows_are_read_as_for_predictions(tmp_path):
    prepared = prepare_data(resolve(tiny(tmp_path)))
    rows = prepared.unlabelled.rows
    assert rows[0].words[:2] == ["Ada", "Lovelace"]
    assert rows[0].tags is None
    # A line is a document, and a document of rows is one of its file.
    assert len({row.origin.doc_id for row in rows[:5]}) == 3
    assert str(rows[2].origin.place) == f"{tmp_path / 'more.txt'}:3"
    assert len(rows) == 5 + 30
    assert prepared.sizes["unlabelled"].rows == 35
    assert prepared.sizes["unlabelled"].labels == 0
    assert prepared.training.num_contexts == (
        prepared.splits["train"].num_contexts + prepared.unlabelled.num_contexts
    )


@pytest.mark.parametrize("key", ["tokens", "text"])
def test_items_that_stand_on_one_line_are_documents_of_their_own(tmp_path, key):
    items = [["Ada", "sings"], ["Bonn", "is", "old"], ["They", "met"]]
    rows = [{key: own if key == "tokens" else " ".join(own)} for own in items]
    (tmp_path / "list.json").write_text(json.dumps(rows), encoding="utf-8")
    config = tiny_config(tmp_path, data={"unlabelled": str(tmp_path / "list.json")})
    own = prepare_data(resolve(config)).unlabelled
    assert [row.words for row in own.rows] == items
    assert len({row.origin.doc_id for row in own.rows}) == 3
    assert own.num_contexts == 3


def test_questions_need_no_ids(tmp_path):
    config = task_config(tmp_path, "qa")
    rows = [json.loads(line) for line in (tmp_path / "unlabelled.jsonl").open(encoding="utf-8")]
    named = len(prepare_data(resolve(config)).unlabelled.rows)
    for row in rows:
        del row["id"]
    write_jsonl(tmp_path / "unlabelled.jsonl", rows)
    assert len(prepare_data(resolve(config)).unlabelled.rows) == named > 1


def test_files_are_beside_the_config_or_behind_a_url(tmp_path):
    texts(tmp_path)
    own = ["more.txt", f"file://{tmp_path}/rows-1.jsonl"]
    raw = tiny_raw(tmp_path, data={"unlabelled": own})
    config = parse_config(raw, "tiny", tmp_path)
    assert config.data.unlabelled == [str(tmp_path / "more.txt"), own[1]]
    assert len(prepare_data(resolve(config)).unlabelled.rows) == 5 + 15


def test_all_that_is_wrong_with_files_is_said_at_once(tmp_path):
    write_jsonl(tmp_path / "bad.jsonl", [{"words": ["a"]}, {"tokens": [1]}, {"tokens": ["a", "b"]}])
    config = tiny_config(tmp_path, data={"unlabelled": str(tmp_path / "bad.jsonl")})
    with pytest.raises(UserError) as caught:
        prepare_data(resolve(config))
    assert [mistake.where.rpartition(":")[2] for mistake in caught.value.mistakes] == ["1", "2"]
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    latin = tiny_config(tmp_path, data={"unlabelled": str(tmp_path / "latin.txt")})
    with pytest.raises(UserError, match=r"latin.txt:1: is not UTF-8 text. Write it as UTF-8, or n"):
        prepare_data(resolve(latin))
    nothing = tiny_config(tmp_path, data={"unlabelled": [str(tmp_path / "none*.txt")]})
    with pytest.raises(UserError, match=r"data\.unlabelled: .*none\*\.txt: names no file"):
        prepare_data(resolve(nothing))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"distillation": {"weight": 0.0}}, "distillation.weight above 0"),
        ({"task": {"name": "translation"}}, "tsarch augment"),
        ({"data": {"streamed": True}}, "leave out one of"),
        ({"task": {"name": "qa"}, "unlabelled": {"min_confidence": 0.5}}, "leave it at 0"),
        ({"unlabelled": {"ratio": 0}}, "greater than 0"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, sections, message):
    data = {"unlabelled": "a.txt", **sections.pop("data", {})}
    with pytest.raises(UserError, match=message):
        parse_config(tiny_raw(tmp_path, data=data, **sections), "tiny")


def test_a_student_by_itself_has_nobody_to_learn_from(tmp_path):
    raw = tiny_raw(tmp_path, data={"unlabelled": "a.txt"})
    del raw["student"]
    raw["distillation"] = {"weight": 0.0}
    with pytest.raises(UserError, match="sections `teacher` and `student`"):
        parse_config(raw, "tiny")


@pytest.mark.parametrize("ratio", [0.3, 1.0, 5.0])
def test_labelled_batches_stay_and_the_ratio_is_kept(ratio):
    rng = np.random.default_rng(0)
    lengths = np.concatenate([rng.integers(5, 60, 400), rng.integers(5, 90, 130)])
    settings = Limits(256), 8, 4, 7, 150
    plain = BatchPlan(lengths[:400], *settings)
    plan = MixedPlan(lengths, 400, ratio, *settings)
    assert plan.epoch_starts == plain.epoch_starts
    beside = []
    for step in range(plan.num_steps):
        own = plan.contexts(step)
        np.testing.assert_array_equal(own[own < 400], plain.contexts(step))
        beside += own[own >= 400].tolist()
    tokens = int(lengths[beside].sum())
    assert tokens == pytest.approx(ratio * 4 * int(lengths[:400].sum()), rel=0.01)
    counts = np.bincount(np.array(beside) - 400, minlength=130)
    assert counts.max() - counts.min() <= 1  # all come equally often
    again = MixedPlan(lengths, 400, ratio, *settings)
    last = plan.num_steps - 1
    np.testing.assert_array_equal(again.contexts(last), plan.contexts(last))


def test_the_teacher_learns_labels_alone(tmp_path):
    """Its losses, and those of labels of the student before it has learned anything else, are what
    they are without other text."""
    sections: dict[str, Any] = {
        "topology": {"runner": "local"},
        "optimizer": {"name": "sgd", "student_learning_rate": 0.1},
        "embedding": {"frozen": True},
    }
    for schedule in ("sequential", "overlapped"):
        sections["schedule"] = {"name": schedule}
        plain = losses(tiny_config(tmp_path, **sections))
        beside = losses(tiny(tmp_path, **sections))
        for one, other in zip(plain, beside, strict=True):
            assert other["teacher"] == pytest.approx(one["teacher"], rel=1e-6)
        assert beside[0]["student"] == pytest.approx(plain[0]["student"], rel=1e-5)
        assert beside[0]["unlabelled"] > 0.0
        assert "unlabelled" not in plain[0]
        assert beside[-1]["student"] != pytest.approx(plain[-1]["student"], rel=1e-6)


def test_terms_are_means_over_the_text_without_labels_by_itself(tmp_path):
    """So what it is mixed at changes no weight: of the same contexts twice as large a weight is
    twice the term."""
    found = {}
    for weight in (1.0, 2.0):
        config = tiny(tmp_path, unlabelled={"weight": weight}, topology={"runner": "local"})
        found[weight] = losses(config, 1)[0]
    assert found[2.0]["unlabelled"] == pytest.approx(2 * found[1.0]["unlabelled"], rel=1e-5)
    assert found[2.0]["distillation"] == pytest.approx(found[1.0]["distillation"], rel=1e-6)


@pytest.mark.parametrize(
    ("terms", "wanted"),
    [
        ({"passes": "alone"}, {False}),
        ({"passes": "alone", "hidden_weight": 0.1, "match_passes": "fed"}, {True, False}),
        ({"weight": 0.0, "hidden_weight": 0.1, "match_passes": "fed"}, {True}),
    ],
)
def test_passes_are_those_that_distillation_is_for(tmp_path, terms, wanted):
    blueprint = resolve(tiny(tmp_path, distillation=terms))
    prepared = prepare_data(blueprint)
    plan = batch_plan(blueprint, prepared.training)
    feed = training_feed(blueprint, prepared.training, plan, blueprint.topology)
    own = [p for m in feed.plan(0).micro_batches for s in m.passes.values() for r in s for p in r]
    beside = [each for each in own if not each.labelled]
    assert {each.fed for each in beside} == wanted
    assert any(each.fed for each in own if each.labelled)


def test_the_teacher_must_be_sure(tmp_path):
    logits = torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    torch.testing.assert_close(confidence(logits), logits.softmax(-1).max(-1).values)
    sections: dict[str, Any] = {"topology": {"runner": "local"}}
    every = losses(tiny(tmp_path, **sections), 1)[0]
    none = losses(tiny(tmp_path, unlabelled={"min_confidence": 0.999}, **sections), 1)[0]
    assert none["unlabelled"] == 0.0  # nobody is, before training
    assert none["distillation"] == every["distillation"]
    softer = losses(tiny(tmp_path, unlabelled={"temperature": 5.0}, **sections), 1)[0]
    assert softer["unlabelled"] != pytest.approx(every["unlabelled"], rel=1e-3)


TASKS = ("ner", "classification", "relation", "qa")


def task_config(folder: Path, task: str, **sections: Any) -> Config:
    """A task, with a part of its own training rows as text without labels."""
    if task == "ner":
        return tiny(folder, **sections)
    make = tiny_qa if task == "qa" else lambda *args, **kw: tiny_task(args[0], task, **kw)
    sections.setdefault("distillation", {"weight": 0.5})
    plain = make(folder, **sections)
    rows = Path(str(plain.data.validation)).read_text(encoding="utf-8")
    (folder / "unlabelled.jsonl").write_text(rows, encoding="utf-8")
    data = plain.data.model_copy(update={"unlabelled": [str(folder / "unlabelled.jsonl")]})
    return plain.model_copy(update={"data": data})


@pytest.mark.parametrize("task", TASKS)
def test_every_task_of_words_and_rows_learns_of_it(tmp_path, task):
    config = task_config(tmp_path, task, topology={"runner": "local"})
    assert losses(config, 1)[0]["unlabelled"] > 0.0


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.replicas(2, 1)
@pytest.mark.parametrize(
    "task",
    [
        pytest.param(task, marks=() if task in ("ner", "qa") else pytest.mark.thorough)
        for task in TASKS
    ],
)
def test_ranks_have_the_losses_of_one_process(tmp_path, crews, task):
    schedule = {"epochs": 3, "micro_batches": 2}
    unlabelled = {"ratio": 0.6, "temperature": 3.0}
    config = task_config(tmp_path, task, schedule=schedule, unlabelled=unlabelled)
    check_equal_losses(config, (2, 1), crews)


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.replicas(1, 2)
def test_more_students_have_them_too(tmp_path, crews):
    check_equal_losses(tiny(tmp_path, schedule={"epochs": 3, "micro_batches": 2}), (1, 2), crews)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["sequential", "overlapped", "joint"])
def test_a_run_goes_on_amid_an_epoch_as_if_it_had_never_been_ended(tmp_path, schedule):
    config = tiny(
        tmp_path,
        teacher={"dropout": 0.1},
        student={"dropout": 0.1},
        **amid_an_epoch(schedule, tmp_path),
    )
    moved, ended = check_resumption(config, tmp_path), tmp_path / "ended"
    summary = json.loads((ended / "summary.json").read_text(encoding="utf-8"))
    assert summary["data"]["unlabelled"]["rows"] == 35
    shutil.rmtree(ended / "checkpoints" / "step-4")
    (ended / "summary.json").unlink()
    (tmp_path / "more.txt").write_text(TEXTS.replace("Ada", "Eve"), encoding="utf-8")
    with pytest.raises(UserError, match="is not what"):
        run_training(moved, resume=True)


def test_a_frozen_teacher_reads_it_once(tmp_path):
    sections: dict[str, Any] = {
        "topology": {"runner": "local"},
        "teacher": {"freeze": "all_but_head"},
        "embedding": {"frozen": True},
    }
    config = tiny(tmp_path, **sections)
    kept = losses(config)
    data = config.data.model_copy(update={"keep_states_gb": 0.0})
    anew = losses(config.model_copy(update={"data": data}))
    for one, other in zip(kept, anew, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_contexts_that_are_read_without_a_graph_give_the_same_terms(tmp_path):
    """`joint` reads all contexts of a step at once, `overlapped` those without labels apart."""
    found = []
    for schedule in ("joint", "overlapped"):
        config = tiny(
            tmp_path,
            schedule={"name": schedule, "micro_batches": 2},
            topology={"runner": "local"},
            embedding={"frozen": True},
            distillation={"weight": 0.5, "hidden_weight": 0.3, "relation_weight": 0.2},
        )
        found.append(losses(config, 1)[0])
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert min(found[0].values()) > 0.0


@pytest.mark.parametrize(
    ("terms", "student", "message"),
    [
        ({"passes": "alone"}, {"alone_weight": 0}, "distillation.passes is alone"),
        ({"passes": "fed"}, {"teacher_dropout": 1}, "distillation.passes is fed"),
        (
            {"weight": 0, "hidden_weight": 1, "match_passes": "alone"},
            {"alone_weight": 0},
            "distillation.match_passes is alone",
        ),
        ({"weight": 0, "relation_weight": 1, "passes": "alone"}, {"alone_weight": 0}, "passes is"),
    ],
)
def test_terms_are_for_passes_that_windows_have(tmp_path, terms, student, message):
    none = {"alone_weight": 0.0, "teacher_dropout": 0.0}
    with pytest.raises(UserError, match=message):
        tiny_config(tmp_path, distillation=terms, student={**none, **student})
    off = {"weight": 0, "passes": "alone"}
    tiny_config(tmp_path, distillation=off, student=none)
    tiny_config(tmp_path, distillation=terms, student={"alone_weight": 1, "teacher_dropout": 0.5})
