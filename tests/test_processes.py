"""`topology.runner: processes`: plain processes on this host, and what becomes of them."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.fake_ranks import FakeRank
from tests.helpers import ROOT, tiny_config, tiny_raw
from tsarch.blueprint import resolve
from tsarch.checkpoint.cut import Written
from tsarch.config import Config
from tsarch.config_loading import load_config
from tsarch.errors import RankFailedError, UserError
from tsarch.launch.torchrun import check_number
from tsarch.launch.training import run_training
from tsarch.planning.preflight import check_run
from tsarch.rank.api import RankApi
from tsarch.rank.process_crew import ProcessCrew
from tsarch.rank.status import BUILDING

RANKS = {"runner": "processes", "device": "cpu", "threads": 1, "cpus_per_rank": 0.5, "spares": 0}
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone")


@pytest.fixture
def fake_crew(tmp_path: Path) -> Iterator[ProcessCrew]:
    """A teacher and two students that compute nothing."""
    config = tiny_config(
        tmp_path,
        topology={**RANKS, "student": {"replicas": 2}},
        failure={"hang_timeout_s": 3.0},
    )
    with closing(fake(config, tmp_path)) as crew:
        yield crew


def fake(config: Config, folder: Path) -> ProcessCrew:
    return ProcessCrew.start(resolve(config), folder / "logs", lambda _: None, make=FakeRank)


def test_all_ranks_are_told_and_answer_in_order(fake_crew):
    reports = [report for own in fake_crew.train(0, 40) for report in own]
    for rank, (stage, replica) in enumerate((("teacher", 0), ("student", 0), ("student", 1))):
        own = [r.tick for r in reports if (r.stage, r.replica) == (stage, replica)]
        assert own == list(range(40)), rank


def test_a_slow_answer_and_a_quick_question_keep_apart(fake_crew):
    pending = fake_crew.submit(RankApi.begin, 0, 5, None)
    pids = fake_crew.ask(RankApi.stats)
    assert len(set(pids)) == 3
    assert fake_crew.collect(pending) == [5, 5, 5]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("killed", r"student 1 \(rank 2\) on 127.0.0.1 was killed by SIGKILL.*: its process"),
        ("ended", r"student 1 \(rank 2\) on .* ended: its process.* has exit status 7"),
        ("broken", r"student 1 \(rank 2\) on .* failed: RuntimeError: UnportableError: no more"),
        ("frozen", r"student 1 \(rank 2\) on .* frozen \(state: stopped\)"),
        ("stuck", r"student 1 \(rank 2\) on .* hangs: no progress"),
    ],
)
def test_a_rank_that_fails_is_named_with_its_log(fake_crew, fault, said):
    pids = fake_crew.ask(RankApi.stats)
    said_so_far = fake_crew._watch.statuses  # of a rank that starts it is patient
    while len(said_so_far) < 3 or any(s.command in BUILDING for s in said_so_far.values()):
        time.sleep(0.1)
    fake_crew.ask(RankApi.load, Path("2") / fault)
    with pytest.raises(RankFailedError, match=said) as caught:
        list(fake_crew.train(0, 9))
    text = str(caught.value)
    assert f"end of {fake_crew._log_folder}/rank-2.log:" in text
    assert ('raise UnportableError("no more", 3)' if fault == "broken" else "about to be ") in text
    assert "It was at advance" in text
    if fault == "stuck":
        assert "in _happens" in text
    fake_crew.close()
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert not list(fake_crew._log_folder.glob("*.now"))


def meet_fault(crew: ProcessCrew, *faults: str) -> RankFailedError:
    """Train until something happens, with a checkpoint under way."""
    for fault in faults:
        crew.ask(RankApi.load, Path(fault))
    crew.begin(0, 9)
    assert crew.checkpoint_written(wait=False) is None
    with pytest.raises(RankFailedError) as caught:
        list(crew.train(0, 9))
    return caught.value


@pytest.mark.slow
def test_only_those_that_fail_or_do_not_let_go_are_replaced(fake_crew):
    before = fake_crew.ask(RankApi.stats)
    # Rank 0 waits for rank 2, which dies, until it is told to let go.
    failure = meet_fault(fake_crew, "0/waiting", "2/killed")
    assert failure.ranks == {2}
    mended = fake_crew.mend(failure)
    assert (mended.num_replaced, mended.stages) == (1, fake_crew.topology.stages)
    assert mended.cut is None, "these ranks keep nothing in memory"
    after = fake_crew.ask(RankApi.stats)
    assert before[:2] == after[:2] != before[2:]
    assert not psutil.pid_exists(before[2])
    assert fake_crew.survey("") == [("student", "teacher")] * 3
    assert [r.tick for own in fake_crew.train(0, 4) for r in own if r.stage == "teacher"] == [
        *range(4)
    ]
    assert fake_crew.checkpoint_written(wait=True) == [Written()] * 3

    # Rank 1 lets go of nothing, however it is told.
    mended = fake_crew.mend(meet_fault(fake_crew, "1/stuck", "2/ended"))
    assert mended.num_replaced == 2
    assert fake_crew.ask(RankApi.stats)[0] == before[0]


@pytest.mark.slow
def test_ranks_end_with_their_driver(tmp_path):
    """The driver is killed while a rank is amid something that takes long."""
    script = (
        "import sys, time; from pathlib import Path; from tests.helpers import tiny_config;"
        "from tests.test_processes import RANKS, fake; from tsarch.rank.api import RankApi;"
        "folder = Path(sys.argv[1]);"
        "crew = fake(tiny_config(folder, topology=RANKS), folder);"
        "pids = crew.ask(RankApi.stats); crew.ask(RankApi.load, Path('1/stuck'));"
        "crew.begin(0, 9); crew.submit(RankApi.advance, 9);"
        "print(*pids, flush=True); time.sleep(600)"
    )
    driver = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert driver.stdout is not None
    pids = [int(pid) for pid in driver.stdout.readline().split()]
    assert len(pids) == 2
    driver.kill()
    driver.wait()
    gone, _ = psutil.wait_procs([psutil.Process(p) for p in pids if psutil.pid_exists(p)], 30)
    assert not any(psutil.pid_exists(pid) for pid in pids), gone


def test_there_must_be_room_and_as_many_processes_as_ranks(tmp_path):
    config = tiny_config(tmp_path, topology={**RANKS, "student": {"replicas": 500}})
    with pytest.raises(UserError, match=r"need 250.5 CPUs, .* topology.runner: ray with"):
        check_run(resolve(config), own_ray=True)
    config = tiny_config(tmp_path, topology={**RANKS, "student": {"replicas": 2}})
    check_number(resolve(config), 3)
    said = "has started 2 processes, but 1 teacher . 2 student replicas are 3 ranks. Use --nproc"
    with pytest.raises(UserError, match=said):
        check_number(resolve(config), 2)


def torchrun(num_ranks: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A run under torchrun."""
    command = [*TORCHRUN, "--nproc-per-node", str(num_ranks), "-m", "tsarch.launch.torchrun"]
    command += arguments
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)


@pytest.mark.slow
def test_torchrun_with_another_number_of_ranks_is_one_message(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tiny_raw(tmp_path, topology=RANKS)), encoding="utf-8")
    done = torchrun(3, str(config))
    assert done.returncode != 0
    assert (done.stdout + done.stderr).count("has started 3 processes") == 1
    assert "exitcode  : 2" in done.stderr.replace("exitcode : 2", "exitcode  : 2")
    assert "Traceback" not in done.stdout


def raw_run(folder: Path, name: str, **topology: Any) -> dict[str, Any]:
    """A run with dropout, so that random numbers count, and with checkpoints."""
    return tiny_raw(
        folder,
        run={"name": name, "folder": str(folder / name)},
        teacher={"dropout": 0.1},
        student={"dropout": 0.1},
        schedule={"epochs": 2, "micro_batches": 2},
        evaluation={"before": False},
        checkpoint={"every_steps": 3, "at_epochs": False, "every_s": None, "keep_last": 9},
        topology={**RANKS, **topology},
    )


@pytest.fixture(scope="module")
def peaceful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happens to."""
    folder = tmp_path_factory.mktemp("processes")
    summary = train(folder, "peaceful")
    assert (summary["runner"], summary["restarts"], summary["steps"]) == ("processes", 0, 10)
    assert summary["teacher"]["zero_stage"] == 0
    return folder / "peaceful"


def train(folder: Path, name: str, *more: str, **topology: Any) -> dict[str, Any]:
    """A whole run in a process of its own; its summary."""
    config = folder / f"{name}.yaml"
    config.write_text(yaml.safe_dump(raw_run(folder, name, **topology)), encoding="utf-8")
    command = [sys.executable, "-m", "tests.suites.fault_run", *(more or ("[]",)), "train"]
    done = subprocess.run(
        [*command, str(config)], cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / name / "summary.json").read_text(encoding="utf-8"))


def results(run: Path) -> tuple[list[dict[str, float]], list[bytes]]:
    """Losses of all steps, and the weights."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [{k: v for k, v in row.items() if k.startswith(("loss", "grad"))} for row in rows]
    return losses, [p.read_bytes() for p in sorted((run / "model").glob("*.safetensors"))]


@pytest.mark.ranks
@pytest.mark.slow
def test_a_run_comes_through_a_killed_rank_bitwise(tmp_path, peaceful):
    fault = {"kind": "kill", "rank": 1, "step": 8, "instruction": "Forward"}
    fault["marker"] = str(tmp_path / "kill")
    summary = train(tmp_path, "killed", json.dumps([fault]))
    assert summary["restarts"] == 1
    (failure,) = summary["failures"]
    assert "student 0 (rank 1) on 127.0.0.1 was killed by SIGKILL" in failure["cause"]
    assert failure["resumed_at"] >= 5  # memory has a later cut than the disk's of step 6
    assert results(tmp_path / "killed") == results(peaceful)


@pytest.mark.ranks
@pytest.mark.slow
def test_the_same_under_torchrun_and_resumed_with_other_processes(tmp_path, peaceful):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(raw_run(tmp_path, "run")), encoding="utf-8")
    done = torchrun(2, str(config))
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "run"
    assert json.loads((run / "summary.json").read_text())["runner"] == "processes"
    assert results(run) == results(peaceful)
    (run / "summary.json").unlink()
    for checkpoint in (run / "checkpoints").iterdir():
        if checkpoint.name != "step-3":
            shutil.rmtree(checkpoint)
    run_training(load_config(config), resume=True)
    assert results(run) == results(peaceful)


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.thorough
def test_a_run_under_torchrun_saves_when_it_is_told_to_end(tmp_path):
    raw = raw_run(tmp_path, "run")
    raw["schedule"]["epochs"] = 500  # longer than anybody waits
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(raw), encoding="utf-8")
    command = [*TORCHRUN, "--nproc-per-node", "2", "-m", "tsarch.launch.torchrun", str(config)]
    rows = tmp_path / "run" / "metrics.jsonl"
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not _has_some(rows):
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        _, text = process.communicate(timeout=120)
    assert "ended by SIGTERM, saved at step" in text
    assert not (tmp_path / "run" / "summary.json").exists()


def _has_some(file: Path) -> bool:
    return file.exists() and file.stat().st_size > 0


@pytest.mark.ray
@pytest.mark.slow
def test_processes_train_as_ranks_on_ray_to_the_last_bit(tmp_path, peaceful):
    summary = train(tmp_path, "ray", runner="ray")
    assert summary["runner"] == "ray"
    assert results(tmp_path / "ray") == results(peaceful)
