"""Checks of the models of a run: which can generate, and what sequence-to-sequence ones can't."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tsarch.config import BackboneConfig, Config
from tsarch.errors import Mistake
from tsarch.tasks.registry import is_generative
from tsarch.topology import Stage

_LEAST_SOURCE_TOKENS = 8


def generation_mistakes(config: Config, configs: Mapping[Stage, Any]) -> Iterator[Mistake]:
    """Mistakes in the models of a task; `configs` are Hugging Face's."""
    generative = is_generative(config.task.name)
    for stage, hf in configs.items():
        section: BackboneConfig = config.teacher if stage is Stage.TEACHER else config.student
        if hf.is_encoder_decoder:
            yield from _seq2seq_mistakes(config, stage, section, generative)
        elif generative and not is_causal(hf):
            yield Mistake(
                f"{stage}",
                f"{hf.model_type} reads texts in both directions and can't generate "
                f"{config.task.name} word by word.",
                "Take a causal model (GPT-2- or Llama-like), or a sequence-to-sequence teacher.",
            )
    if generative:
        yield from _room_mistakes(config, configs)


def is_causal(hf: Any) -> bool:
    """Whether a model sees earlier tokens only. Architectures that also have a masked language
    model (BERT's kin) do so as decoders alone."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    if hf.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return bool(getattr(hf, "is_decoder", False))
    return hf.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def _seq2seq_mistakes(
    config: Config, stage: Stage, section: BackboneConfig, generative: bool
) -> Iterator[Mistake]:
    if not generative:
        yield Mistake(f"{stage}", f"{config.task.name} takes no sequence-to-sequence model.")
    elif stage is Stage.STUDENT:
        hint = "Give it `student.model` or `student.config`: a causal model of the same tokenizer."
        yield Mistake("student", "can't be a sequence-to-sequence model, or layers of one.", hint)
    elif section.freeze == "all_but_top_k":
        what = "doesn't say which layers of a sequence-to-sequence model stay as they are."
        yield Mistake("teacher.freeze: all_but_top_k", what, "Use all_but_head, or lora.")
    if stage is Stage.TEACHER and config.task.target_prefix:
        hint = "Put it into task.source_prefix."
        yield Mistake(
            "task.target_prefix", "is for causal teachers; a decoder starts with its own token.",
            hint,
        )  # fmt: skip


def _room_mistakes(config: Config, configs: Mapping[Stage, Any]) -> Iterator[Mistake]:
    needed = config.task.max_target_tokens + _LEAST_SOURCE_TOKENS
    if config.teacher.max_tokens < needed:
        yield Mistake(
            "teacher.max_tokens",
            f"is {config.teacher.max_tokens}, but with targets of up to "
            f"{config.task.max_target_tokens} tokens it takes {needed} or more.",
            "Raise it or lower task.max_target_tokens.",
        )
    teacher = configs[Stage.TEACHER]
    if teacher.is_encoder_decoder and getattr(teacher, "decoder_start_token_id", None) is None:
        yield Mistake("teacher", "its config has no decoder_start_token_id.")
