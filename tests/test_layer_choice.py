"""`student.layers: auto`: which layers go, and that the run has what was chosen."""

from __future__ import annotations

import pytest
import yaml

from tests.helpers import tiny_blueprint, tiny_config, write_jsonl
from tests.test_resume import end_at, local
from tsarch.errors import InterruptedRunError, UserError
from tsarch.launch.training import run_training
from tsarch.planning.layer_choice import choose, with_layers
from tsarch.planning.preflight import check_run
from tsarch.prepare import prepare_data
from tsarch.topology import Stage

AUTO = {"layers": "auto", "num_layers": 2}


def test_the_layer_that_is_missed_least_goes_first():
    worth = {0: 5.0, 1: 0.5, 2: 2.0, 3: 0.1}
    asked = []

    def loss(layers):
        asked.append(layers)
        return 10.0 - sum(worth[layer] for layer in layers)

    layers, losses = choose(4, 2, loss)
    assert layers == (0, 2)
    assert len(asked) == len(losses) == 1 + 4 + 3
    assert choose(3, 2, lambda _: 1.0)[0] == (0, 1), "of equal ones the last one goes"


def test_what_an_architecture_cant_do_without_stays():
    layers, _ = choose(3, 1, lambda layers: 1.0 if 0 in layers else None)
    assert layers == (0,)
    with pytest.raises(UserError, match="can be left out"):
        choose(3, 1, lambda layers: 1.0 if len(layers) == 3 else None)


@pytest.mark.parametrize(
    ("student", "what"),
    [
        ({"layers": "auto"}, "needs `num_layers`"),
        ({"num_layers": 3}, "`num_layers` is for `layers: auto`"),
        ({**AUTO, "depths": [1, 3]}, "`depths` has 3, the student 2 layers"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path, student, what):
    with pytest.raises(UserError, match=what):
        tiny_config(tmp_path, student=student)


def test_texts_have_no_readout(tmp_path):
    blueprint = tiny_blueprint(tmp_path, student=AUTO, task={"name": "translation"})
    with pytest.raises(UserError, match=r"student\.layers: auto: is for tasks with labels"):
        check_run(blueprint, own_ray=True)


def test_the_choice_is_the_same_each_time_and_heeds_what_layers_compute(tmp_path):
    blueprint = tiny_blueprint(tmp_path, student=AUTO)
    prepared = prepare_data(blueprint)
    said: list[str] = []
    first, second = (with_layers(blueprint, prepared, said.append) for _ in range(2))
    assert first.config == second.config
    chosen = first.stages[Stage.STUDENT].architecture.layers
    assert first.config.student.layers == list(chosen)
    assert not first.is_open.layers
    assert with_layers(first, prepared, said.append) is first
    assert "loss of a readout" in said[1]


def test_layers_are_not_chosen_by_a_window_that_judges_nothing(tmp_path):
    blueprint = tiny_blueprint(tmp_path, student=AUTO)
    row = {"tokens": ["Ada", "sings"], "tags": ["B-PER", "O"]}
    for split in ("train", "validation", "test"):
        write_jsonl(tmp_path / f"{split}.jsonl", [row])
    with pytest.raises(UserError, match=r"student\.layers: auto: needs two windows"):
        with_layers(blueprint, prepare_data(blueprint), print)


def test_a_run_says_what_it_chose_and_keeps_it(tmp_path, capsys):
    config = local(tmp_path, "run", student=AUTO, schedule={"max_steps": 2})
    run_training(config)
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["student"]
    assert len(saved["layers"]) == saved["num_layers"] == 2
    assert f"student.layers: auto: {saved['layers']}" in capsys.readouterr().out


@pytest.mark.slow
def test_a_resumed_run_keeps_what_was_chosen(tmp_path, monkeypatch, capsys):
    config = local(tmp_path, "run", student=AUTO)
    with monkeypatch.context() as patch:
        end_at(patch, 3)
        with pytest.raises(InterruptedRunError, match="saved at step"):
            run_training(config)
    chosen = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["student"]["layers"]
    capsys.readouterr()
    run_training(config, resume=True)
    assert "measuring which" not in capsys.readouterr().out
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["student"]["layers"]
    assert saved == chosen
