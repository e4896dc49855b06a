"""The Dockerfile as far as it can be checked without building it."""

from __future__ import annotations

import re
import shlex
import subprocess
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import NamedTuple

import pytest
import yaml

from tests.helpers import ROOT

TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
KNOWN = {"ARG", "FROM", "RUN", "USER", "WORKDIR", "COPY", "ENV", "CMD"}


class Instruction(NamedTuple):
    name: str
    rest: str


def instructions() -> list[Instruction]:
    lines = [line for line in TEXT.splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [Instruction(*line.split(maxsplit=1)) for line in joined.splitlines()]


def those(name: str) -> list[str]:
    return [own.rest for own in instructions() if own.name == name]


def copied() -> list[str]:
    """What the image gets of the project."""
    words = [shlex.split(rest) for rest in those("COPY")]
    return [w for own in words for w in own[:-1] if not w.startswith("--")]


def is_ignored(name: str) -> bool:
    """By the rules of .dockerignore: the last one that fits decides."""
    ignored = False
    for rule in (ROOT / ".dockerignore").read_text().splitlines():
        if rule and not rule.startswith("#") and fnmatch(name, rule.lstrip("!")):
            ignored = not rule.startswith("!")
    return ignored


def test_every_instruction_is_one_of_dockers():
    found = instructions()
    assert {own.name for own in found} <= KNOWN
    assert next(own.name for own in found if own.name != "ARG") == "FROM"


def test_commands_are_valid_for_the_shell():
    for command in those("RUN"):
        subprocess.run(["sh", "-n", "-c", command], check=True)


def test_every_argument_has_a_default_and_a_use():
    for name, _, default in (rest.partition("=") for rest in those("ARG")):
        assert default
        later = TEXT.split(f"ARG {name}={default}")[1]
        assert f"${name}" in later or f"${{{name}}}" in later


@pytest.mark.parametrize(("device", "index"), [("cpu", True), ("cuda", False), ("gpu", None)])
def test_the_argument_chooses_the_build_of_torch(device: str, index: bool | None):
    (command,) = [rest for rest in those("RUN") if "DEVICE" in rest]
    choice = command.partition("esac")[0] + 'esac; echo "$@"'
    done = subprocess.run(
        ["sh", "-c", choice], env={"DEVICE": device}, capture_output=True, text=True, check=False
    )
    assert done.returncode == (2 if index is None else 0)
    assert done.stdout.startswith("--index-url") == bool(index)


def test_what_is_copied_exists_and_is_not_ignored():
    assert copied()
    for name in copied():
        assert (ROOT / name).exists(), name
        assert not is_ignored(name), name
    for name in (".git", ".venv", "runs", "tests", "models", "benchmarks"):
        assert is_ignored(name), name
    assert is_ignored("tsarch/run/__pycache__")


def test_the_links_of_the_package_find_their_folders():
    assert {"tsarch", "cluster", "launch"} <= set(copied())
    targets = [shlex.split(rest)[-1] for rest in those("COPY")]
    for name in ("tsarch", "cluster", "launch"):
        assert f"./{name}" in targets


def test_an_install_has_all_its_files():
    with (ROOT / "cluster" / "onpremise.yaml").open() as file:
        mounts = yaml.safe_load(file)["file_mounts"].values()
    project = {name for name in mounts if not name.startswith("~")}
    assert project <= set(copied()), "what `make install` needs on a host it needs here"


def test_all_versions_are_those_of_the_constraints():
    for command in those("RUN"):
        assert "==" not in command
        if "pip install" in command:
            assert "--constraint constraints.txt" in command
    assert "PIP_CONSTRAINT" in (ROOT / "Makefile").read_text()
    assert dict(rest.split("=") for rest in those("ARG"))["PYTHON"] == "3.11"


def test_it_ends_as_the_user_that_ray_expects():
    *_, user = those("USER")
    assert user == "ray"
    names = [own.name for own in instructions()]
    assert "RUN" in names[names.index("USER") :], "the environment is that user's"
    (home,) = those("WORKDIR")
    assert PurePosixPath(home) == PurePosixPath("/home/ray/tsarch"), "where cluster files look"
    packages = those("RUN")[0].split()
    assert {"rsync", "openssh-client", "make", "g++"} <= set(packages)


def test_ray_accepts_the_cluster_file_with_the_lines_of_the_header():
    from ray.autoscaler._private.util import prepare_config, validate_config

    (line,) = re.findall(r"^#   (docker: \{.*\})$", TEXT, re.MULTILINE)
    config = yaml.safe_load((ROOT / "cluster" / "onpremise.yaml").read_text())
    prepared = prepare_config({**config, **yaml.safe_load(line)})
    validate_config(prepared)
    assert prepared["docker"]["image"].endswith("tsarch:cuda")
