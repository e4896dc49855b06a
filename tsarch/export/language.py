"""A model that writes texts as an ordinary language model of transformers.

Its projection is the embedding table where that is all that the trained model does (tied). Where
the table was folded, or the table's scale is another model's, the projection becomes a matrix of
its own: a linear map before the table, and a factor, are exact in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    PreTrainedModel,
)

from tsarch.data.source_target import TargetFrame
from tsarch.data.target_layout import SourceTargetLayout
from tsarch.errors import UserError
from tsarch.export.models import TrainedModels, folded_table, without_projection
from tsarch.export.ordinary import TOLERANCE, fill_backbone, labelled_config, new_model
from tsarch.models.heads import VocabularyHead, token_logits
from tsarch.models.language_model import TableProjection
from tsarch.models.output_head import OutputHead
from tsarch.models.student_model import StudentModel
from tsarch.models.teacher_model import TeacherModel
from tsarch.prepare import packing_spec
from tsarch.tasks.registry import row_reader

_TOKENS = 9
"""Of the text that candidates are compared on."""


def language_model(
    models: TrainedModels, module: TeacherModel | StudentModel
) -> tuple[PreTrainedModel, float]:
    """The ordinary language model of a teacher, or of a student that reads alone, and the largest
    difference of logits that was seen.

    Raises:
        UserError: no class of transformers computes the same.
    """
    gaps = []
    for model in _candidates(models, module):
        gap = difference_of_texts(models, module, model, _probe(len(models.table)))
        if gap <= TOLERANCE:
            _set_ends(models, model)
            return model, gap
        gaps.append(gap)
    what = f"computes something else (logits differ by {min(gaps):.1g})."
    raise UserError.single(type(module.backbone).__name__, what)


def target_frame(models: TrainedModels) -> TargetFrame:
    """How sources and targets stand in a context."""
    reader = row_reader(models.task_file.task, models.blueprint.data, labelled=False)
    layout = reader.layout(packing_spec(models.blueprint, keep_tokens=False), ())
    assert isinstance(layout, SourceTargetLayout)
    return layout.frame


def _set_ends(models: TrainedModels, model: PreTrainedModel) -> None:
    """Let `generate` start and end texts as the run does."""
    frame, vocabulary = target_frame(models), model.config.vocab_size
    pad = models.blueprint.tokenizer().pad_token_id
    own: dict[str, int | None] = {"eos_token_id": frame.end, "pad_token_id": pad or frame.end}
    if model.config.is_encoder_decoder:
        own["decoder_start_token_id"] = frame.start
    elif not 0 <= (model.config.bos_token_id or 0) < vocabulary:
        own["bos_token_id"] = None
    for name, value in own.items():
        setattr(model.config, name, value)
    fresh = GenerationConfig(**{k: v for k, v in own.items() if v is not None})
    fresh.max_new_tokens = models.blueprint.task.max_target_tokens
    model.generation_config = fresh


def difference_of_texts(
    models: TrainedModels,
    module: TeacherModel | StudentModel,
    model: PreTrainedModel,
    texts: Tensor,
) -> float:
    """Largest difference of logits on (texts, tokens) without padding; of a model with encoder and
    decoder the first half is the source."""
    middle = texts.shape[1] // 2
    with torch.inference_mode():
        wanted = own_logits(models, module, texts, middle)
        if model.config.is_encoder_decoder:
            said = model(input_ids=texts[:, :middle], decoder_input_ids=texts[:, middle:]).logits
            wanted = wanted[:, middle:]
        else:
            said = model(input_ids=texts).logits
    return float((said.float() - wanted.float()).abs().max())


def own_logits(
    models: TrainedModels, module: TeacherModel | StudentModel, texts: Tensor, middle: int
) -> Tensor:
    """(texts, tokens, vocabulary) of the trained model."""
    rows = folded_table(module, models.table, alone=True)
    own: Any = without_projection(module, alone=True)
    embeds, mask = nn.functional.embedding(texts, rows), torch.ones_like(texts)
    table = models.table if isinstance(own.head, OutputHead) else None
    if isinstance(own, TeacherModel):
        starts = torch.full((len(texts),), middle) if own.is_seq2seq else None
        _, said = own(embeds, mask, starts, None, None, None, table)
    else:
        nobody = [torch.full_like(mask, -1)]
        (said,) = own([embeds], [mask], embeds.new_zeros(1, 1), nobody, None, None, None, table)
    return said if isinstance(own.head, OutputHead) else token_logits(said, models.table)


def _probe(vocabulary: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocabulary, (2, 2 * _TOKENS), generator=generator)


def _candidates(
    models: TrainedModels, module: TeacherModel | StudentModel
) -> Iterator[PreTrainedModel]:
    """The tied model, where the table is whole, and such with a matrix of their own."""
    rows = folded_table(module, models.table, alone=True)
    kind = AutoModelForCausalLM
    if module.backbone.config.is_encoder_decoder:
        kind = AutoModelForSeq2SeqLM
    matrix, factors = _projection(models, module.head)
    tied = matrix is models.table and torch.equal(rows, models.table)
    for factor in [None, *factors] if tied else factors:
        config = labelled_config(models, module, len(rows))
        config.tie_word_embeddings = factor is None
        if hasattr(config, "scale_decoder_outputs"):  # T5 remembers whether it was tied once
            config.scale_decoder_outputs = factor is None
        model = new_model(kind, config)
        _fill(model, module, rows)
        output = model.get_output_embeddings()
        if factor is not None:
            with torch.no_grad():
                output.weight.copy_(matrix * factor)
        yield model.eval()


def _fill(model: PreTrainedModel, module: TeacherModel | StudentModel, rows: Tensor) -> None:
    """Put in all that isn't the projection."""
    fill_backbone(model, module.backbone, rows)
    if isinstance(module.head, OutputHead):
        state = {
            name: own
            for name, own in module.head.shell.state_dict().items()
            if name in model.state_dict()
        }
        model.load_state_dict(state, strict=False)


def _projection(models: TrainedModels, head: nn.Module) -> tuple[Tensor, list[float]]:
    """(vocabulary, width) what hidden states are compared with, and factors that it may need.

    Raises:
        UserError: there is more than a matrix.
    """
    table, scale = models.table, models.blueprint.table.scale
    if isinstance(head, OutputHead):
        own = head.shell.get_submodule(head._name)
        if not isinstance(own, TableProjection):
            assert isinstance(own.weight, Tensor)
            return own.weight, [1.0]
        return _mapped(table, own.linear), [1.0]
    assert isinstance(head, VocabularyHead)
    factors = [scale] if scale == 1.0 else [scale, 1.0]
    return _mapped(table, head.linear), factors


def _mapped(table: Tensor, linear: nn.Module) -> Tensor:
    """The table as seen through a linear map."""
    if not isinstance(linear, nn.Linear):
        return table
    if linear.bias is not None and (table @ linear.bias).abs().max() > 0:
        what = "maps hidden states to the table's width with a bias, which no ordinary model has."
        raise UserError.single("output head", what)
    return table @ linear.weight
