"""What a process does with memory that it no longer needs."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from tests.helpers import ROOT

_FAULTS = """
import resource, sys
from tsarch.host_memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(12):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = bytearray(64 << 20)
    block[:: 4096] = b"1" * (len(block) // 4096)
    del block
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="tunes glibc's malloc")
def test_a_large_block_reuses_the_pages_of_one_that_was_freed():
    def last_faults(how: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", _FAULTS, how], capture_output=True, text=True, check=True
        )
        return int(done.stdout.split()[-1])

    assert 2 * last_faults("keep") < last_faults("give"), "each block has fresh pages"


_COLLECTED = """
import gc, sys, time
from tsarch.host_memory import collect_seldom
if sys.argv[1] == "seldom":
    collect_seldom()
rounds = sum(own["collections"] for own in gc.get_stats())
kept = [[number] for number in range(300_000)]
kept.append(kept)
print(sum(own["collections"] for own in gc.get_stats()) - rounds)
before = gc.get_threshold()
from tests.helpers import tiny_blueprint
from tsarch.stage.build import build_model
from tsarch.topology import STAGES
import pathlib, tempfile
with tempfile.TemporaryDirectory() as folder:
    build_model(tiny_blueprint(pathlib.Path(folder)), STAGES[0], 3)
print(int(gc.get_threshold() == before))
"""


@pytest.mark.slow
def test_cycles_are_looked_for_seldom_and_still_found():
    def found(how: str) -> list[int]:
        command = [sys.executable, "-c", _COLLECTED, how]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        return [int(line) for line in done.stdout.splitlines()]

    rounds, stays = found("seldom")
    assert 1 <= rounds < 10
    assert not stays, "what a model computes is collected as usual"
    rounds, stays = found("often")
    assert rounds > 100
    assert stays


_HELD = """
from tsarch.host_memory import give_back_freed_memory, keep_freed_memory

def held():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

keep_freed_memory()
blocks = [b"1" * (20 << 20) for _ in range(8)]
after = b"1" * 4096  # what is allocated later keeps the heap from shrinking by itself
del blocks
before = held()
give_back_freed_memory()
print(before - held())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="tunes glibc's malloc")
def test_what_is_kept_can_be_given_back():
    command = [sys.executable, "-c", _HELD]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 140 << 20
