"""What others run on this project: the workflow, the hooks before a commit, the issue form."""

from __future__ import annotations

import os
import tomllib
from typing import Any

import yaml

from tests.helpers import ROOT


def load(name: str) -> dict[str, Any]:
    loaded = yaml.load((ROOT / name).read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    assert isinstance(loaded, dict)
    return loaded


def job() -> dict[str, Any]:
    (found,) = load(".github/workflows/ci.yml")["jobs"].values()
    return dict(found)


def test_the_workflow_does_what_ci_does_and_nothing_else():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    commands = [step["run"] for step in job()["steps"] if "run" in step]
    assert commands == ["python -m venv .venv", ".ci/run"]
    assert {"push", "pull_request"} <= set(load(".github/workflows/ci.yml")["on"])


def test_the_workflow_runs_on_every_python_that_the_package_admits():
    with (ROOT / "pyproject.toml").open("rb") as file:
        least = tomllib.load(file)["project"]["requires-python"]
    versions = job()["strategy"]["matrix"]["python"]
    assert versions == ["3.11", "3.12", "3.13"]
    assert least == f">={versions[0]}"
    (setup,) = [s for s in job()["steps"] if s.get("uses", "").startswith("actions/setup-python")]
    assert setup["with"]["python-version"] == "${{ matrix.python }}"


def test_the_workflow_keeps_packages_by_the_files_that_name_them():
    (setup,) = [s for s in job()["steps"] if s.get("with", {}).get("cache") == "pip"]
    for name in setup["with"]["cache-dependency-path"].split():
        assert (ROOT / name).is_file()


def test_the_workflow_may_only_read():
    assert load(".github/workflows/ci.yml")["permissions"] == {"contents": "read"}


def test_the_hooks_have_the_ruff_of_make_check():
    (repo,) = load(".pre-commit-config.yaml")["repos"]
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    assert repo["rev"] == f"v{pins['ruff']}"
    assert [hook["id"] for hook in repo["hooks"]] == ["ruff-check", "ruff-format"]


def test_the_issue_form_asks_for_what_an_answer_needs():
    body = load(".github/ISSUE_TEMPLATE/bug.yml")["body"]
    asked = {own["id"]: own for own in body}
    assert asked["config"]["attributes"]["label"] == "config.yaml"
    assert asked["logs"]["attributes"]["label"] == "logs/"
    for name in ("what", "config", "versions"):
        assert asked[name]["validations"]["required"] == "true"
    assert all(own["attributes"].get("description") for own in body)
