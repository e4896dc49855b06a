"""The batch of a step whose loss or gradient was not finite, saved for a look at it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tsarch.blueprint import Blueprint
from tsarch.data.loader import BatchPlan
from tsarch.data.partition import context_tokens
from tsarch.prepare import Prepared
from tsarch.records import IntArray, TokenizedSplit
from tsarch.tasks.registry import make_task
from tsarch.telling.step_table import StepRecord


def save_bad_batch(
    folder: Path,
    blueprint: Blueprint,
    prepared: Prepared,
    plan: BatchPlan,
    step: int,
    rows: list[StepRecord],
) -> Path:
    """Write `step-N.json` (for people) and `step-N.safetensors` (all numbers) into `folder`.

    Args:
        rows: rows of `metrics.jsonl` from the step on.

    Returns:
        The JSON file.
    """
    split = prepared.training
    contexts = plan.contexts(step)
    tokens = [context_tokens(split, context) for context in contexts.tolist()]
    tokenizer = blueprint.tokenizer()
    task = make_task(blueprint.task.name, prepared.labels, blueprint.task)
    folder.mkdir(parents=True, exist_ok=True)
    place = plan.position(step)
    description = {
        "step": step,
        "epoch": place.epoch,
        "batch": place.batch,
        "seed": blueprint.seed,
        "rows": rows,
        "contexts": [
            {
                "context": context,
                "tokens": tokenizer.convert_ids_to_tokens(split.token_ids[own].tolist()),
                "labels": task.label_texts(
                    _labels(split.words[own], split.labels).tolist(), tokenizer
                ),
            }
            for context, own in zip(contexts.tolist(), tokens, strict=True)
        ],
    }
    save_file(_arrays(split, contexts, tokens), folder / f"step-{step}.safetensors")
    path = folder / f"step-{step}.json"
    path.write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    return path


def _arrays(
    split: TokenizedSplit, contexts: IntArray, tokens: Sequence[IntArray]
) -> dict[str, IntArray]:
    """All numbers of some contexts; `tokens`: the tokens of each."""
    flat = np.concatenate(tokens)
    arrays = {
        "contexts": contexts,
        "context_lengths": np.array([len(own) for own in tokens]),
        "token_ids": split.token_ids[flat],
        "words": split.words[flat],
        "labels": _labels(split.words[flat], split.labels),
    }
    return {name: np.ascontiguousarray(values) for name, values in arrays.items()}


def _labels(words: IntArray, labels: IntArray) -> IntArray:
    """(n,) word numbers, −1 for none → label ids of the words that there are."""
    return labels[words[words >= 0]]
