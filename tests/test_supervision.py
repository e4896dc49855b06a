"""Finding the one to blame, saying it plainly, and what a run goes on with."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from tests.helpers import tiny_blueprint
from tests.test_placement import cpu_nodes
from tsarch.checkpoint.cut import Cut
from tsarch.checkpoint.store import Store
from tsarch.cluster.nodes import end_processes
from tsarch.cluster.rank_calls import end_of
from tsarch.cluster.recovery import smaller_run
from tsarch.errors import (
    RankFailedError,
    ReplicaDriftError,
    RunFailedError,
    UserError,
    has_lost_peer,
)
from tsarch.rank.activity import IDLE, Activity, read_note
from tsarch.rank.crew import Mended
from tsarch.rank.diagnosis import (
    End,
    Kind,
    describe_end,
    describe_finding,
    describe_place,
    find_cause,
)
from tsarch.rank.hangs import Finding, find_hang
from tsarch.rank.process import HasFailedError
from tsarch.rank.rank_checkpoint import RankCheckpoint
from tsarch.rank.status import (
    ProcessFacts,
    Status,
    look_at,
    peak_memory,
    read_log,
    started_line,
)
from tsarch.run.advice import how_to_go_on
from tsarch.run.kept_states import KeptStates
from tsarch.run.restarts import History
from tsarch.run.supervision import Job, _next_point, train
from tsarch.schedule.instruction import Backward, FinishTiedExchange
from tsarch.telling.terminal import Reporter
from tsarch.topology import Topology

STATUS = Status(12, "advance", "Backward(step=3)", False, 0.5, 10**9, 4 * 10**9, 8 * 10**9, 2)
LOST = RuntimeError("[gloo] Connection closed by peer [10.0.0.1]:80")


def raised(cause: Exception) -> End:
    return end_of(RayTaskError("advance", "Traceback …", cause))


def test_a_dead_rank_is_to_blame_and_not_those_that_lost_it():
    died = end_of(ActorDiedError())
    cause = find_cause({0: raised(LOST), 1: died, 2: raised(LOST)}, None)
    assert cause is not None
    assert cause.ranks == (1,)
    assert cause.is_certain


def test_an_exception_is_to_blame_and_not_the_timeouts_of_others():
    slow = RuntimeError("Timed out waiting 60000ms for recv operation to complete")
    own = ZeroDivisionError("division by zero")
    cause = find_cause({0: raised(slow), 1: raised(own)}, None)
    assert cause is not None
    assert cause.ranks == (1,)
    assert "ZeroDivisionError: division by zero" in describe_end(raised(own), STATUS, None, None)


def test_a_rank_that_only_lost_another_one_is_no_certain_cause():
    cause = find_cause({0: raised(LOST)}, None)
    assert cause is not None
    assert not cause.is_certain
    finding = Finding("node lost", (1,), 6.0)
    assert find_cause({0: raised(LOST)}, finding).ranks == (1,)
    assert find_cause({}, None) is None


@pytest.mark.parametrize(
    "told", [UserError.single("data", "wrong."), ReplicaDriftError(3, ["student 0 (rank 1)"])]
)
def test_what_a_rank_says_of_itself_comes_first(told):
    finding = Finding("hang", (0,), 6.0)
    cause = find_cause({0: raised(LOST), 1: raised(told)}, finding)
    assert cause.ranks == (1,)
    assert cause.end.error is told


@pytest.mark.parametrize(
    ("error", "expected"),
    [(LOST, RuntimeError), (RuntimeError("The size of tensor a (3) must match"), UserError)],
)
def test_a_rank_that_loses_another_one_while_restoring_does_not_blame_the_checkpoint(
    monkeypatch, error, expected
):
    def fail(*_):
        raise error

    monkeypatch.setattr(RankCheckpoint, "_restore", fail)
    with pytest.raises(expected) as caught:
        RankCheckpoint.__new__(RankCheckpoint).restore(Cut("/run", 8), [], same_ranks=True)
    assert type(caught.value) is expected


def test_a_hang_is_the_fault_of_those_that_do_not_wait():
    waiting = replace(STATUS, waits=True, doing="FinishTiedExchange(exchange=4)", still_s=10.0)
    stuck = replace(STATUS, still_s=10.2)
    idle = replace(STATUS, command=IDLE, still_s=99.0)
    assert find_hang({0: waiting, 1: stuck, 2: idle}, 8.0) == Finding("hang", (1,), 10.2)
    assert find_hang({0: waiting, 1: stuck}, 11.0) is None
    assert find_hang({0: waiting, 1: replace(stuck, still_s=0.1)}, 8.0) is None
    assert find_hang({0: waiting, 1: waiting}, 8.0).ranks == (0, 1)
    # The first that stood still keeps the others of its stage waiting in a collective.
    early = replace(STATUS, doing="OptimizerStep(step=4)", still_s=9.0)
    assert find_hang({0: early, 1: stuck, 2: waiting}, 8.0).ranks == (1,)
    # To build models may take long.
    assert find_hang({0: replace(stuck, command="build"), 1: idle}, 8.0) is None


def test_what_is_said_of_a_dead_rank():
    killed = describe_end(
        end_of(ActorDiedError()), STATUS, ProcessFacts(None, 2, "Forward(step=4)"), None
    )
    assert "its process 12 is gone" in killed
    assert "SIGKILL" in killed
    assert "not by the kernel for lack of memory" in killed
    assert "(SIGSEGV, see" in describe_end(end_of(ActorDiedError()), STATUS, None, "SIGSEGV")
    by = describe_end(End(Kind.GONE, exit_code=-9), STATUS, None, None)
    assert by == "was killed by SIGKILL: its process 12 is gone"
    ended = describe_end(End(Kind.GONE, exit_code=3), STATUS, None, None)
    assert ended == "ended: its process 12 has exit status 3"
    out = describe_end(end_of(ActorDiedError()), STATUS, ProcessFacts(None, 3, None), None)
    assert "by the kernel: out of memory" in out
    place = describe_place(STATUS, ProcessFacts(None, 2, "Forward(step=4)"), 9.0)
    assert place.startswith(
        "It was at Forward(step=4); it used 1.0 GB, of the host's 8.0 GB 4.0 GB"
    )
    frozen = describe_finding(
        Finding("frozen", (0,), 9.0), STATUS, ProcessFacts("stopped", 2, None), "h"
    )
    assert "process 12 is frozen (state: stopped)" in frozen
    two = Finding("node lost", (0, 1), 6.0)
    assert describe_finding(two, STATUS, None, "h").startswith("are lost with their node h, which")
    heard = Finding("node lost", (1,), 0.2)
    assert (
        describe_finding(heard, None, None, "h") == "is lost with its node h, whose Ray has ended"
    )


@pytest.mark.parametrize("facts", [None, ProcessFacts("stopped", 2, None)])
def test_where_a_rank_was_is_only_said_to_be_exact_if_its_note_was_read(facts):
    stale = describe_place(STATUS, facts, 9.2)
    assert stale.startswith("When last heard of, 9 s before, it was at Backward(step=3); it used")
    assert describe_place(None, facts, 9.2) == "It was never heard of."


def test_the_note_of_what_a_process_does_outlives_it(tmp_path: Path):
    note = tmp_path / "rank-0.now"
    activity = Activity(note)
    with activity.during("advance"):
        assert read_note(note) == "advance"
        activity.begin(Backward(3, 1, last=True))
        assert read_note(note) == activity.text == "Backward(step=3, micro_batch=1)"
        assert not activity.waits
        activity.begin(FinishTiedExchange(4))
        assert activity.waits
    assert read_note(note) == IDLE
    assert read_note(tmp_path / "none") is None


def test_a_log_tells_of_the_last_process_only(tmp_path: Path):
    log = tmp_path / "rank-0.log"
    log.write_text(f"{started_line(0)}\nold\n{started_line(0)}\nnew\n", encoding="utf-8")
    assert read_log(log, 5).lines[1:] == ["new"]
    assert read_log(log, 5).signal is None
    assert read_log(tmp_path / "none", 5).lines == []
    with log.open("a", encoding="utf-8") as file:
        file.write("*** SIGSEGV received at time=1 on cpu 0 ***\nPC: @ 0x1\n" + 20 * "x\n")
    crashed = read_log(log, 2)
    assert crashed.signal == "SIGSEGV"
    assert crashed.lines == ["*** SIGSEGV received at time=1 on cpu 0 ***", "PC: @ 0x1"]


def test_processes_are_ended_only_if_they_are_ranks():
    script = "import time, sys; time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", script])
    rank = subprocess.Popen(["ray::Worker", "-c", script], executable=sys.executable)
    try:
        time.sleep(0.2)
        assert end_processes([process.pid, rank.pid], 0.2) == [rank.pid]
        rank.wait(timeout=10)
        assert process.poll() is None
        assert look_at(rank.pid, Path("none")).state is None
        assert look_at(process.pid, Path("none")).state is not None
    finally:
        process.kill()
        process.wait()


def test_fewer_replicas_are_used_as_far_as_the_config_allows(tmp_path, monkeypatch):
    monkeypatch.setattr("tsarch.cluster.placement.rank_resources", lambda *_: {"CPU": 1.0})
    topology = {"teacher": {"replicas": 4}, "student": {"replicas": 2}}
    blueprint = tiny_blueprint(tmp_path, topology=topology)
    assert smaller_run(blueprint, cpu_nodes(3)) is None
    allowed = blueprint.altered(topology={"min_replicas": 1})
    assert smaller_run(allowed, cpu_nodes(3)).topology == Topology.pair(2, 1)
    assert smaller_run(allowed, cpu_nodes(3, 2)).topology == Topology.pair(3, 2)
    assert smaller_run(allowed, cpu_nodes(1)) is None
    assert smaller_run(blueprint.altered(topology={"min_replicas": 2}), cpu_nodes(3)) is None


def test_a_run_remembers_what_failures_cost(monkeypatch):
    clock = iter([0.0, 20.0, 23.0, 25.0])
    monkeypatch.setattr("tsarch.run.restarts.now_s", lambda: next(clock))
    history = History()
    for step in range(7):
        history.trained(step)
    history.failed("student 0 was killed\nmore", 12.0)
    for step in (5, 6, 7):
        history.trained(step)
    (restart,) = history.as_json()
    assert restart == {
        "cause": "student 0 was killed",
        "noticed_s": 12.0,
        "failed_at": 7,
        "resumed_at": 5,
        "down_s": 8.0,
        "repeated_s": 3.0,
    }


BROKEN = "student 0 (rank 1) on 127.0.0.1 failed: AssertionError: rank (0) != 3\nIt was at join."


@pytest.mark.parametrize(
    ("causes", "repeats"),
    [
        ([BROKEN], False),
        ([BROKEN, BROKEN], True),
        ([BROKEN, BROKEN.replace("student 0 (rank 1)", "teacher 2 (rank 2)")], True),
        ([BROKEN, BROKEN.replace("Assertion", "Memory")], False),
        ([BROKEN, None, BROKEN], False),
        ([None, BROKEN, BROKEN], False),
        ([None, BROKEN, BROKEN, BROKEN], True),
    ],
)
def test_a_failure_that_comes_again_before_the_first_step_is_known(causes, repeats):
    history = History()
    for cause in causes:  # None: a step
        if cause is None:
            history.trained(3)
        else:
            history.failed(cause, 0.0)
    assert history.repeats is repeats


@pytest.fixture
def failing_job(tmp_path):
    """A run whose ranks fail as they start, and the causes still to come."""
    causes: list[str] = []

    def gather(*_: Any) -> Any:
        raise RankFailedError(causes.pop(0), 0.0)

    store, reporter = Store(str(tmp_path / "run" / "checkpoints")), Reporter()
    blueprint = tiny_blueprint(tmp_path, failure={"max_restarts": 3})
    run = Job(blueprint, None, gather, tmp_path / "run", reporter, store, None)  # type: ignore[arg-type]
    return run, causes


def test_a_fault_that_comes_again_before_the_first_step_is_not_restarted(failing_job):
    job, causes = failing_job
    causes += [BROKEN] * 4
    with pytest.raises(RunFailedError, match="the same before the first step, twice") as caught:
        train(job, None)
    assert len(causes) == 2
    assert "It has no checkpoint to go on from" in str(caught.value)
    assert "--resume" not in str(caught.value)


def test_other_faults_are_restarted_as_often_as_allowed(failing_job):
    job, causes = failing_job
    causes += [f"student 0 (rank 1) on h failed: {kind}" for kind in "abcd"]
    with pytest.raises(RunFailedError, match="ended after 3 restarts") as caught:
        train(job, None)
    assert not causes
    assert "--resume" not in str(caught.value)


class StateTold:
    """What the driver knows at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def model_dump_json(self) -> str:
        return str(self.step)


def test_what_goes_with_a_cut_that_ranks_keep_for_long_is_remembered(monkeypatch):
    monkeypatch.setattr("tsarch.run.kept_states.parse_progress", int)
    kept = KeptStates()
    for step in range(20):
        kept.taken(step, StateTold(step), kept=(3, 11))  # type: ignore[arg-type]
    assert [step for step in range(20) if kept.at(step) is not None] == [3, 11, *range(14, 20)]
    kept.taken(20, StateTold(20))  # type: ignore[arg-type]
    assert kept.at(3) is kept.at(11) is None


@pytest.mark.parametrize(
    ("cut", "saved", "whole", "expected"),
    [
        (20, [], [], "memory 20"),
        (20, [8, 16], [8, 16], "memory 20"),
        (20, [16, 20], [16, 20], "memory 20"),
        # After the loss of a node memory may have older cuts alone.
        (20, [16, 24], [16, 24], "store 24"),
        (20, [16, 24], [16], "memory 20"),
        (20, [24], [], "memory 20"),
        (None, [16], [16], "store 16"),
        (None, [], [], None),
    ],
)
def test_a_run_goes_on_from_the_last_that_there_is(monkeypatch, cut, saved, whole, expected):
    def find(*_: Any) -> Any:
        if not whole:
            raise UserError.single("--resume", "all are damaged.", "Start anew.")
        return SimpleNamespace(place=f"store {whole[-1]}", step=whole[-1])

    def in_memory(_: Any, step: int, *more: Any) -> Any:
        return SimpleNamespace(place=f"memory {step}", step=step)

    monkeypatch.setattr("tsarch.run.resume.find_resume_point", find)
    monkeypatch.setattr("tsarch.run.resume.ResumePoint", in_memory)
    store = SimpleNamespace(sweep=lambda: None, steps=lambda: saved)
    job: Any = SimpleNamespace(store=store, reporter=Reporter(), blueprint=None)
    kept: Any = SimpleNamespace(at=lambda step: "a state")
    mended = Mended(None if cut is None else (cut, {}), 1, ())
    point = _next_point(job, mended, kept)
    assert (None if point is None else point.place) == expected


def test_the_way_on_that_is_advised_works_where_it_is_said(tmp_path):
    folder = tmp_path / "my run"
    store = Store(str(folder / "checkpoints"))
    assert "no checkpoint" in how_to_go_on(folder, store, None)
    writing = store.place(3)
    Path(writing).mkdir(parents=True)
    (Path(writing) / "manifest.json").write_text("{}", encoding="utf-8")
    assert "no checkpoint" in how_to_go_on(folder, store, None)
    (folder / "config.yaml").write_text("a: 1", encoding="utf-8")
    assert how_to_go_on(folder, store, None) == f"Go on with: tsarch train '{folder}' --resume"
    assert how_to_go_on(folder, store, "auto").endswith(" --resume --address auto")


def test_errors_cross_processes():
    import pickle

    error = RankFailedError("gone", 3.0, frozenset({"a"}))
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.noticed_s, again.lost_nodes) == ("gone", 3.0, frozenset({"a"}))
    assert has_lost_peer(pickle.loads(pickle.dumps(HasFailedError())))


def test_the_peak_of_a_process_is_its_own_and_not_that_of_whoever_started_it():
    large = os.urandom(1 << 20) * 400
    code = "from tsarch.rank.status import peak_memory; print(peak_memory())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert peak_memory() > len(large)
    assert 1e6 < int(done.stdout) < len(large) / 2
