"""Checks of a run before Ray or any model starts; every mistake is collected."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterator
from typing import Any

from tsarch.config import BackboneConfig, Config
from tsarch.data.tokenizer import load_tokenizer, resolve_model_path, tokenizers_differ
from tsarch.errors import Mistake, UserError, one_line
from tsarch.planning.generative_models import generation_mistakes
from tsarch.topology import STAGES, Stage, stage_named, total_cpus


def check_run(config: Config, own_ray: bool) -> None:
    """Check models, tokenizers, widths and devices.

    Raises:
        UserError: names all mistakes.
    """
    mistakes = [*_devices(config, own_ray)]
    configs, unreadable = _stage_configs(config)
    mistakes += unreadable
    mistakes += _tokenizers(config)
    if not unreadable:
        mistakes += _lengths(config, configs)
        mistakes += _layers(config, configs)
        mistakes += _tying(config, configs)
        broken = _weights(config, configs)
        mistakes += broken or _adapters(config, configs)
        mistakes += generation_mistakes(config, configs)
    mistakes += _fragments(config)
    if mistakes:
        raise UserError(mistakes)


def run_notes(config: Config) -> list[str]:
    """Remarks on a config that is right, but says things that are not used."""
    notes = []
    if config.topology.runner == "local":
        for stage, own in _sections(config):
            if own.deepspeed:
                notes.append(f"{stage}.deepspeed is not used with topology.runner: local")
    return notes


def count_devices(device: str) -> tuple[str, float]:
    """(kind, number) of the devices of this machine."""
    import torch

    from tsarch.parallel.groups import choose_device

    if choose_device(device).type == "cuda":
        return "GPU", float(torch.cuda.device_count())
    return "CPU", float(len(os.sched_getaffinity(0)))


def _devices(config: Config, own_ray: bool) -> Iterator[Mistake]:
    topology = config.topology
    kind, available = count_devices(topology.device)
    if topology.runner == "local":
        if kind == "GPU" and available < 1:
            yield Mistake("topology.device: cuda", "this machine has no GPU that torch can use.")
        return
    if not own_ray:
        return
    ranks = topology.teacher.replicas + topology.student.replicas
    needed = total_cpus(topology) if kind == "CPU" else ranks
    if needed > available:
        larger = "a larger cluster (--address)"
        hint = "Use fewer replicas or join a larger cluster with --address."
        if topology.runner == "processes":
            larger = "topology.runner: ray with a larger cluster"
            hint = f"Use fewer replicas or {larger}."
        if kind == "CPU":
            hint = f"Use fewer replicas, {larger}, or a smaller topology.cpus_per_rank so that " + (
                "ranks share a core."
            )
        yield Mistake(
            "topology",
            f"{topology.teacher.replicas} teacher + {topology.student.replicas} student replicas "
            f"need {needed:g} {kind}s, this machine has {available:g}.",
            hint,
        )


def _stage_configs(config: Config) -> tuple[dict[Stage, Any], list[Mistake]]:
    from tsarch.stage.build import stage_config, weights_source

    configs: dict[Stage, Any] = {}
    mistakes: list[Mistake] = []
    for stage in STAGES:
        try:
            configs[stage] = stage_config(config, stage)
        except UserError as error:
            mistakes += error.mistakes
        except Exception as error:  # transformers' configs raise what they like
            origin, section = weights_source(config, stage)
            key, given = ("model", section.model) if section.model else ("config", section.config)
            what = f"no model can be read from {reprlib.repr(given)}: {one_line(error)}"
            mistakes.append(Mistake(f"{origin}.{key}", what))
    return configs, list(dict.fromkeys(mistakes))


def _tokenizers(config: Config) -> Iterator[Mistake]:
    name = config.tokenizer_name
    if name is None:
        yield Mistake(
            "data.tokenizer", "is missing.", "A teacher from `config` has no tokenizer of its own."
        )
        return
    try:
        tokenizer = load_tokenizer(name)
        for stage, model in (("teacher", config.teacher.model), ("student", config.student.model)):
            if model is None or model == name or not _has_tokenizer(model):
                continue
            difference = tokenizers_differ(tokenizer, load_tokenizer(model))
            if difference is not None:
                yield Mistake(
                    f"{stage}.model",
                    f"its tokenizer differs from {name}'s: {difference}.",
                    "Teacher and student share one embedding table, so they need one tokenizer.",
                )
    except UserError as error:
        yield from error.mistakes


def _has_tokenizer(model: str) -> bool:
    """Whether a local folder holds a tokenizer; a hub name is taken to."""
    path = resolve_model_path(model)
    if not os.path.isdir(path):
        return True
    return any(name.startswith(("tokenizer", "vocab", "spiece")) for name in os.listdir(path))


def _lengths(config: Config, configs: dict[Stage, Any]) -> Iterator[Mistake]:
    for stage, section in ((Stage.TEACHER, config.teacher), (Stage.STUDENT, config.student)):
        limit = getattr(configs[stage], "max_position_embeddings", None)
        if limit is not None and configs[stage].model_type in (
            "roberta",
            "xlm-roberta",
            "camembert",
        ):
            limit -= 2  # positions start after the padding index
        if limit is not None and section.max_tokens > limit:
            yield Mistake(
                f"{stage}.max_tokens",
                f"is {section.max_tokens}, the model has {limit} positions.",
            )


def _layers(config: Config, configs: dict[Stage, Any]) -> Iterator[Mistake]:
    count = configs[Stage.TEACHER].num_hidden_layers
    beyond = [layer for layer in config.student.layers or [] if layer >= count]
    if beyond:
        yield Mistake(
            "student.layers", f"{beyond} are not among the teacher's layers 0 … {count - 1}."
        )
    for stage, section in ((Stage.TEACHER, config.teacher), (Stage.STUDENT, config.student)):
        if section.freeze != "all_but_top_k" and section.top_k:
            yield Mistake(f"{stage}.top_k", "only counts with `freeze: all_but_top_k`.")
        depth = (
            count
            if stage is Stage.TEACHER
            else len(config.student.layers or []) or (configs[stage].num_hidden_layers)
        )
        if section.top_k > depth:
            yield Mistake(f"{stage}.top_k", f"is {section.top_k}, the model has {depth} layers.")


def _weights(config: Config, configs: dict[Stage, Any]) -> list[Mistake]:
    """Whether the models' files have all weights (of hub models: whether there are safetensors)."""
    from tsarch.stage.build import check_stage_weights

    layers = config.student.layers or [0]
    if max(layers) >= configs[Stage.TEACHER].num_hidden_layers:
        return []  # `_layers` says so
    mistakes: list[Mistake] = []
    for stage in STAGES:
        try:
            check_stage_weights(config, configs, stage)
        except UserError as error:
            mistakes += error.mistakes
        except Exception as error:  # as in `_stage_configs`
            what = f"transformers can't build a model of this config: {one_line(error)}"
            mistakes.append(Mistake(f"{stage}", what))
    return list(dict.fromkeys(mistakes))


def _sections(config: Config) -> tuple[tuple[Stage, BackboneConfig], ...]:
    return ((Stage.TEACHER, config.teacher), (Stage.STUDENT, config.student))


def _adapters(config: Config, configs: dict[Stage, Any]) -> Iterator[Mistake]:
    """LoRA's layers and activation checkpointing must be there in the architecture."""
    from tsarch.models.adapters import can_checkpoint, check_targets

    for stage, own in _sections(config):
        if own.lora is not None:
            try:
                check_targets(configs[stage], own.lora.target_modules)
            except UserError as error:
                for m in error.mistakes:
                    yield Mistake(f"{stage}.lora.{m.where}", m.what, m.hint)
        if own.activation_checkpointing and not can_checkpoint(configs[stage]):
            yield Mistake(
                f"{stage}.activation_checkpointing",
                f"{configs[stage].model_type} in transformers can't do it.",
            )


def _fragments(config: Config) -> Iterator[Mistake]:
    from tsarch.stage.deepspeed_config import check_fragment

    for stage in STAGES:
        yield from check_fragment(config, stage)


def _tying(config: Config, configs: dict[Stage, Any]) -> Iterator[Mistake]:
    from tsarch.stage.build import embedding_width

    widths = {stage: embedding_width(hf) for stage, hf in configs.items()}
    teacher, student = widths[Stage.TEACHER], widths[Stage.STUDENT]
    width = widths[stage_named(config.embedding.init)]
    if teacher != student and not config.embedding.project:
        yield Mistake(
            "embedding",
            f"a table of width {width} can't be tied to a teacher "
            f"of embedding width {teacher} and a student of {student}.",
            "Set embedding.project to true, or take models of one width.",
        )
    name = config.tokenizer_name
    if name is None:
        return
    try:
        vocabulary = len(load_tokenizer(name))
    except UserError:
        return
    size = configs[stage_named(config.embedding.init)].vocab_size
    if size < vocabulary:
        yield Mistake(
            f"{config.embedding.init}",
            f"its embedding has {size} rows, the tokenizer has {vocabulary} tokens.",
            "Set vocab_size, or take the tokenizer that belongs to the model.",
        )
