"""The form of the scripts in findings/ (CONTRIBUTING.md); they are run by hand, never here."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.helpers import ROOT

SCRIPTS = sorted((ROOT / "findings").iterdir())
each = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)


def header(script: Path) -> list[str]:
    """The lines of comment after the first line."""
    lines = script.read_text(encoding="utf-8").splitlines()[1:]
    end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return lines[:end]


def code(script: Path) -> str:
    lines = script.read_text(encoding="utf-8").splitlines()
    return "\n".join(re.sub(r"(^|\s)#.*", "", line) for line in lines)


def test_there_are_some_and_only_scripts():
    assert len(SCRIPTS) >= 6
    assert all(path.suffix == ".sh" and path.is_file() for path in SCRIPTS)
    assert ".ci/run" not in " ".join(path.read_text(encoding="utf-8") for path in SCRIPTS)
    ci = (ROOT / ".ci" / "run").read_text() + (ROOT / "Makefile").read_text()
    assert "findings/" not in ci, "they need a network and minutes"


@each
def test_it_is_an_executable_bash_script(script: Path):
    assert script.read_text(encoding="utf-8").startswith("#!/usr/bin/env bash\n")
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)


@each
def test_its_header_says_what_with_which_versions_and_why(script: Path):
    lines = header(script)
    assert 2 <= len(lines) <= 5
    text = " ".join(lines)
    assert "Why it matters: " in text


@each
def test_it_works_in_a_temporary_folder_that_it_removes(script: Path):
    text = code(script)
    assert "set -euo pipefail" in text
    assert 'folder=$(mktemp -d)\ntrap \'rm -rf "$folder"\' EXIT\ncd "$folder"\n' in text
    assert "python3 -m venv venv" in text


@each
def test_it_installs_pinned_packages_whose_versions_the_header_names(script: Path):
    (install,) = re.findall(r"pip install --quiet (.*)", code(script))
    pins = dict(word.split("==") for word in install.split())
    assert all(pins.values())
    (seen,) = [line for line in header(script) if line.startswith("# Seen with ")]
    named = re.findall(r"([a-z][\w-]*) (\d+(?:\.\d+)+)", seen)
    assert named
    assert all(pins[name] == version for name, version in named)


@each
def test_it_prints_what_it_saw_and_exits_by_it(script: Path):
    text = code(script)
    assert "print(" in text
    assert re.search(r"sys\.exit\(.+ != ", text)


@each
def test_it_uses_nothing_of_this_project(script: Path):
    assert "tsarch" not in code(script)
