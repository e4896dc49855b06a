"""What is matched besides predictions: layers' hidden states, and relations in the attention."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from tests.helpers import local_crew, tiny_blueprint, tiny_config, tiny_raw
from tests.suites.equivalence import Case, run_cases
from tests.test_resume import assert_same, end_at, local, rows
from tsarch.blueprint import resolve
from tsarch.config_loading import parse_config
from tsarch.errors import InterruptedRunError, UserError
from tsarch.export.models import without_projection
from tsarch.feeds import batch_plan, training_feed
from tsarch.launch.training import run_training
from tsarch.losses.relations import relation_divergence
from tsarch.planning.dry_stage import dry_step
from tsarch.planning.preflight import check_run
from tsarch.prepare import prepare_data
from tsarch.stage.build import build_model, show
from tsarch.stage.matching import layer_pairs, matching_of
from tsarch.topology import Stage, Topology

RELATIONS = {"weight": 0.0, "relation_weight": 1.0, "relations": ["values", "attention"]}
LAYERS = {"weight": 0.0, "hidden_weight": 0.5, "hidden_layers": [[0, 1], [1, 2]]}


def losses_of_a_step(folder: Path, **section) -> dict[str, float]:
    config = tiny_config(folder, distillation=section, topology={"runner": "local"})
    means: dict[str, float] = {}
    for reports in local_crew(config).train(0, 1):
        for report in reports:
            means |= report.losses.means
    return means


def test_relations_are_minilms():
    own, other = torch.randn(1, 3, 8), torch.randn(1, 3, 12)
    readable = torch.ones(1, 3, dtype=torch.bool)
    found = relation_divergence((own, own), (other, other), readable, num_heads=2)
    expected = []
    for head in range(2):
        s, t = own[0, :, 4 * head :][:, :4], other[0, :, 6 * head :][:, :6]
        student = (s @ s.T / 4**0.5).log_softmax(-1)
        teacher = (t @ t.T / 6**0.5).softmax(-1)
        expected.append(F.kl_div(student, teacher, reduction="none").sum(-1))
    wanted = torch.stack(expected).mean(0).double()
    torch.testing.assert_close(found[0], wanted, rtol=1e-5, atol=1e-6)


def test_relations_are_to_tokens_that_came_alone_and_padding_changes_nothing():
    own, other = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    readable = torch.tensor([[True] * 3 + [False] * 2] * 2)
    found = relation_divergence((own, own), (other, other), readable, 2)[:, :3]
    short = relation_divergence(
        (own[:, :3], own[:, :3]), (other[:, :3], other[:, :3]), readable[:, :3], 2
    )
    torch.testing.assert_close(found, short)
    nowhere = torch.zeros_like(readable)
    assert torch.isfinite(relation_divergence((own, own), (other, other), nowhere, 2)).all()
    assert relation_divergence((own, own), (own, own), readable, 2).abs().max() < 1e-12


@pytest.mark.parametrize("unpadded", [True, False])
def test_what_is_shown_is_what_the_layers_compute(tmp_path, unpadded):
    """Beside transformers' own hidden states, and the values' layer on them."""
    section = {"hidden_weight": 1.0, "hidden_layers": [[0, 0]], "relation_weight": 1.0}
    blueprint = tiny_blueprint(tmp_path, distillation=section, data={"unpadded": unpadded})
    module = build_model(blueprint, Stage.TEACHER, 5).module
    embeds, mask = torch.randn(2, 4, 32), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    with torch.no_grad():
        plain = module.backbone(
            inputs_embeds=embeds * mask.unsqueeze(-1),
            attention_mask=mask,
            output_hidden_states=True,
        )
        values = module.backbone.encoder.layer[2].attention.self.value(plain.hidden_states[2])
        if unpadded:
            from tsarch.stage.build import unpad

            unpad(blueprint, Stage.TEACHER, module)
        show(blueprint, Stage.TEACHER, module)
        hidden, _, shown = module.train()(embeds, mask)
        assert len(module.eval()(embeds, mask)) == 2, "only in training"
    real = mask.bool()
    torch.testing.assert_close(hidden[real], plain.last_hidden_state[real])
    torch.testing.assert_close(shown[..., :32][real], plain.hidden_states[1][real])
    torch.testing.assert_close(shown[..., 32:][real], values[real])


def test_a_rule_pairs_layers_that_are_as_far_up(tmp_path):
    section = {"hidden_weight": 1.0, "hidden_layers": "uniform"}
    assert layer_pairs(tiny_blueprint(tmp_path, distillation=section)) == [(0, 1), (None, None)]
    three = tiny_blueprint(tmp_path, distillation=section, student={"layers": [0, 1, 2]})
    assert layer_pairs(three) == [(0, 0), (1, 1), (None, None)]
    assert layer_pairs(tiny_blueprint(tmp_path)) == []


def test_nothing_more_travels_than_a_term_needs(tmp_path):
    def width(**section):
        found = matching_of(tiny_blueprint(tmp_path, distillation=section))
        return None if found is None else found.width

    assert width() is None
    assert width(hidden_weight=1.0) == 0
    assert width(hidden_weight=1.0, hidden_layers=[[0, 1], [1, 1]]) == 32
    assert width(relation_weight=1.0) == 32
    assert width(relation_weight=1.0, relations=["attention", "queries"]) == 64


@pytest.mark.parametrize("section", [RELATIONS, LAYERS], ids=["relations", "layers"])
def test_terms_are_for_the_passes_that_they_are_asked_for(tmp_path, section):
    name = "relation" if section is RELATIONS else "hidden"
    found = {
        passes: losses_of_a_step(tmp_path, **section, match_passes=passes)[name]
        for passes in ("all", "fed", "alone")
    }
    assert min(found.values()) > 0.0
    assert found["all"] == pytest.approx(found["fed"] + found["alone"], rel=1e-6)


@pytest.mark.parametrize(
    ("section", "what"),
    [
        ({"relation_weight": 1.0, "relation_heads": 5}, "student's values are 32 wide"),
        ({"hidden_weight": 1.0, "hidden_layers": [[2, 0]]}, r"\[2\] are not among the student's"),
        ({"hidden_weight": 1.0, "hidden_layers": [[0, 3]]}, r"\[3\] are not among the teacher's"),
    ],
)
def test_what_models_dont_have_is_refused_before_they_start(tmp_path, section, what):
    with pytest.raises(UserError, match=what):
        check_run(tiny_blueprint(tmp_path, distillation=section), own_ray=True)


def test_relations_ask_for_a_teacher(tmp_path):
    raw = tiny_raw(tmp_path, distillation={"weight": 0.0, "relation_weight": 1.0})
    raw["student"] = None
    with pytest.raises(UserError, match=r"distillation\.relation_weight can't be asked"):
        parse_config(raw, "tiny")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "step"), [({"name": "overlapped"}, 4), ({"name": "joint", "micro_batches": 2}, 7)]
)
def test_a_resumed_run_is_the_same_to_the_bit(tmp_path, monkeypatch, schedule, step):
    """Also where states were under way when it ended."""
    section = {**RELATIONS, "hidden_weight": 0.5, "hidden_layers": "uniform"}
    sections = {"schedule": {"epochs": 2, **schedule}, "distillation": section}
    run_training(local(tmp_path, "whole", **sections))
    with monkeypatch.context() as patch:
        end_at(patch, step)
        with pytest.raises(InterruptedRunError, match="saved at step"):
            run_training(local(tmp_path, "halves", **sections))
    run_training(local(tmp_path, "halves", **sections), resume=True)
    assert_same(tmp_path / "halves", tmp_path / "whole")
    assert {"loss_hidden", "loss_relation"} <= set(rows(tmp_path / "whole")[0])


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.replicas(2, 1)
def test_terms_are_the_same_on_any_ranks(tmp_path, crews):
    config = tiny_config(
        tmp_path,
        distillation={
            "weight": 0.5,
            "relation_weight": 0.7,
            "relations": ["values", "attention"],
            "hidden_weight": 0.5,
            "hidden_loss": "mse",
            "hidden_layers": [[0, 1], [1, 2], [1, 0]],
            "match_passes": "alone",
        },
        schedule={"epochs": 3},
    )
    cases = [Case("overlapped", "adamw", (2, 1), (2, 3)), Case("joint", "sgd", (2, 1), (0, 3))]
    outcomes = list(run_cases(config, cases, 6, crews))
    assert [outcome.is_equal for outcome in outcomes] == [True, True], outcomes


def test_the_maps_stay_behind_when_a_student_is_exported(tmp_path):
    blueprint = resolve(tiny_config(tmp_path, distillation=LAYERS))
    module = build_model(blueprint, Stage.STUDENT, 5).module
    names = [name for name, _ in module.named_parameters() if name.startswith("hidden_map")]
    assert names == [f"hidden_map.{n}.{kind}" for n in (0, 1) for kind in ("weight", "bias")]
    assert without_projection(module, alone=True).hidden_map is None


@pytest.mark.slow
def test_a_plan_counts_what_travels(tmp_path):
    """Of models with layers enough that not all of them are run."""
    deep = {**tiny_raw(tmp_path)["teacher"]["config"], "num_hidden_layers": 8}
    found = {}
    for name, section in {"none": {}, "relations": RELATIONS, "layers": LAYERS}.items():
        blueprint = tiny_blueprint(
            tmp_path, teacher={"config": deep}, distillation={**section, "weight": 0.0}
        )
        prepared = prepare_data(blueprint)
        plan = batch_plan(blueprint, prepared.training)
        feed = training_feed(blueprint, prepared.training, plan, Topology.pair(1, 1))
        stages = [Stage.TEACHER, Stage.STUDENT]
        steps = [dry_step(blueprint, prepared, stage, feed, 0) for stage in stages]
        num_states = sum(len(route.places) for route in feed.routes(0, 0))
        found[name] = steps[0].link_bytes / num_states / 4
    assert found == {"none": 32, "relations": 3 * 32 + 32, "layers": 2 * 32 + 32}
