"""Some architectures, each built small in many ways and compared with transformers' own class.

Called by `tests.suites.parity` as a process of its own, so that a crash ends no more than these:
`python -m tests.suites.parity_batch FOLDER KIND…` prints a line of JSON for each.
"""

from __future__ import annotations

import copy
import json
import logging
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig
from transformers.models.auto import modeling_auto

from tests.suites.parity_kinds import SIZES, VARIANTS, switches
from tsarch.blueprint import Blueprint, resolve
from tsarch.config_loading import parse_config
from tsarch.errors import UserError, one_line
from tsarch.models.backbone import backbone_config
from tsarch.models.small_copy import small_copy
from tsarch.planning.parity import LARGEST_DIFFERENCE, Probe
from tsarch.planning.preflight import check_run
from tsarch.planning.reference import Reference, Row, auto_class, save_random
from tsarch.seeding import generator
from tsarch.topology import Stage

TEXT_KINDS = (
    modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
EVERYTHING = "all switches"
_MOST_PARAMETERS = 5e6


@dataclass
class Outcome:
    """One way to build an architecture, for one task."""

    task: str
    variant: str
    status: str
    """`supported`, `refused` (by name and config), `probe` (refused for what it computes), `wrong`
    (accepted, and it differs) or `impossible` (transformers itself can't)."""
    text: str = ""
    difference: float = 0.0


@dataclass
class Kind:
    """An architecture."""

    name: str
    outcomes: list[Outcome] = field(default_factory=list)
    not_built: str = ""


def sweep(name: str, folder: Path) -> Kind:
    """All ways to build `name`, for token labels and for texts."""
    kind = Kind(name)
    try:
        config = backbone_config(None, {"model_type": name}, 0.0, 0.0)
    except Exception as error:
        kind.not_built = f"its config isn't one of a text model ({one_line(error)[:120]})"
        return kind
    sizes = SIZES.get(name, {})
    with tempfile.TemporaryDirectory() as files:
        try:
            _try_out(small_copy(config, **sizes), False, files)
        except Exception as error:
            kind.not_built = f"not built small: {type(error).__name__}: {one_line(error)[:160]}"
            return kind
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        sizes = {**sizes, "decoder_start_token_id": 0}
    for task in _tasks(name):
        for variant, changes in _variants(config, name, sizes, task):
            found = _outcome(config, {**sizes, **changes}, task, variant, folder)
            if found.status == "impossible" and variant == EVERYTHING:
                changes = _together(config, sizes, changes, task)
                names = f"switches {', '.join(changes)}"
                found = _outcome(config, {**sizes, **changes}, task, names, folder)
            kind.outcomes.append(found)
    return kind


def _tasks(name: str) -> list[str]:
    generates = name in TEXT_KINDS[0] or name in TEXT_KINDS[1]
    return ["ner", "translation"] if generates else ["ner"]


def _variants(
    config: PretrainedConfig, name: str, sizes: dict[str, Any], task: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(what is said of it, changes of the config)."""
    yield "", {}
    generates = name in TEXT_KINDS[0] or name in TEXT_KINDS[1]
    if (task == "ner" and generates) or not any(name in names for names in TEXT_KINDS):
        return  # the rest is tried with texts, or is of a model of more than text
    small = small_copy(config, **sizes)
    for changes in VARIANTS.get(name, []):
        yield ", ".join(changes), changes
    other = {} if task == "ner" else {"tie_word_embeddings": not small.tie_word_embeddings}
    if changes := {**switches(small), **other}:
        yield EVERYTHING, changes


def _together(
    config: PretrainedConfig, sizes: dict[str, Any], every: dict[str, Any], task: str
) -> dict[str, Any]:
    """As many switches as transformers can build at once."""
    good: dict[str, Any] = {}
    for key, value in every.items():
        if _works(config, {**sizes, **good, key: value}, task):
            good[key] = value
    return good


def _works(config: PretrainedConfig, changes: dict[str, Any], task: str) -> bool:
    with tempfile.TemporaryDirectory() as files:
        try:
            _try_out(small_copy(config, **changes), task != "ner", files)
        except Exception:
            return False
    return True


def _try_out(config: PretrainedConfig, generative: bool, files: str) -> None:
    """Build it small with transformers alone, write it to `files`, and read a row."""
    with torch.device("meta"):
        outline = auto_class(config, generative).from_config(copy.deepcopy(config))
    size = sum(parameter.numel() for parameter in outline.parameters())
    assert size < _MOST_PARAMETERS, f"{size:,} parameters"
    save_random(config, generative, files)
    reference = Reference.load(files, config, generative)
    start = 8 if config.is_encoder_decoder else None
    read = reference.read(Row(torch.arange(5, 22).numpy(), start))
    assert bool(read.isfinite().any()), "transformers' own numbers aren't finite"


def _outcome(
    config: PretrainedConfig, changes: dict[str, Any], task: str, variant: str, folder: Path
) -> Outcome:
    outcome = Outcome(task, variant, "impossible")
    with tempfile.TemporaryDirectory() as files:
        try:
            _try_out(small_copy(config, **changes), task != "ner", files)
        except Exception as error:
            outcome.text = f"{type(error).__name__}: {one_line(error)[:160]}"
            return outcome
        _judge(_blueprint(folder, files, task), outcome)
    outcome.text = outcome.text.replace(files, "MODEL")
    return outcome


def _judge(blueprint: Blueprint, outcome: Outcome) -> None:
    try:
        check_run(blueprint, own_ray=False)
    except UserError as error:
        outcome.status, outcome.text = "refused", str(error)
        return
    try:
        probe = Probe.of(blueprint, Stage.TEACHER, None, "")
        found = probe.differences()
        outcome.difference = max(one.value for one in found[2])
        probe.conclude(*found)
        outcome.status = "supported"
        _compare_again(probe, outcome)
    except UserError as error:
        outcome.status, outcome.text = "probe", str(error)
    except Exception as error:
        outcome.status, outcome.text = "wrong", f"{type(error).__name__}: {one_line(error)}"


def _compare_again(probe: Probe, outcome: Outcome) -> None:
    """Whether what the probe accepts is right on rows too that it hasn't seen."""
    tokens = generator(1, "parity sweep").permutation(probe.tokens)
    _, _, found = replace(probe, tokens=tokens).differences()
    worst = max(found, key=lambda own: own.value)
    outcome.difference = max(outcome.difference, worst.value)
    if not worst.value <= LARGEST_DIFFERENCE:
        outcome.status = "wrong"
        outcome.text = f"accepted, but differs on other rows, {worst.way}"


def _blueprint(folder: Path, files: str, task: str) -> Blueprint:
    raw: dict[str, Any] = {
        "run": {"name": "sweep", "folder": str(folder / "run")},
        "task": {"name": task},
        "data": {
            **dict.fromkeys(("train", "validation", "test"), str(folder / "rows.jsonl")),
            "tokenizer": str(folder / "tokenizer"),
        },
        "teacher": {"model": files, "max_tokens": 40, "dropout": 0.0},
        "topology": {"runner": "local", "device": "cpu"},
    }
    if task != "ner":
        raw["task"]["max_target_tokens"] = 16
    return resolve(parse_config(raw, "sweep"))


def main() -> None:
    """Print a line of JSON for each architecture."""
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("tsarch").setLevel(logging.ERROR)
    for name in names:
        print(json.dumps(asdict(sweep(name, folder))), flush=True)


if __name__ == "__main__":
    main()
