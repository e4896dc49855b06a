"""A teacher, or a student by itself, as an ordinary model of transformers.

The class of transformers for the task gets the backbone's weights, the folded embedding table
(`folded_table`: exact, since a projection of a row is a row) and the linear head. Whether it then
says the same is not taken for granted but measured (`difference`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from tsarch.errors import UserError, one_line
from tsarch.export.models import TrainedModels, folded_table, without_projection
from tsarch.models.heads import TokenHead
from tsarch.models.student_model import StudentModel
from tsarch.models.teacher_model import TeacherModel
from tsarch.records import IntArray

TOLERANCE = 1e-4
"""Of logits, between a model here and the ordinary one: kernels may add in another order."""


def ordinary_model(models: TrainedModels, module: TeacherModel | StudentModel) -> PreTrainedModel:
    """The ordinary model of a teacher, or of a student that reads alone, of a task with labels or
    spans.

    Raises:
        UserError: no class of transformers computes the same.
    """
    kind = AutoModelForTokenClassification
    if models.task_file.task == "qa":
        kind = AutoModelForQuestionAnswering
    rows = folded_table(module, models.table, alone=True)
    model = new_model(kind, labelled_config(models, module, len(rows)))
    fill_backbone(model, module.backbone, rows)
    _fill_head(model, module.head)
    return model.eval()


def labelled_config(
    models: TrainedModels, module: TeacherModel | StudentModel, num_rows: int
) -> PretrainedConfig:
    """The backbone's config with the labels' names and the table's size."""
    config: PretrainedConfig = copy.deepcopy(module.backbone.config)
    config.use_cache = getattr(config, "use_cache", None) is not None and models.is_generative
    config.vocab_size = num_rows
    labels = models.task_file.labels
    if not models.is_generative and models.task_file.task != "qa":
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: place for place, label in enumerate(labels)}
    return config


def new_model(kind: Any, config: PretrainedConfig) -> PreTrainedModel:
    """A model of one of transformers' automatic classes.

    Raises:
        UserError: the architecture has none of it.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            model: PreTrainedModel = kind.from_config(
                copy.deepcopy(config), dtype=torch.float32, trust_remote_code=False
            )
    except Exception as error:  # each architecture has errors of its own
        what = f"transformers has no {kind.__name__} of it ({one_line(error)[:120]})."
        raise UserError.single(config.model_type, what) from None
    return model


def fill_backbone(model: PreTrainedModel, backbone: nn.Module, rows: Tensor) -> None:
    """Put a backbone's weights and (vocabulary, embedding_width) `rows` into a model.

    Raises:
        UserError: it has other parts.
    """
    base = model.base_model
    table = base.get_input_embeddings()
    assert isinstance(table, nn.Embedding)
    if table.weight.shape != rows.shape:
        what = f"its table is {tuple(table.weight.shape)}, not {tuple(rows.shape)}."
        raise UserError.single(type(model).__name__, what)
    found = base.load_state_dict(backbone.state_dict(), strict=False)
    with torch.no_grad():
        table.weight.copy_(rows)
    own = [n for n in found.missing_keys if not n.startswith("pooler.")]
    missing = [n for n in own if base.get_parameter_or_buffer(n) is not table.weight]
    if found.unexpected_keys or _truly(base, missing, table.weight):
        odd = [*found.unexpected_keys, *missing][0]
        what = f"has other parts than the model that was trained ({odd})."
        raise UserError.single(type(model).__name__, what)


def _truly(base: PreTrainedModel, names: Sequence[str], table: Tensor) -> list[str]:
    """Of parameters that got no values those that aren't the table under another name."""
    found = (base.get_parameter_or_buffer(name) for name in names)
    return [n for n, own in zip(names, found) if own.data_ptr() != table.data_ptr()]


def _fill_head(model: PreTrainedModel, head: nn.Module) -> None:
    """Put the linear head into the one linear layer that the class adds to its backbone.

    Raises:
        UserError: it adds more, or other things.
    """
    assert isinstance(head, TokenHead)
    inside = {id(own) for own in model.base_model.modules()}
    added = [(n, own) for n, own in model.named_modules() if id(own) not in inside and n]
    holders = [(n, own) for n, own in added if list(own.parameters(recurse=False))]
    name = type(model).__name__
    if len(holders) != 1 or not isinstance(holders[0][1], nn.Linear):
        names = ", ".join(n for n, _ in holders)
        what = f"reads labels off more than a linear layer ({names}), which was not trained."
        raise UserError.single(name, what)
    layer = holders[0][1]
    if layer.weight.shape != head.linear.weight.shape or layer.bias is None:
        raise UserError.single(name, "its last layer has another shape, or no bias.")
    with torch.no_grad():
        layer.weight.copy_(head.linear.weight)
        layer.bias.copy_(head.linear.bias)


def difference(
    models: TrainedModels,
    module: TeacherModel | StudentModel,
    model: PreTrainedModel,
    sequences: Sequence[IntArray],
    types: Sequence[IntArray | None],
) -> float:
    """Largest difference of logits between a trained model, alone, and an ordinary one, on
    sequences of tokens, padded together and one by one."""
    rows = folded_table(module, models.table, alone=True)
    own = without_projection(module, alone=True)
    alone = [([s], [t]) for s, t in zip(sequences[:4], types[:4], strict=True)]
    worst = 0.0
    for batch, kinds in [(list(sequences), list(types)), *alone]:
        ids, mask, segments = padded(batch, kinds)
        with torch.inference_mode():
            wanted = logits_of(own, F.embedding(ids, rows), mask, segments)
            options = {} if segments is None else {"token_type_ids": segments}
            found = model(input_ids=ids, attention_mask=mask, **options)
        said = found.logits if hasattr(found, "logits") else None
        if said is None:
            said = torch.stack([found.start_logits, found.end_logits], dim=-1)
        gap = (said.float() - wanted)[mask.bool()].abs().max()
        worst = max(worst, float(gap))
    return worst


def logits_of(module: nn.Module, embeds: Tensor, mask: Tensor, types: Tensor | None) -> Tensor:
    """(batch, tokens, outputs) of a model that takes rows of `folded_table`."""
    predictions: Tensor
    if isinstance(module, TeacherModel):
        _, predictions = module(embeds, mask, types=types)
        return predictions
    nobody = torch.full_like(mask, -1)
    (predictions,) = module([embeds], [mask], embeds.new_zeros(1, 1), [nobody], types=[types])
    return predictions


def padded(
    sequences: Sequence[IntArray], types: Sequence[IntArray | None]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(batch, tokens) ids, mask, and types if there are any."""
    from tsarch.pair.states import Tokens

    tokens = Tokens.padded(sequences, types)
    kinds = None if tokens.types is None else torch.from_numpy(tokens.types)
    return torch.from_numpy(tokens.places), torch.from_numpy(tokens.mask), kinds
