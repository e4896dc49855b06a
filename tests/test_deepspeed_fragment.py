"""`teacher.deepspeed`: merged over ours, refused where tsarch has a key or DeepSpeed has none."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.helpers import ROOT, tiny_blueprint, tiny_config
from tsarch.blueprint import resolve
from tsarch.config_loading import load_config
from tsarch.errors import UserError
from tsarch.planning.preflight import check_run, run_notes
from tsarch.stage.deepspeed_config import check_fragment, engine_config, merge, stage_extra
from tsarch.topology import STAGES, Stage

ON_CPU = {"device": "cpu", "pin_memory": False}


def mistakes(tmp_path, fragment, **topology):
    sections = {"student": {"deepspeed": fragment}, "topology": {"student": topology}}
    teacher, student = _all_mistakes(tiny_blueprint(tmp_path, **sections))
    assert teacher == []
    return [str(mistake) for mistake in student]


def _all_mistakes(blueprint):
    return [check_fragment(s, own.engine, "fp32", 1) for s, own in blueprint.stages.items()]


@pytest.mark.parametrize(
    "fragment",
    [
        {"zero_optimization": {"reduce_bucket_size": 1000, "stage3_max_reuse_distance": 1}},
        {"zero_optimization": {"offload_optimizer": {"device": "nvme", "nvme_path": "/x"}}},
        {"comms_logger": {"enabled": True}, "flops_profiler": {"enabled": True}},
        {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"},
        {"bf16": {"check_grad_overflow": False}, "wall_clock_breakdown": True},
        {"aio": {"block_size": 1}, "checkpoint": {"tag_validation": "Warn"}},
    ],
)
def test_what_deepspeed_knows_passes(tmp_path, fragment):
    assert mistakes(tmp_path, fragment, zero_stage=2) == []


@pytest.mark.parametrize(
    ("fragment", "expected"),
    [
        (
            {"gradient_clipping": 1.0},
            "gradient_clipping: is set by tsarch. Use optimizer.clip_norm",
        ),
        ({"train_batch_size": 8}, "train_batch_size: is set by tsarch. Use data.batch_tokens"),
        ({"bf16": {"enabled": True}}, "bf16.enabled: is set by tsarch. Use precision"),
        ({"fp16": {"enabled": True}}, "fp16: is set by tsarch. Use precision"),
        ({"optimizer": {"type": "Adam"}}, "optimizer: is set by tsarch. Use optimizer.name"),
        (
            {"zero_optimization": {"stage": 3}},
            "zero_optimization.stage: is set by tsarch. Use topology.student.zero_stage",
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "none"}}},
            "offload_optimizer.device: is set by tsarch. Use topology.student.offload_optimizer",
        ),
        ({"activation_checkpointing": {}}, "Use student.activation_checkpointing"),
        ({"gradient_allreduce_op": "sum"}, "gradient_allreduce_op: can't be changed"),
        (
            {"steps_per_prnt": 1},
            "steps_per_prnt: is not a key of DeepSpeed's. Did you mean `steps_",
        ),
        (
            {"zero_optimization": {"overlap_com": True}},
            "overlap_com: is not a key of DeepSpeed's. Did",
        ),
        ({"flops_profiler": {"profile_stp": 1}}, "flops_profiler.profile_stp: is not a key"),
        ({"bf16": {"check_overflow_grad": True}}, "Did you mean `check_grad_overflow`?"),
        ({"zero_optimization": {"reduce_bucket_size": "many"}}, "should be a valid integer"),
        ({"zero_optimization": {"mics_shard_size": 2}}, "DeepSpeed refuses it: MiCS"),
        ({"zero_optimization": 5}, "zero_optimization: DeepSpeed refuses it"),
    ],
)
def test_what_is_ours_or_nobodys_is_refused(tmp_path, fragment, expected):
    found = mistakes(tmp_path, fragment, zero_stage=2, offload_optimizer=True)
    assert len(found) == 1
    assert found[0].startswith("student.deepspeed.")
    assert expected in found[0]


def test_all_mistakes_come_at_once_before_a_run(tmp_path):
    config = tiny_config(
        tmp_path,
        teacher={"deepspeed": {"steps_per_prnt": 1, "scheduler": {}, "comms_loger": {}}},
        student={"deepspeed": {"zero_optimization": {"stage": 1}}},
    )
    with pytest.raises(UserError) as caught:
        check_run(resolve(config), own_ray=False)
    text = str(caught.value)
    for name in ("steps_per_prnt", "Use learning_rate", "`comms_logger`", "student.zero_stage"):
        assert name in text
    assert len(caught.value.mistakes) == 4


def test_a_fragment_is_merged_over_ours(tmp_path):
    fragment = {"zero_optimization": {"offload_optimizer": {"ratio": 0.5}, "overlap_comm": True}}
    blueprint = tiny_blueprint(
        tmp_path,
        teacher={"deepspeed": fragment},
        topology={
            "teacher": {"zero_stage": 3, "offload_optimizer": True, "offload_parameters": True}
        },
    )
    assert _all_mistakes(blueprint) == [[], []]
    teacher, student = (blueprint.stages[stage].engine for stage in STAGES)
    whole = engine_config(1.0, "bf16", 3, 2, 4, stage_extra(teacher, False))
    assert whole["train_batch_size"] == 8
    assert whole["zero_optimization"] == {
        "stage": 3,
        "offload_optimizer": {**ON_CPU, "ratio": 0.5},
        "offload_param": ON_CPU,
        "overlap_comm": True,
    }
    assert stage_extra(student, True) == {}
    assert merge({"a": {"b": 1}}, {"a": 2}) == {"a": 2}


def test_one_process_says_that_it_uses_no_fragment(tmp_path):
    fragment = {"teacher": {"deepspeed": {"steps_per_print": 5}}}
    assert run_notes(tiny_blueprint(tmp_path, **fragment)) == []
    notes = run_notes(tiny_blueprint(tmp_path, **fragment, topology={"runner": "local"}))
    assert notes == ["teacher.deepspeed is not used with topology.runner: local"]


def test_the_fragment_of_the_large_teacher_is_right():
    blueprint = resolve(load_config(ROOT / "configs" / "large-teacher.yaml"))
    assert blueprint.stages[Stage.TEACHER].engine.deepspeed
    assert _all_mistakes(blueprint) == [[], []]


@pytest.mark.slow
def test_a_config_without_fragments_imports_no_deepspeed():
    code = (
        "import sys, tempfile, pathlib\n"
        "from tests.helpers import tiny_config\n"
        "from tsarch.blueprint import resolve\n"
        "from tsarch.planning.preflight import check_run\n"
        "config = tiny_config(pathlib.Path(tempfile.mkdtemp()))\n"
        "check_run(resolve(config), own_ray=False)\n"
        "sys.exit('deepspeed' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
