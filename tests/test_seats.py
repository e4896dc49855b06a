"""The picture of which rank sits where."""

from __future__ import annotations

from tsarch.telling.seats import Seat, cell, picture, read_seats, spans, split_groups, write_seats

SEATS = [
    *(Seat(rank, "teacher", "10.0.0.1", (str(rank),)) for rank in range(3)),
    Seat(3, "teacher", "10.0.0.2", ("0",)),
    Seat(4, "student", "10.0.0.2", ("1",), niceness=15),
]


def test_the_picture_has_a_row_for_each_host():
    assert picture(SEATS) == [
        "host      teacher                student",
        "10.0.0.1  ranks 0–2 on GPUs 0–2  –",
        "10.0.0.2  rank 3 on GPU 0        rank 4 on GPU 1",
    ]


def test_ranks_that_share_contexts_stand_together():
    ranks = [Seat(rank, "teacher", "a", (str(rank),), group=rank // 2) for rank in range(4)]
    assert cell(ranks) == "ranks 0–1 · 2–3 on GPUs 0–3"
    student = Seat(4, "student", "b")
    assert split_groups([*ranks, student]) == []
    moved = [*ranks[:3], Seat(3, "teacher", "b", group=1), student]
    assert split_groups(moved) == [2, 3]


def test_many_hosts_are_not_all_drawn():
    many = [Seat(rank, "teacher", f"n{rank}") for rank in range(20)]
    assert picture(many)[-2:] == ["n15           rank 15", "… and 4 more"]


def test_neighbours_are_spans():
    assert spans([7, 0, 1, 2, 4]) == "0–2, 4, 7"


def test_what_is_written_is_read_again(tmp_path):
    assert read_seats(tmp_path) == []
    write_seats(tmp_path / "logs", SEATS)
    assert read_seats(tmp_path / "logs") == SEATS
