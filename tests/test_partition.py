"""Sharing a step out: nothing lost, nothing twice, balanced; every rank's arrays fit together."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import random_split
from tsarch.data.context_slices import context_slices, holders
from tsarch.data.feed import Feed
from tsarch.data.loader import (
    BatchPlan,
    Contexts,
    Limits,
    alike_neighbours,
    evaluation_batches,
    even_cuts,
    fill_batches,
)
from tsarch.data.partition import balance, context_tokens, context_windows, plan_step
from tsarch.data.replica_arrays import cheapest_cuts
from tsarch.data.routes import routes_of
from tsarch.data.window_passes import evaluation_passes, training_passes
from tsarch.topology import Stage, Topology

topologies = st.builds(
    lambda groups, students, slices: Topology.pair(groups * slices, students, slices),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 3),
)


@given(st.lists(st.integers(0, 100), max_size=40), st.integers(1, 7))
def test_balance_keeps_all_items_within_the_largest(sizes, num_bins):
    bins = balance(range(len(sizes)), sizes, num_bins)
    assert sorted(i for b in bins for i in b) == list(range(len(sizes)))
    assert all(b == sorted(b) for b in bins)
    totals = [sum(sizes[i] for i in b) for b in bins]
    assert max(totals) - min(totals) <= max(sizes, default=0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), topologies, st.integers(1, 3), st.floats(0, 1), st.booleans())
def test_plan_covers_every_window_and_routes_what_is_needed(seed, topology, m, dropout, send_all):
    split = random_split(seed)
    contexts = np.arange(split.num_contexts)
    passes = training_passes(split, contexts, seed, 3, dropout, alone_weight=0.5, fed_weight=0.3)
    every = [own for window in passes.values() for own in window]
    assert {p.weight for p in every if p.fed} <= {0.3}
    assert {p.weight for p in every if p.second} <= {0.5}
    assert {p.weight for p in every if not p.fed and not p.second} <= {1.0}
    plan = plan_step(split, contexts, topology, m, passes, send_all)
    slices = topology.num_slices(Stage.TEACHER)
    for place in range(slices):
        shares = [s for mb in plan.micro_batches for s in mb.contexts[Stage.TEACHER][place::slices]]
        assert sorted(c for share in shares for c in share) == contexts.tolist()
    done = [p for mb in plan.micro_batches for share in mb.passes[Stage.STUDENT] for p in share]
    assert sorted(done, key=str) == sorted((p for own in passes.values() for p in own), key=str)
    travelled = [w for mb in plan.micro_batches for ws in mb.routes.values() for w in ws]
    assert slices > 1 or len(set(travelled)) == len(travelled)
    wanted = {w for w, own in passes.items() if send_all or any(p.fed for p in own)}
    assert set(travelled) == wanted
    places = [r.places for mb in plan.micro_batches for r in routes_of(split, mb)]
    of_windows = [split.window_places(w) for w in wanted]
    assert sorted(np.concatenate([[], *places])) == sorted(np.concatenate([[], *of_windows]))
    for mb in plan.micro_batches:
        for ranks, windows in mb.routes.items():
            (teacher, t), (student, s) = map(topology.place, ranks)
            owned = {w for c in mb.contexts[teacher][t] for w in context_windows(split, c)}
            assert set(windows) <= owned & {p.window for p in mb.passes[student][s]}


@given(st.integers(0, 1000), st.integers(2, 5), st.integers(0, 4))
def test_slices_of_contexts_are_all_of_their_tokens_in_order(seed, number, num_contexts):
    split = random_split(seed)
    contexts = np.random.default_rng(seed).permutation(split.num_contexts)[:num_contexts].tolist()
    slices = context_slices([context_tokens(split, c) for c in contexts], number)
    assert len(slices) == number
    places = np.concatenate([own.places for own in slices])
    whole = [np.arange(*split.context_offsets[c : c + 2]) for c in contexts]
    assert places.tolist() == np.concatenate([[], *whole]).tolist()
    positions = np.concatenate([own.positions for own in slices])
    assert positions[: len(places)].tolist() == [i for own in whole for i in range(len(own))]
    assert {len(own.positions) for own in slices} == {slices[0].num_tokens}
    for own in slices:
        assert own.lengths.tolist() == ([len(context) for context in whole] or [1])
        assert len(own.places) <= own.num_tokens < max(len(places) / number, 1) + 1
    for place, own in enumerate(slices):
        assert holders(slices, own.places) == [place] * (len(own.places) > 0)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.9])
def test_windows_that_are_read_once_weigh_on_average_what_two_passes_do(share):
    """A share of them is fed in every step, each window as often as any other."""
    split = random_split(1)
    contexts, num_steps = np.arange(split.num_contexts), 600
    number = len(split.windows)
    sums = {True: np.zeros(number), False: np.zeros(number)}
    for step in range(num_steps):
        passes = training_passes(split, contexts, 0, step, 0.0, 0.5, 0.3, share)
        assert passes == training_passes(split, contexts[::-1], 0, step, 0.0, 0.5, 0.3, share)
        read = [own for (own,) in passes.values()]
        assert abs(sum(own.fed for own in read) - share * number) < 1
        for own in read:
            assert own.weight == pytest.approx((0.3 if own.fed else 0.5) * own.stands_for)
            assert own.second == (not own.fed)
            sums[own.fed][own.window] += own.weight
    for fed, weight in ((True, 0.3), (False, 0.5)):
        assert sums[fed].mean() / num_steps == pytest.approx(weight, rel=0.02)
        spread = weight * np.sqrt((1 - share) / share if fed else share / (1 - share))
        assert abs(sums[fed] / num_steps - weight).max() < 5 * spread / np.sqrt(num_steps)


def test_windows_without_the_teacher_by_chance_stay_as_they_are():
    split = random_split(1)
    passes = training_passes(split, np.arange(split.num_contexts), 0, 0, 0.5, 0.5, 0.3, 0.4)
    plain = [own for (own,) in passes.values() if not own.fed and not own.second]
    assert plain
    assert {(own.weight, own.stands_for) for own in plain} == {(1.0, 1.0)}


@given(st.lists(st.integers(1, 60), min_size=1, max_size=9), st.integers(1, 100))
def test_windows_are_grouped_where_padding_and_calls_cost_least(lengths, call_cost):
    lengths = np.array(sorted(lengths, reverse=True))

    def cost(cuts):
        return sum(call_cost + lengths[a] * (b - a) for a, b in itertools.pairwise(cuts))

    cuts = cheapest_cuts(lengths, call_cost)
    assert cuts == sorted(set(cuts))
    assert (cuts[0], cuts[-1]) == (0, len(lengths))
    inner = range(1, len(lengths))
    ways = (
        (0, *places, len(lengths))
        for count in range(len(lengths))
        for places in itertools.combinations(inner, count)
    )
    assert cost(cuts) == min(map(cost, ways))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 6))
def test_the_smallest_micro_batches_are_the_outer_ones(seed, m):
    split = random_split(seed)
    contexts = np.arange(split.num_contexts)
    passes = evaluation_passes(split, contexts)
    plan = plan_step(split, contexts, Topology.pair(1, 1), m, passes, False)
    lengths = split.context_lengths
    sizes = [int(lengths[list(mb.contexts[Stage.TEACHER][0])].sum()) for mb in plan.micro_batches]
    assert [sizes[-1], sizes[0]] == sorted(sizes)[:2]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), topologies, st.integers(1, 2))
def test_rows_arrive_at_the_tokens_that_they_belong_to(seed, topology, m):
    """Send each token's place as its 'hidden state' and look where it ends up."""
    split = random_split(seed)
    contexts = np.arange(split.num_contexts)
    feed = Feed(
        split, topology, m, lambda _: contexts, lambda _, c: evaluation_passes(split, c), False
    )
    plan = feed.plan(0)
    seen: list[int] = []
    num_groups = []
    for micro_batch in range(m):
        sent = {}
        for t in range(topology.replicas(Stage.TEACHER)):
            part = feed.context_batch(0, micro_batch, Stage.TEACHER, t)
            tokens = plan.token_ids[part.rows].flatten()
            for rank, places in part.outgoing.items():
                sent[t, rank] = (tokens[places], part.words.flatten()[places])
        groups_here = set()
        for s in range(topology.replicas(Stage.STUDENT)):
            rank = topology.rank(Stage.STUDENT, s)
            batches = feed.window_batches(0, micro_batch, Stage.STUDENT, s)
            groups_here.add(len(batches))
            routes = feed.routes_to(0, micro_batch, rank, Stage.TEACHER)
            received = [sent[route.source, rank] for route in routes]
            for route, own in zip(routes, received, strict=True):
                assert len(own[0]) == len(route.places)
            tokens = np.concatenate([r[0] for r in received]) if received else np.zeros(0)
            words = np.concatenate([r[1] for r in received]) if received else np.zeros(0)
            for group in batches:
                fed = group.boundary >= 0
                assert np.array_equal(tokens[group.boundary[fed]], plan.token_ids[group.rows[fed]])
                assert np.array_equal(words[group.boundary[fed]], group.words[fed])
                seen += group.words[fed & (group.words >= 0)].tolist()
        num_groups.append(groups_here)
    assert sorted(seen) == list(range(split.num_words))
    assert all(len(counts) == 1 for counts in num_groups), "ZeRO 3 needs equally many model calls"


@given(st.integers(0, 1000), st.floats(0, 1))
def test_passes_do_not_depend_on_who_asks(seed, dropout):
    split = random_split(seed)
    contexts = np.arange(split.num_contexts)
    first = training_passes(split, contexts, seed, 5, dropout, 1.0)
    again = training_passes(split, contexts[::-1], seed, 5, dropout, 1.0)
    assert first == again


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=80),
    st.integers(60, 400),
    st.integers(1, 6),
    st.integers(0, 1000),
    st.integers(1, 100),
)
def test_every_epoch_has_every_context_once_within_the_budget(
    lengths, budget, buckets, seed, block
):
    array = np.array(lengths)
    limits = Limits(budget)
    plan = BatchPlan(array, limits, buckets, num_epochs=3, seed=seed, shuffled_contexts=block)
    for epoch in range(3):
        batches = plan.epoch(epoch)
        assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
        assert all(array[b].max() * len(b) <= budget for b in batches)
        order = np.concatenate(batches)  # in some order, as a whole
        cuts, full = even_cuts(Contexts(array[order]), limits), fill_batches(order, array, budget)
        assert len(cuts) == len(full) + 1
        assert (cuts[0], cuts[-1]) == (0, len(order))
        assert (np.diff(cuts) > 0).all()
    batches = evaluation_batches(array, budget)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))


def test_batches_have_about_equally_many_tokens():
    """Where contexts are of like length nothing is left over for a small last batch."""
    lengths = np.random.default_rng(0).integers(50, 60, size=103)
    order = np.arange(103)
    full = [int(lengths[own].sum()) for own in fill_batches(order, lengths, 600)]
    cuts = even_cuts(Contexts(lengths), Limits(600))
    even = [int(lengths[start:stop].sum()) for start, stop in itertools.pairwise(cuts)]
    assert len(even) == len(full)
    assert min(full) < 0.6 * max(full)
    assert min(even) > 0.75 * max(even)


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 9)), min_size=1, max_size=80),
    st.integers(1, 12),
)
def test_a_batch_has_no_more_windows_than_may_be_or_one_context(contexts, most):
    lengths, windows = np.array(contexts).T
    limits = Limits(120, most)
    plan = BatchPlan(lengths, limits, 3, 2, seed=1, shuffled_contexts=50, num_windows=windows)
    for batch in plan.epoch(0) + plan.epoch(1):
        assert len(batch) == 1 or windows[batch].sum() <= most
        assert lengths[batch].max() * len(batch) <= 120
    assert sorted(np.concatenate(plan.epoch(1)).tolist()) == list(range(len(contexts)))
    assert plan.num_steps == len(plan.epoch(0)) + len(plan.epoch(1))


@given(st.lists(st.integers(1, 900), min_size=1, max_size=100), st.booleans())
def test_batches_of_like_sizes_are_neighbours_within_a_group(sizes, rises):
    array = np.array(sizes)
    order = np.random.default_rng(0).permutation(len(array))
    found = alike_neighbours(order, array, rises)
    assert sorted(found.tolist()) == list(range(len(array)))
    place = 0
    for number, group in enumerate(np.array_split(order, max(len(array) // 16, 1))):
        own = found[place : place + len(group)]
        assert set(own.tolist()) == set(group.tolist())  # chance decides what a group has
        steps = np.diff(array[own])
        assert (steps >= 0).all() if rises == (number % 2 == 0) else (steps <= 0).all()
        place += len(group)


def test_a_stage_waits_little_for_the_other_one():
    """Two stages at work on neighbours take as long as the larger one of each two batches."""
    lengths = np.random.default_rng(0).integers(5, 60, size=2000)
    limits = Limits(400, 8)
    windows = np.ones_like(lengths)
    plan = BatchPlan(lengths, limits, 8, 1, seed=1, shuffled_contexts=4000, num_windows=windows)
    sizes = np.array([lengths[batch].sum() for batch in plan.epoch(0)])
    shuffled = np.random.default_rng(1).permutation(sizes)

    def spent(sizes):
        return np.maximum(sizes[1:], sizes[:-1]).sum() / sizes.sum()

    assert spent(sizes) < 1.05
    assert spent(shuffled) > 1.2


def test_order_is_a_pure_function_of_seed_epoch_and_step():
    lengths = np.random.default_rng(0).integers(5, 60, size=100)
    first = BatchPlan(lengths, Limits(200), 4, num_epochs=4, seed=7, shuffled_contexts=64)
    second = BatchPlan(lengths, Limits(200), 4, num_epochs=4, seed=7, shuffled_contexts=64)
    # Restored in the middle: asking for late steps first changes nothing.
    late = [second.contexts(k).tolist() for k in range(first.num_steps - 1, -1, -1)]
    assert [first.contexts(k).tolist() for k in range(first.num_steps)] == late[::-1]
    other = BatchPlan(lengths, Limits(200), 4, num_epochs=4, seed=8, shuffled_contexts=64)
    assert [b.tolist() for b in other.epoch(0)] != [b.tolist() for b in first.epoch(0)]
    assert [b.tolist() for b in first.epoch(1)] != [b.tolist() for b in first.epoch(0)]
    place = first.position(first.epoch_starts[2] + 1)
    assert (place.epoch, place.batch) == (2, 1)
