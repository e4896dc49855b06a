"""launch/train.py: it finds the project's environment from wherever Ray puts it."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "launch" / "train.py"
BARE_PYTHON = (sys.executable, "-S")  # an interpreter without any installed package

FAKE_CLI = """\
import json, os, sys
def main(arguments):
    print(json.dumps({"arguments": arguments, "folder": os.getcwd(), "path": sys.path,
                      "mark": os.environ.get("TSARCH_LAUNCH_PYTHON")}))
"""


def run(script: Path, *arguments: str, cwd: Path, **environment: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the script under the bare interpreter, at home in cwd."""
    done = subprocess.run(
        [*BARE_PYTHON, str(script), *arguments],
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "HOME": str(cwd), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def copy_script(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(SCRIPT, folder / "train.py"))


def make_project(root: Path, python: str = "") -> Path:
    """A project whose command line prints what it was called with, and a config.

    `python`: shell script to put in the place of the environment's interpreter.
    """
    for name in ("launch", "tsarch", "configs"):
        (root / name).mkdir(parents=True)
    (root / "launch" / "__init__.py").touch()
    (root / "launch" / "cli.py").write_text(FAKE_CLI)
    (root / "tsarch" / "__init__.py").touch()
    (root / "tsarch" / "config.py").touch()
    (root / "tsarch" / "launch").symlink_to("../launch")
    for name in ("ray", "torch", "deepspeed", "typer"):
        (root / f"{name}.py").touch()
    (root / "configs" / "run.yaml").touch()
    if python:
        interpreter = root / ".venv" / "bin" / "python"
        interpreter.parent.mkdir(parents=True)
        interpreter.write_text(f"#!/bin/sh\n{python}\n")
        interpreter.chmod(0o755)
    return root


def real_python(root: Path) -> str:
    return f'PYTHONPATH="{root}" exec {sys.executable} -S "$@"'


RECORDER = 'echo "$TSARCH_LAUNCH_PYTHON"; pwd; for argument; do echo "$argument"; done'


def test_only_old_syntax_and_the_standard_library() -> None:
    tree = ast.parse(SCRIPT.read_text(), feature_version=(3, 6))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported <= set(sys.stdlib_module_names)
    assert "__future__" not in imported, "the annotations import is newer than Python 3.6"


def test_an_interpreter_that_has_everything_trains_at_once(tmp_path: Path) -> None:
    root = make_project(tmp_path / "project")
    status, output, _ = run(copy_script(root / "launch"), "configs/run.yaml", cwd=root)
    called = json.loads(output)
    assert status == 0
    assert called["arguments"] == ["train", "configs/run.yaml", "--address", "auto"]
    assert str(root / "launch") not in called["path"], "its modules must not look like packages"


def test_an_installed_packages_modules_do_not_look_like_packages(tmp_path: Path) -> None:
    packages = make_project(tmp_path / "site-packages")
    (packages / "tsarch" / "launch").unlink()
    shutil.move(packages / "launch", packages / "tsarch" / "launch")
    script = copy_script(packages / "tsarch" / "launch")
    _, output, _ = run(script, "configs/run.yaml", cwd=packages, PYTHONPATH=str(packages))
    assert str(packages / "tsarch") not in json.loads(output)["path"]


@pytest.mark.parametrize("address", [["--address", "10.0.0.1:6379"], ["--address=10.0.0.1:6379"]])
def test_an_address_of_the_user_stays(tmp_path: Path, address: list[str]) -> None:
    root = make_project(tmp_path / "project")
    script = copy_script(root / "launch")
    _, output, _ = run(script, "configs/run.yaml", *address, cwd=root)
    assert json.loads(output)["arguments"] == ["train", "configs/run.yaml", *address]


def test_ray_submit_runs_it_alone_in_the_home_folder(tmp_path: Path) -> None:
    root = tmp_path / "tsarch"
    make_project(root, real_python(root))
    script = copy_script(tmp_path)
    arguments = ("configs/run.yaml", "--set", "run.name=x")
    status, output, errors = run(script, *arguments, cwd=tmp_path)
    assert status == 0, errors
    called = json.loads(output)
    assert called["arguments"] == ["train", *arguments, "--address", "auto"]
    assert called["folder"] == str(root), "a relative config is the project's"
    assert str(tmp_path) not in called["path"], "there, tsarch/ would pass for the package"
    assert called["mark"] is None, "the mark is not for what the run starts"


@pytest.mark.parametrize("where", ["TSARCH_HOME", "above", "here", "home"])
def test_homes(tmp_path: Path, where: str) -> None:
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    root, environment = {
        "TSARCH_HOME": (tmp_path / "named", {"TSARCH_HOME": str(tmp_path / "named")}),
        "above": (tmp_path, {}),
        "here": (cwd, {}),
        "home": (cwd / "tsarch", {}),
    }[where]
    make_project(root, RECORDER)
    (root / "launch" / "cli.py").unlink()  # else the bare interpreter would do for "above"
    script = copy_script(tmp_path / "launch" if where == "above" else tmp_path / "elsewhere" / "x")
    status, output, _ = run(script, "a b.yaml", "--set", "x=1", cwd=cwd, **environment)
    assert status == 0
    interpreter = str(root / ".venv" / "bin" / "python")
    assert output.splitlines() == [interpreter, str(cwd), str(script), "a b.yaml", "--set", "x=1"]


def test_a_config_that_is_here_keeps_the_folder(tmp_path: Path) -> None:
    make_project(tmp_path / "tsarch", RECORDER)
    (tmp_path / "own.yaml").touch()
    _, output, _ = run(copy_script(tmp_path), "own.yaml", cwd=tmp_path)
    assert output.splitlines()[1] == str(tmp_path)


def test_no_environment_is_one_message(tmp_path: Path) -> None:
    named = tmp_path / "named"
    status, output, errors = run(
        copy_script(tmp_path), "configs/run.yaml", cwd=tmp_path, TSARCH_HOME=str(named)
    )
    assert (status, output) == (2, "")
    assert len(errors.splitlines()) == 1
    assert errors.startswith("error: no environment of tsarch found.")
    for home in (named, tmp_path.parent, tmp_path, tmp_path / "tsarch"):
        assert str(home / ".venv/bin/python") in errors


def test_an_environment_that_lacks_packages_does_not_start_itself_for_ever(tmp_path: Path) -> None:
    make_project(tmp_path / "tsarch", f'exec {sys.executable} -S "$@"')
    status, output, errors = run(copy_script(tmp_path), "configs/run.yaml", cwd=tmp_path)
    assert (status, output) == (2, "")
    assert len(errors.splitlines()) == 1
    assert str(tmp_path / "tsarch/.venv/bin/python") in errors
    assert "make install" in errors
