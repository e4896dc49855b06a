"""`topology: auto`: the choice is the best there is, and what is measured is each stage's own."""

from __future__ import annotations

from io import StringIO
from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tests.helpers import tiny_blueprint
from tsarch.planning.balance import (
    TOLERANCE,
    Prediction,
    Proposal,
    StageTimes,
    choose,
    predict,
    step_seconds,
    with_replicas,
    with_threads,
)
from tsarch.planning.balance_report import outcome_line, proposal_line, proposal_table
from tsarch.planning.load_sharing import busiest_shares
from tsarch.planning.stage_trial import chosen, propose, times_of_tick, trial
from tsarch.prepare import prepare_data
from tsarch.rank.local_crew import LocalCrew
from tsarch.rank.supply import Supply
from tsarch.records import TickReport, TraceEvent
from tsarch.topology import STAGES, Stage, Topology

WAYS = ("sequential", "overlapped", "joint")
ONE_EACH = dict.fromkeys(STAGES, 1)

seconds = st.floats(0.0, 10.0)
times = st.builds(StageTimes, st.floats(0.01, 10.0), seconds, seconds)
ways = st.sampled_from(WAYS)
units = st.sampled_from(["replicas", "threads"])
tables = st.lists(times, min_size=1, max_size=7)
both_tables = st.fixed_dictionaries(dict.fromkeys(STAGES, tables))


def even(one: StageTimes, most: int, shards_step: bool = False) -> tuple[StageTimes, ...]:
    """Replicas among which the batch can be shared out evenly."""
    return with_replicas(one, [1.0 / n for n in range(1, most + 1)], shards_step)


def gpus(teacher_s: float, student_s: float, devices: int, way: str = "overlapped") -> Prediction:
    options = {
        Stage.TEACHER: even(StageTimes(teacher_s, 0.0, 0.0), devices),
        Stage.STUDENT: even(StageTimes(student_s, 0.0, 0.0), devices),
    }
    return choose(way, 4, options, devices, "replicas")


@given(ways, st.integers(1, 8), both_tables, st.integers(1, 12), units)
def test_the_choice_is_the_best_within_the_budget(way, m, options, budget, unit):
    chosen = choose(way, m, options, budget, unit)
    assert sum(chosen.counts.values()) <= max(budget, 2)
    pairs = product(*(range(1, len(options[stage]) + 1) for stage in STAGES))
    all_s = {
        (t, s): step_seconds(way, m, options[Stage.TEACHER][t - 1], options[Stage.STUDENT][s - 1])
        for t, s in pairs
        if t + s <= max(budget, 2)
    }
    fastest_s = min(all_s.values())
    slack = 1.0 + (TOLERANCE if unit == "replicas" else 0.0)
    assert chosen.step_s <= slack * fastest_s
    assert chosen.step_s <= all_s[1, 1]
    own = tuple(chosen.counts[stage] for stage in STAGES)
    assert all_s[own] == chosen.step_s
    for pair, step_s in all_s.items():
        if sum(pair) < sum(own):
            assert step_s > slack * fastest_s, f"{pair} is as good as {own}"
        elif sum(pair) == sum(own):
            assert step_s >= chosen.step_s


@given(ways, st.integers(1, 8), both_tables, units, st.data())
def test_nobody_is_busier_than_always(way, m, options, unit, data):
    counts = {s: data.draw(st.integers(1, len(options[s]))) for s in STAGES}
    found = predict(way, m, options, counts, unit)
    assert all(0.0 < share <= 1.0 + 1e-9 for share in found.busy_share.values())
    assert 0.0 <= found.idle_share < 1.0
    ranks = counts if unit == "replicas" else ONE_EACH
    busy = sum(ranks[s] * found.busy_share[s] for s in STAGES) / sum(ranks.values())
    assert found.idle_share == pytest.approx(max(1.0 - busy, 0.0), abs=1e-9)


@pytest.mark.parametrize(
    ("teacher_s", "student_s", "devices", "expected"),
    [
        (1.0, 1.0, 2, (1, 1)),
        (2.0, 1.0, 3, (2, 1)),  # twice as deep: twice the replicas
        (2.0, 1.0, 4, (2, 1)),  # a fourth device would change nothing
        (1.0, 3.0, 4, (1, 3)),
        (3.0, 1.0, 8, (6, 2)),
        (1.02, 1.0, 3, (1, 1)),  # 2 % are not worth a device
    ],
)
def test_replicas_follow_the_work_when_both_work_at_once(teacher_s, student_s, devices, expected):
    chosen = gpus(teacher_s, student_s, devices)
    assert tuple(chosen.counts[stage] for stage in STAGES) == expected


def test_stages_that_take_turns_share_devices_by_the_sum():
    """t_T / R_T + t_S / R_S is least where the replicas are as the roots of the times."""
    assert tuple(gpus(4.0, 1.0, 6, "sequential").counts.values()) == (4, 2)
    assert tuple(gpus(4.0, 1.0, 6, "overlapped").counts.values()) == (4, 1)


def test_idle_shares_of_the_schedules():
    options = dict.fromkeys(STAGES, (StageTimes(1.0, 0.0, 0.0),))
    idle = {way: predict(way, 8, options, ONE_EACH, "replicas").idle_share for way in WAYS}
    assert idle["overlapped"] == 0.0
    assert idle["sequential"] == pytest.approx(0.5)
    assert idle["joint"] == pytest.approx(1 / 9)  # (p − 1) / (m + p − 1)


def test_what_replicas_do_not_share_stays():
    one = StageTimes(4.0, 2.0, 1.0)
    assert with_replicas(one, [1.0, 0.6], False)[1] == StageTimes(2.4, 2.0, 1.0)
    assert with_replicas(one, [1.0, 0.6], True)[1] == StageTimes(2.4, 1.0, 1.0)


@given(times, times, st.integers(1, 16))
def test_threads_are_interpolated_between_one_and_all(one, many, num_threads):
    table = with_threads(one, many, num_threads)
    assert len(table) == num_threads
    assert table[0] == one
    for part in ("compute_s", "step_s", "exchange_s"):
        values = [getattr(row, part) for row in table]
        assert all(b <= a + 1e-9 for a, b in pairwise(values))
        first, last = getattr(one, part), getattr(many, part)
        if num_threads > 1 and first / num_threads <= last <= first:
            assert values[-1] == pytest.approx(last, abs=1e-9)


def test_threads_of_eight_cores_go_to_the_stage_that_needs_them():
    """Two threads 1.5 times as fast as one: a third of the work is serial."""
    heavy, light = StageTimes(6.0, 0.0, 0.0), StageTimes(2.0, 0.0, 0.0)

    def seven(one: StageTimes) -> StageTimes:
        return StageTimes(one.compute_s * (1 / 3 + 2 / 3 / 7), 0.0, 0.0)

    options = {
        Stage.TEACHER: with_threads(heavy, seven(heavy), 7),
        Stage.STUDENT: with_threads(light, seven(light), 7),
    }
    chosen = choose("overlapped", 1, options, 8, "threads")
    assert tuple(chosen.counts.values()) == (7, 1)
    assert chosen.step_s == pytest.approx(6.0 * (1 / 3 + 2 / 21))
    plain = predict("overlapped", 1, options, dict.fromkeys(STAGES, 4), "threads")
    assert chosen.step_s < plain.step_s


def event(kind: str, start_s: float, end_s: float, wait_s: float = 0.0) -> TraceEvent:
    return TraceEvent(kind, kind, None, None, start_s, end_s, wait_s)


def test_a_tick_counts_work_and_the_exchange_of_the_stages_own_gradient():
    student = [
        event("tied", 0.0, 0.1),
        event("tied", 0.1, 5.0, 4.0),  # the teacher's exchange
        event("link", 5.0, 6.0, 0.9),
        event("compute", 6.0, 8.0),
        event("compute", 8.0, 11.0),
        event("tied", 11.0, 11.5),
        event("step", 11.5, 12.5),
        event("tied", 12.5, 13.5, 0.25),
    ]
    found = times_of_tick(TickReport("student", 0, 0, 0, events=student))
    assert found == StageTimes(5.0, 1.0, 1.25)
    forward_only = [event("tied", 0.0, 1.0), event("compute", 1.0, 2.0)]
    found = times_of_tick(TickReport("student", 0, 0, 0, events=forward_only))
    assert found == StageTimes(1.0, 0.0, 0.0)


def test_shares_end_where_the_batch_can_not_feed_another_replica(tmp_path):
    blueprint = tiny_blueprint(tmp_path)
    train = prepare_data(blueprint).splits["train"]
    found = busiest_shares(blueprint, train, 30)
    for shares in found.values():
        assert shares[0] == 1.0
        assert all(1.0 / n - 1e-9 <= share for n, share in enumerate(shares, start=1))
        assert shares[-1] < 1.0
    contexts = 384 // 96  # of a full batch of the longest
    assert contexts <= len(found[Stage.TEACHER]) < 30
    fewer = busiest_shares(blueprint.altered(schedule={"micro_batches": 2}), train, 30)
    assert len(fewer[Stage.TEACHER]) <= len(found[Stage.TEACHER]) / 2


def test_one_process_is_measured_and_left_as_it_was(tmp_path):
    blueprint = tiny_blueprint(
        tmp_path,
        topology={"runner": "local", "auto": True},
        schedule={"alternation": {"teacher_steps": 2}},
    )
    prepared = prepare_data(blueprint)
    proposal = propose(LocalCrew(trial(blueprint), prepared), blueprint, prepared)
    assert proposal.replicas == ONE_EACH
    (measured,) = proposal.measured.values()
    assert all(own.compute_s > 0 and own.step_s > 0 for own in measured.values())
    assert chosen(blueprint, proposal) == blueprint.altered(topology={"auto": False})


def test_the_proposal_takes_the_place_of_auto(tmp_path):
    blueprint = tiny_blueprint(
        tmp_path, topology={"auto": True, "teacher": {"zero_stage": 2}, "device": "cpu"}
    )
    one = {stage: StageTimes(1.0, 0.1, 0.1) for stage in STAGES}
    prediction = Prediction({Stage.TEACHER: 3, Stage.STUDENT: 2}, 0.5, dict.fromkeys(STAGES, 1), 0)
    supply = Supply("cpu", 6, 6)
    for unit in ("replicas", "threads"):
        proposal = Proposal(unit, supply, {1: one}, prediction, prediction)
        run = chosen(blueprint, proposal)
        assert not run.runner.is_auto
        assert [getattr(run.stages[stage], unit) for stage in STAGES] == [3, 2]
        assert run.stages[Stage.TEACHER].engine.zero_stage == 2
        assert run.topology == (Topology.pair(3, 2) if unit == "replicas" else Topology.pair(1, 1))
        assert run.total_cpus == 5 * run.runner.cpus_per_rank
    assert run.stages[Stage.TEACHER].cpus == 3 * run.runner.cpus_per_rank


def test_what_is_printed():
    one = {stage: StageTimes(0.5, 0.1, 0.02) for stage in STAGES}
    chosen = Prediction({Stage.TEACHER: 2, Stage.STUDENT: 1}, 0.36, dict.fromkeys(STAGES, 0.9), 0.1)
    plain = Prediction(ONE_EACH, 0.62, dict.fromkeys(STAGES, 0.75), 0.25)
    proposal = Proposal("replicas", Supply("cuda", 3, 8), {0: one}, chosen, plain)
    written = StringIO()
    Console(file=written, width=120).print(proposal_table(proposal))
    text = written.getvalue()
    assert "teacher" in text
    assert "0.5000" in text
    assert "0.1200" in text
    line = proposal_line(proposal, one_process=False)
    assert line == (
        "predicted: 0.360 s a step, 10% idle; without auto: 0.620 s a step, 25% idle, 1:1 replicas"
    )
    same = Proposal("replicas", Supply("cuda", 3, 8), {0: one}, plain, plain)
    assert "nothing better in 3 devices" in proposal_line(same, one_process=False)
    assert "nothing to choose" in proposal_line(same, one_process=True)
    assert outcome_line(proposal, 0.4, 0.2) == (
        "topology: auto: 0.400 s a step, 20% idle (predicted: 0.360 s a step, 10% idle)"
    )
