"""Checks of the models of a run: which can generate, and what sequence-to-sequence ones can't."""

from __future__ import annotations

from collections.abc import Iterator

from tsarch.blueprint import Blueprint, StageBlueprint
from tsarch.data.source_target import LEAST_SOURCE_TOKENS
from tsarch.errors import Mistake, UserError, one_line
from tsarch.models.causality import is_causal
from tsarch.models.drafter_model import feed
from tsarch.models.skeleton import make_skeleton
from tsarch.tasks.registry import is_generative
from tsarch.topology import Stage


def generation_mistakes(blueprint: Blueprint) -> Iterator[Mistake]:
    """Mistakes in the models of a task."""
    generative = is_generative(blueprint.task.name)
    if generative and not blueprint.topology.graph.reading("contexts"):
        what = f"reads targets alone, so by itself it can't learn {blueprint.task.name}."
        yield Mistake("student", what, "Give the model as `teacher`, which reads the sources too.")
        return
    for stage, own in blueprint.stages.items():
        if own.architecture.is_seq2seq:
            yield from _seq2seq_mistakes(blueprint, own, generative)
        elif generative and not is_causal(own.architecture.config):
            yield Mistake(
                f"{stage}",
                f"{own.architecture.config.model_type} reads texts in both directions and can't "
                f"generate {blueprint.task.name} word by word.",
                "Take a causal model (GPT-2- or Llama-like), or a sequence-to-sequence teacher.",
            )
    if generative:
        yield from _room_mistakes(blueprint)
        for own in blueprint.stages.values():
            yield from _output_mistakes(blueprint, own)
    if blueprint.drafting is not None:
        yield from _drafter_mistakes(blueprint)


def _drafter_mistakes(blueprint: Blueprint) -> Iterator[Mistake]:
    """What a student that proposes asks of its teacher."""
    own = blueprint.stages[Stage.TEACHER].architecture
    if not is_generative(blueprint.task.name):
        what = f"proposes words of texts, and {blueprint.task.name} writes none."
        yield Mistake("student.role: drafter", what)
        return
    if own.is_seq2seq:
        what = "is for causal teachers."
        yield Mistake("student.role: drafter", what, "Leave it out; the source itself proposes.")
        return
    try:
        config = blueprint.stages[Stage.STUDENT].architecture.config
        feed(make_skeleton(config, None).model)
    except ValueError as error:
        what = f"can't be a drafter: {error}."
        yield Mistake("student.config", what, "Take model_type llama, mistral, qwen2 or qwen3.")
    num_layers = int(own.built.num_hidden_layers)
    if over := [tap for tap in blueprint.taps if tap >= num_layers]:
        what = f"{over} are not between layers of the teacher, which has {num_layers}."
        hint = "Its last states travel in any case."
        yield Mistake("student.drafting.layers", what, hint)


def _seq2seq_mistakes(
    blueprint: Blueprint, own: StageBlueprint, generative: bool
) -> Iterator[Mistake]:
    if not generative:
        yield Mistake(f"{own.stage}", f"{blueprint.task.name} takes no sequence-to-sequence model.")
    elif own.bridge is not None:
        hint = (
            f"Give it `{own.stage}.model` or `{own.stage}.config`: a causal model of the same "
            "tokenizer."
        )
        what = "can't be a sequence-to-sequence model, or layers of one."
        yield Mistake(f"{own.stage}", what, hint)
    elif own.freeze == "all_but_top_k":
        what = "doesn't say which layers of a sequence-to-sequence model stay as they are."
        yield Mistake(f"{own.stage}.freeze: all_but_top_k", what, "Use all_but_head, or lora.")
    if own.bridge is None and blueprint.task.target_prefix:
        hint = "Put it into task.source_prefix."
        yield Mistake(
            "task.target_prefix", "is for causal teachers; a decoder starts with its own token.",
            hint,
        )  # fmt: skip


def _output_mistakes(blueprint: Blueprint, own: StageBlueprint) -> Iterator[Mistake]:
    """Whether logits come from hidden states in a way that can be followed, of every token."""
    try:
        output = own.architecture.output
    except UserError as error:
        for mistake in error.mistakes:
            yield Mistake(f"{own.stage}: {mistake.where}", mistake.what, mistake.hint)
        return
    except Exception as error:  # as when a config is read
        kind = own.architecture.config.model_type
        what = f"transformers can't build a language model of {kind}: {one_line(error)}"
        yield Mistake(f"{own.stage}", what, "Take another architecture.")
        return
    vocabulary = blueprint.table.shape[0]
    if output.gives_logits and output.num_rows != vocabulary:
        yield Mistake(
            f"{own.stage}",
            f"its output has {output.num_rows} tokens, the embedding table {vocabulary}.",
            "Take models of one vocabulary (vocab_size).",
        )


def _room_mistakes(blueprint: Blueprint) -> Iterator[Mistake]:
    teacher, most = blueprint.stages[Stage.TEACHER], blueprint.task.max_target_tokens
    needed = most + LEAST_SOURCE_TOKENS
    if teacher.max_tokens < needed:
        yield Mistake(
            "teacher.max_tokens",
            f"is {teacher.max_tokens}, but with targets of up to {most} tokens it takes {needed} "
            "or more.",
            "Raise it or lower task.max_target_tokens.",
        )
    hf = teacher.architecture.config
    if hf.is_encoder_decoder and getattr(hf, "decoder_start_token_id", None) is None:
        yield Mistake("teacher", "its config has no decoder_start_token_id.")
