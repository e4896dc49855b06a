"""What leaves the project: the wheel, from a checkout and from its sdist, and used elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Mapping
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.helpers import ROOT, tiny_raw, write_jsonl
from tsarch.checkpoint.store import Store
from tsarch.cluster.probe import hash_of_package, source_hash
from tsarch.errors import UserError
from tsarch.launch.convert_gguf import main as convert_gguf

LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.jsonl", "*.png")
WORDS = ("Ann", "Bob", "sings", "in", "Rome", "Oslo", "and", "works", ".")
NAMES = {"Ann": "B-PER", "Bob": "B-PER", "Rome": "B-LOC", "Oslo": "B-LOC"}


def call_build_backend(project: Path, hook: str, output: Path) -> Path:
    """What `hook` of setuptools, `build_wheel` or `build_sdist`, makes of a project's folder."""
    output.mkdir()
    code = f"import setuptools.build_meta as b; b.{hook}({str(output)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (built,) = output.iterdir()
    return built


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def package_files(package: Path) -> dict[str, bytes]:
    """Everything in the package's folder, through its links, by its name in the parent folder."""
    return {
        str(path.relative_to(package.parent)): path.read_bytes()
        for folder, _, names in os.walk(package, followlinks=True)
        for path in (Path(folder, name) for name in names)
        if "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project without what builds and runs have left in it; links stay links."""
    folder = tmp_path_factory.mktemp("checkout") / "project"
    folder.mkdir()
    for name in ("tsarch", "cluster", "launch", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=LEFT_OUT)
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(checkout: Path) -> Path:
    return call_build_backend(checkout, "build_wheel", checkout.parent / "wheel")


@pytest.fixture(scope="module")
def sdist(checkout: Path) -> Path:
    return call_build_backend(checkout, "build_sdist", checkout.parent / "sdist")


def test_cluster_and_launch_are_links_inside_the_package():
    for name in ("cluster", "launch"):
        assert os.readlink(ROOT / "tsarch" / name) == f"../{name}"
        assert not (ROOT / name).is_symlink()


def test_a_wheel_holds_the_package_with_its_data_and_nothing_beside_it(checkout, wheel):
    inside = contents(wheel)
    package = {name: data for name, data in inside.items() if name.startswith("tsarch/")}
    assert package == package_files(checkout / "tsarch")
    assert {
        "tsarch/telling/report.html.jinja",
        "tsarch/cluster/onpremise.yaml",
        "tsarch/launch/cli.py",
        "tsarch/py.typed",
    } <= set(package)
    others = {name.split("/")[0] for name in inside if name not in package}
    assert others == {"tsarch-0.1.0.dist-info"}
    assert inside["tsarch-0.1.0.dist-info/top_level.txt"].split() == [b"tsarch"]


def test_the_sdist_makes_the_same_wheel(sdist, wheel, tmp_path):
    with tarfile.open(sdist) as archive:
        folders = {"/".join(name.split("/")[1:2]) for name in archive.getnames()}
        archive.extractall(tmp_path, filter="data")
    assert folders.isdisjoint({"tests", "benchmarks", "cluster", "launch"})
    (project,) = tmp_path.iterdir()
    again = contents(call_build_backend(project, "build_wheel", tmp_path / "wheel"))
    first = contents(wheel)
    assert again.keys() == first.keys()
    assert all(again[name] == first[name] for name in first if name.startswith("tsarch/"))


def test_ranks_that_run_the_wheel_agree_with_a_driver_in_the_checkout(checkout, wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    assert hash_of_package(tmp_path / "tsarch") == hash_of_package(checkout / "tsarch")
    assert source_hash() == hash_of_package(ROOT / "tsarch")
    for name in ("records.py", "cluster/worker.py"):
        before = hash_of_package(tmp_path / "tsarch")
        (tmp_path / "tsarch" / name).write_text("")
        assert hash_of_package(tmp_path / "tsarch") != before


def requirements(wheel: Path) -> dict[str, list[Requirement]]:
    """The wheel's by extra; those that always come at the empty name."""
    metadata = Parser().parsestr(contents(wheel)["tsarch-0.1.0.dist-info/METADATA"].decode())
    asked = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    names = ["", *metadata.get_all("Provides-Extra", [])]
    return {
        n: [r for r in asked if (r.marker.evaluate({"extra": n}) if r.marker else not n)]
        for n in names
    }


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {canonicalize_name(n): v for n, _, v in (line.partition("==") for line in lines if line)}


def test_every_requirement_is_met_by_its_pin(wheel):
    """And so `pip install` with these constraints installs what was tested."""
    pinned = pins()
    for own in (r for group in requirements(wheel).values() for r in group if r.name != "tsarch"):
        assert own.specifier.contains(pinned[canonicalize_name(own.name)]), own


def test_extras_are_those_that_some_code_is_for(wheel):
    extras = {"dev", "docs", "gguf", "mlflow", "onnx", "quickstart", "s3", "serving", "wandb"}
    assert set(requirements(wheel)) == {"", *extras}
    core = {canonicalize_name(own.name) for own in requirements(wheel)[""]}
    for extra in ("docs", "gguf", "mlflow", "onnx", "quickstart", "s3", "wandb"):
        assert core.isdisjoint(canonicalize_name(own.name) for own in requirements(wheel)[extra])


def test_a_url_on_s3_without_s3fs_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    loaded = sys.modules["fsspec.registry"]._registry  # what is in it is not imported again
    monkeypatch.delitem(loaded, "s3", raising=False)
    with pytest.raises(UserError, match="s3://bucket/run: Install s3fs to access S3"):
        Store("s3://bucket/run")


def test_a_gguf_file_without_gguf_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(typer.Exit) as caught:
        convert_gguf(str(tmp_path), "model.gguf", tmp_path / "model")
    assert caught.value.exit_code == 2
    assert "pip install 'tsarch[gguf]'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bin` of an empty environment that tsarch comes into by its wheel alone. Its other packages
    are read from this one's (a path in a .pth file: .pth files in that folder, such as an editable
    tsarch's, don't count)."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    install = ("install", "--quiet", "--no-index", "--no-deps", str(wheel))
    subprocess.run(
        [sys.executable, "-m", "pip", "--isolated", "--python", str(python), *install], check=True
    )
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def environment_of_a_stranger(home: Path) -> Mapping[str, str]:
    """Nothing of the project's, of the tests' Ray or of this environment."""
    ours = ("RAY_", "PYTHON", "VIRTUAL_ENV", "TSARCH_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "HOME": str(home), "HF_HUB_OFFLINE": "1"}


def write_config(folder: Path, runner: str) -> Path:
    """Config, data and tokenizer of somebody who has never seen the project's folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {
        "unk_token": "[UNK]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
    }
    vocabulary = {word: i for i, word in enumerate([*special.values(), *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder / "words")
    rows = [
        {
            "doc_id": str(i // 4),
            "sent_id": i % 4,
            "tokens": tokens,
            "tags": [NAMES.get(t, "O") for t in tokens],
        }
        for i in range(24)
        for tokens in [[WORDS[(i * k) % len(WORDS)] for k in range(1, 8)] + ["Ann", "in", "Rome"]]
    ]
    files = {
        s: write_jsonl(folder / f"{s}.jsonl", rows).name for s in ("train", "validation", "test")
    }
    raw: dict[str, Any] = tiny_raw(folder, schedule={"epochs": 1}, topology={"runner": runner})
    raw["data"] |= {**files, "tokenizer": "./words"}
    raw["run"]["folder"] = "my-run"
    raw["teacher"]["config"]["vocab_size"] = len(vocabulary)
    raw["topology"] = {"runner": runner, "device": "cpu", "cpus_per_rank": 0.5}
    config = folder / "mine.yaml"
    config.write_text(yaml.safe_dump(raw))
    return config


@pytest.mark.slow
def test_an_installed_package_is_found_where_the_wheel_put_it(environment, tmp_path):
    code = (
        "import tsarch.cluster.worker as w, tsarch.launch.cli as c; print(w.__file__, c.__file__)"
    )
    done = subprocess.run(
        [str(environment / "python"), "-c", code],
        cwd=tmp_path,
        env=environment_of_a_stranger(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(Path(f).is_relative_to(environment.parent) for f in done.stdout.split())


@pytest.mark.slow
@pytest.mark.parametrize(
    "runner",
    [
        pytest.param("local", marks=pytest.mark.thorough),
        pytest.param("processes", marks=[pytest.mark.ranks, pytest.mark.thorough]),
        pytest.param("ray", marks=pytest.mark.ray),
    ],
)
def test_an_installed_tsarch_trains_a_config_of_the_users_own(runner, environment, tmp_path):
    config = write_config(tmp_path, runner)
    done = subprocess.run(
        [str(environment / "tsarch"), "train", config.name],
        cwd=tmp_path,
        env=environment_of_a_stranger(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    summary = json.loads((tmp_path / "my-run" / "summary.json").read_text())
    assert summary["steps"] > 0
    assert summary["after"]["joint"]["f1"] >= 0.0
    assert (tmp_path / "my-run" / "report.html").stat().st_size > 10_000
    assert (tmp_path / "my-run" / "logs" / "driver.log").stat().st_size > 0
