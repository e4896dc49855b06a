"""Rows that an exported model is compared on with the run: those of the run's own data, or examples
where it isn't there any more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tsarch.blueprint import Blueprint
from tsarch.config import Mode
from tsarch.data.corpus import read_rows, read_split, source_of
from tsarch.data.partition import context_tokens
from tsarch.errors import UserError
from tsarch.inputs.rows import as_rows
from tsarch.model_folder import TaskFile
from tsarch.prepare import packing_spec
from tsarch.records import TokenizedSplit
from tsarch.serving.examples import examples_of
from tsarch.tasks.registry import row_reader

_SPLITS = ("test", "validation", "train")


@dataclass(frozen=True)
class Sample:
    """Rows as contexts and windows."""

    split: TokenizedSplit
    source: str
    """Where they come from, in words."""
    is_labelled: bool
    """Whether metrics can be computed."""

    @property
    def num_rows(self) -> int:
        """How many they are."""
        return len(self.split.rows)


def read_sample(blueprint: Blueprint, task_file: TaskFile, most: int) -> Sample:
    """Up to so many rows of the run's test split, or of another one that is still there, or
    examples."""
    spec = packing_spec(blueprint, keep_tokens=False)
    reader = row_reader(blueprint.task.name, blueprint.data)
    for name in _SPLITS:
        try:
            rows, _ = read_split(name, blueprint.data, reader, task_file.labels)
        except UserError:  # moved, or changed since
            continue
        split = reader.layout(spec, task_file.labels).pack(rows[:most])
        source = source_of(name, blueprint.data).rpartition("/")[2]
        return Sample(split, f"rows of the {name} split ({source})", True)
    reader = row_reader(blueprint.task.name, blueprint.data, labelled=False)
    examples: Sequence[Any] = examples_of(task_file.task, reader.columns.model_dump())
    own = as_rows(examples, task_file.task, reader)
    split = reader.layout(spec, task_file.labels).pack(read_rows(own.rows, reader))
    return Sample(split, "examples (the run's data isn't there)", False)


def tokens_read(sample: Sample, mode: Mode, most: int) -> tuple[list[Any], list[Any]]:
    """Token ids, and types, of up to so many contexts, or of windows for the student alone."""
    split = sample.split
    if mode == "student_alone":
        places = [split.window_places(number) for number in range(min(len(split.windows), most))]
    else:
        places = [context_tokens(split, c) for c in range(min(split.num_contexts, most))]
    return [split.token_ids[own] for own in places], [split.types_at(own) for own in places]
