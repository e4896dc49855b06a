"""What answering doesn't need isn't imported, and is there for whoever does need it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from tests.helpers import ROOT, tiny_config
from tests.test_pair import run_of
from tsarch.launch.training import run_training

LOADED = """
import sys
import tsarch
tsarch.load(sys.argv[1], device="cpu").predict(["Rome is far ."])
print([own for own in ("accelerate", "scipy.optimize", "scipy.linalg") if own in sys.modules])
from transformers.integrations.accelerate import dispatch_model
from transformers.generation.utils import AlignDevicesHook
from transformers.integrations import HfDeepSpeedConfig
from transformers.loss.loss_for_object_detection import linear_sum_assignment
assert not isinstance(object(), AlignDevicesHook)
rows, columns = linear_sum_assignment([[1.0, 0.0], [0.0, 1.0]])
assert columns.tolist() == [1, 0]
from accelerate import Accelerator
from accelerate.hooks import AlignDevicesHook as Real
assert isinstance(Real(), AlignDevicesHook)
assert dispatch_model._real.__module__ == "accelerate.big_modeling"
import scipy.optimize
assert scipy.optimize.brentq(lambda x: x - 1, 0, 3) == 1
if "--deepspeed" in sys.argv:
    from accelerate.utils.deepspeed import HfDeepSpeedConfig as Base
    found = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})
    assert isinstance(found, Base) and found.is_zero3()
"""


@pytest.mark.slow
def test_stand_ins_become_what_they_stand_for(tmp_path):
    run_training(run_of(tmp_path, "ner"))
    arguments = [str(tmp_path / "run"), "--deepspeed"]
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_adapters_find_what_they_ask_of_what_is_not_imported(tmp_path):
    """In processes of their own: in this one somebody may have imported it all."""
    sections = {"run": {"folder": str(tmp_path / "run")}, "schedule": {"max_steps": 1}}
    here: dict[str, Any] = {"topology": {"runner": "local"}, "evaluation": {"before": False}}
    run_training(tiny_config(tmp_path, **sections, **here, teacher={"lora": {"rank": 2}}))
    answer = "import sys, tsarch; tsarch.load(sys.argv[1], device='cpu').predict(['Rome .'])"
    for arguments in (
        ["-c", answer, str(tmp_path / "run")],
        ["-m", "tsarch", "plan", str(tmp_path / "run" / "config.yaml")],
    ):
        done = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


DRIVER = """
import sys
from tsarch.models.lean_imports import import_models
import_models()
import tsarch.planning.capacity, tsarch.planning.parity, tsarch.run.loop
from transformers.models.bert.modeling_bert import BertModel
print([own for own in ("accelerate", "scipy.optimize") if own in sys.modules])
import accelerate, scipy.optimize
assert accelerate.Accelerator and scipy.optimize.brentq
"""


@pytest.mark.slow
def test_a_driver_imports_models_without_what_training_them_needs():
    done = subprocess.run([sys.executable, "-c", DRIVER], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


RANK = """
import sys
import torch
from tsarch.stage.deepspeed_engine import import_deepspeed
import_deepspeed(torch.device("cpu"))
assert "deepspeed.autotuning" in sys.modules
print("mlflow" in sys.modules)
import mlflow
assert mlflow.log_metric
"""


@pytest.mark.slow
def test_ranks_import_deepspeed_without_a_tracker_that_it_would_bring_along():
    pytest.importorskip("mlflow")
    done = subprocess.run([sys.executable, "-c", RANK], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"


SCORES = """
import sys, warnings
from tsarch.tasks.seqeval_import import IOB2, f1_score, precision_recall_fscore_support
print("sklearn" in sys.modules)
assert f1_score([["B-A", "I-A", "O"]], [["B-A", "I-A", "O"]]) == 1
with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter("always")
    precision_recall_fscore_support([["B-A"]], [["O"]], average="micro", scheme=IOB2)
assert [own.category.__name__ for own in found] == ["UndefinedMetricWarning"], found
from sklearn.metrics import f1_score as of_rows
assert of_rows([1, 0], [1, 0]) == 1
"""


@pytest.mark.slow
def test_scores_by_entity_come_without_scikit_learn_which_is_there_for_whoever_needs_it():
    done = subprocess.run([sys.executable, "-c", SCORES], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"
