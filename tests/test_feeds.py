"""Batches of an evaluation."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers import tiny_blueprint, tiny_raw
from tsarch.blueprint import resolve
from tsarch.config_loading import parse_config
from tsarch.feeds import evaluation_feed
from tsarch.prepare import prepare_data


@pytest.mark.parametrize("limit", [1_000_000, 128])
def test_two_stages_evaluate_in_several_batches_so_that_none_waits_for_long(tmp_path, limit):
    blueprint = tiny_blueprint(tmp_path, evaluation={"batch_tokens": limit})
    split = prepare_data(blueprint).splits["validation"]
    lengths = split.context_lengths
    feed, number = evaluation_feed(blueprint, split, blueprint.topology)
    plans = [feed.plan(step) for step in range(number)]
    assert sum(own.num_tokens for own in plans) == lengths.sum()
    assert number >= min(8, len(lengths))
    most = min(limit, max(-(-lengths.sum() // 8), lengths.max()))
    assert all(own.num_tokens <= most for own in plans)


def test_one_stage_evaluates_in_batches_as_large_as_they_may_be(tmp_path):
    raw = tiny_raw(tmp_path, evaluation={"monitor": "teacher"}, distillation={"weight": 0.0})
    blueprint = resolve(parse_config({**raw, "student": None}, "tiny"))
    split = prepare_data(blueprint).splits["validation"]
    _, number = evaluation_feed(blueprint, split, blueprint.topology)
    assert number == 1
    assert np.sum(split.context_lengths) < blueprint.batches.evaluation_tokens
