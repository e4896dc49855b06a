"""The tied embedding: the same table whatever travels, plain optimizers, drift is an error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.ranks import run_ranks
from tsarch.errors import ReplicaDriftError
from tsarch.parallel.table import Table
from tsarch.parallel.tied_embedding import TiedEmbedding, checksum, exchanged_rows
from tsarch.stage.engine import OptimizerSpec, make_optimizer
from tsarch.topology import Topology

VOCABULARY, WIDTH = 50, 6


def make(
    exchange="auto",
    name="adamw",
    group=None,
    topology=None,
    stages=2,
    clip=0.0,
    trained=None,
    shard=False,
):
    generator = torch.Generator().manual_seed(0)
    table = Table(torch.randn(VOCABULARY, WIDTH, generator=generator), trained)
    spec = OptimizerSpec(name, 0.1, 0.0, (0.9, 0.999), 1e-8, 0.0, clip)

    def optimizer(rows: nn.Parameter) -> torch.optim.Optimizer:
        return make_optimizer([{"params": [rows], "weight_decay": 0.0}], spec)

    topology = topology or Topology.pair(1, 1)
    return TiedEmbedding(
        table, optimizer, 0.1, clip, exchange, group, topology, stages, shard_optimizer=shard
    )


def steps(tied: TiedEmbedding, num_steps: int = 4) -> torch.Tensor:
    """Both stages look rows up and exchange their gradients."""
    for step in range(num_steps):
        teacher = tied.touch(np.array([1, 4, 7 + step]), requires_grad=True)
        student = tied.touch(np.array([4, 9]), requires_grad=True)
        (teacher.lookup(torch.tensor([0, 1, 1, 2]), torch.float32) * (step + 1)).sum().backward()
        student.lookup(torch.tensor([[1, 0]]), torch.float32).pow(2).sum().backward()
        touched = np.unique(np.concatenate([teacher.token_ids, student.token_ids]))
        tied.start(step, touched, teacher, 1.0, 1.0)
        assert not tied.is_started(step)
        tied.start(step, touched, student, 1.0, 1.0)
        assert tied.is_started(step)
        tied.finish(step)
        tied.finish(step)
    return tied.table.values()


def reference(name: str, num_steps: int = 4) -> torch.Tensor:
    """The same with one table inside autograd and torch's own optimizer, nothing clever."""
    generator = torch.Generator().manual_seed(0)
    table = nn.Parameter(torch.randn(VOCABULARY, WIDTH, generator=generator))
    optimizer = {
        "adamw": lambda: torch.optim.AdamW([table], lr=0.1, weight_decay=0.0),
        "sgd": lambda: torch.optim.SGD([table], lr=0.1),
    }[name]()
    for step in range(num_steps):
        optimizer.zero_grad()
        (table[torch.tensor([1, 4, 4, 7 + step])] * (step + 1)).sum().backward()
        table[torch.tensor([[9, 4]])].pow(2).sum().backward()
        optimizer.step()
    return table.detach()


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_it_is_the_plain_optimizer_on_the_sum_of_gradients(name):
    torch.testing.assert_close(steps(make(name=name)), reference(name), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_rows_and_dense_exchange_are_bitwise_equal(clip):
    results = [steps(make(exchange, clip=clip)) for exchange in ("rows", "dense", "auto")]
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[0], results[1])


@pytest.mark.parametrize("exchange", ["rows", "dense"])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_optimizing_only_the_rows_of_the_training_data_is_bitwise_the_same(exchange, name):
    trained = np.array([1, 4, 7, 8, 9, 10, 33])
    assert torch.equal(steps(make(exchange, name, trained=trained)), steps(make(exchange, name)))


def test_the_table_keeps_the_order_of_tokens_outside():
    values = torch.randn(10, 3)
    table = Table(values, np.array([2, 7]))
    assert torch.equal(table.values(), values)
    assert torch.equal(table.rows(np.array([7, 0])), values[[7, 0]])
    assert torch.equal(table.trained_rows, values[[2, 7]])
    assert table.slots(np.array([2, 7])).tolist() == [0, 1]
    table.load(values + 1)
    assert torch.equal(table.rows(np.array([2, 9])), values[[2, 9]] + 1)


def test_what_travels():
    few, all_rows = np.array([3, 8]), np.arange(VOCABULARY)
    assert exchanged_rows("auto", few, VOCABULARY) is few
    assert exchanged_rows("auto", all_rows, VOCABULARY) is None
    assert exchanged_rows("dense", few, VOCABULARY) is None
    assert exchanged_rows("rows", all_rows, VOCABULARY) is all_rows


def test_a_frozen_table_asks_for_no_gradient():
    table = Table(torch.ones(4, 2))
    tied = TiedEmbedding(table, None, 0.1, 0.0, "auto", None, Topology.pair(1, 1), 2)
    assert not tied.touch(np.array([1]), requires_grad=True).leaf.requires_grad


def test_a_frozen_table_is_neither_copied_for_a_step_nor_kept_in_checkpoints():
    table = Table(torch.ones(4, 2))
    tied = TiedEmbedding(table, None, 0.1, 0.0, "auto", None, Topology.pair(1, 1), 2)
    leaf = tied.touch(np.arange(4), requires_grad=True).leaf
    assert leaf.data_ptr() == table.storage.data_ptr()
    kept: list[str] = []
    tied.keep_state(lambda name, _: kept.append(name))
    assert not kept
    tied.restore_state([])
    assert torch.equal(table.values(), torch.ones(4, 2))


def test_checksum_is_the_same_in_parts(monkeypatch):
    table = torch.randn(50, 7)
    whole = checksum(table)
    monkeypatch.setattr("tsarch.parallel.tied_embedding._BLOCK_ELEMENTS", 100)
    assert torch.equal(checksum(table), whole)
    assert whole.dtype == torch.int64


def test_checksum_sees_swaps_and_single_bits():
    table = torch.arange(12, dtype=torch.float32).view(3, 4)
    swapped = table[[1, 0, 2]]
    touched = table.clone()
    touched[2, 3] = torch.nextafter(touched[2, 3], torch.tensor(99.0))
    sums = [int(checksum(t)) for t in (table, swapped, touched)]
    assert len(set(sums)) == 3


def _exchanged(rank, group, **options) -> TiedEmbedding:
    """Three steps of three replicas."""
    tied = make(group=group, topology=Topology.pair(2, 1), stages=1, **options)
    for step in range(3):
        rows = tied.touch(np.array([rank, 10, 20 + step]), requires_grad=True)
        rows.lookup(torch.tensor([0, 1, 2]), torch.float32).mul(rank + 1.1).sum().backward()
        touched = np.array([0, 1, 2, 10, 20 + step])
        tied.start(step, touched, rows, 0.5, 1.0)
        tied.finish(step)
    return tied


def _three_replicas(rank, group):
    tied = _exchanged(rank, group)
    tied.check_replicas(3)
    same = tied.max_abs_diff()
    tied.table.storage[0, 0] += 0.25 if rank == 1 else 0.0
    try:
        tied.check_replicas(4)
    except ReplicaDriftError as error:
        return same, tied.max_abs_diff(), error.ranks, tied.table.values()
    return None


@pytest.mark.slow
@pytest.mark.ranks
def test_replicas_stay_equal_and_drift_names_the_rank():
    results = run_ranks(_three_replicas, num_ranks=3)
    assert all(same == 0.0 for same, *_ in results)
    assert all(diff == 0.25 for _, diff, *_ in results)
    assert all(ranks == ["teacher 1 (rank 1)"] for _, _, ranks, _ in results)
    assert torch.equal(results[0][3], results[2][3])


def _variants(rank, group):
    trained = np.array([0, 1, 2, 10, 20, 21, 22, 40])
    options = {
        "rows": {"exchange": "rows"},
        "dense": {"exchange": "dense"},
        "sharded": {"exchange": "rows", "shard": True},
        "sharded_dense": {"exchange": "dense", "shard": True, "trained": trained},
        "sharded_trained": {"exchange": "rows", "shard": True, "trained": trained},
    }
    found = {}
    for name, own in options.items():
        tied = _exchanged(rank, group, clip=0.5, **own)
        assert tied.max_abs_diff() == 0.0
        state = tied._optimizer.state_dict()["state"][0]["exp_avg"]
        found[name] = tied.table.values(), len(state), tied.bytes_exchanged
    return found


@pytest.mark.slow
@pytest.mark.ranks
def test_sharded_optimizer_state_is_bitwise_the_same_and_a_share_of_it():
    results = run_ranks(_variants, num_ranks=3)
    for own in results:
        reference = own["rows"][0]
        assert torch.equal(own["sharded"][0], reference)
        assert torch.equal(own["sharded_trained"][0], reference)
        assert torch.equal(own["sharded_dense"][0], own["dense"][0])
        # gloo sums three addends of a dense buffer in another order than those of its rows.
        torch.testing.assert_close(own["dense"][0], reference, rtol=1e-6, atol=1e-7)
        assert own["rows"][2] == 3 * 5 * WIDTH * 4
        assert own["dense"][2] == 3 * VOCABULARY * WIDTH * 4
    assert [own["rows"][1] for own in results] == [VOCABULARY] * 3
    assert sum(own["sharded"][1] for own in results) == VOCABULARY
    assert [own["sharded_trained"][1] for own in results] == [2, 3, 3]


def test_threads_do_not_change_a_step():
    """Ranks may have different numbers of threads; their replicas must still agree."""
    before = torch.get_num_threads()
    try:
        tables = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            generator = torch.Generator().manual_seed(1)
            table = nn.Parameter(torch.randn(3001, 37, generator=generator))
            spec = OptimizerSpec("adamw", 0.1, 0.0, (0.9, 0.999), 1e-8, 0.0, 0.0)
            optimizer = make_optimizer([{"params": [table]}], spec)
            for _ in range(3):
                table.grad = torch.randn(table.shape, generator=generator)
                optimizer.step()
            tables.append(table.detach())
        assert torch.equal(*tables)
    finally:
        torch.set_num_threads(before)
