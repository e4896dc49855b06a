"""What turns a language model's hidden states into logits, as transformers itself does it.

The head is the model's own class of transformers, whose backbone is replaced by nothing: it is
given hidden states and does with them what it always does (transform, project, add a bias, scale,
cap), so that no architecture needs rules of its own here. Where its projection is the embedding
table, it gets the tied one; where it has a matrix of its own, that is a parameter of the stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from tsarch.models.construction import Construction
from tsarch.models.language_model import Frame, TableProjection, logits_of, unusable
from tsarch.models.loading import check_weights, file_names, load_weights
from tsarch.models.random_weights import SeedOf, claim, fill_with_random
from tsarch.models.weight_files import Checkpoint


@dataclass(frozen=True)
class OutputSpec:
    """How logits come from hidden states."""

    owns_matrix: bool
    """The projection is a matrix of its own, not the embedding table."""
    scale: float | None
    """Logits are scale × (states · rowsᵀ) of the table, and nothing more; None: more than that."""
    num_rows: int
    """Logits of a position."""

    @property
    def gives_logits(self) -> bool:
        """Whether it takes an `OutputHead`, which gives logits; otherwise vectors are enough that
        are compared with the table's rows elsewhere."""
        return self.owns_matrix or self.scale is None


class OutputHead(nn.Module):
    """(…, width) hidden states → (…, vocabulary) logits.

    Args:
        shell: a language model without backbone (`Frame`).
        name: of its output projection.
    """

    def __init__(self, shell: PreTrainedModel, name: str) -> None:
        super().__init__()
        self.shell = shell
        own = shell.get_submodule(name)
        self.reads_table = isinstance(own, TableProjection)
        """Whether `forward` needs the table."""
        self._name = name

    def forward(self, hidden: Tensor, table: Tensor | None) -> Tensor:
        """Logits of every position; `table`: (vocabulary, table_width), if it reads that."""
        states = hidden.flatten(0, -2).unsqueeze(0)
        own = self.shell.get_submodule(self._name)
        if isinstance(own, TableProjection):
            own.table = table
        logits: Tensor = logits_of(self.shell, states)
        if isinstance(own, TableProjection):
            own.table = None
        return logits.view(*hidden.shape[:-1], logits.shape[-1])


def predictions_of(
    head: nn.Module, hidden: Tensor, chosen: Tensor | None, table: Tensor | None
) -> Tensor:
    """What a head makes of hidden states; an `OutputHead` is asked for the
    `chosen` positions (…) bool alone, None: all."""
    predictions: Tensor
    if isinstance(head, OutputHead):
        predictions = head(hidden if chosen is None else hidden[chosen], table)
    else:
        predictions = head(hidden)
    return predictions


def output_spec(
    config: PretrainedConfig, owns_matrix: bool | None, checkpoint: Checkpoint | None
) -> OutputSpec:
    """What the language model of `config` makes of hidden states.

    Args:
        owns_matrix: whether the projection is a matrix of its own; None: as transformers decides.
        checkpoint: the model's files; transformers unties a table from a projection that differs.

    Raises:
        UserError: the architecture has no output that can be used here.
    """
    with torch.device("cpu"):
        frame = Frame(config)
        if owns_matrix is None:
            owns_matrix = not frame.is_tied
            if checkpoint is not None and not owns_matrix:
                owns_matrix = _differ(frame, checkpoint)
        num_rows = int(frame.output.weight.shape[0])
        scale = None if owns_matrix else _plain_scale(frame, checkpoint)
    return OutputSpec(owns_matrix, scale, num_rows)


def outline_output(config: PretrainedConfig, spec: OutputSpec, table_width: int) -> OutputHead:
    """The head without memory for its values."""
    frame = Frame(config)
    if not spec.owns_matrix:
        frame.read_table(table_width)
    return OutputHead(frame.shell, frame.name)


def build_output(
    config: PretrainedConfig,
    spec: OutputSpec,
    table_width: int,
    seed_of: SeedOf,
    checkpoint: Checkpoint | None,
    construction: Construction,
) -> OutputHead:
    """The head with the values of the model's files, or random ones. All ranks of a stage call it.

    Raises:
        UserError: the files lack some of it.
    """
    frame = Frame(config)
    if not spec.owns_matrix:
        frame.read_table(table_width)
    skeleton = frame.skeleton(checkpoint)
    if checkpoint is not None:
        found = check_weights(skeleton, checkpoint)
        claim(frame.shell, {n for n in frame.shell.state_dict() if skeleton.origin(n) in found})
    fill_with_random(skeleton, seed_of, construction)
    if checkpoint is not None:
        load_weights(skeleton, checkpoint, construction, with_table=False)
    return OutputHead(frame.shell, frame.name)


def check_output(config: PretrainedConfig, spec: OutputSpec, checkpoint: Checkpoint) -> None:
    """Check without reading values that a model's files have the head.

    Raises:
        UserError: they lack some of it, or have it in another shape.
    """
    frame = Frame(config)
    if not spec.owns_matrix:
        frame.read_table(int(frame.output.weight.shape[1]))
    check_weights(frame.skeleton(checkpoint), checkpoint)


class _Caught(nn.Module):
    """Stands where a projection was, to see what it is given; it gives back what it is told to."""

    def __init__(self, gives: Tensor) -> None:
        super().__init__()
        self.weight = self.gives = gives
        self.states: Tensor | None = None

    def forward(self, states: Tensor) -> Tensor:
        """(1, 1, vocabulary) as told."""
        self.states = states
        return self.gives


def _differ(frame: Frame, checkpoint: Checkpoint) -> bool:
    """Whether files of a model whose config ties table and projection have both, and not alike."""
    keys = file_names(frame.source, checkpoint)
    if frame.output_weight not in keys or frame.table_weight not in keys:
        return False
    with checkpoint.open() as read:
        pair = [read(keys[name]) for name in (frame.output_weight, frame.table_weight)]
        return not torch.equal(*pair)


def _plain_scale(frame: Frame, checkpoint: Checkpoint | None) -> float | None:
    """The number by which a model whose projection is the table multiplies, if it does nothing
    else: seen from powers of two, which scaling leaves exact."""
    buffers = {name for name, _ in frame.shell.named_buffers()}
    extra = set(frame.shell.state_dict()) - {frame.output_weight}
    if extra - buffers or any(value.any() for value in _saved(frame, checkpoint, extra)):
        return None
    for name in extra:
        owner, _, leaf = name.rpartition(".")
        value = torch.zeros(frame.shell.get_buffer(name).shape, dtype=torch.float64)
        setattr(frame.shell.get_submodule(owner), leaf, value)
    num_rows, width = frame.output.weight.shape
    states, gives = _powers(width), _powers(num_rows)
    caught = _Caught(gives)
    frame.replace(caught)
    try:
        with torch.no_grad():
            logits = logits_of(frame.shell, states).double()
    except Exception as error:
        raise unusable(frame.source, "can't be run without its backbone") from error
    assert caught.states is not None
    before, after = _factor(states, caught.states.double()), _factor(gives, logits)
    return None if before is None or after is None else before * after


def _saved(frame: Frame, checkpoint: Checkpoint | None, names: set[str]) -> Iterator[Tensor]:
    """Values of the files."""
    if checkpoint is None or not names:
        return
    keys: Mapping[str, str] = file_names(frame.source, checkpoint)
    with checkpoint.open() as read:
        for name in sorted(names & set(keys)):
            yield read(keys[name])


def _powers(size: int) -> Tensor:
    """(1, 1, size) signed powers of two from 2⁻⁶ to 2⁶."""
    place = torch.arange(size, dtype=torch.float64)
    return (2.0 ** (place % 13 - 6) * (1 - 2 * (place % 2))).view(1, 1, size)


def _factor(given: Tensor, made: Tensor) -> float | None:
    """What `given` was multiplied by to make `made`, if that is all."""
    if given.shape != made.shape:
        return None
    factor = float(made.flatten()[0] / given.flatten()[0])
    return factor if torch.equal(given * factor, made) else None
