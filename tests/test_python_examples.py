"""The Python of README and docs/using.md prints what these pages say, with the quickstart's run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tsarch.config_loading import load_config
from tsarch.launch.training import run_training

RUN = ROOT / "runs" / "quickstart"
EXAMPLE = re.compile(r"```python\n(?P<code>.*?)```\s*```text\n(?P<printed>.*?)```", re.S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `runs/quickstart` is: the repository, or, if it was never trained there, a folder in
    which it is trained now, by the same config in one process."""
    if (RUN / "summary.json").is_file():
        return ROOT
    own = tmp_path_factory.mktemp("examples")
    changes = [
        f"run.folder={own}/runs/quickstart",
        "topology.runner=local",
        "evaluation.before=false",
    ]
    run_training(load_config(ROOT / "configs" / "quickstart.yaml", changes))
    return own


@pytest.mark.thorough
@pytest.mark.parametrize("page", ["README.md", "docs/using.md"])
def test_examples_print_what_the_page_says(folder, page):
    examples = list(EXAMPLE.finditer((ROOT / page).read_text(encoding="utf-8")))
    assert examples
    for example in examples:
        command = [sys.executable, "-c", example["code"]]
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == example["printed"]
