"""A finished run goes on with new data; the better version is the one that is used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.generative_configs import generative_config
from tests.helpers import WIKIGOLD, tiny_config, write_jsonl
from tests.test_pair import run_of
from tests.test_refit_lineage import finished_run
from tests.test_saved_run import command, rows_of
from tsarch.blueprint import resolve
from tsarch.config_loading import dump_config, load_config
from tsarch.errors import RunFailedError, UserError
from tsarch.launch.refit import history_rows, refit_run, roll_back
from tsarch.launch.training import run_training
from tsarch.model_folder import load_table, load_weights
from tsarch.planning.start import start_mistakes
from tsarch.prediction.loading import load
from tsarch.refit.lineage import FIRST, Lineage
from tsarch.refit.records import Record
from tsarch.refit.refit import Known, Refit
from tsarch.refit.settings import Request
from tsarch.run.versions import current_folder
from tsarch.topology import STAGES

REQUEST = Request(epochs=1, margin=100.0, held_out=0.3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with a finished run and files that are new to it."""
    folder = tmp_path_factory.mktemp("trained")
    config = tiny_config(
        folder,
        topology={"runner": "local", "threads": 1},
        schedule={"epochs": 3},
        checkpoint={"at_epochs": False, "every_s": None},
        evaluation={"before": False},
    )
    run_training(config)
    rows = rows_of(WIKIGOLD / "train.jsonl")
    write_jsonl(folder / "new.jsonl", rows[200:260])
    write_jsonl(folder / "more.jsonl", rows[300:340])
    return folder


@pytest.fixture
def lineage(trained, tmp_path) -> Lineage:
    shutil.copytree(trained / "run", tmp_path / "run")
    return Lineage(tmp_path / "run")


def train(config: Any, resume: bool) -> Any:
    return run_training(config, None, resume)


def refit(lineage: Lineage, file: Path, request: Request = REQUEST, **options: Any) -> Any:
    with lineage.locked():
        return Refit(lineage, request, options.pop("train", train), print).run(
            [str(file)], **options
        )


@pytest.mark.slow
def test_a_run_starts_from_the_weights_and_labels_of_another(trained, tmp_path):
    run = trained / "run"
    config = load_config(run / "config.yaml")
    blueprint = resolve(config).altered(
        run={"folder": str(tmp_path / "second"), "start_from": str(run / "model")},
        optimizer=dict.fromkeys(
            (f"{own}_learning_rate" for own in ("teacher", "student", "embedding")), 1e-30
        ),
        schedule={"epochs": 1},
    )
    run_training(blueprint.config)
    models = run / "model", tmp_path / "second" / "model"
    for stage in STAGES:
        first, second = (load_weights(model, stage) for model in models)
        assert all(first[name].equal(second[name]) for name in {*first, *second})
    assert load_table(models[0]).equal(load_table(models[1]))


def test_weights_of_other_models_are_refused_before_anything_starts(trained, tmp_path):
    config = load_config(trained / "run" / "config.yaml")
    start = {"start_from": str(trained / "run" / "model")}
    assert list(start_mistakes(resolve(config).altered(run=start))) == []
    other = resolve(config).altered(run=start, student={"layers": [0, 1, 2]})
    (mistake,) = start_mistakes(other)
    assert mistake.where.endswith("model/student.safetensors")
    assert "missing where" in mistake.what
    shutil.copytree(trained / "run" / "model", tmp_path / "model")
    (tmp_path / "model" / "teacher.safetensors").write_bytes(b"torn")
    torn = resolve(config).altered(run={"start_from": str(tmp_path / "model")})
    assert "can't be read" in next(start_mistakes(torn)).what


@pytest.mark.slow
def test_versions_follow_one_another_and_are_told(lineage, trained, capsys):
    first = load(lineage.run).revision
    own = refit(lineage, trained / "new.jsonl")
    assert (own.version, own.parent, own.accepted) == ("v2", FIRST, True)
    assert own.rows["new"] > 0
    assert own.rows["held_out"] > 0
    assert own.rows["replayed"] > 0
    assert {*own.metrics["test"]["old"]} == {"teacher", "student", "joint", "student_alone"}
    assert current_folder(lineage.run) == lineage.folder("v2")
    second = load(lineage.run).revision
    assert second != first
    assert not (lineage.folder("v2") / "checkpoints").exists()

    known = refit(lineage, trained / "new.jsonl")
    assert isinstance(known, Known)
    assert known.record == own

    more = refit(lineage, trained / "more.jsonl", Request(epochs=1, margin=-1e9))
    assert (more.version, more.parent, more.accepted) == ("v3", "v2", False)
    assert "more than the margin" in more.reason
    assert current_folder(lineage.run) == lineage.folder("v2")

    capsys.readouterr()
    status, text = command(["history", str(lineage.run), "--json"], capsys)
    assert status == 0
    rows = json.loads(text)
    assert [row["outcome"] for row in rows] == ["taken", "taken", "not taken"]
    assert [row["current"] for row in rows] == [False, True, False]
    status, text = command(["history", str(lineage.run)], capsys)
    assert f"v3: {more.reason}" in text

    roll_back(lineage.run, None)
    assert lineage.current == FIRST
    assert load(lineage.run).revision == first
    roll_back(lineage.run, "v3")
    assert lineage.current == "v3"
    with pytest.raises(UserError, match="has no version v7: v1, v2, v3"):
        roll_back(lineage.run, "v7")
    assert [row["current"] for row in history_rows(lineage)] == [False, False, True]


def rows_in(lineage: Lineage, name: str, file: str) -> set[str]:
    return {str(row["tokens"]) for row in rows_of(lineage.refit_folder(name) / file)}


@pytest.mark.slow
@pytest.mark.thorough
def test_a_run_that_alters_words_goes_on_and_alters_them(trained, tmp_path):
    own = resolve(load_config(trained / "run" / "config.yaml")).altered(
        run={"folder": str(tmp_path / "run"), "start_from": str(trained / "run" / "model")},
        data={"augmentation": {"mask": 0.3, "swap": 0.3}},
        schedule={"epochs": 1, "max_steps": 1},
    )
    run_training(own.config)
    lineage = Lineage(tmp_path / "run")
    for file, name in (("new.jsonl", "v2"), ("more.jsonl", "v3")):
        assert refit(lineage, trained / file).version == name
        assert load_config(lineage.folder(name) / "config.yaml").data.augmentation.mask == 0.3
        assert load(lineage.folder(name)).predict(["Ada met Babbage."])


def renamed(rows: Path, target: Path) -> Path:
    """A file of rows whose words have another column."""
    named = [{"words": own.pop("tokens"), **own} for own in rows_of(rows)]
    return write_jsonl(target, named)


def with_text(lineage: Lineage, trained: Path, folder: Path) -> Path:
    """Let a run have learned of text without labels, in a file with columns of another name."""
    rows = rows_of(trained / "more.jsonl")
    text = write_jsonl(folder / "text.jsonl", [{"words": own["tokens"]} for own in rows])
    files = {
        split: str(renamed(trained / f"{split}.jsonl", folder / f"{split}.jsonl"))
        for split in ("train", "validation", "test")
    }
    config = load_config(lineage.run / "config.yaml")
    columns = {**config.data.columns, "tokens": "words"}
    own = resolve(config).altered(
        data={"unlabelled": str(text), "columns": columns, **files}, distillation={"weight": 0.5}
    )
    (lineage.run / "config.yaml").write_text(dump_config(own.config))
    return text


@pytest.mark.slow
def test_text_without_labels_is_learned_of_further_however_its_columns_are_called(
    lineage, trained, tmp_path
):
    text = with_text(lineage, trained, tmp_path)
    assert refit(lineage, renamed(trained / "new.jsonl", tmp_path / "new.jsonl")).version == "v2"
    kept = lineage.refit_folder("v2") / "unlabelled.jsonl"
    assert [own["tokens"] for own in rows_of(kept)] == [own["words"] for own in rows_of(text)]
    summary = json.loads((lineage.folder("v2") / "summary.json").read_text())
    assert summary["data"]["unlabelled"]["rows"] == len(rows_of(text))


@pytest.mark.slow
def test_text_without_labels_that_is_gone_is_told_and_can_be_done_without(
    lineage, trained, tmp_path
):
    with_text(lineage, trained, tmp_path).unlink()
    new = renamed(trained / "new.jsonl", tmp_path / "new.jsonl")
    told = refused(lineage, new)
    assert "text.jsonl: names no file." in told
    assert "--set data.unlabelled=null" in told
    without = Request(epochs=1, margin=100.0, overrides=("data.unlabelled=null",))
    assert refit(lineage, new, without, train=copied).version == "v2"
    assert not (lineage.refit_folder("v2") / "unlabelled.jsonl").exists()


class CutOffError(RuntimeError):
    """The process ends here."""


def copied(config: Any, resume: bool) -> Any:
    """In place of training: the weights as they are."""
    folder, model = Path(config.run.folder), Path(config.run.start_from)
    shutil.copytree(model, folder / "model")
    (folder / "config.yaml").write_text(dump_config(config))
    (folder / "summary.json").write_text("{}")


def cut_before(config: Any, resume: bool) -> Any:
    raise CutOffError


def cut_after(config: Any, resume: bool) -> Any:
    copied(config, resume)
    raise CutOffError


def no_switch(self: Lineage, name: str, why: str) -> None:
    raise CutOffError


@pytest.mark.slow
@pytest.mark.parametrize("place", ["before training", "after training", "after the decision"])
def test_a_refit_that_was_cut_off_is_finished_by_the_same_call(
    lineage, trained, monkeypatch, place
):
    act = {"before training": cut_before, "after training": cut_after}.get(place, copied)
    with monkeypatch.context() as patch:
        if act is copied:
            patch.setattr(Lineage, "make_current", no_switch)
        with pytest.raises(CutOffError):
            refit(lineage, trained / "new.jsonl", train=act)
    found = refit(lineage, trained / "new.jsonl", train=copied)
    record: Record = found.record if isinstance(found, Known) else found
    assert record.accepted
    assert [own.version for own in lineage.records()] == ["v2"]
    assert lineage.current == "v2"


@pytest.mark.slow
def test_an_unfinished_refit_of_other_data_is_discarded(lineage, trained, capsys):
    def fail(config: Any, resume: bool) -> Any:
        raise RunFailedError("a rank failed")

    with pytest.raises(RunFailedError):
        refit(lineage, trained / "new.jsonl", train=fail)
    capsys.readouterr()
    own = refit(lineage, trained / "more.jsonl", train=copied)
    assert "was never finished: discarded" in capsys.readouterr().out
    assert [(r.version, r.source) for r in lineage.records()] == [
        (own.version, str(trained / "more.jsonl"))
    ]


def no_training(config: Any, resume: bool) -> Any:
    raise AssertionError("nothing may be trained")


def refused(lineage: Lineage, file: Path, request: Request = REQUEST) -> str:
    with pytest.raises(UserError) as caught:
        refit(lineage, file, request, train=no_training)
    assert lineage.records() == []
    assert not (lineage.run / "current.json").exists()
    return str(caught.value)


def test_labels_that_the_run_does_not_know_are_refused(lineage, trained, tmp_path):
    rows = rows_of(trained / "new.jsonl")
    rows[3]["tags"][0] = "B-SHIP"
    told = refused(lineage, write_jsonl(tmp_path / "ships.jsonl", rows))
    assert "ships.jsonl:4: label `SHIP` is not among those that the run was trained with" in told


def test_old_data_that_is_gone_is_told_and_can_be_done_without(lineage, trained, tmp_path):
    config = (lineage.run / "config.yaml").read_text()
    gone = config.replace(str(trained / "train.jsonl"), str(tmp_path / "gone.jsonl"))
    (lineage.run / "config.yaml").write_text(gone)
    told = refused(lineage, trained / "new.jsonl")
    assert told.startswith(f"data.train: {tmp_path / 'gone.jsonl'}: is not there.")
    assert "--replay 0" in told
    with pytest.raises(RunFailedError):
        refit(
            lineage,
            trained / "new.jsonl",
            Request(replay=0.0, epochs=1),
            train=lambda config, resume: (_ for _ in ()).throw(RunFailedError("reached")),
        )
    assert lineage.records()[0].rows["replayed"] == 0


@pytest.mark.parametrize(
    "override",
    [
        *("teacher.model=x", "student.layers=[0]", "task.name=qa", "run.folder=x"),
        "teacher.boundary_layer=1",
    ],
)
def test_keys_of_trained_models_cannot_be_changed(lineage, trained, override):
    request = Request(overrides=(override,))
    assert "the run's models are trained already" in refused(
        lineage, trained / "new.jsonl", request
    )


def test_columns_and_formats_of_new_files_may_be_others(lineage, trained, tmp_path):
    lines = []
    for row in rows_of(trained / "new.jsonl"):
        lines += [f"{word}\t{tag}" for word, tag in zip(row["tokens"], row["tags"])] + [""]
    (tmp_path / "new.conll").write_text("\n".join(lines), encoding="utf-8")
    seen: list[Any] = []

    def look(config: Any, resume: bool) -> Any:
        seen.append(config)
        raise RunFailedError("reached")

    with pytest.raises(RunFailedError):
        refit(lineage, tmp_path / "new.conll", train=look)
    (config,) = seen
    assert config.data.train == str(lineage.refit_folder("v2") / "train.jsonl")
    assert config.optimizer.teacher_learning_rate == pytest.approx(2e-3 * REQUEST.rate_factor)
    assert config.schedule.epochs == REQUEST.epochs
    held = rows_in(lineage, "v2", "held-out.jsonl")
    assert held
    assert not held & rows_in(lineage, "v2", "train.jsonl")


def test_the_commands_say_what_is_wrong(tmp_path, capsys):
    status, text = command(["refit", str(tmp_path), "--data", "x.jsonl"], capsys)
    assert (status, "is not a finished run" in text) == (2, True)
    status, text = command(["history", str(tmp_path)], capsys)
    assert (status, "is not a finished run" in text) == (2, True)
    run = finished_run(tmp_path / "run")
    status, text = command(["rollback", str(run)], capsys)
    assert (status, "v1 is the first version" in text) == (2, True)


@pytest.mark.slow
def test_the_exit_status_says_whether_the_version_was_taken(lineage, trained, monkeypatch):
    monkeypatch.setattr("tsarch.launch.refit.training", lambda address: copied)
    file = [str(trained / "new.jsonl")]
    assert refit_run(lineage.run, file, Request(margin=-1.0), False, None) == 3
    with pytest.raises(UserError, match=r"has the rows of v2 \(not taken on .*; --again|--again"):
        refit_run(lineage.run, file, REQUEST, False, None)
    assert refit_run(lineage.run, file, REQUEST, True, None) == 0


def rates(value: float) -> dict[str, float]:
    return {f"{own}_learning_rate": value for own in ("teacher", "student", "embedding")}


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.ranks
@pytest.mark.parametrize("zero_stage", [1, 3])
def test_sharded_ranks_start_from_the_weights_too(trained, tmp_path, zero_stage):
    """Ranks of both stages, the teacher's sharded; the rates are too small to change a weight."""
    run, stage = trained / "run", {"replicas": 2, "zero_stage": zero_stage}
    blueprint = resolve(load_config(run / "config.yaml")).altered(
        run={"folder": str(tmp_path / "second"), "start_from": str(run / "model")},
        optimizer=rates(1e-30),
        schedule={"epochs": 1, "max_steps": 2},
        topology={"runner": "processes", "teacher": stage, "threads": 1},
    )
    run_training(blueprint.config)
    models = run / "model", tmp_path / "second" / "model"
    for own in STAGES:
        first, second = (load_weights(model, own) for model in models)
        assert all(first[name].equal(second[name]) for name in {*first, *second})
    assert load_table(models[0]).equal(load_table(models[1]))


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.ray
def test_a_run_is_refitted_on_ray(lineage, trained):
    file = [str(trained / "new.jsonl")]
    overrides = ("topology.runner=ray", "topology.student.replicas=2", "topology.threads=1")
    request = Request(epochs=1, margin=100.0, held_out=0.0, overrides=overrides)
    assert refit_run(lineage.run, file, request, False, None) == 0
    summary = json.loads((lineage.folder("v2") / "summary.json").read_text())
    assert (summary["runner"], summary["student"]["replicas"]) == ("ray", 2)
    assert lineage.current == "v2"


def reworded(row: dict[str, Any]) -> dict[str, Any]:
    """A row that the run hasn't seen, with the same label."""
    if "tokens" in row:
        return {**row, "tokens": [*row["tokens"], "again"]}
    if "history" in row:
        return {**row, "history": [*row["history"], "and so on"]}
    name = next(own for own in ("question", "text", "source", "document") if own in row)
    extra = {"id": f"new-{row['id']}"} if "id" in row else {}
    return {**row, **extra, name: f"again {row[name]}"}


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("task", ["classification", "relation", "qa", "gpt2", "t5"])
def test_runs_of_every_kind_are_refitted(tmp_path, task):
    if task in ("gpt2", "t5"):
        config = generative_config(
            tmp_path,
            "dialogue" if task == "gpt2" else "translation",
            task,
            run={"folder": str(tmp_path / "run")},
            topology={"runner": "local", "threads": 1},
            evaluation={"before": False},
            schedule={"max_steps": 3},
        )
    else:
        config = run_of(tmp_path, task)
    run_training(config)
    rows = [reworded(row) for row in rows_of(str(config.data.train))][:30]
    lineage = Lineage(tmp_path / "run")
    own = refit(lineage, write_jsonl(tmp_path / "new.jsonl", rows))
    assert own.accepted is not None
    assert {*own.scores} == {"test", "held_out"}
    assert own.rows["new"] + own.rows["held_out"] <= 30
    assert (lineage.folder("v2") / "model" / "task.json").is_file()
