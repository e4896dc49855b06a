"""Schedules: every receive has its send, no order of ranks can deadlock, every batch once."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsarch.schedule.instruction import (
    Backward,
    FinishTiedExchange,
    Forward,
    OptimizerStep,
    Program,
    RecvGrad,
    RecvHidden,
    SendGrad,
    SendHidden,
    StartTiedExchange,
)
from tsarch.schedule.plan import Alternation, StepRange, forward_programs, training_programs
from tsarch.topology import STAGES, Stage, Topology

Programs = dict[Stage, list[object]]

names = st.sampled_from(["sequential", "overlapped", "joint"])
spans = st.builds(lambda a, n: StepRange(a, a + n), st.integers(0, 50), st.integers(1, 12))
alternations = st.builds(Alternation, st.integers(1, 4), st.integers(1, 4))
micro_batches = st.integers(1, 4)
topologies = st.builds(Topology.pair, st.integers(1, 4), st.integers(1, 4))


def programs_of(name, span, m, alternation, train_embedding=True, in_flight=3) -> Programs:
    if name == "joint":
        alternation = Alternation()
    return flat(training_programs(name, span, m, alternation, train_embedding, in_flight))


def flat(ticks: dict[Stage, tuple[Program, ...]]) -> Programs:
    return {stage: [i for tick in own for i in tick] for stage, own in ticks.items()}


def of_kind(program: list[object], kind: type) -> list[object]:
    return [i for i in program if isinstance(i, kind)]


@given(names, spans, micro_batches, alternations, st.booleans())
def test_every_receive_has_its_send_in_the_same_order(name, span, m, alternation, train_embedding):
    programs = programs_of(name, span, m, alternation, train_embedding)
    sent = [(i.step, i.micro_batch) for i in of_kind(programs[Stage.TEACHER], SendHidden)]
    received = [(i.step, i.micro_batch) for i in of_kind(programs[Stage.STUDENT], RecvHidden)]
    assert sent == received
    assert not of_kind(programs[Stage.STUDENT], SendHidden)
    assert not of_kind(programs[Stage.TEACHER], RecvHidden)
    back = [(i.step, i.micro_batch) for i in of_kind(programs[Stage.STUDENT], SendGrad)]
    assert back == [(i.step, i.micro_batch) for i in of_kind(programs[Stage.TEACHER], RecvGrad)]
    assert back == (sent if name == "joint" else [])


@given(names, spans, micro_batches, alternations)
def test_each_stage_uses_every_batch_exactly_once(name, span, m, alternation):
    alternation = Alternation() if name == "joint" else alternation
    for stage, program in programs_of(name, span, m, alternation).items():
        used = [(i.step, i.micro_batch) for i in of_kind(program, Forward)]
        assert used == [(k, b) for k in span.steps for b in range(m)]
        updated = [i.step for i in of_kind(program, OptimizerStep)]
        assert updated == [k for k in span.steps if alternation.updates(stage, k)]
        backward = [(i.step, i.micro_batch) for i in of_kind(program, Backward)]
        assert backward == [(k, b) for k in updated for b in range(m)]
        assert [i.step for i in of_kind(program, Backward) if i.last] == updated


@given(names, spans, micro_batches, alternations)
def test_all_ranks_meet_the_same_exchanges_and_no_gradient_is_lost(name, span, m, alternation):
    alternation = Alternation() if name == "joint" else alternation
    programs = programs_of(name, span, m, alternation)
    started = {s: of_kind(p, StartTiedExchange) for s, p in programs.items()}
    assert started[Stage.TEACHER] == started[Stage.STUDENT]
    for program in programs.values():
        order = [i.exchange for i in program if isinstance(i, StartTiedExchange)]
        assert order == [i.exchange for i in program if isinstance(i, FinishTiedExchange)]
        assert len(set(order)) == len(order)
    contributions = Counter(c for i in started[Stage.TEACHER] for c in i.contributions)
    wanted = {(s, k) for s in STAGES for k in span.steps if alternation.updates(s, k)}
    assert contributions == Counter(wanted)


@given(names, spans, micro_batches, alternations, st.booleans(), topologies, st.randoms())
def test_no_order_of_ranks_deadlocks(name, span, m, alternation, train, topology, random):
    assert simulate(programs_of(name, span, m, alternation, train), topology, random)


@given(st.integers(1, 10), topologies, st.randoms())
def test_evaluation_does_not_deadlock(num_batches, topology, random):
    assert simulate(flat(forward_programs(num_batches)), topology, random)


def simulate(programs: Programs, topology: Topology, random) -> bool:
    """Run all ranks in a random order; sends never wait, receives and exchanges do.

    A stage's own collectives (in `Backward` and `OptimizerStep`) wait for its other replicas.
    """
    places = [topology.place(rank) for rank in range(topology.num_ranks)]
    cursor = [0] * topology.num_ranks
    sent: set[tuple[str, int, int, int]] = set()
    started: Counter[int] = Counter()

    def can_run(rank: int) -> bool:
        stage, _ = places[rank]
        i = programs[stage][cursor[rank]]
        if isinstance(i, RecvHidden):
            teachers = range(topology.replicas(Stage.TEACHER))
            return all(("hidden", t, i.step, i.micro_batch) in sent for t in teachers)
        if isinstance(i, RecvGrad):
            students = range(topology.replicas(Stage.STUDENT))
            return all(("grad", s, i.step, i.micro_batch) in sent for s in students)
        if isinstance(i, FinishTiedExchange):
            return started[i.exchange] == topology.num_ranks
        return True

    while True:
        unfinished = [r for r, (stage, _) in enumerate(places) if cursor[r] < len(programs[stage])]
        if not unfinished:
            return True
        runnable = [rank for rank in unfinished if can_run(rank)]
        if not runnable:
            return False
        rank = random.choice(runnable)
        stage, replica = places[rank]
        i = programs[stage][cursor[rank]]
        if isinstance(i, SendHidden):
            sent.add(("hidden", replica, i.step, i.micro_batch))
        if isinstance(i, SendGrad):
            sent.add(("grad", replica, i.step, i.micro_batch))
        if isinstance(i, StartTiedExchange):
            started[i.exchange] += 1
        cursor[rank] += 1


def test_the_simulation_sees_a_deadlock():
    import random

    programs: Programs = {Stage.TEACHER: [FinishTiedExchange(0)], Stage.STUDENT: []}
    assert not simulate(programs, Topology.pair(1, 1), random.Random(0))


@given(st.integers(1, 9), st.integers(2, 5))
def test_joint_is_1f1b(m, in_flight):
    programs = programs_of("joint", StepRange(0, 1), m, None, in_flight=in_flight)
    outstanding, most = 0, 0
    for i in programs[Stage.TEACHER]:
        outstanding += isinstance(i, Forward)
        outstanding -= isinstance(i, Backward)
        most = max(most, outstanding)
    assert most == min(in_flight, m)
    kinds = [type(i) for i in programs[Stage.STUDENT]][: 4 * m]
    assert kinds == [RecvHidden, Forward, Backward, SendGrad] * m


def test_joint_refuses_an_alternation():
    with pytest.raises(ValueError, match="joint updates both"):
        training_programs("joint", StepRange(0, 1), 1, Alternation(2, 1))


def test_overlapped_student_is_one_batch_behind():
    ticks = training_programs("overlapped", StepRange(0, 3))
    work = {
        stage: [[i.step for i in tick if isinstance(i, Forward)] for tick in own]
        for stage, own in ticks.items()
    }
    assert work == {Stage.TEACHER: [[0], [1], [2], []], Stage.STUDENT: [[], [0], [1], [2]]}


@pytest.mark.parametrize(
    ("name", "contributions"),
    [
        ("sequential", [{"teacher": 0}, {"student": 0}, {"teacher": 1}, {"student": 1}]),
        ("overlapped", [{"teacher": 0}, {"teacher": 1, "student": 0}, {"student": 1}]),
        ("joint", [{"teacher": 0, "student": 0}, {"teacher": 1, "student": 1}]),
    ],
)
def test_table_steps(name: Literal["sequential", "overlapped", "joint"], contributions):
    program = flat(training_programs(name, StepRange(0, 2)))[Stage.TEACHER]
    found = [
        {stage.name: step for stage, step in i.contributions}
        for i in program
        if isinstance(i, StartTiedExchange)
    ]
    assert found == contributions


@pytest.mark.parametrize(
    ("m", "n", "teacher", "student"),
    [(1, 1, "111111", "111111"), (2, 1, "111111", "010101"), (1, 3, "100100", "111111")],
)
def test_alternation(m, n, teacher, student):
    alternation = Alternation(m, n)
    for stage, wanted in ((Stage.TEACHER, teacher), (Stage.STUDENT, student)):
        assert "".join(str(int(alternation.updates(stage, k))) for k in range(6)) == wanted
