"""Checks of a run before Ray or any model starts; every mistake is collected."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from tsarch.blueprint import Blueprint, StageBlueprint
from tsarch.config_changes import unused_keys
from tsarch.data.hub import WAYS_ON, is_hub_name, unreachable, why_absent
from tsarch.data.tokenizer import load_tokenizer, resolve_model_path, tokenizers_differ
from tsarch.errors import Mistake, UserError, one_line
from tsarch.planning.generative_models import generation_mistakes
from tsarch.planning.passed import PassedChecks
from tsarch.planning.sequence_checks import sequence_mistakes
from tsarch.planning.start import start_mistakes
from tsarch.tasks.registry import is_generative
from tsarch.telling.tracker_choice import tracker_mistakes

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def check_run(
    blueprint: Blueprint,
    own_ray: bool,
    planned: bool = False,
    passed: PassedChecks | None = None,
) -> None:
    """Check models, tokenizers, widths and devices.

    Args:
        own_ray: the ranks run on this machine.
        planned: the run is only planned: devices of this machine don't matter, and no small models
            read texts.
        passed: keeps what has passed; None: everything is checked.

    Raises:
        UserError: names all mistakes.
    """
    mistakes = [] if planned else [*_devices(blueprint, own_ray)]
    if absent := _absent(blueprint):
        raise UserError([*mistakes, *absent])
    check = partial(_check_models, blueprint, with_readings=not planned)
    try:
        check() if passed is None else passed.run("models", check)
    except UserError as error:
        mistakes += error.mistakes
    if not mistakes and not planned:
        mistakes += start_mistakes(blueprint)
    mistakes += _fragments(blueprint)
    mistakes += [] if planned else tracker_mistakes(blueprint)
    if mistakes:
        raise UserError(mistakes)


def _check_models(blueprint: Blueprint, with_readings: bool) -> list[str]:
    """What depends on the config, the models and the tokenizer alone; there are no remarks.

    Raises:
        UserError: names all mistakes.
    """
    unreadable = _unreadable(blueprint)
    mistakes = list(unreadable)
    mistakes += _tokenizers(blueprint)
    if not unreadable:
        mistakes += _lengths(blueprint)
        mistakes += _layers(blueprint)
        mistakes += _boundaries(blueprint)
        mistakes += _tying(blueprint)
        unfit = list(generation_mistakes(blueprint))
        mistakes += unfit or _weights(blueprint) or [*_adapters(blueprint), *_matching(blueprint)]
        mistakes += sequence_mistakes(blueprint)
        if not mistakes and with_readings:
            mistakes += _readings(blueprint)
    if mistakes:
        raise UserError(mistakes)
    return []


def run_notes(blueprint: Blueprint) -> list[str]:
    """Remarks on a run that is right, but whose config says things that are not used, or whose
    models are too large for a check."""
    from tsarch.planning.reading_trial import reading_notes

    notes = [*_from_cache(blueprint), *reading_notes(blueprint), *_one_sided(blueprint)]
    notes += unused_keys(blueprint.config)
    if blueprint.runner.is_one_process:
        notes += [
            f"{stage}.deepspeed is not used with topology.runner: local"
            for stage, own in blueprint.stages.items()
            if own.engine.deepspeed
        ]
    return notes


def _one_sided(blueprint: Blueprint) -> Iterator[str]:
    """Causal models in tasks that label words inside a text."""
    if blueprint.task.name in ("ner", "qa"):
        for stage in blueprint.causal_stages:
            kind = blueprint.stages[stage].architecture.config.model_type
            yield (
                f"{stage}: {kind} sees earlier tokens only, so it labels each word by what stands "
                "before it"
            )


def count_devices(device: str) -> tuple[str, float]:
    """(kind, number) of the devices of this machine."""
    import torch

    from tsarch.parallel.groups import choose_device

    if choose_device(device).type == "cuda":
        return "GPU", float(torch.cuda.device_count())
    return "CPU", float(len(os.sched_getaffinity(0)))


def _devices(blueprint: Blueprint, own_ray: bool) -> Iterator[Mistake]:
    kind, available = count_devices(blueprint.runner.device)
    if blueprint.runner.is_one_process:
        if kind == "GPU" and available < 1:
            yield Mistake("topology.device: cuda", "this machine has no GPU that torch can use.")
        return
    if not own_ray:
        return
    topology = blueprint.topology
    needed = blueprint.total_cpus if kind == "CPU" else topology.num_ranks
    if needed > available:
        larger = "a larger cluster (--address)"
        hint = "Use fewer replicas or join a larger cluster with --address."
        if blueprint.runner.name == "processes":
            larger = "topology.runner: ray with a larger cluster"
            hint = f"Use fewer replicas or {larger}."
        if kind == "CPU":
            hint = f"Use fewer replicas, {larger}, or a smaller topology.cpus_per_rank so that " + (
                "ranks share a core."
            )
        counts = " + ".join(f"{topology.replicas(stage)} {stage}" for stage in blueprint.stages)
        yield Mistake(
            "topology",
            f"{counts} replicas need {needed:g} {kind}s, this machine has {available:g}.",
            hint,
        )


def _hub_names(blueprint: Blueprint) -> dict[str, str]:
    """Hub name → key of the config, of all models and tokenizers that come from the hub."""
    found: dict[str, str] = {}
    for own in blueprint.stages.values():
        architecture = own.architecture
        if architecture.model is not None and is_hub_name(architecture.model):
            found.setdefault(architecture.model, f"{architecture.section}.model")
    if blueprint.tokenizer_name is not None and is_hub_name(blueprint.tokenizer_name):
        found.setdefault(blueprint.tokenizer_name, "data.tokenizer")
    return found


def _absent(blueprint: Blueprint) -> list[Mistake]:
    """A mistake for each hub name that is neither cached nor to be had now."""
    reasons = {name: (key, why_absent(name)) for name, key in _hub_names(blueprint).items()}
    return [
        Mistake(key, f"no model can be read from {reprlib.repr(name)}: {reason}.", WAYS_ON)
        for name, (key, reason) in reasons.items()
        if reason is not None
    ]


def _from_cache(blueprint: Blueprint) -> list[str]:
    """Remarks on models that come from the cache, since the hub can't be asked."""
    names = _hub_names(blueprint)
    if not names or (reason := unreachable()) is None:
        return []
    return [f"{reason}: {', '.join(names)} as they are in the cache"]


def _unreadable(blueprint: Blueprint) -> list[Mistake]:
    """A mistake for each architecture that can't be read; the others have been."""
    mistakes: list[Mistake] = []
    for own in blueprint.stages.values():
        architecture = own.architecture
        try:
            _ = architecture.config
        except UserError as error:
            mistakes += error.mistakes
        except Exception as error:  # transformers' configs raise what they like
            model = architecture.model
            key, given = ("model", model) if model else ("config", architecture.values)
            what = f"no model can be read from {reprlib.repr(given)}: {one_line(error)}"
            mistakes.append(Mistake(f"{architecture.section}.{key}", what))
    return list(dict.fromkeys(mistakes))


def _tokenizers(blueprint: Blueprint) -> Iterator[Mistake]:
    name = blueprint.tokenizer_name
    if name is None:
        yield Mistake(
            "data.tokenizer", "is missing.", "A teacher from `config` has no tokenizer of its own."
        )
        return
    try:
        tokenizer = load_tokenizer(name)
        for stage, own in blueprint.stages.items():
            model = own.architecture.model if own.architecture.section is stage else None
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


def _lengths(blueprint: Blueprint) -> Iterator[Mistake]:
    for stage, own in blueprint.stages.items():
        limit, first = _num_positions(own.architecture.config), own.first_position
        if limit is not None and first + own.max_tokens > limit:
            behind = f" behind {stage}.first_position ({first})" * bool(first)
            yield Mistake(
                f"{stage}.max_tokens",
                f"is {own.max_tokens}{behind}, the model has {limit} positions.",
            )


def _num_positions(config: PretrainedConfig) -> int | None:
    """Of a model with learned positions; RoBERTa's kin count them from after the padding's."""
    from torch import nn

    from tsarch.models.skeleton import make_skeleton

    try:
        modules = make_skeleton(config, None).model.named_modules()
    except Exception:  # `_weights` says so
        return None
    for name, module in modules:
        if "position" in name and isinstance(module, nn.Embedding) and module.padding_idx:
            return module.num_embeddings - module.padding_idx - 1
    number: int | None = getattr(config, "max_position_embeddings", None)
    return None if number is not None and number < 0 else number  # XLNet's: there is no limit


def _beyond(own: StageBlueprint) -> list[int]:
    """Layers that a stage takes of a model that doesn't have them."""
    count = own.architecture.config.num_hidden_layers
    return [layer for layer in own.architecture.layers or () if layer >= count]


def _layers(blueprint: Blueprint) -> Iterator[Mistake]:
    for stage, own in blueprint.stages.items():
        if beyond := _beyond(own):
            origin, count = own.architecture.section, own.architecture.config.num_hidden_layers
            yield Mistake(
                f"{stage}.layers", f"{beyond} are not among the {origin}'s layers 0 … {count - 1}."
            )
    if blueprint.is_open.layers:
        from tsarch.planning.layer_choice import layer_mistakes

        yield from layer_mistakes(blueprint)
    for stage, own in blueprint.stages.items():
        if own.freeze != "all_but_top_k" and own.top_k:
            yield Mistake(f"{stage}.top_k", "only counts with `freeze: all_but_top_k`.")
        depth = len(own.architecture.layers or ()) or own.architecture.config.num_hidden_layers
        if own.top_k > depth:
            yield Mistake(f"{stage}.top_k", f"is {own.top_k}, the model has {depth} layers.")


def _boundaries(blueprint: Blueprint) -> Iterator[Mistake]:
    """Layers before which states leave or enter must be there, in architectures that can."""
    from tsarch.models.boundary import can_be_entered

    for stage, own in blueprint.stages.items():
        boundary = own.boundary_layer
        if boundary is None:
            continue
        config = own.architecture.config
        depth = len(own.architecture.layers or ()) or config.num_hidden_layers
        if boundary >= depth:
            what = f"is {boundary}, the model has the layers 0 … {depth - 1}."
            yield Mistake(f"{stage}.boundary_layer", what)
        elif not can_be_entered(config):
            yield Mistake(
                f"{stage}.boundary_layer",
                f"{config.model_type} reads otherwise when states leave it, or enter it, between "
                "two layers.",
                "Take a model of BERT's kin, or leave the key out.",
            )


def _weights(blueprint: Blueprint) -> list[Mistake]:
    """Whether the models' files have all weights (of hub models: whether there are safetensors)."""
    from tsarch.stage.build import check_stage_weights

    if any(_beyond(own) for own in blueprint.stages.values()):
        return []  # `_layers` says so
    mistakes: list[Mistake] = []
    for stage, own in blueprint.stages.items():
        try:
            check_stage_weights(own, is_generative(blueprint.task.name))
        except UserError as error:
            mistakes += error.mistakes
        except Exception as error:  # as in `_unreadable`
            what = f"transformers can't build a model of this config: {one_line(error)}"
            mistakes.append(Mistake(f"{stage}", what))
    return list(dict.fromkeys(mistakes))


def _adapters(blueprint: Blueprint) -> Iterator[Mistake]:
    """LoRA's layers and activation checkpointing must be there in the architecture."""
    from tsarch.models.adapters import can_checkpoint, check_targets

    for stage, own in blueprint.stages.items():
        hf = own.architecture.config
        if own.lora is not None:
            try:
                check_targets(hf, own.lora.target_modules)
            except UserError as error:
                for m in error.mistakes:
                    yield Mistake(f"{stage}.lora.{m.where}", m.what, m.hint)
        if own.activation_checkpointing and not can_checkpoint(hf):
            yield Mistake(
                f"{stage}.activation_checkpointing",
                f"{hf.model_type} in transformers can't do it.",
            )


def _matching(blueprint: Blueprint) -> Iterator[Mistake]:
    """Layers and relations that are matched must be there in both models."""
    from tsarch.stage.matching import matching_mistakes

    if not any(_beyond(own) for own in blueprint.stages.values()):
        yield from matching_mistakes(blueprint)


def _readings(blueprint: Blueprint) -> Iterator[Mistake]:
    """Models that read a text otherwise beside another one; tried when all else is right."""
    from tsarch.planning.reading_trial import reading_mistakes

    yield from reading_mistakes(blueprint)


def _fragments(blueprint: Blueprint) -> Iterator[Mistake]:
    from tsarch.stage.deepspeed_config import check_fragment

    num_micro_batches = blueprint.schedule.micro_batches
    for stage, own in blueprint.stages.items():
        yield from check_fragment(stage, own.engine, blueprint.precision, num_micro_batches)


def _tying(blueprint: Blueprint) -> Iterator[Mistake]:
    table, stages = blueprint.table, blueprint.stages
    widths = {stage: own.architecture.embedding_width for stage, own in stages.items()}
    if len(set(widths.values())) > 1 and not table.project:
        teacher, student = widths.values()
        yield Mistake(
            "embedding",
            f"a table of width {table.shape[1]} can't be tied to a teacher of embedding width "
            f"{teacher} and a student of {student}.",
            "Set embedding.project to true, or take models of one width.",
        )
    name = blueprint.tokenizer_name
    if name is None:
        return
    try:
        vocabulary = len(load_tokenizer(name))
    except UserError:
        return
    if table.shape[0] < vocabulary:
        yield Mistake(
            f"{table.stage}",
            f"its embedding has {table.shape[0]} rows, the tokenizer has {vocabulary} tokens.",
            "Set vocab_size, or take the tokenizer that belongs to the model.",
        )
