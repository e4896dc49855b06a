"""How a run computes is chosen once: by its config, by measurement, or as before it was resumed."""

from __future__ import annotations

import math

import pytest
import torch

from tests.helpers import tiny_blueprint
from tsarch.models.casting import cast
from tsarch.planning import arithmetic
from tsarch.planning.attention_trial import fastest_up_to
from tsarch.planning.precision_trial import Trial, choose
from tsarch.prepare import prepare_data

OPEN = {"products_up_to": None}


def test_bf16_is_chosen_if_it_is_faster_and_its_losses_are_the_same():
    fp32 = Trial((2.0, 1.5, 1.0), 1.0)
    assert choose(fp32, Trial((2.01, 1.49, 1.01), 0.5)).precision == "bf16"
    assert choose(fp32, Trial((2.01, 1.49, 1.01), 0.95)).precision == "fp32", "no faster"
    assert choose(fp32, Trial((2.01, 1.49, 1.05), 0.5)).precision == "fp32", "5 % apart"
    assert choose(fp32, Trial((2.01, 1.49, math.nan), 0.5)).precision == "fp32"
    assert "2.00 × as fast" in str(choose(fp32, Trial((2.0, 1.5, 1.0), 0.5)))


def test_a_cpu_without_bf16_has_fp32_and_says_so(tmp_path, monkeypatch):
    blueprint = tiny_blueprint(tmp_path).altered(precision="bf16")
    said: list[str] = []
    for has in (True, False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: {"avx512_bf16": has})
        found = arithmetic.possible(blueprint, said.append)
        assert found.precision == found.link_dtype == ("bf16" if has else "fp32")
    assert len(said) == 1
    assert said[0].startswith("note: precision is fp32")


def test_attention_is_measured_once_and_kept(tmp_path, monkeypatch):
    calls = []

    def measured(*arguments):
        calls.append(arguments)
        return 64

    monkeypatch.setattr(arithmetic, "fastest_up_to", measured)
    blueprint = tiny_blueprint(tmp_path, attention=OPEN)
    prepared = prepare_data(blueprint)
    assert blueprint.products_up_to == 0
    for _ in range(2):
        found = arithmetic.settle(blueprint, prepared, print)
        assert found.products_up_to == found.config.attention.products_up_to == 64
    assert calls == [(2, 16, torch.float32, 96)], "of both stages, alike, and kept"
    given = blueprint.altered(attention={"products_up_to": 0})
    assert arithmetic.settle(given, prepared, print).products_up_to == 0
    assert len(calls) == 1


def test_a_resumed_run_computes_as_before(tmp_path):
    saved = tiny_blueprint(tmp_path).altered(precision="bf16", attention={"products_up_to": 32})
    opened = tiny_blueprint(tmp_path, attention=OPEN).altered(precision="auto")
    assert opened.precision == "fp32"
    found = arithmetic.computing_like(opened, saved)
    assert (found.precision, found.products_up_to) == ("bf16", 32)
    given = saved.altered(precision="fp32", attention={"products_up_to": 16})
    assert arithmetic.computing_like(given, saved).products_up_to == 16


@pytest.mark.slow
def test_auto_tries_both_precisions(tmp_path):
    said: list[str] = []
    blueprint = tiny_blueprint(tmp_path, attention=OPEN).altered(precision="auto")
    found = arithmetic.settle(blueprint, prepare_data(blueprint), said.append)
    assert found.config.precision in ("fp32", "bf16")
    if arithmetic.multiplies_bf16():
        assert said[-1].startswith(f"precision: auto: {found.precision}: a step in bf16 is")
        again: list[str] = []
        same = arithmetic.settle(blueprint, prepare_data(blueprint), again.append)
        assert same == found
        assert again == said[-1:], "it was kept"


def test_longest_inputs_are_not_tried(monkeypatch):
    monkeypatch.setattr("tsarch.planning.attention_trial._products_are_faster", lambda *_: True)
    assert fastest_up_to(2, 8, torch.float32, 48) == 64
    assert fastest_up_to(2, 8, torch.float32, 10_000) == 512


def test_rotary_frequencies_stay_exact():
    module = torch.nn.Linear(2, 2)
    module.register_buffer("inv_freq", torch.tensor([0.1, 0.3]), persistent=False)
    module.register_buffer("other", torch.tensor([0.1]))
    cast(module, torch.device("cpu"), torch.bfloat16)
    assert module.weight.dtype == module.other.dtype == torch.bfloat16
    assert torch.equal(module.inv_freq, torch.tensor([0.1, 0.3]))
