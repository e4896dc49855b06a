"""A watched folder: every file is used exactly once, whatever happens on the way."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import WIKIGOLD, write_jsonl
from tests.test_refit import CutOffError, copied, cut_after, cut_before, no_switch, trained
from tests.test_saved_run import rows_of
from tsarch.errors import RunFailedError, UserError
from tsarch.launch.cli import main
from tsarch.refit.journal import Journal
from tsarch.refit.lineage import Lineage
from tsarch.refit.server import ServedRun
from tsarch.refit.settings import Request
from tsarch.refit.watching import Watch, WatchOptions

__all__ = ["trained"]
ROWS = rows_of(WIKIGOLD / "train.jsonl")
REQUEST = Request(epochs=1, margin=1000.0, held_out=0.3, replay=0.1)
ONCE = WatchOptions(settle_s=0.1, poll_s=0.1, once=True)


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    (tmp_path / "inbox").mkdir()
    return tmp_path / "inbox"


@pytest.fixture
def lineage(trained: Path, tmp_path: Path) -> Lineage:
    shutil.copytree(trained / "run", tmp_path / "run")
    return Lineage(tmp_path / "run")


def watch(lineage: Lineage, inbox: Path, train: Any = copied, **options: Any) -> None:
    Watch(inbox, lineage, REQUEST, ONCE, train, print, **options).run()


def put(inbox: Path, number: int, name: str | None = None) -> Path:
    """A file of the number-th ten rows, each a document of its own."""
    rows = ROWS[100 + 10 * number : 110 + 10 * number]
    rows = [{own: row[own] for own in ("tokens", "tags")} for row in rows]
    return write_jsonl(inbox / (name or f"part-{number}.jsonl"), rows)


def used(lineage: Lineage) -> Counter[str]:
    return Counter(Path(own.source).name for own in lineage.records() if own.decided)


def steps(lineage: Lineage) -> list[tuple[str, str]]:
    entries = Journal(lineage.run / "watch").entries()
    return [(own["step"], own.get("name", "")) for own in entries]


@pytest.mark.slow
def test_each_file_is_used_once_and_a_broken_one_is_put_aside(lineage, inbox):
    put(inbox, 0)
    (inbox / "part-1.jsonl").write_text('{"tokens": ["Ann"]}\n{"tokens"', encoding="utf-8")
    put(inbox, 0, "same-rows-again.jsonl")
    (inbox / "part-9.jsonl.part").write_text("half")
    (inbox / "empty.jsonl").touch()
    watch(lineage, inbox)
    assert used(lineage) == {"part-0.jsonl": 1}
    assert [step for step, _ in steps(lineage)] == ["claimed", "decided", "claimed", "refused"]
    assert sorted(own.name for own in (inbox / "refused").iterdir()) == [
        "part-1.jsonl",
        "part-1.jsonl.why.txt",
    ]
    why = (inbox / "refused/part-1.jsonl.why.txt").read_text()
    assert f"{inbox}/part-1.jsonl:" in why
    put(inbox, 2)
    watch(lineage, inbox)
    watch(lineage, inbox)
    assert used(lineage) == {"part-0.jsonl": 1, "part-2.jsonl": 1}
    assert not list((lineage.run / "watch" / "files").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("place", ["before training", "after training", "after the decision"])
def test_a_watch_that_was_cut_off_goes_on_though_the_file_is_gone(
    lineage, inbox, monkeypatch, place
):
    file = put(inbox, 0)
    act = {"before training": cut_before, "after training": cut_after}.get(place, copied)
    with monkeypatch.context() as patch:
        if act is copied:
            patch.setattr(Lineage, "make_current", no_switch)
        with pytest.raises(CutOffError):
            watch(lineage, inbox, act)
    file.unlink()
    watch(lineage, inbox)
    assert used(lineage) == {"part-0.jsonl": 1}
    assert steps(lineage) == [("claimed", "part-0.jsonl"), ("decided", "part-0.jsonl")]
    assert lineage.current == "v2"


def test_training_that_fails_is_tried_again_and_then_told(lineage, inbox):
    calls = []

    def fail(config: Any, resume: bool) -> Any:
        calls.append(config)
        raise RunFailedError("a rank failed")

    put(inbox, 0)
    with pytest.raises(RunFailedError):
        watch(lineage, inbox, fail)
    assert len(calls) == 3
    assert steps(lineage) == [("claimed", "part-0.jsonl")]


def test_a_file_that_is_being_written_is_not_read(lineage, inbox):
    file = put(inbox, 0)
    own = Watch(inbox, lineage, REQUEST, ONCE, cut_before, print)
    for _ in range(3):
        with file.open("a") as more:
            more.write("\n")
        assert own._look() == 1
    assert steps(lineage) == []


def test_a_torn_line_of_the_journal_is_no_line(tmp_path):
    (tmp_path / "f").write_text("x")
    journal = Journal(tmp_path / "watch")
    with journal.locked():
        claim = journal.claim(tmp_path / "f")
    assert claim is not None
    with (tmp_path / "watch" / "journal.jsonl").open("a") as file:
        file.write('{"step": "decided", "fi')
    again = Journal(tmp_path / "watch")
    with again.locked():
        assert [own.digest for own in again.open_claims()] == [claim.digest]
        assert again.claim(tmp_path / "f") is None
        again.close(claim, "decided", version="v2", accepted=True, reason="")
    assert [own["step"] for own in again.entries()] == ["claimed", "decided"]
    assert again.untold() == "v2"


def test_two_watches_of_a_run_are_refused(tmp_path):
    with Journal(tmp_path).locked(), pytest.raises(UserError, match="watches for this run already"):
        Journal(tmp_path).locked().__enter__()


class Swaps(BaseHTTPRequestHandler):
    """Answers what the test has it answer, and notes what it was asked."""

    asked: list[tuple[str, str | None]] = []  # noqa: RUF012
    status = 200

    def do_POST(self) -> None:
        type(self).asked.append((self.path, self.headers.get("Authorization")))
        self.send_response(type(self).status)
        self.end_headers()
        self.wfile.write(b'{"detail": "no such run"}')

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Swaps, "asked", [])
    monkeypatch.setattr("tsarch.refit.server._PAUSE_S", 0.0)
    with HTTPServer(("127.0.0.1", 0), Swaps) as own:
        thread = threading.Thread(target=own.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{own.server_port}"
        own.shutdown()
        thread.join()


@pytest.mark.slow
def test_a_server_is_told_and_one_that_is_down_is_told_later(
    lineage, inbox, server, monkeypatch, tmp_path, capsys
):
    (tmp_path / "token").write_text("# ours\nabcdefghijklmnop\n")
    put(inbox, 0)
    down = ServedRun.of("http://127.0.0.1:1", "run", None)
    watch(lineage, inbox, server=down)
    assert lineage.current == "v2"
    assert "the server hasn't swapped" in capsys.readouterr().out
    served = ServedRun.of(server, "my run", tmp_path / "token")
    monkeypatch.setattr(Swaps, "status", 404)
    watch(lineage, inbox, server=served)
    assert len(Swaps.asked) >= 3
    assert "404" in capsys.readouterr().out
    monkeypatch.setattr(Swaps, "status", 200)
    Swaps.asked.clear()
    watch(lineage, inbox, server=served)
    watch(lineage, inbox, server=served)
    assert Swaps.asked == [("/runs/my%20run/reload", "Bearer abcdefghijklmnop")]


def test_what_is_no_server_or_token_is_told(tmp_path):
    with pytest.raises(UserError, match="is no http://HOST:PORT"):
        ServedRun.of("localhost:80", "run", None)
    (tmp_path / "token").write_text("# none\n")
    with pytest.raises(UserError, match="has no token"):
        ServedRun.of("http://localhost:80", "run", tmp_path / "token")


def call(run: Path, inbox: Path) -> None:
    """The command itself, in a process of its own."""
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    options = ["--run", str(run), "--once", "--settle-s", "0.1", "--epochs", "1"]
    main(["watch", str(inbox), *options, "--margin", "1000", "--held-out", "0", "--replay", "0.1"])


@pytest.fixture(scope="module")
def processes() -> Any:
    """Makes processes in which the heavy libraries are imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.watch_imports"])
    return context


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.timeout(1800)
def test_killed_at_any_of_ten_moments_every_file_is_used_exactly_once(lineage, inbox, processes):
    """`kill -9` of the process at moments drawn over what a call takes."""

    def start() -> Any:
        process = processes.Process(target=call, args=(lineage.run, inbox))
        process.start()
        return process

    put(inbox, 0)
    first = start()
    first.join()  # with the imports
    assert first.exitcode == 0
    put(inbox, 1)
    started, second = time.monotonic(), start()
    second.join()
    whole_s = time.monotonic() - started
    moments, kills, number = random.Random(7), [], 1
    for _ in range(40):
        if len(kills) == 10:
            break
        if len(used(lineage)) > number:  # so that there is something to be killed at
            number += 1
            put(inbox, number)
        process = start()
        process.join(moments.uniform(0.05, 1.0) * whole_s)
        if process.is_alive():
            kills.append(stage_of(lineage))
            process.kill()
        process.join()
    assert len(kills) == 10
    assert len(set(kills)) > 1, f"always at the same place: {kills}"
    last = start()
    last.join()
    assert last.exitcode == 0
    files = {path.name for path in inbox.iterdir()}
    assert used(lineage) == dict.fromkeys(files, 1)
    assert [own for own in lineage.records() if not own.decided] == []
    decided = [name for step, name in steps(lineage) if step == "decided"]
    assert sorted(decided) == sorted(files)
    current = json.loads((lineage.run / "current.json").read_text())
    assert [own["version"] for own in current["changes"]] == [
        own.version for own in lineage.records()
    ]


def stage_of(lineage: Lineage) -> str:
    """What a call has done last."""
    last = [own.version for own in lineage.records() if not own.decided]
    if not last:
        return steps(lineage)[-1][0]
    folder = lineage.folder(last[-1])
    files = ("summary.json", "model/task.json", "config.yaml")
    return next((own for own in files if (folder / own).exists()), "rows")
