"""`tsarch plan`: a stage's step without values, memory, time, and what makes a run fit."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import yaml

from tests.helpers import ROOT, tiny_blueprint, tiny_config, tiny_raw
from tsarch.errors import UserError
from tsarch.planning.capacity import Feeding
from tsarch.planning.hardware import GPUS, hardware_named, network_rate, read_hardware, with_options
from tsarch.planning.plan_search import Planner, _changes, fitting, search
from tsarch.planning.stage_profile import profile, workload
from tsarch.prepare import prepare_data
from tsarch.topology import STAGES, Stage

H100 = GPUS["h100"]


@pytest.fixture(scope="module")
def planner(tmp_path_factory):
    blueprint = tiny_blueprint(tmp_path_factory.mktemp("plan"), topology={"runner": "processes"})
    prepared = prepare_data(blueprint)
    profiles = {s: profile(blueprint, prepared, s, H100, 0.0) for s in STAGES}
    feeding = Feeding.of(blueprint, prepared.training)
    return Planner(blueprint, profiles, workload(blueprint, prepared), H100, feeding)


def test_masks_and_numbers_are_real_and_other_tensors_have_no_values():
    from torch._subclasses.fake_tensor import FakeTensor

    from tsarch.planning.dry_ops import dry

    chosen = torch.tensor([True, False, True])
    with dry() as recorder:
        recorder.phase = "here"
        weights = torch.empty(3, 5, requires_grad=True)
        rows = weights[chosen]
        (rows @ torch.empty(5, 7)).sum().backward()
        assert float(rows.detach().sum()) == 1.0
        assert weights[torch.tensor([True, False, False])].shape == (1, 5)
    assert rows.shape == (2, 5)
    assert isinstance(weights.grad, FakeTensor)
    products = [op for op in recorder.ops["here"] if op.flops]
    assert sum(op.flops for op in products) == 2 * (2 * 2 * 5 * 7)


def test_what_is_alive_is_counted_while_it_is():
    from tsarch.planning.dry_ops import dry

    with dry() as recorder:
        a = torch.empty(1000)
        b = a + a
        assert recorder.ledger.live == 8000
        del a
        assert recorder.ledger.live == 4000
        del b
    assert recorder.ledger.live == 0


@pytest.mark.slow
def test_layers_that_are_alike_need_not_all_be_run(tmp_path):
    """What few layers give, extended, is what all of them give."""
    from tsarch.feeds import batch_plan, training_feed
    from tsarch.planning import dry_stage

    model = {**tiny_raw(tmp_path)["teacher"]["config"], "num_hidden_layers": 6}
    blueprint = tiny_blueprint(tmp_path, teacher={"config": model})
    prepared = prepare_data(blueprint)
    train = prepared.splits["train"]
    feed = training_feed(blueprint, train, batch_plan(blueprint, train), blueprint.topology)
    few = dry_stage.dry_step(blueprint, prepared, Stage.TEACHER, feed, 0)
    whole = dry_stage._run(blueprint, prepared, Stage.TEACHER, feed, 0)
    assert few.activations == whole.activations
    assert few.peak == whole.peak
    for phase in ("forward", "backward"):
        said, found = (
            sum(number * op.flops for op, number in own.ops[phase].items()) for own in (few, whole)
        )
        assert said == found > 0


def test_random_numbers_and_what_follows_from_them_are_not_known():
    from torch._subclasses.fake_tensor import FakeTensor

    from tsarch.models.fast_dropout import kept_places
    from tsarch.planning.dry_ops import dry

    with dry() as recorder:
        recorder.phase = "here"
        kept, _ = kept_places((3, 5), 0.1)
        assert isinstance(kept, FakeTensor)
        assert recorder.ledger.live == 3 * 5
        _ = (torch.empty(3, 5) * kept).t().t()[1].device
    assert [op.name for op in recorder.ops["here"]] == [
        "tsarch.kept_places.default",
        "aten.mul.Tensor",
    ]
    kept, scale = kept_places((3, 5), 0.1)
    assert kept.shape == (3, 5)
    assert scale == pytest.approx(1 / 0.9, rel=1e-4)


def test_views_share_memory_and_are_in_place():
    from tsarch.planning.dry_ops import dry

    with dry() as recorder:
        whole = torch.empty(6, 4)
        first, second = whole.split(3)
        assert second.shape == (3, 4)
        assert second.storage_offset() == 12
        assert second.t().stride() == (1, 4)
        assert recorder.ledger.live == 6 * 4 * 4
        del whole, first
        assert recorder.ledger.live == 6 * 4 * 4
        del second
    assert recorder.ledger.live == 0


@pytest.mark.slow
@pytest.mark.parametrize(("products_up_to", "precision"), [(0, "fp32"), (64, "fp32"), (64, "bf16")])
def test_states_and_activations_are_those_of_real_steps(tmp_path, products_up_to, precision):
    from benchmarks.plan import measured, predicted

    drops = {stage: {"dropout": 0.1} for stage in ("teacher", "student")}
    local = {"runner": "local", "device": "cpu"}
    products = {"attention": {"products_up_to": products_up_to}}
    blueprint = tiny_blueprint(tmp_path, topology=local, **drops, **products)
    blueprint = blueprint.altered(precision=precision)
    prepared = prepare_data(blueprint)
    profiles = {s: profile(blueprint, prepared, s, H100, 0.0, both_ways=False) for s in STAGES}
    said = predicted(blueprint, prepared, profiles, H100)
    found = measured(blueprint, prepared, profiles, repeats=0)
    assert said[0] == pytest.approx(found[0], rel=0.02)
    assert said[1] == pytest.approx(found[1], rel=0.05)
    assert found[2] is None


def test_what_is_open_is_planned_as_the_hardware_would_have_it(tmp_path):
    from tsarch.blueprint import resolve
    from tsarch.config_loading import parse_config
    from tsarch.planning.arithmetic import computing_on

    told = []
    raw = {**tiny_raw(tmp_path), "precision": "auto", "attention": {"products_up_to": 32}}
    blueprint = resolve(parse_config(raw, "tiny"))
    on_gpus = computing_on(blueprint, gpus=True, say=told.append)
    assert (on_gpus.precision, on_gpus.products_up_to, told) == ("bf16", 0, [])
    on_cpus = computing_on(blueprint, gpus=False, say=told.append)
    assert (on_cpus.precision, on_cpus.products_up_to) == ("fp32", 32)
    assert len(told) == 1


def test_what_views_take_counts_with_the_operations_between_them():
    from tsarch.planning.op_timing import _Counter

    with _Counter() as counter:
        (torch.ones(4, 4).view(-1).detach() + torch.empty(16)).sum()
    assert counter.number == 3  # ones, add, sum


def test_operations_that_make_up_little_of_a_step_are_not_tried():
    from tsarch.planning.dry_ops import Op, Shape
    from tsarch.planning.op_timing import measure

    def op(rows):
        shape = Shape((rows, 8), (8, 1), torch.float32)
        return Op("add", (shape,), (shape,), 0, 2 * shape.nbytes, str(rows))

    dear, cheap = op(1000), op(1)
    examples = {own: (torch.add, (own.inputs[0], 1.0), {}) for own in (dear, cheap)}
    timing = measure({dear: 1.0, cheap: 1.0}, examples, H100, 1, budget_s=60.0)
    assert set(timing.measured) == {dear}
    assert timing.seconds(cheap) > 0


def test_a_check_of_plans_tells_what_was_measured_of_each_case():
    from benchmarks.plan import Row, markdown

    rows = [
        Row("a", "ner", 10**6, (101, 100), (95, 100), (1.1, 1.0)),
        Row("b", "qa", 10**6, (100, 100), (104, 100), None),
    ]
    told = markdown(rows)
    assert "| a | 1.0 M | 0.0 MB (+1.0%) | 0.0 MB (-5.0%) | 1.000 s (+10.0%) |" in told
    assert "activations 5.0% (limit 10%, a); step 10.0% (limit 15%, a)." in told


@pytest.mark.slow
def test_a_plan_has_what_ranks_hold_do_and_send(planner):
    plan = planner.plan()
    assert plan.fits
    teacher, student = plan.ranks.values()
    assert teacher.need.states.weights == 4 * planner.profiles[Stage.TEACHER].counts.parameters
    assert teacher.flops > 0
    assert teacher.link_bytes > 0
    assert student.link_bytes == 0
    assert teacher.collective_bytes == 0
    assert plan.step_s == pytest.approx(max(teacher.times.total_s, student.times.total_s), rel=1e-6)
    assert plan.cost is None


@pytest.mark.slow
def test_sharing_out_changes_what_a_rank_holds_and_sends(planner):
    one = planner.plan().ranks[Stage.TEACHER]
    many = planner.plan({"topology.teacher.replicas": 4, "topology.teacher.zero_stage": 3})
    own = many.ranks[Stage.TEACHER]
    assert own.need.states.weights == -(-one.need.states.weights // 4)
    assert own.activations < one.activations
    assert own.collective_bytes == pytest.approx(0.75 * 3 * one.need.states.weights)


@pytest.mark.slow
def test_ranks_that_share_contexts_hold_a_slice_and_trade_heads_for_tokens(planner):
    one = planner.plan().ranks[Stage.TEACHER]
    changes = {"topology.teacher.replicas": 2, "topology.teacher.sequence_parallel": 2}
    own = planner.plan(changes).ranks[Stage.TEACHER]
    assert own.activations == pytest.approx(one.activations / 2, rel=1e-3)
    assert own.flops == pytest.approx(one.flops / 2, rel=1e-3)
    plain = planner.plan({"topology.teacher.replicas": 2}).ranks[Stage.TEACHER]
    profile, model = planner.profiles[Stage.TEACHER], planner.blueprint.stages[Stage.TEACHER]
    hf = model.architecture.config
    tokens = profile.tokens * profile.usual / 2
    # Of four arrays as wide as the hidden states half goes away, and half of their gradients.
    traded = hf.num_hidden_layers * 4 * hf.hidden_size * tokens * 4 * 2 / 2
    assert own.collective_bytes == pytest.approx(plain.collective_bytes + traded)


@pytest.mark.slow
def test_checkpointing_takes_less_memory_and_more_arithmetic(planner):
    plain = planner.plan().ranks[Stage.TEACHER]
    other = planner.plan({"teacher.activation_checkpointing": True}).ranks[Stage.TEACHER]
    assert other.activations == plain.activations_otherwise < plain.activations
    assert other.activations_otherwise == plain.activations
    assert other.flops > plain.flops


@pytest.mark.slow
def test_what_does_not_fit_is_told_with_the_cheapest_change_that_does(planner):
    need = max(own.on_device for own in planner.plan().ranks.values())
    small = replace(planner, hardware=replace(H100, memory_bytes=need - 100_000))
    plan = small.plan()
    assert plan.missing_bytes == 100_000
    change = fitting(small)
    assert change is not None
    assert change.plan.fits
    hopeless = replace(planner, hardware=replace(H100, memory_bytes=1000))
    assert fitting(hopeless) is None


@pytest.mark.slow
def test_a_search_shares_out_all_devices_and_finds_nothing_slower_than_one_each(planner):
    options = search(planner, 2)
    assert {o.changes[0] for o in options} == {
        "schedule.name=overlapped",
        "schedule.name=joint",
        "schedule.name=sequential",
    }
    for option in options:
        assert option.plan.num_ranks == 2
    assert options[0].plan.step_s <= planner.plan().step_s * 1.0001


@pytest.mark.slow
def test_a_search_proposes_no_schedule_that_the_config_can_not_have(planner):
    alternating = planner.blueprint.altered(
        schedule={"alternation": {"teacher_steps": 2, "student_steps": 2}}
    )
    options = search(replace(planner, blueprint=alternating), 2)
    assert {o.changes[0] for o in options} == {
        "schedule.name=overlapped",
        "schedule.name=sequential",
    }


def test_changes_that_the_config_would_refuse_are_none(tmp_path):
    from tests.drafter_configs import drafter_config
    from tsarch.blueprint import resolve

    blueprint = resolve(drafter_config(tmp_path))
    feeding = Feeding(blueprint, np.array([2]), np.array([8]))
    own = Planner(blueprint, {}, cast(Any, None), H100, feeding)
    assert not own.allows({"schedule.name": "joint"})
    assert not own.allows({"student.activation_checkpointing": True})
    assert own.allows({"schedule.name": "sequential", "topology.teacher.replicas": 2})


def test_changes_that_leave_ranks_without_work_are_none(tmp_path):
    blueprint = tiny_blueprint(tmp_path, topology={"runner": "processes"})
    feeding = Feeding(blueprint, np.array([1, 2]), np.array([8, 3]))
    own = Planner(blueprint, {}, cast(Any, None), H100, feeding)
    assert own.allows({"topology.teacher.replicas": 2, "topology.student.replicas": 8})
    assert not own.allows({"topology.teacher.replicas": 3})
    assert not own.allows({"topology.student.replicas": 9})
    assert own.allows({"schedule.micro_batches": 2, "topology.student.replicas": 4})
    assert not own.allows({"schedule.micro_batches": 2, "topology.student.replicas": 5})
    shared = {"topology.teacher.sequence_parallel": 2, "topology.teacher.replicas": 4}
    assert own.allows(shared), "two groups"
    unfed = replace(own, blueprint=blueprint.altered(topology={"teacher": {"replicas": 4}}))
    assert unfed.allows({"schedule.name": "sequential"}), "of guessed steps: no worse than it is"
    assert not unfed.allows({"topology.teacher.replicas": 8})


TOPOLOGIES = {
    "processes": {"runner": "processes"},
    "auto": "auto",
    "auto and more": {"auto": True, "runner": "processes", "threads": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize("topology", TOPOLOGIES.values(), ids=TOPOLOGIES)
def test_what_is_proposed_training_takes(tmp_path, topology):
    """Of more devices than the steps have work for if they are shared out anyhow."""
    from tsarch.blueprint import resolve
    from tsarch.config_loading import load_config
    from tsarch.launch.plan import PlanRequest, make_plan
    from tsarch.planning.preflight import check_run

    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({**tiny_raw(tmp_path), "topology": topology}))
    config = load_config(path, [])
    training = prepare_data(resolve(config)).training
    devices = int(Feeding.of(resolve(config), training).windows.max()) + 2
    made = make_plan(config, PlanRequest(gpu="h100", search=True, devices=devices))
    assert made.options
    for option in made.options:
        proposed = resolve(load_config(path, option.changes))
        assert proposed.topology.num_ranks == devices
        check_run(proposed, own_ray=False, planned=True)
        assert not [*Feeding.of(proposed, training).mistakes()]


def test_a_run_that_has_no_work_for_its_replicas_is_not_planned(tmp_path):
    from tsarch.launch.plan import PlanRequest, make_plan

    topology = {"runner": "processes", "student": {"replicas": 1000}}
    config = tiny_config(tmp_path, topology=topology)
    with pytest.raises(UserError, match="1000 student replicas × 1 micro-batches need 1000"):
        make_plan(config, PlanRequest(gpu="h100"))
    made = make_plan(config, PlanRequest(gpu="h100", full=True))
    assert any("1000 student replicas" in note for note in made.notes), "the data may be otherwise"


@pytest.mark.parametrize("limit", [None, 6])
def test_full_steps_hold_what_there_is_room_for(tmp_path, limit):
    from tsarch.feeds import batch_plan
    from tsarch.planning.full_contexts import full_contexts

    blueprint = tiny_blueprint(tmp_path, data={"batch_windows": limit})
    train = full_contexts(blueprint).training
    found, said = Feeding.of(blueprint, train), Feeding.full(blueprint)
    assert (found.contexts.max(), found.windows.max()) == (said.contexts[0], said.windows[0])
    assert batch_plan(blueprint, train).num_steps > 1


def test_devices_are_of_a_search(tmp_path):
    from tsarch.launch.plan import PlanRequest, make_plan

    with pytest.raises(UserError, match="--devices 4: is for --search"):
        make_plan(tiny_config(tmp_path), PlanRequest(devices=4))


@pytest.mark.slow
def test_ranks_share_contexts_where_one_has_no_room_otherwise(planner):
    """Steps of one context, which no replica can share otherwise; the teacher has two heads."""
    tokens = planner.profiles[Stage.TEACHER].least_tokens
    student = planner.profiles[Stage.STUDENT]
    little = {way: number // 8 for way, number in student.activations.items()}
    blueprint = planner.blueprint.altered(data={"batch_tokens": tokens})
    one = Feeding(blueprint, np.array([1]), np.array([2]))
    long = replace(
        planner,
        blueprint=blueprint,
        feeding=one,
        profiles={**planner.profiles, Stage.STUDENT: replace(student, activations=little)},
        work=replace(planner.work, batch_tokens=float(tokens)),
    )

    def least(teachers: int, slices: int) -> int:
        own = {"topology.teacher.replicas": teachers, "topology.teacher.sequence_parallel": slices}
        plans = [long.plan({**own, "topology.teacher.zero_stage": zero}) for zero in range(4)]
        return min(plan.ranks[Stage.TEACHER].on_device for plan in plans)

    apart, shared = min(least(1, 1), least(2, 1)), least(2, 2)
    assert shared < apart
    assert "sequence_parallel" not in str([own.changes for own in search(long, 3)])
    small = replace(long, hardware=replace(H100, memory_bytes=(apart + shared) // 2))
    options = search(small, 3)
    assert options
    for option in options:
        assert "topology.teacher.sequence_parallel=2" in option.changes
        assert option.plan.ranks[Stage.TEACHER].need.replicas == 2
    shares = {"topology.teacher.sequence_parallel": 2, "topology.teacher.replicas": 2}
    assert shares in list(_changes(small)), "what may make a run fit"


def test_hardware_from_a_file(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("base: h100\nname: mine\nmemory_bytes: 1e9\n")
    assert read_hardware(path) == replace(H100, name="mine", memory_bytes=10**9)
    path.write_text("name: mine\nmemory: 3\nfp32_flops_s: fast\n")
    with pytest.raises(UserError) as found:
        read_hardware(path)
    told = "\n".join(map(str, found.value.mistakes))
    assert "memory: is unknown" in told
    assert "fp32_flops_s: is 'fast'" in told
    assert "bf16_flops_s: is missing" in told


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("memory_bytes: .inf", "not a whole number above 0"),
        ("memory_bytes: 0.5", "not a whole number above 0"),
        ("devices_a_node: true", "not a whole number above 0"),
        ("bf16_flops_s: .inf", "not a number above 0"),
        ("network_bytes_s: .nan", "not a number above 0"),
        ("overhead_s: -1", "not a number above 0"),
        ("overhead_s: 1.0e+300", "not a number above 0, from 1e-30 to 1e+30"),
        ("price_an_hour: 1.0e+308", "not a number above 0"),
        ("fp32_flops_s: 5.0e-324", "not a number above 0"),
        ("memory_bytes: 1.0e+31", "not a whole number above 0"),
        ("product_share: 7", "not a share in (0, 1]"),
        ("memory_share: 0", "not a share in (0, 1]"),
        ("is_cpu: 'no'", "not true or false"),
        ("name: [1, 2]", "not a text"),
    ],
)
def test_values_of_hardware_are_of_their_kind(tmp_path, line, what):
    path = tmp_path / "own.yaml"
    path.write_text(f"base: h100\n{line}\n")
    with pytest.raises(UserError) as found:
        read_hardware(path)
    (mistake,) = found.value.mistakes
    assert line.split(":")[0] in mistake.where
    assert what in mistake.what


def test_rates_and_names_of_hardware():
    assert network_rate("100Gbit/s") == 12.5e9
    assert network_rate("12.5 GB") == 12.5e9
    for wrong in ("fast", "-3gbit", "100", "infGbit", "nanGB", "1e308GB", "1e-300GB", "0GB"):
        with pytest.raises(UserError):
            network_rate(wrong)
    with pytest.raises(UserError, match="h100"):
        hardware_named("gtx")
    assert with_options(H100, 0.0, None).price_an_hour == 0
    for price in (math.inf, math.nan, -1.0, 1e308):
        with pytest.raises(UserError, match="--price"):
            with_options(H100, price, None)


@pytest.mark.slow
def test_what_is_computed_of_hardware_is_finite(planner):
    for number in (1e-30, 1e30):
        dear = replace(H100, price_an_hour=1e30, node_bytes_s=number)
        assert math.isfinite(cast(float, replace(planner, hardware=dear).plan().cost))
    with pytest.raises(UserError, match="no finite numbers"):
        replace(planner, hardware=replace(H100, node_bytes_s=math.nan)).plan()
    endless = replace(planner.work, num_steps=10**300)
    with pytest.raises(UserError, match="no finite numbers"):
        replace(planner, work=endless, hardware=replace(H100, price_an_hour=1e30)).plan()


GPU_CONFIGS = ("bert-large-2-nodes", "large-teacher", "qa-gpu", "summarization-gpu")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        own if own == "large-teacher" else pytest.param(own, marks=pytest.mark.thorough)
        for own in GPU_CONFIGS
    ],
)
def test_configs_whose_models_are_not_here_are_planned(name, capsys):
    from tsarch.config_loading import load_config
    from tsarch.launch.plan import PlanRequest, show_plan

    config = load_config(ROOT / "configs" / f"{name}.yaml", [])
    show_plan(config, PlanRequest(gpu="a100-80g", price=2.0), as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["fits"]
    assert told["cost"] > 0
    assert any("is not here" in note for note in told["notes"])
    teacher = told["stages"]["teacher"]
    if not config.embedding.frozen:
        assert teacher["tied_bytes_per_exchange"] > 10**6


@pytest.mark.thorough
def test_teachers_of_many_billions_are_planned_without_weights_and_data(tmp_path):
    from tsarch.blueprint import resolve
    from tsarch.config_loading import parse_config
    from tsarch.launch.plan import PlanRequest, make_plan

    raw = {
        "run": {"name": "large"},
        "data": {"train": "-", "validation": "-", "test": "-", "batch_tokens": 2048 * 32},
        "task": {"name": "summarization"},
        "teacher": {"model": "meta-llama/Llama-3.1-70B", "max_tokens": 2048},
        "student": {"layers": [0, 20, 40, 79], "max_tokens": 512},
        "precision": "bf16",
        "schedule": {"max_steps": 1000},
        "topology": {
            "device": "cuda",
            "teacher": {"replicas": 32, "zero_stage": 3},
            "student": {"replicas": 32, "zero_stage": 1},
        },
    }
    config = parse_config(raw, str(Path(tmp_path) / "large.yaml"))
    made = make_plan(config, PlanRequest(gpu="h100", full=True))
    parameters = made.plan.ranks[Stage.TEACHER].need.states.weights * 32 / 2
    table = 128256 * 8192
    assert parameters == pytest.approx(70.55e9 - table, rel=0.02)
    assert resolve(config).topology.num_ranks == made.plan.num_ranks


def test_the_step_that_is_planned_is_the_one_that_holds_most(tmp_path):
    from tsarch.planning.stage_profile import _largest

    steps = [np.arange(0, 12), np.array([12]), np.array([13, 14])]  # 120, 90 and 75 tokens
    train: Any = SimpleNamespace(context_lengths=np.array([10] * 12 + [90] + [65, 10]))
    plan: Any = SimpleNamespace(block=lambda *_: steps)

    def largest(**changes: Any) -> tuple[int, int, float]:
        return _largest(tiny_blueprint(tmp_path, **changes), train, plan, STAGES[0])

    assert largest() == (0, 120, pytest.approx((120 + 90 + 75) / 3 / 120))
    products = {"attention": {"products_up_to": 128}}
    assert largest(**products)[:2] == (1, 90), "its scores are kept"
    assert largest(data={"unpadded": False})[:2] == (2, 130)
    long = {"attention": {"products_up_to": 80}}
    assert largest(**long)[:2] == (0, 120), "not by products: no scores are kept"
