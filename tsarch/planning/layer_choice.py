"""`student.layers: auto`: which layers of the teacher the student starts from, by measured loss.

Greedy, from all layers down: of each layer left, what is the loss without it? The one that is
missed least goes (Sajjad et al. 2023, "On the effect of dropping layers of pre-trained transformer
models", drop by what is measured of layers too; Peer et al. 2022, "Greedy-layer pruning", so one by
one). Nothing is trained yet, so the loss is that of a linear readout of the hidden states: it is
fitted on every other window of some contexts, and the loss is that on the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tsarch.blueprint import Blueprint
from tsarch.data.partition import context_windows
from tsarch.errors import Mistake, UserError
from tsarch.losses.objective import Objective
from tsarch.models.backbone import Backbone, build_backbone
from tsarch.models.heads import TokenHead
from tsarch.planning.threads import num_threads
from tsarch.prepare import Prepared
from tsarch.rank.building import trained_objective
from tsarch.records import IGNORED
from tsarch.seeding import generator, torch_seed
from tsarch.tasks.base import num_outputs
from tsarch.tasks.registry import is_generative, make_task
from tsarch.topology import Stage

_NUM_TOKENS = 4096
"""Of windows that are read, at least; less, if there are no more."""
_NUM_TOGETHER = 16
"""Windows that are read at a time."""
_NUM_FITS = 60
"""Steps of the readout's fit, on all of its windows at once."""
_FIT_RATE = 2e-2

Losses = dict[tuple[int, ...], float]
"""Layers that are left → loss."""


@dataclass(frozen=True)
class _Windows:
    """Windows of some contexts, padded."""

    token_ids: Tensor
    """(windows, tokens)."""
    mask: Tensor
    """(windows, tokens) 1 at tokens, 0 at padding."""
    labels: Tensor
    """(windows, tokens) `IGNORED` where there is none."""


def layer_mistakes(blueprint: Blueprint) -> list[Mistake]:
    """Why layers can't be chosen by loss, where that is asked for."""
    if not blueprint.is_open.layers:
        return []
    where = "student.layers: auto"
    if is_generative(blueprint.task.name):
        what = f"is for tasks with labels or spans, not for {blueprint.task.name}."
        return [Mistake(where, what, "Name the layers: the last ones are a good start.")]
    if blueprint.stages[Stage.STUDENT].architecture.is_seq2seq:
        return [Mistake(where, "is not for encoders with a decoder.", "Name the layers.")]
    return []


def with_layers(blueprint: Blueprint, prepared: Prepared, say: Callable[[str], None]) -> Blueprint:
    """The run with the student's layers chosen, if they are open."""
    if not blueprint.is_open.layers:
        return blueprint
    own = blueprint.stages[Stage.STUDENT]
    number = int(own.architecture.config.num_hidden_layers)
    wanted = len(own.architecture.layers or ())
    say(f"student.layers: auto: measuring which {wanted} of {number} layers to take")
    with num_threads(own.threads), torch.random.fork_rng(devices=[]):
        measured = _Trial(blueprint, prepared)
        layers, losses = choose(number, wanted, measured.loss)
    gone = [layer for layer in range(number) if layer not in layers]
    whole, left = losses[tuple(range(number))], losses[layers]
    say(
        f"student.layers: auto: {list(layers)}, without {gone}: loss of a readout {left:.4f}, "
        f"with all layers {whole:.4f}"
    )
    return blueprint.altered(student={"layers": list(layers)})


def choose(
    number: int, wanted: int, loss: Callable[[tuple[int, ...]], float | None]
) -> tuple[tuple[int, ...], Losses]:
    """The layers that are left when as many as are too many have gone, and all that was measured.

    Args:
        number: layers that there are.
        loss: of a model of some layers; None: there can't be such a one.

    Raises:
        UserError: no layer can be left out.
    """
    left = tuple(range(number))
    losses: Losses = {}
    if (first := loss(left)) is not None:
        losses[left] = first
    while len(left) > wanted:
        tried = {
            others: found
            for place in range(len(left))
            if (found := loss(others := left[:place] + left[place + 1 :])) is not None
        }
        if not tried:
            what = f"no layer of {list(left)} can be left out of this architecture."
            raise UserError.single("student.layers: auto", what, "Name the layers.")
        losses |= tried
        # Of equal ones without the layer that is furthest up.
        left = min(tried, key=lambda others: (tried[others], others))
    return left, losses


class _Trial:
    """Reads the same windows with some of the layers."""

    def __init__(self, blueprint: Blueprint, prepared: Prepared) -> None:
        task = make_task(blueprint.task.name, prepared.labels, blueprint.task)
        outputs = num_outputs(task, len(prepared.labels))["windows"]
        assert outputs is not None, "see layer_mistakes"
        self._num_outputs = outputs
        self._objective: Objective = trained_objective(blueprint, prepared, task, Stage.STUDENT)
        self._architecture = blueprint.stages[Stage.STUDENT].architecture
        self._seed = blueprint.seed
        self._windows = _some_windows(blueprint, prepared)
        self._table: Tensor | None = None
        """Of the model; the same for all of its layers."""

    def loss(self, layers: tuple[int, ...]) -> float | None:
        """Of a readout of these layers' states; None: the architecture can't be built of them."""
        own = self._architecture

        def seed_of(name: str) -> int:
            return torch_seed(self._seed, f"{own.section} weights {name}")

        try:
            backbone = build_backbone(
                own.config, own.path, seed_of, layers, with_table=self._table is None
            )
        except UserError:
            return None
        if self._table is None:
            assert backbone.table is not None
            self._table = backbone.table
        hidden = _read(backbone, self._table, self._windows)
        return _readout_loss(
            hidden, self._windows.labels, self._objective, self._num_outputs, self._seed
        )


def _some_windows(blueprint: Blueprint, prepared: Prepared) -> _Windows:
    """Windows to fit a readout on, and to judge it by.

    Raises:
        UserError: there is one alone.
    """
    split = prepared.splits["train"]
    chance = generator(blueprint.seed, "layers")
    most = min(split.num_contexts, _NUM_TOKENS)
    slices, words, num_tokens = [], [], 0
    for context in chance.choice(split.num_contexts, most, replace=False).tolist():
        for window in context_windows(split, context):
            slices.append(split.token_ids[split.window_places(window)])
            words.append(split.labels_of(split.window_words(window)))
            num_tokens += len(slices[-1])
        if num_tokens >= _NUM_TOKENS:
            break
    split.release()
    if len(slices) < 2:
        what = "needs two windows of the training split at least: one to fit, one to judge."
        raise UserError.single("student.layers: auto", what, "Name the layers.")
    longest = max(map(len, slices))
    shape = len(slices), longest
    ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED)
    for row, (own, given) in enumerate(zip(slices, words, strict=True)):
        ids[row, : len(own)] = torch.from_numpy(own)
        labels[row, : len(own)] = torch.from_numpy(given)
        mask[row, : len(own)] = 1
    return _Windows(ids, mask, labels)


def _read(backbone: Backbone, table: Tensor, windows: _Windows) -> Tensor:
    """(windows, tokens, width) hidden states, each number of about the same size."""
    model = backbone.model.eval()
    found = []
    with torch.no_grad():
        for start in range(0, len(windows.mask), _NUM_TOGETHER):
            ids, mask = (
                own[start : start + _NUM_TOGETHER] for own in (windows.token_ids, windows.mask)
            )
            length = int(mask.sum(1).max())
            embeds = table[ids[:, :length]] * backbone.embedding_scale
            hidden = model(inputs_embeds=embeds, attention_mask=mask[:, :length]).last_hidden_state
            found.append(torch.nn.functional.pad(hidden, (0, 0, 0, ids.shape[1] - length)).float())
    states = torch.cat(found)
    real = states[windows.mask.bool()]
    return (states - real.mean(0)) / real.std(0).clamp(min=1e-6)


def _readout_loss(
    hidden: Tensor, labels: Tensor, objective: Objective, num_outputs: int, seed: int
) -> float:
    """Mean loss on every other window of a linear layer that was fitted on the others."""
    torch.manual_seed(torch_seed(seed, "readout"))
    head = TokenHead(hidden.shape[-1], num_outputs, dropout=0.0)
    optimizer = torch.optim.AdamW(head.parameters(), lr=_FIT_RATE, weight_decay=0.1)
    table = torch.zeros(1, 1)

    fitted, judged = (
        _labelled(hidden[start::2], labels[start::2], objective.per_sequence) for start in (0, 1)
    )

    def mean(states: Tensor, own: Tensor) -> Tensor:
        number = len(own) if objective.per_sequence else own.numel()
        return objective.losses(head(states), own, table).sum() / max(number, 1)

    for _ in range(_NUM_FITS):
        optimizer.zero_grad()
        mean(*fitted).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        return float(mean(*judged))


def _labelled(hidden: Tensor, labels: Tensor, per_sequence: bool) -> tuple[Tensor, Tensor]:
    """States and labels, of the labelled positions alone where losses don't look at sequences."""
    if per_sequence:
        return hidden, labels
    chosen = labels != IGNORED
    return hidden[chosen].unsqueeze(0), labels[chosen].unsqueeze(0)
