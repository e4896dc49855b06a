"""Losses of rare labels, and what distillation draws the student to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.helpers import local_crew, tiny_blueprint, tiny_config
from tests.suites.equivalence import Case, run_cases
from tsarch.config import LossConfig
from tsarch.errors import UserError
from tsarch.losses.hidden import hidden_distance
from tsarch.losses.objective import LabelObjective
from tsarch.losses.token import cross_entropy, distillation, divergence
from tsarch.pair.halves import Plain
from tsarch.prepare import prepare_data
from tsarch.records import IGNORED
from tsarch.stage.build import build_model
from tsarch.tasks.label_weights import label_weights
from tsarch.topology import Stage

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
FOUND = np.array([0] * 80 + [1] * 10 + [2] * 5 + [3] * 5)  # nobody is I-LOC
COUNTS = np.bincount(FOUND, minlength=len(TAGS))
NO_TABLE = torch.zeros(1, 1)


def test_balanced_weights_are_scikit_learns():
    from sklearn.utils.class_weight import compute_class_weight

    weights = label_weights(LossConfig(label_weights="balanced"), TAGS, COUNTS)
    expected = compute_class_weight("balanced", classes=np.arange(4), y=FOUND)
    np.testing.assert_allclose(weights[:4], expected)


def test_the_root_is_milder_and_the_mean_over_positions_stays_one():
    plain, root = (
        np.array(label_weights(LossConfig(label_weights=kind), TAGS, COUNTS))
        for kind in ("balanced", "balanced_sqrt")
    )
    for weights in (plain, root):
        assert weights[FOUND].mean() == pytest.approx(1)
    np.testing.assert_allclose(root[1] / root[0], np.sqrt(plain[1] / plain[0]))


def test_weights_by_name_take_a_label_or_an_entity_type():
    wanted = LossConfig(label_weights={"I-PER": 5.0, "PER": 3.0, "O": 0.5})
    assert label_weights(wanted, TAGS, COUNTS) == (0.5, 3.0, 5.0, 1.0, 1.0)


def test_every_unknown_name_is_one_mistake():
    wanted = LossConfig(label_weights={"GPE": 2.0, "O": 1.0, "B-ORG": 2.0})
    with pytest.raises(UserError) as caught:
        label_weights(wanted, TAGS, COUNTS)
    assert [m.what for m in caught.value.mistakes] == [
        "`GPE` is no label of train.",
        "`B-ORG` is no label of train.",
    ]


def test_a_task_without_labels_refuses_them_before_it_reads_data(tmp_path):
    blueprint = tiny_blueprint(
        tmp_path, task={"name": "qa"}, loss={"focal_gamma": 2.0, "label_weights": "balanced"}
    )
    with pytest.raises(UserError, match=r"loss\.focal_gamma: is for tasks with labels") as caught:
        prepare_data(blueprint)
    assert len(caught.value.mistakes) == 2


def test_the_loss_is_torchs_weighted_one_over_all_positions():
    logits, labels = torch.randn(2, 3, 5), torch.tensor([[0, IGNORED, 2], [3, 1, 4]])
    weights = [0.2, 1.0, 3.0, 0.7, 2.0]
    losses = LabelObjective(weights).losses(logits, labels, NO_TABLE)
    expected = F.cross_entropy(
        logits.flatten(0, 1),
        labels.flatten(),
        torch.tensor(weights),
        ignore_index=IGNORED,
        reduction="none",
    )
    torch.testing.assert_close(losses.flatten(), expected)


def test_the_focal_loss_is_less_where_the_label_is_likely_already():
    logits = torch.tensor([[[4.0, 0.0], [0.0, 4.0], [60.0, 0.0]]], requires_grad=True)
    labels = torch.tensor([[0, 0, 0]])
    plain = cross_entropy(logits, labels)
    losses = LabelObjective(None, 2.0).losses(logits, labels, NO_TABLE)
    p = logits.softmax(-1)[..., 0]
    torch.testing.assert_close(losses, (1 - p) ** 2 * plain)
    losses.sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_divergences_are_what_they_are_called():
    student, teacher = torch.randn(1, 1, 6).double(), torch.randn(1, 1, 6).double()
    labels = torch.zeros(1, 1, dtype=torch.long)
    q, p = ((x / 2).softmax(-1)[0, 0] for x in (student, teacher))
    middle = (p + q) / 2

    def kl(a, b):
        return (a * (a / b).log()).sum()

    expected = {
        "kl": kl(p, q),
        "reverse_kl": kl(q, p),
        "jensen_shannon": (kl(p, middle) + kl(q, middle)) / 2,
    }
    for kind, value in expected.items():
        found = distillation(student, teacher, labels, 2.0, kind)
        torch.testing.assert_close(found[0, 0], 4 * value)
    far = torch.tensor([0.0, -800.0]).double()
    found = divergence(far, far.flip(0), "jensen_shannon", dim=0)
    assert found == pytest.approx(np.log(2))


def test_hidden_states_are_compared_by_angle_or_by_squares():
    own, other = torch.tensor([[1.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 2.0], [6.0, 8.0]])
    assert hidden_distance(own, other, "cosine").tolist() == pytest.approx([1.0, 0.0])
    torch.manual_seed(0)
    near = torch.randn(64, 384)
    by = near + 1e-3 * torch.randn(64, 384)
    exact = 1 - torch.nn.functional.cosine_similarity(near.double(), by.double(), dim=-1)
    torch.testing.assert_close(
        hidden_distance(near, by, "cosine").double(), exact, rtol=1e-4, atol=0
    )
    assert hidden_distance(own, other, "mse").tolist() == pytest.approx([2.5, 12.5])


def test_hidden_states_come_out_in_training_alone(tmp_path):
    module = build_model(
        tiny_blueprint(tmp_path, distillation={"hidden_weight": 0.5}), Stage.STUDENT, 5
    ).module
    embeds, mask = [torch.randn(1, 4, 32)], [torch.ones(1, 4, dtype=torch.long)]
    inputs = embeds, mask, torch.zeros(1, 32), [torch.full((1, 4), -1)]
    predictions, hidden = module.train()(*inputs)
    assert predictions.shape == (1, 4, 5)
    assert hidden.shape == (1, 4, 32)
    assert len(Plain(module, torch.device("cpu"), torch.float32).forward(*inputs)) == 1


def losses_of_a_step(config) -> dict[str, float]:
    means: dict[str, float] = {}
    for reports in local_crew(config).train(0, 1):
        for report in reports:
            means |= report.losses.means
    return means


def test_hidden_states_are_drawn_in_the_passes_that_are_asked_for(tmp_path):
    found = {}
    for passes in ("all", "fed", "alone"):
        section = {"weight": 0.0, "hidden_weight": 0.3, "passes": passes}
        config = tiny_config(tmp_path, distillation=section, topology={"runner": "local"})
        found[passes] = losses_of_a_step(config)["hidden"]
    assert min(found.values()) > 0.0
    assert found["all"] == pytest.approx(found["fed"] + found["alone"], rel=1e-6)


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.replicas(2, 1)
def test_all_terms_are_the_same_on_any_ranks(tmp_path, crews):
    config = tiny_config(
        tmp_path,
        loss={"label_weights": "balanced", "focal_gamma": 1.5},
        distillation={
            "weight": 0.5,
            "divergence": "reverse_kl",
            "hidden_weight": 0.5,
            "hidden_loss": "mse",
        },
        schedule={"epochs": 3},
    )
    cases = [Case("overlapped", "adamw", (2, 1), (2, 3)), Case("joint", "sgd", (2, 1), (0, 3))]
    outcomes = list(run_cases(config, cases, 6, crews))
    assert [outcome.is_equal for outcome in outcomes] == [True, True], outcomes
