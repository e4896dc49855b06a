"""Loads the ONNX models of an exported folder, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tsarch.blueprint import Blueprint, resolve
from tsarch.config_loading import load_config
from tsarch.data.plain_tokenizer import PlainTokenizer
from tsarch.data.row_tokens import RowTokenizer
from tsarch.data.tokenizer import load_tokenizer
from tsarch.errors import UserError, one_line
from tsarch.model_folder import TaskFile, load_task
from tsarch.pair.answering import Answering
from tsarch.prediction.onnx_pair import OnnxPair, read_description
from tsarch.prediction.packed import Layouts
from tsarch.prediction.trained_pair import TrainedPair
from tsarch.prepare import known_packing_spec
from tsarch.tasks.base import AnsweringTask
from tsarch.tasks.registry import make_task, row_reader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_graphs(
    folder: Path, device: str, precision: str, batch_tokens: int, overlap: bool = True
) -> TrainedPair:
    """The pair of an exported folder, by onnxruntime.

    Raises:
        UserError: the folder has no such models, or its files are damaged.
    """
    blueprint, task_file = open_export(folder)
    # Graphs are exported of such tasks alone; asking would look at its losses, which take torch.
    task = cast(AnsweringTask, make_task(task_file.task, task_file.labels, blueprint.task))
    pair = OnnxPair(folder / "onnx", "int8" if precision == "int8" else "fp32", device)
    description = pair.description
    tokens = RowTokenizer(_tokenizer(folder, description), None, keep=False)
    spec = known_packing_spec(
        blueprint, tokens, bool(description["label_last"]), description["decoder_start"]
    )
    reader = row_reader(task_file.task, blueprint.data, labelled=False)
    answering = Answering(
        pair,
        task,
        blueprint.asked_window_tokens,
        blueprint.evaluation.windows,
        task_file.joint_weight,
        batch_tokens,
    )
    layouts = Layouts.of(reader, replace(spec, overlaps=overlap), task_file.labels)
    name, labels, kind = task_file.task, task_file.labels, f"onnx {precision}"
    modes, query = blueprint.modes, blueprint.task.query
    return TrainedPair(name, labels, modes, reader, layouts, answering, folder, kind, query)


def _tokenizer(folder: Path, description: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer, without transformers where that makes no difference."""
    own = folder / "model" / "tokenizer"
    known = description.get("plain_tokenizer")
    if known is None:
        return load_tokenizer(str(own))
    try:
        return cast("PreTrainedTokenizerBase", PlainTokenizer(own, known))
    except Exception as error:  # the tokenizers library raises bare Exceptions for broken files
        where = f"tokenizer {own}"
        raise UserError.single(where, f"can't be loaded: {one_line(error)}") from None


def open_export(folder: Path, overrides: Sequence[str] = ()) -> tuple[Blueprint, TaskFile]:
    """What a folder with ONNX models says of itself; `overrides`: `key=value` of how data is read.

    Raises:
        UserError: it has no such models, or its files are damaged.
    """
    read_description(folder / "onnx")
    return resolve(load_config(folder / "config.yaml", overrides, base=folder)), _task_file(folder)


def _task_file(folder: Path) -> TaskFile:
    try:
        return load_task(folder / "model")
    except UserError:
        raise
    except Exception as error:  # whatever a damaged file leads to
        where = str(folder / "model" / "task.json")
        raise UserError.single(where, f"can't be read: {one_line(error)}.") from None
