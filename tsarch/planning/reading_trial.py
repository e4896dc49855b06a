"""Small models read short texts before a run: alone, beside longer ones, with other last tokens,
and token by token.

What a text gives must not depend on the texts beside it, or a run's numbers would depend on its
micro-batches and ranks; and a text that is generated must be read as in training. No list of
architectures tells which do so: each is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tsarch.blueprint import Blueprint, StageBlueprint
from tsarch.errors import Mistake, UserError, one_line
from tsarch.models.backbone import Backbone
from tsarch.models.student_model import StudentModel
from tsarch.models.teacher_model import TeacherModel
from tsarch.pair.generation import Keeping, Prompt, StudentGeneration, TeacherGeneration
from tsarch.pair.halves import Plain, StudentHalf, TableLookup, TeacherHalf
from tsarch.parallel.table import Table
from tsarch.planning.small_models import is_too_large, num_parameters, small_backbone
from tsarch.tasks.registry import is_generative
from tsarch.topology import Stage

_TOLERANCE = 1e-4
"""Largest difference, relative to the largest number, that is rounding in fp32."""
_SHORT = 13
"""Tokens of the longer of two short texts."""
_WORK = 1e10
"""Parameters times tokens of a trial of long texts: about a second."""
_MOST_LONG = 2048
_VOCABULARY = 16
_ROW_TASKS = ("classification", "relation", "ranking")
"""Tasks with a token of its own for a row's label."""


def reading_mistakes(blueprint: Blueprint) -> Iterator[Mistake]:
    """Models that read a text otherwise beside another one, at random, or while generating."""
    for stage, own in blueprint.stages.items():
        kind = own.architecture.config.model_type
        try:
            with torch.random.fork_rng(devices=[]):
                backbone = small_backbone(own)
                found = None if backbone is None else _mistake(blueprint, own, backbone)
        except UserError as error:
            yield from error.mistakes
        except Exception as error:  # transformers' models raise what they like
            what = f"{kind} can't read a text of a few tokens: {one_line(error)}"
            yield Mistake(f"{stage}", what, "Take another architecture.")
        else:
            if found is not None:
                yield found


def reading_notes(blueprint: Blueprint) -> Iterator[str]:
    """Stages that `reading_mistakes` can't try out."""
    for stage, own in blueprint.stages.items():
        if is_too_large(own):
            yield (
                f"{stage} is too large to try out before the run whether padding, or reading token "
                "by token, changes its numbers"
            )


def _mistake(blueprint: Blueprint, own: StageBlueprint, backbone: Backbone) -> Mistake | None:
    stage, kind = f"{own.stage}", own.architecture.config.model_type
    model = TeacherModel(backbone, backbone.embedding_width, 1, 0.0)
    lengths = _lengths(own, num_parameters(backbone))
    choice = _choice(own, model, backbone.embedding_width, lengths[0])
    if choice is not None:
        return choice
    generative = is_generative(blueprint.task.name)
    if generative and not sees_back_only(model, backbone.embedding_width):
        return Mistake(
            stage,
            f"{kind} sees later tokens, as it is configured: another last token changes the states "
            "before it, so it would read the words that it is to write.",
            "Take a causal model (GPT-2- or Llama-like), or a config that makes this one causal "
            "(is_decoder: true, use_bidirectional_attention: false).",
        )
    for length in lengths:
        apart = padding_difference(model, backbone.embedding_width, length)
        if not apart < _TOLERANCE:
            return Mistake(
                stage,
                f"{kind} sees padding: a text of {_part(length)} tokens gives other numbers beside "
                f"one of {length} than alone (by {apart:.1g} of the largest), so what it learns "
                "and says would depend on which texts share a batch.",
                "Take a model whose attention mask hides padding (BERT- or Llama-like), or lower "
                f"{stage}.max_tokens if it reads short texts in another way.",
            )
    causal = own.architecture.is_causal
    if (
        blueprint.task.name in _ROW_TASKS
        and not causal
        and sees_back_only(model, backbone.embedding_width)
    ):
        what = (
            f"{kind} sees earlier tokens only, which its config doesn't tell, so the label of "
            f"{blueprint.task.name} would stand before what it is about."
        )
        return Mistake(stage, what, "Take a model that reads in both directions.")
    if not _repeats(model, backbone.embedding_width):
        what = f"{kind} draws random numbers while training that no dropout key governs."
        return Mistake(stage, what, "Take another architecture.")
    if generative and blueprint.decoding.cache:
        apart = decoding_difference(own.stage, backbone)
        if not apart < _TOLERANCE:
            what = (
                f"{kind} reads texts otherwise when it generates them token by token with what it "
                f"keeps of earlier tokens (numbers differ by {apart:.1g} of the largest)."
            )
            return Mistake(stage, what, "Set decoding.cache to false.")
    return None


def _choice(own: StageBlueprint, model: TeacherModel, width: int, length: int) -> Mistake | None:
    """That a model chooses by scores which tokens of a text it reads, unless it takes them all."""
    chosen = chosen_tokens(model, width, length)
    if chosen is None or chosen == length == own.max_tokens:
        return None
    return Mistake(
        f"{own.stage}",
        f"{own.architecture.config.model_type} reads only those tokens of a long text that it "
        "gives the highest scores; which of equal ones it takes depends on the texts beside.",
        f"Lower {own.stage}.max_tokens to {chosen}, or take another architecture.",
    )


def _lengths(own: StageBlueprint, num_parameters: int) -> list[int]:
    """Tokens of the longer text of each trial: as many as a stage may read, then few. BigBird reads
    all later texts in another way once it has read a short one, so long ones come first."""
    most = min(own.max_tokens, _MOST_LONG, int(_WORK / max(num_parameters, 1)))
    short = min(own.max_tokens, _SHORT)
    return [most, short] if most > 2 * short else [short]


def _part(length: int) -> int:
    """Tokens of the shorter of two texts."""
    return max(length * 3 // 5, 2)


@torch.no_grad()
def padding_difference(model: TeacherModel, width: int, length: int) -> float:
    """How far hidden states of a text of a part of `length` tokens are apart, beside a text of
    `length` and alone, relative to the largest."""
    model.eval()
    embeds, part = _embeds(width, length), _part(length)
    mask = torch.ones(2, length, dtype=torch.long)
    mask[0, part:] = 0
    starts = torch.tensor([part // 2, length // 2])
    beside = model(embeds, mask, starts)[0][0, :part]
    alone = model(embeds[:1, :part], mask[:1, :part], starts[:1])[0][0]
    return _apart(beside, alone)


class _Choices(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes from how many numbers the highest are taken, and how many."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fewest: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Let it be computed."""
        if func is torch.ops.aten.topk.default:
            numbers, chosen, axis = (*args, -1)[:3]
            size = numbers.shape[axis]
            self.fewest[size] = min(chosen, self.fewest.get(size, chosen))
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def chosen_tokens(model: TeacherModel, width: int, length: int) -> int | None:
    """How many tokens of a text of `length` a model takes by their scores; None: it doesn't choose
    among tokens."""
    model.eval()
    found = []
    for size in (length, length - 1):  # what else is chosen from doesn't change with the length
        mask, starts = torch.ones(2, size, dtype=torch.long), torch.tensor([2, 2])
        with _Choices() as choices:
            model(_embeds(width, size), mask, starts)
        found.append(choices.fewest.get(size))
    return None if None in found else found[0]


@torch.no_grad()
def sees_back_only(model: TeacherModel, width: int) -> bool:
    """Whether the rest of a text changes nothing of what is read before it."""
    model.eval()
    embeds, part = _embeds(width, _SHORT), _part(_SHORT)
    mask, starts = torch.ones(2, _SHORT, dtype=torch.long), torch.tensor([2, 2])
    whole = model(embeds, mask, starts)[0][:, :part]
    return _apart(whole, model(embeds[:, :part], mask[:, :part], starts)[0]) < _TOLERANCE


@torch.no_grad()
def _repeats(model: TeacherModel, width: int) -> bool:
    """Whether a model in training, without dropout, says the same twice."""
    model.train()
    embeds = _embeds(width, 4)
    mask, starts = torch.ones(2, 4, dtype=torch.long), torch.tensor([2, 2])
    first, second = (model(embeds, mask, starts)[0] for _ in range(2))
    return torch.equal(first, second)


def decoding_difference(stage: Stage, backbone: Backbone) -> float:
    """How far what a stage makes of growing texts is apart: two of them with its cache, and each
    alone without; relative to the largest."""
    width = backbone.embedding_width
    generator = torch.Generator().manual_seed(0)
    lookup = TableLookup(Table(torch.randn(_VOCABULARY, width, generator=generator)))
    rng = np.random.default_rng(0)
    texts = [Prompt(rng.integers(0, _VOCABULARY, size), 0) for size in (6, 3)]
    read = _teacher(backbone, lookup) if stage.reads == "contexts" else _student(backbone, lookup)
    alone = [read([text], False) for text in texts]
    return _apart(read(texts, True), torch.cat(alone))


Read = Callable[[list[Prompt], bool], Tensor]
"""(texts, whether with a cache) → (texts, 5, numbers) of the last token of each text and of four
that come next."""


def _teacher(backbone: Backbone, lookup: TableLookup) -> Read:
    model = TeacherModel(backbone, backbone.embedding_width, 1, 0.0)
    half = TeacherHalf(Plain(model, torch.device("cpu"), torch.float32), model)

    def read(texts: list[Prompt], use_cache: bool) -> Tensor:
        generation = TeacherGeneration(half, lookup, Keeping(use_cache))
        first = torch.stack([own[-1] for own in generation.start(texts)])
        rows = np.arange(len(texts))
        return torch.stack([first, *(generation.step(rows, rows * 0 + n) for n in range(4))], 1)

    return read


def _student(backbone: Backbone, lookup: TableLookup) -> Read:
    """Over windows of 6 tokens."""
    model = StudentModel(backbone, backbone.embedding_width, 0, 1, 0.0)
    half = StudentHalf(Plain(model, torch.device("cpu"), torch.float32), model)

    def read(texts: list[Prompt], use_cache: bool) -> Tensor:
        generation = StudentGeneration(half, lookup, 6, Keeping(use_cache))
        first = generation.start(texts, None)
        rows = np.arange(len(texts))
        nexts = (generation.step(rows, rows * 0 + n, None) for n in range(4))
        return torch.stack([first, *nexts], 1)

    return read


def _embeds(width: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randn(2, length, width, generator=generator)


def _apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())
