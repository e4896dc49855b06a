"""Logs of ranks as one: in the order of one clock, from whoever printed, and searchable."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.helpers import tiny_config
from tsarch.errors import UserError
from tsarch.launch.cli import main
from tsarch.launch.training import run_training
from tsarch.rank.log_times import LogTimes
from tsarch.telling.logs import LogLine, read_logs, times_file, write_clocks
from tsarch.telling.seats import Seat, write_seats


def log(folder: Path, name: str, *lines: tuple[float, str]) -> None:
    """A log whose lines were printed at these times."""
    size, times = 0, ""
    for time_s, text in lines:
        size += len(text.encode()) + 1
        times += f"{size} {time_s:.3f}\n"
    (folder / f"{name}.log").write_text("".join(f"{text}\n" for _, text in lines))
    (folder / f"{name}.times").write_text(times)


def texts(lines: object) -> list[str]:
    return [line.text for line in lines]  # type: ignore[attr-defined]


def test_lines_of_all_come_in_the_order_in_which_they_were_printed(tmp_path):
    log(tmp_path, "rank-0", (10.0, "a"), (12.0, "d"))
    log(tmp_path, "rank-1", (11.0, "b é"), (11.5, "c"), (13.0, "e"))
    log(tmp_path, "driver", (9.0, "started"))
    write_seats(tmp_path, [Seat(0, "teacher", "h"), Seat(1, "student", "h")])
    found = list(read_logs(tmp_path))
    assert texts(found) == ["started", "a", "b é", "c", "d", "e"]
    assert [line.source for line in found[:3]] == ["driver", "rank 0 (teacher)", "rank 1 (student)"]


def test_times_are_the_drivers_where_clocks_differ(tmp_path):
    log(tmp_path, "rank-0", (10.0, "second"))
    log(tmp_path, "rank-1", (39.0, "first"))
    write_clocks(tmp_path, {1: 30.0})
    assert list(read_logs(tmp_path)) == [
        LogLine(9.0, "rank 1", "first"),
        LogLine(10.0, "rank 0", "second"),
    ]


def test_lines_are_chosen_by_rank_pattern_and_time(tmp_path):
    log(tmp_path, "rank-0", (10.0, "step 1"), (20.0, "step 2"))
    log(tmp_path, "rank-1", (15.0, "step 1"))
    log(tmp_path, "spare-2", (16.0, "waits"))
    assert texts(read_logs(tmp_path, ranks=[0])) == ["step 1", "step 2"]
    assert texts(read_logs(tmp_path, pattern=r"step [2-9]|wait")) == ["waits", "step 2"]
    assert texts(read_logs(tmp_path, since_s=16.0)) == ["waits", "step 2"]


def test_what_came_after_the_last_look_has_the_time_of_the_file(tmp_path):
    """As of a rank that crashed."""
    log(tmp_path, "rank-0", (10.0, "before"))
    with (tmp_path / "rank-0.log").open("a") as file:
        file.write("Fatal Python error\nno end")
    with (tmp_path / "rank-0.times").open("a") as file:
        file.write("99")  # torn
    os.utime(tmp_path / "rank-0.log", (50.0, 50.0))
    assert [line.time_s for line in read_logs(tmp_path)] == [10.0, 50.0, 50.0]


def test_a_log_is_looked_at_while_it_grows(tmp_path):
    file = tmp_path / "rank-0.log"
    file.write_text("tsarch: rank 0 is process 1\n")
    began_s = time.time()
    times = LogTimes(file)
    try:
        for number in range(2):
            with file.open("a") as own:
                own.write(f"line {number}\n")
            noted = f"{file.stat().st_size} "
            deadline_s = time.monotonic() + 60.0
            while noted not in (times_file(file).read_text() if times_file(file).exists() else ""):
                assert time.monotonic() < deadline_s
                time.sleep(0.02)
    finally:
        times.end()
    found = list(read_logs(tmp_path))
    assert texts(found)[1:] == ["line 0", "line 1"]
    assert began_s - 1.0 < found[1].time_s < found[2].time_s < time.time() + 1.0


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main(["logs", *map(str, arguments)])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out + " ".join(captured.err.split())


def test_mistakes_are_told(tmp_path, capsys):
    status, text = command(capsys, tmp_path)
    assert (status, "has no logs" in text) == (2, True)
    (tmp_path / "logs").mkdir()
    log(tmp_path / "logs", "rank-0", (10.0, "a"))
    assert "has no logs of these ranks" in command(capsys, tmp_path, "--rank", 1)[1]
    assert "is no pattern" in command(capsys, tmp_path, "--grep", "(")[1]
    assert "is no time. Such as 10m" in command(capsys, tmp_path, "--since", "soon")[1]
    assert command(capsys, tmp_path, "--since", "1h") == (0, "")
    assert command(capsys, tmp_path, "--since", "1970-01-01T00:00")[1].endswith("rank 0  a\n")
    with pytest.raises(UserError):
        read_logs(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("clocks.json", text) for text in ("{", "[1]", '{"a": 1}', '{"0": "x"}', '{"0": 1e300}')),
        *(("placement.json", text) for text in ("{", "1", "[1]", '[{"rank": 0}]', "[" * 100_000)),
        *(("rank-0.times", text) for text in ("1\n", "a 1.0\n", "1 inf\n", "1 1e300\n", "1 é\n")),
    ],
    ids=lambda own: own[:20],
)
def test_what_is_damaged_is_named(tmp_path, capsys, name, text):
    (tmp_path / "logs").mkdir()
    log(tmp_path / "logs", "rank-0", (10.0, "a"))
    (tmp_path / "logs" / name).write_text(text)
    status, told = command(capsys, tmp_path)
    assert status == 2
    assert f"{name}: is damaged" in told.replace("\n", "")


@pytest.mark.slow
@pytest.mark.ranks
def test_ranks_of_a_run_and_its_driver_are_in_one_log(tmp_path, capsys, forked_ranks):
    config = tiny_config(
        tmp_path,
        topology={"runner": "processes", "spares": 0},
        schedule={"max_steps": 2},
        evaluation={"before": False},
    )
    run_training(config)
    capsys.readouterr()
    status, text = command(capsys, tmp_path / "run")
    assert status == 0
    for words in ("driver  run folder:", "rank 0  tsarch: rank 0 is process", "rank 1  "):
        assert words in text
    moments = [line[:23] for line in text.splitlines()]
    assert moments == sorted(moments)
    assert "rank 0" not in command(capsys, tmp_path / "run", "--rank", 1)[1]
