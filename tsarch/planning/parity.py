"""Before a run: each stage's own path against transformers' own class of the same files.

The measure: the largest difference of a number at a real token, over the largest of transformers'
numbers there (hidden states, or log-probabilities of generative models), in fp32 without dropout.
Both sides run the same layers, so that only rounding may be between them.
"""

from __future__ import annotations

import hashlib
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel, PretrainedConfig
from transformers.utils import logging as hf_logging

from tsarch.blueprint import Blueprint, StageBlueprint
from tsarch.errors import Mistake, UserError, one_line
from tsarch.models.construction import num_elements
from tsarch.models.small_copy import small_copy
from tsarch.planning.capacity import host_memory
from tsarch.planning.own_path import OwnPath
from tsarch.planning.passed import PassedChecks
from tsarch.planning.reference import Reference, Row, save_random
from tsarch.records import IntArray
from tsarch.seeding import generator
from tsarch.stage.build import outline_model
from tsarch.tasks.registry import is_generative
from tsarch.topology import Stage

LARGEST_DIFFERENCE = 1e-5
"""Of rounding, in fp32."""
_LENGTHS = (16, 11, 6, 13, 9, 15)
"""Tokens of the rows that are read."""
_MOST_SAMPLED = 2**16
"""Tokens of the data from which they are taken."""
_FREE_SHARE = 0.5
"""Of the free memory that both models may take."""
_MOST_RANDOM_BYTES = 1e8
"""Of a model from a config alone, whose weights are made up and written to be compared."""
_MOST_FLOPS = 1e11
"""Of a forward and a backward pass at full length: about a second."""
_MOST_OFFSET = 4
"""Positions that architectures leave out."""
_GB = 1e9


class CopyError(RuntimeError):
    """No small copy can be made of a model."""


@dataclass(frozen=True)
class Difference:
    """How far the own path is from transformers'."""

    way: str
    """In which way the rows were read."""
    value: float


def check_parity(blueprint: Blueprint, sample: IntArray | None = None) -> list[str]:
    """Compare every stage's model with transformers' own; returns remarks on what was left out.

    Args:
        sample: tokens of the run's data; None: any of the vocabulary.

    Raises:
        UserError: a model computes something else here, or can't be run at all.
    """
    notes: list[str] = []
    mistakes: list[Mistake] = []
    with _untouched(), tempfile.TemporaryDirectory() as folder:
        for stage, own in blueprint.stages.items():
            if own.bridge is not None and own.bridge.drafting is not None:
                continue  # what it computes of its inputs is no model's of transformers
            why = _why_copied(blueprint, stage)
            if why is not None:
                notes.append(
                    f"note: {stage}: names and config are checked, and what a small copy of it "
                    f"computes: {why}"
                )
            try:
                notes += Probe.of(blueprint, stage, sample, folder, why is not None).check()
            except CopyError as error:
                notes.append(f"note: {stage}: no small copy of it can be made ({error})")
            except UserError as error:
                mistakes += error.mistakes
    if mistakes:
        raise UserError(dict.fromkeys(mistakes))
    return notes


def parity_notes(blueprint: Blueprint, sample: IntArray, passed: PassedChecks) -> list[str]:
    """As `check_parity`, but that what has passed before isn't computed again; of the `sample` the
    start is read."""
    sample = sample[:_MOST_SAMPLED]
    check = partial(check_parity, blueprint, sample)
    digest = hashlib.sha256(sample.tobytes()).hexdigest()
    return passed.run("parity", check, [digest], may_leave_out=True)


@dataclass(frozen=True)
class Probe:
    """The comparison of one stage."""

    blueprint: Blueprint
    """With weights to be read from files."""
    stage: Stage
    where: str
    """The key that says what the model is."""
    tokens: IntArray
    generative: bool

    @classmethod
    def of(
        cls,
        blueprint: Blueprint,
        stage: Stage,
        sample: IntArray | None,
        folder: str,
        is_large: bool = False,
    ) -> Probe:
        """The model's own files, or some of its config in `folder`.

        Raises:
            CopyError: it `is_large`, and no small copy can be made of it.
        """
        own = blueprint.stages[stage]
        architecture = own.architecture
        section = architecture.section
        where = f"{section}.{'model' if architecture.model else 'config'}"
        if architecture.layers is not None:
            where = f"{stage}.layers"
        generative = is_generative(blueprint.task.name)
        made = cls(blueprint, stage, where, _tokens(own, sample), generative)
        if architecture.model is not None and not is_large:
            return made
        config = _copied(own) if is_large else architecture.config
        with made._told("transformers can't build it"):
            save_random(config, generative, f"{folder}/{stage}")
        files: dict[str, Any] = {"model": f"{folder}/{stage}", "config": None}
        if is_large:
            files["max_tokens"] = min(own.max_tokens, _num_positions(config))
        other = blueprint.altered(**{section.value: files})
        return replace(made, blueprint=other, tokens=_tokens(other.stages[stage], sample))

    def check(self) -> list[str]:
        """Compare; returns remarks on what was left out.

        Raises:
            UserError: it differs by more than rounding, or can't be run.
        """
        return self.conclude(*self.differences())

    def conclude(self, path: OwnPath, reference: Reference, found: list[Difference]) -> list[str]:
        """What follows from `differences`: as `check`."""
        worst = max(found, key=lambda own: own.value)
        if not worst.value <= LARGEST_DIFFERENCE:
            numbers = "log-probabilities" if reference.has_head else "hidden states"
            raise UserError.single(
                self.where,
                f"{self._kind} computes something else here than transformers' {reference.name}: "
                f"its {numbers} differ by {worst.value:.1g} of the largest, {worst.way}; rounding "
                f"is below {LARGEST_DIFFERENCE:g}.",
                self._hint,
            )
        return self._try_full_length(path)

    def differences(self) -> tuple[OwnPath, Reference, list[Difference]]:
        """Both sides, and how far they are from each other in each way of reading rows."""
        own = self.blueprint.stages[self.stage]
        folder, config = own.architecture.path, own.architecture.config
        assert folder is not None
        with self._told("transformers can't load it"):
            reference = Reference.load(folder, config, self.generative)
        with self._told("it can't be built"):
            path = OwnPath(self.blueprint, self.stage, reference.has_head)
        rows = self._rows()
        with (
            reference.only(own.architecture.layers),
            self._told(f"transformers' {reference.name} can't read tokens alone"),
        ):
            wanted = [reference.read(row) for row in rows]
        found = []
        for way, read in _ways(path, reference.has_head).items():
            with self._told(f"it can't be read {way}"):
                found.append(Difference(way, _difference(read(rows), wanted, rows)))
        return path, reference, found

    def _rows(self) -> list[Row]:
        """Short rows of unlike lengths."""
        own, rows, place = self.blueprint.stages[self.stage], [], 0
        config = own.architecture.config
        for length in (min(n, own.max_tokens) for n in _LENGTHS):
            tokens, start = self.tokens[place : place + length].copy(), None
            if config.is_encoder_decoder:
                start = length // 2
                tokens[start] = config.decoder_start_token_id
            rows.append(Row(tokens, start))
            place += length
        return rows

    def _try_full_length(self, path: OwnPath) -> list[str]:
        """A step of training on a row as long as there may be one."""
        own = self.blueprint.stages[self.stage]
        config, length = own.architecture.config, own.max_tokens
        flops = 6 * length * path.num_parameters
        flops += 12 * length**2 * int(config.num_hidden_layers) * int(config.hidden_size)
        if flops > _MOST_FLOPS:
            return [f"note: {self.stage}: a row of {length:,} tokens is too much to be tried here"]
        start = length // 2 if config.is_encoder_decoder else None
        with self._told(f"it can't be trained on rows of {self.stage}.max_tokens = {length}"):
            path.train(Row(np.resize(self.tokens, length), start))
        return []

    @property
    def _kind(self) -> str:
        """What architecture it is."""
        return str(self.blueprint.stages[self.stage].architecture.config.model_type)

    @property
    def _hint(self) -> str:
        if self.blueprint.stages[self.stage].architecture.layers is not None:
            return "Give the student a model or config of its own, or choose other layers."
        return "Take a model of another architecture."

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Whatever libraries raise, as one message."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # modelling code raises what it likes
            said = f"{type(error).__name__}: {one_line(error)}"
            raise UserError.single(
                self.where, f"{self._kind}: {what} ({said}).", self._hint
            ) from error


def _ways(path: OwnPath, has_head: bool) -> dict[str, Callable[[list[Row]], list[Tensor]]]:
    """How rows are read."""
    ways: dict[str, Callable[[list[Row]], list[Tensor]]] = {
        "row by row": lambda rows: [path.read([row])[0] for row in rows],
        "as a padded batch": path.read,
    }
    if path.has_unpadded:
        ways["as a batch without padding"] = path.read_unpadded
    if has_head:
        ways["token by token"] = path.step
    return ways


def _difference(found: list[Tensor], wanted: list[Tensor], rows: list[Row]) -> float:
    """See the module's docstring."""
    largest = 0.0
    for own, other, row in zip(found, wanted, rows, strict=True):
        if len(own) < len(other):  # that of one token
            place = row.generated - row.first
            other = other[place : place + 1]
        if own.shape != other.shape:
            return float("inf")
        apart = torch.where(own == other, 0.0, (own - other).abs()).max()
        most = other.masked_fill(other.isinf(), 0.0).abs().max()
        value = float(apart / most.clamp(min=1e-9))
        largest = max(largest, float("inf") if value != value else value)
    return largest


def _copied(own: StageBlueprint) -> PretrainedConfig:
    """The config of a small copy.

    Raises:
        CopyError: transformers can't build it; or a stage has some layers of the model, which the
            copy hasn't.
    """
    if own.architecture.layers is not None:
        raise CopyError("it is made of some layers")
    try:
        small = small_copy(own.architecture.config)
        with torch.device("meta"):
            AutoModel.from_config(small, trust_remote_code=False)
    except Exception as error:  # as in `_told`
        raise CopyError(one_line(error)) from error
    return small


def _num_positions(config: PretrainedConfig) -> int:
    """Tokens that any model of a config can read."""
    return int(getattr(config, "max_position_embeddings", None) or 2**31) - _MOST_OFFSET


def _why_copied(blueprint: Blueprint, stage: Stage) -> str | None:
    """Why a small copy stands for a model; None: nothing does."""
    architecture = blueprint.stages[stage].architecture
    generative = is_generative(blueprint.task.name)
    model = outline_model(blueprint, stage, None if generative else 1)
    table = architecture.vocabulary * architecture.embedding_width
    nbytes, free = 4 * (num_elements(model) + table), host_memory()
    if architecture.model is None:
        return None if nbytes <= _MOST_RANDOM_BYTES else "it has no pretrained weights"
    if 2 * nbytes <= _FREE_SHARE * free:
        return None
    return (
        f"beside transformers' own it takes {2 * nbytes / _GB:,.1f} GB, this machine has "
        f"{free / _GB:,.1f} GB free"
    )


def _tokens(own: StageBlueprint, sample: IntArray | None) -> IntArray:
    """Real tokens for all rows, without padding."""
    config, vocabulary = own.architecture.config, own.architecture.vocabulary
    ids = {name: v for name, v in vars(config).items() if name.endswith("_token_id")}
    special = [v for v in ids.values() if type(v) is int]
    if sample is None:
        sample = generator(0, "parity").integers(vocabulary, size=8 * sum(_LENGTHS))
    elif special:
        special = [ids["pad_token_id"]] if type(ids.get("pad_token_id")) is int else []
    fit = sample[(sample < vocabulary) & ~np.isin(sample, special)]
    return np.resize(fit if len(fit) else np.zeros(1, dtype=np.int64), sum(_LENGTHS))


@contextmanager
def _untouched() -> Iterator[None]:
    """Random states, threads and progress bars stay as they are."""
    state, numpy_state, threads = random.getstate(), np.random.get_state(), torch.get_num_threads()
    shows_progress = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    torch.set_num_threads(1)  # as quick for rows so short, also where others work
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)
        if shows_progress:
            hf_logging.enable_progress_bar()
        random.setstate(state)
        np.random.set_state(numpy_state)
