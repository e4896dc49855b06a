"""Who counts as lost: refusals at once, silence only after long, a busy host never; no Ray."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from threading import Event

from tsarch.cluster import watch as watching
from tsarch.cluster.knocking import Answer, Door, knock
from tsarch.cluster.watch import Node, Watch

SILENCE_S = 10.0


def door_after(answers: list[tuple[Answer, float]]) -> Door:
    door = Door(SILENCE_S)
    for answer, knocked_s in answers:
        door.note(answer, knocked_s)
    return door


def test_two_refusals_are_believed_at_once_and_one_is_not():
    refused, silence = Answer.REFUSED, Answer.SILENCE
    assert not door_after([(refused, 0.0)]).is_lost(60.0)
    assert not door_after([(refused, 0.0), (silence, 1.0), (refused, 2.0)]).is_lost(2.5)
    assert door_after([(refused, 0.0), (refused, 0.3)]).is_lost(0.3)


def test_silence_is_believed_only_when_it_was_unbroken_for_long():
    every_s = [(Answer.SILENCE, float(second)) for second in range(10)]
    door = door_after(every_s)
    assert not door.answers
    assert not door.is_lost(9.9)
    assert door.is_lost(10.0)
    assert door.in_vain_s(10.0) == 10.0
    door.note(Answer.TAKEN, 10.0)
    door.note(Answer.SILENCE, 50.0)
    assert not door.is_lost(55.0), "what was before an answer doesn't count"


def test_one_who_was_stopped_for_long_knocks_some_times_before_it_believes_silence():
    door = door_after([(Answer.SILENCE, 0.0), (Answer.SILENCE, 3600.0)])
    assert not door.is_lost(3601.0)


def test_a_process_that_takes_no_connection_itself_is_not_refused_but_one_that_has_ended_is():
    with ExitStack() as open_sockets:
        server = open_sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1))
        host, port = server.getsockname()
        assert knock(host, port) is Answer.TAKEN  # nobody accepts: the kernel does
        for _ in range(3):  # its queue gets full
            waiting = open_sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex((host, port))
        assert knock(host, port, timeout_s=0.05) is Answer.SILENCE
    assert knock(host, port) is Answer.REFUSED


class DeafWatch(Watch):
    """Of ranks that never say anything; needs no Ray."""

    def _ask(self, patience_s: float) -> None: ...

    def _find_drains(self) -> None: ...


def test_a_silent_node_is_not_lost_before_its_time_and_a_refusing_one_is(monkeypatch):
    near, far = Node("a", "h1", 1), Node("b", "h2", 2)
    knocked, several, answers = [], Event(), [Answer.SILENCE]
    monkeypatch.setattr(watching, "_POLL_S", 0.005)
    monkeypatch.setattr(watching, "_POLL_PER_RANK_S", 0.0)

    def knock_once(address: str, port: int) -> Answer:
        knocked.append(address)
        if len(knocked) >= 20:
            several.set()
        return answers[-1]

    monkeypatch.setattr(watching, "knock", knock_once)
    watch = DeafWatch([None] * 3, [near, far, near], 3600.0, 3600.0)
    try:
        assert several.wait(timeout=60)
        assert watch.finding is None
        answers.append(Answer.REFUSED)
        given_up_s = time.monotonic() + 60
        while watch.finding is None and time.monotonic() < given_up_s:
            time.sleep(0.005)
        assert watch.finding is not None
        assert watch.finding.kind == "node lost"
        assert watch.finding.ranks == (0, 2)
    finally:
        watch.stop()


class HeardWatch(DeafWatch):
    """Of ranks that always answer."""

    def _ask(self, patience_s: float) -> None:
        self._heard_s = dict.fromkeys(self._heard_s, time.monotonic())


def test_a_raylet_that_has_ended_is_found_while_its_ranks_still_answer(monkeypatch):
    monkeypatch.setattr(watching, "_POLL_S", 0.005)
    monkeypatch.setattr(watching, "_POLL_PER_RANK_S", 0.0)
    knocked, answers = Event(), {"h1": Answer.TAKEN, "h2": Answer.SILENCE}
    count = iter(range(10**6))

    def knock_once(address: str, port: int) -> Answer:
        if next(count) > 40:
            knocked.set()
        return answers[address]

    monkeypatch.setattr(watching, "knock", knock_once)
    watch = HeardWatch([None] * 2, [Node("a", "h1", 1), Node("b", "h2", 2)], 3600.0, 0.01)
    try:
        assert knocked.wait(timeout=60)
        assert watch.finding is None, "one that is late, beside ranks that are heard, is no loss"
        answers["h2"] = Answer.REFUSED
        given_up_s = time.monotonic() + 60
        while watch.finding is None and time.monotonic() < given_up_s:
            time.sleep(0.005)
        assert watch.finding is not None
        assert (watch.finding.kind, watch.finding.ranks) == ("node lost", (1,))
    finally:
        watch.stop()


def test_a_node_that_ray_has_given_up_is_lost_though_its_raylet_answers(monkeypatch):
    nodes = [Node("a", "h1", 1), Node("b", "h2", 2), Node("a", "h1", 1)]
    monkeypatch.setattr(watching, "knock", lambda address, port: Answer.TAKEN)
    monkeypatch.setattr(watching, "is_gone", lambda address, port, silence_s: False)
    alive = {"a": False, "b": True}
    table = [{"NodeID": node_id, "Alive": alive[node_id]} for node_id in alive]
    monkeypatch.setattr(watching.ray, "nodes", lambda: table)
    watch = DeafWatch([None] * 3, nodes, 3600.0, 3600.0)
    try:
        assert watch.lost_node(1) is None
        lost = watch.lost_node(0)
        assert lost is not None
        assert lost.ranks == (0, 2)
    finally:
        watch.stop()
