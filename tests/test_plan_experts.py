"""`tsarch plan` of models of experts, and of models that can't be run without values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import tiny_blueprint
from tsarch.errors import UserError
from tsarch.planning.hardware import GPUS
from tsarch.planning.stage_profile import profile
from tsarch.prepare import prepare_data
from tsarch.topology import Stage

EXPERTS: dict[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


def experts_of(kind: str, folder: Path, experts: int, chosen: int) -> dict[str, float]:
    """Phase → FLOPs of experts in a teacher's step, and the tokens that it reads."""
    from tsarch.feeds import batch_plan, training_feed
    from tsarch.planning.dry_stage import dry_step

    own = {"num_experts_per_tok": chosen, "num_local_experts": experts, "num_experts": experts}
    config = {**EXPERTS, "model_type": kind, "moe_intermediate_size": 48, **own}
    blueprint = tiny_blueprint(
        folder, teacher={"config": config}, student={"layers": [0]}, topology={"runner": "local"}
    )
    prepared = prepare_data(blueprint)
    train = prepared.training
    plan = batch_plan(blueprint, train)
    feed = training_feed(blueprint, train, plan, blueprint.topology)
    step = dry_step(blueprint, prepared, Stage.TEACHER, feed, 0)
    found = {
        phase: float(sum(n * op.flops for op, n in ops.items() if "grouped_mm" in op.name))
        for phase, ops in step.ops.items()
    }
    return {**found, "tokens": float(train.context_lengths[plan.contexts(0)].sum())}


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe"])
def test_tokens_are_multiplied_with_the_experts_that_they_are_sent_to(tmp_path, kind):
    few, many = (experts_of(kind, tmp_path, number, 2) for number in (4, 8))
    assert few == many
    products = 3 * 2 * 32 * 48  # gate, up and down
    assert few["forward"] == pytest.approx(2 * few["tokens"] * 2 * products)
    assert few["backward"] == 2 * few["forward"]
    assert experts_of(kind, tmp_path, 4, 1)["forward"] == few["forward"] / 2


def test_products_of_experts_are_tried_out_in_like_groups():
    from tsarch.planning.dry_ops import _in_like_groups, dry

    a, b = torch.randn(10, 8), torch.randn(2, 8, 4)
    whole = torch.cat([a[:5] @ b[0], a[5:] @ b[1]])
    nowhere = torch.zeros(2, dtype=torch.int32)
    torch.testing.assert_close(_in_like_groups(a, b, nowhere), whole)
    sides = ((a, b), (torch.randn(8, 12), torch.randn(12, 4)), (b, torch.randn(4, 12)), (b, b.mT))
    for left, right in sides:
        offs = None if left.ndim == right.ndim == 3 else nowhere
        with dry() as recorder:
            recorder.phase = "here"
            said = torch._grouped_mm(torch.empty_like(left), torch.empty_like(right), offs)
        assert said.shape == _in_like_groups(left, right, offs).shape
        assert next(op.flops for op in recorder.ops["here"] if "grouped" in op.name) > 0


def test_what_depends_on_values_is_one_mistake(tmp_path, monkeypatch):
    from tsarch.planning import dry_stage

    blueprint = tiny_blueprint(tmp_path)
    prepared = prepare_data(blueprint)

    def quicken(_: Any, __: Any, module: torch.nn.Module) -> None:
        module.register_forward_pre_hook(lambda *_: torch.rand(3).nonzero())

    monkeypatch.setattr(dry_stage, "quicken", quicken)
    with pytest.raises(UserError, match=r"teacher: bert can't be run without values.*nonzero"):
        profile(blueprint, prepared, Stage.TEACHER, GPUS["h100"], 0.0)
