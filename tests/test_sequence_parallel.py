"""Teachers whose ranks share contexts: the losses, scores and checkpoints of one process."""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel

from tests.equal_losses import check_equal_losses
from tests.generative_configs import TEACHERS, generative_raw
from tests.helpers import random_split, tiny_config, tiny_raw
from tests.suites.equivalence import (
    SCHEDULES,
    Case,
    run_cases,
    sequence_parallel_cases,
)
from tests.suites.resume_matrix import Move, Place, run_moves
from tests.test_classification_and_relation import tiny_task
from tests.test_qa import tiny_qa
from tests.test_read_once import TINY
from tsarch.blueprint import resolve
from tsarch.config_loading import parse_config
from tsarch.data.context_slices import context_slices
from tsarch.data.partition import context_tokens
from tsarch.errors import UserError
from tsarch.launch.training import run_training
from tsarch.models.sequence_parallel import Local, SequenceParallel, Slice, can_share
from tsarch.planning.preflight import check_run
from tsarch.stage.whole_contexts import WholeContexts
from tsarch.telling.seats import read_seats

SIZES = {"vocab_size": 320, "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 1}
SIZES |= {"bos_token_id": 1, "eos_token_id": 2}
BERT = {
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
}
LLAMA = {**TEACHERS["llama"], "vocab_size": 30522, "max_position_embeddings": 128}


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "llama", "qwen3", "albert"])
def test_architectures_that_mix_positions_by_attention_alone_are_read_by_slices(kind):
    assert can_share(AutoConfig.for_model(kind, **SIZES))


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("mistral", {"sliding_window": 64}),
        ("t5", {}),
        ("convbert", {}),
        ("bloom", {}),
        ("mamba", {}),
    ],
)
def test_others_are_found_out(kind, more):
    assert not can_share(AutoConfig.for_model(kind, **SIZES, **more))


class Swap(torch.autograd.Function):
    """(threads, …) parts for each thread → those for this one, of all threads."""

    @staticmethod
    def forward(ctx, parts, place, board, barrier):
        ctx.rest = place, board, barrier
        board[place] = parts
        barrier.wait()
        found = torch.stack([own[place] for own in board])
        barrier.wait()
        return found

    @staticmethod
    def backward(ctx, grad):
        return Swap.apply(grad, *ctx.rest), None, None, None


class Threads:
    """Threads in place of ranks that share sequences, and their gradients."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._barrier = threading.Barrier(number)
        self._board: list[Tensor] = [torch.empty(0)] * number

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        """What each thread makes of its place."""

        def guarded(place: int) -> Any:
            try:
                return work(place)
            except BaseException:
                self._barrier.abort()
                raise

        with ThreadPoolExecutor(self.number) as threads:
            return list(threads.map(guarded, range(self.number)))

    def spread(self, place: int, local: Local, *own: Tensor) -> Tensor:
        """See `Spread`."""
        whole = [
            self.swap(place, part[0].unflatten(1, (self.number, -1)).transpose(0, 1)).flatten(0, 1)
            for part in own
        ]
        found = local(*(part[None] for part in whole))[0]
        back = self.swap(place, found.unflatten(0, (self.number, -1)))
        return back.transpose(0, 1).flatten(1, 2)[None]

    def gather(self, place: int, own: Tensor) -> Tensor:
        """See `Gather`."""
        copies = own.expand(self.number, *own.shape[1:])
        return self.swap(place, copies).flatten(0, 1)[None]

    def swap(self, place: int, parts: Tensor) -> Tensor:
        return Swap.apply(parts, place, self._board, self._barrier)


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("number", [2, 4])
def test_hidden_states_and_gradients_are_those_of_whole_sequences(kind, number):
    torch.manual_seed(0)
    split = random_split(3)
    contexts = [2, 0, 3]
    model = AutoModel.from_config(AutoConfig.for_model(kind, **SIZES)).eval()
    lengths = split.lengths_of(np.array(contexts)).tolist()
    embeds = torch.randn(sum(lengths), 32)
    weights = torch.randn(sum(lengths), 32)
    states = [model(inputs_embeds=own[None]).last_hidden_state[0] for own in embeds.split(lengths)]
    wanted = torch.cat(states)
    parameters = [p for p in model.parameters() if p.requires_grad]
    wanted_grads = torch.autograd.grad((wanted * weights).sum(), parameters, allow_unused=True)
    slices = context_slices([context_tokens(split, c) for c in contexts], number)
    size = slices[0].num_tokens
    threads = Threads(number)

    def read(place: int) -> tuple[Tensor, list[Tensor | None]]:
        own, rows = copy.deepcopy(model), slice(place * size, (place + 1) * size)
        reads = SequenceParallel(own, partial(threads.spread, place), f"_{number}_{place}")
        padded = (F.pad(t, (0, 0, 0, number * size - len(t))) for t in (embeds, weights))
        given, wanted_of = (t[rows] for t in padded)
        part = slices[place]
        of_slice = Slice(*(torch.from_numpy(a) for a in (part.positions[None], part.lengths)))
        hidden = reads.read(own, given[None], of_slice, {})[0]
        trained = [p for p in own.parameters() if p.requires_grad]
        grads = torch.autograd.grad((hidden * wanted_of).sum(), trained, allow_unused=True)
        return hidden.detach()[: len(part.places)], list(grads)

    found = threads.run(read)
    torch.testing.assert_close(torch.cat([own for own, _ in found]), wanted, rtol=1e-5, atol=1e-6)
    for number_of, grad in enumerate(wanted_grads):
        own = [grads[number_of] for _, grads in found]
        assert all((part is None) == (grad is None) for part in own)
        if grad is not None:
            torch.testing.assert_close(sum(own), grad, rtol=1e-4, atol=1e-5)


def test_predictions_of_slices_are_made_whole_and_cut_again():
    split = random_split(5)
    contexts = [1, 4, 0]
    number = 3
    slices = context_slices([context_tokens(split, c) for c in contexts], number)
    threads = Threads(number)
    values = torch.randn(sum(len(own.places) for own in slices), 2)
    size = slices[0].num_tokens

    def judge(place: int) -> tuple[Tensor, Tensor, Tensor]:
        own = F.pad(values, (0, 0, 0, size))[place * size :][:size][None].requires_grad_()
        whole = WholeContexts(partial(threads.gather, place), slices[place], place)
        said = whole.of(own, 0.0)
        (grad,) = torch.autograd.grad((said**3).sum(), own)
        labels = whole.of(torch.full((1, size), place), -100)
        return said.detach(), grad[0], labels

    found = threads.run(judge)
    lengths = split.lengths_of(np.array(contexts)).tolist()
    for place, (said, grad, labels) in enumerate(found):
        assert said.shape == (3, max(lengths), 2)
        for row, own in zip(said, values.split(lengths), strict=True):
            assert torch.equal(row[: len(own)], own)
            assert not row[len(own) :].any()
        real = len(slices[place].places)
        mine = values[place * size :][:real]
        torch.testing.assert_close(grad[:real], number * 3 * mine**2)
        of_slices = torch.cat([labels[n, :length] for n, length in enumerate(lengths)])
        assert torch.equal(of_slices, torch.arange(len(of_slices)) // size)
        back = WholeContexts(lambda t: t, slices[place], place).slice_of(said)
        assert torch.equal(back[0, :real], mine)
        assert back.shape == (1, size, 2)


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ({"teacher": {"replicas": 3, "sequence_parallel": 2}}, "must be a multiple of"),
        ({"student": {"replicas": 2, "sequence_parallel": 2}}, "windows are short"),
        (
            {"teacher": {"replicas": 2, "sequence_parallel": 2}, "min_replicas": 1},
            "`min_replicas` changes the number of replicas",
        ),
        (
            {"teacher": {"replicas": 2, "sequence_parallel": 2}, "auto": True},
            "`auto` changes the number of replicas",
        ),
    ],
)
def test_groups_are_whole_and_stay_so(tmp_path, topology, message):
    with pytest.raises(UserError, match=message):
        tiny_config(tmp_path, topology=topology)


def test_contexts_without_labels_are_not_shared(tmp_path):
    raw = tiny_raw(tmp_path, topology={"teacher": {"replicas": 2, "sequence_parallel": 2}})
    raw["data"]["unlabelled"] = raw["data"]["train"]
    with pytest.raises(UserError, match="can't be given with topology"):
        parse_config(raw, "tiny")


def mistakes(raw: dict[str, Any], slices: int) -> str:
    raw["topology"] = {
        "runner": "processes",
        "device": "cpu",
        "cpus_per_rank": 0.1,
        "teacher": {"replicas": slices, "sequence_parallel": slices},
    }
    with pytest.raises(UserError) as error:
        check_run(resolve(parse_config(raw, "tiny")), own_ray=True)
    (mistake,) = error.value.mistakes
    assert mistake.where == "topology.teacher.sequence_parallel"
    assert mistake.hint
    return mistake.what


def test_heads_are_shared_out_evenly(tmp_path):
    assert "the model has 2 attention heads" in mistakes(tiny_raw(tmp_path), 4)
    raw = tiny_raw(tmp_path, teacher={"config": LLAMA})
    assert "the model has 2 heads of keys and values" in mistakes(raw, 4)
    raw["topology"]["runner"] = "local"  # replicas don't matter there
    check_run(resolve(parse_config(raw, "tiny")), own_ray=True)


def test_architectures_that_read_otherwise_by_slices_are_refused(tmp_path):
    raw = generative_raw(tmp_path, "summarization", "mistral")
    assert "mistral mixes positions outside of attention" in mistakes(raw, 2)
    raw = generative_raw(tmp_path, "summarization", "t5")
    assert "t5 is a sequence-to-sequence model" in mistakes(raw, 2)


def test_the_cases_have_every_schedule_with_2_and_4_slices_and_every_zero_stage():
    cases = sequence_parallel_cases()
    kinds = {(c.schedule, c.replicas, c.sequence_parallel) for c in cases}
    pairs = [((2, 1), 2), ((4, 1), 4), ((4, 2), 2)]
    assert kinds == {(name, *pair) for name, pair in itertools.product(SCHEDULES, pairs)}
    assert {c.zero_stages[0] for c in cases} == set(range(4))


def check(config, cases, crews):
    outcomes = list(run_cases(config, cases, 10, crews))
    assert len(outcomes) == len(cases)
    for outcome in outcomes:
        assert outcome.tied_max_abs_diff == 0.0
        assert outcome.is_equal, outcome


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize(
    ("replicas", "slices"),
    [
        pytest.param((2, 1), 2, marks=pytest.mark.replicas(2, 1)),
        pytest.param((4, 1), 4, marks=[pytest.mark.replicas(4, 1), pytest.mark.thorough]),
        pytest.param((4, 2), 2, marks=[pytest.mark.replicas(4, 2), pytest.mark.thorough]),
    ],
)
def test_slices_give_the_losses_of_one_process(tmp_path, crews, replicas, slices):
    config = tiny_config(
        tmp_path, teacher={"config": BERT}, schedule={"epochs": 3, "micro_batches": 3}
    )
    wanted = replicas, slices
    cases = [c for c in sequence_parallel_cases() if (c.replicas, c.sequence_parallel) == wanted]
    check(config, cases, crews)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.replicas(2, 1, runner="ray")
def test_slices_on_ray_give_the_losses_of_one_process(tmp_path, crews):
    config = tiny_config(
        tmp_path, teacher={"config": BERT}, schedule={"epochs": 3, "micro_batches": 3}
    )
    case = Case("overlapped", "sgd", (2, 1), (1, 0), 2)
    (outcome,) = run_cases(config, [case], 10, crews, "ray")
    assert outcome.num_steps == 10
    assert outcome.is_equal, outcome
    assert [seat.group for seat in read_seats(crews.logs)] == [0, 0, None]


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.replicas(2, 1)
@pytest.mark.parametrize("schedule", ["overlapped", "joint"])
def test_a_causal_teacher_of_few_key_heads_gives_the_losses_of_one_process(
    tmp_path, crews, schedule
):
    config = tiny_config(
        tmp_path,
        teacher={"config": LLAMA, "activation_checkpointing": schedule == "joint"},
        schedule={"epochs": 3, "micro_batches": 2},
    )
    check(config, [Case(schedule, "adamw", (2, 1), (3, 0), 2)], crews)


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.replicas(2, 1)
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(tiny_qa, marks=pytest.mark.thorough),
        TINY["relation"],
        partial(tiny_task, task="classification"),
    ],
    ids=["qa", "relation-read-once", "classification"],
)
def test_other_tasks_give_the_losses_of_one_process(tmp_path, crews, make):
    """Of `qa` the losses are over all words of a context."""
    check_equal_losses(make(tmp_path), (2, 1), crews, sequence_parallel=2)


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.replicas(2, 1)
def test_a_language_model_gives_the_losses_of_one_process(tmp_path, crews):
    raw = generative_raw(tmp_path, "summarization", "llama")
    raw["attention"] = {"products_up_to": 0}
    config = parse_config({**raw, "schedule": {"epochs": 6, "micro_batches": 2}}, "tiny")
    check(config, [Case("overlapped", "sgd", (2, 1), (2, 0), 2)], crews)


ONE, SHARED = Place(None), Place((2, 1), 2, sequence_parallel=2)


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.replicas(2, 1)
def test_checkpoints_of_slices_go_on_in_one_process_and_the_other_way_round(tmp_path, crews):
    config = tiny_config(tmp_path, schedule={"epochs": 3})
    pairs = itertools.permutations((ONE, SHARED))
    moves = [Move("overlapped", "sgd", source, target) for source, target in pairs]
    outcomes = list(run_moves(config, moves, 8, 3, crews))
    assert {outcome.move for outcome in outcomes} == set(moves)
    assert all(outcome.is_equal for outcome in outcomes), outcomes


def run(folder: Path, **topology: Any) -> dict[str, Any]:
    """Summary of a run without dropout in `folder`."""
    folder.mkdir()
    raw = tiny_raw(
        folder,
        topology=topology,
        schedule={"name": "overlapped", "epochs": 1},
        data={"batch_tokens": 384},
    )
    return run_training(parse_config(raw, "tiny"))


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.usefixtures("forked_ranks")
def test_a_whole_run_scores_as_one_process_does(tmp_path):
    shared = run(
        tmp_path / "shared",
        runner="processes",
        teacher={"replicas": 2, "sequence_parallel": 2},
    )
    one = run(tmp_path / "one", runner="local")
    for when in ("before", "after"):
        for mode, metrics in one[when].items():
            for name, value in metrics.items():
                assert shared[when][mode][name] == pytest.approx(value, abs=2e-3), (when, mode)
    assert shared["tied_max_abs_diff"] == 0.0
