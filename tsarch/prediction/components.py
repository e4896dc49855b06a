"""Which dimensions a run's states are stored in: the principal components of what its teacher makes
of the run's own training texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tsarch.blueprint import Blueprint
from tsarch.errors import UserError
from tsarch.pair.answering import context_key
from tsarch.pair.projection import Projection
from tsarch.pair.states import States
from tsarch.prediction.trained_pair import TrainedPair
from tsarch.prepare import prepare_split
from tsarch.records import FloatArray, IntArray, TokenizedSplit
from tsarch.run.saved_run import check_there

_TOKENS_A_DIMENSION = 64
"""States that components are found from, for each number of one: enough for a covariance."""


def check_dimensions(dimensions: int, width: int) -> None:
    """Check that states of a width can be stored in so many dimensions.

    Raises:
        UserError: they can't.
    """
    if not 0 < dimensions < width:
        what = f"are not fewer than the {width} numbers of a state, or none."
        hint = "Leave it out to keep all of them."
        raise UserError.single(f"--dimensions {dimensions}", what, hint)


def check_texts(blueprint: Blueprint) -> None:
    """Check that the texts of a run are there that components are found in.

    Raises:
        UserError: they aren't.
    """
    hint = "Components are found in it: put it there again, or leave out --dimensions."
    check_there(blueprint, _split(blueprint), hint)


def _split(blueprint: Blueprint) -> str:
    """The training texts, or the validation texts where those are streamed."""
    return "validation" if blueprint.data.streamed else "train"


def fitted_projection(
    pair: TrainedPair, blueprint: Blueprint, labels: tuple[str, ...], dimensions: int
) -> Projection:
    """The components of states of the run's training texts, or of those in their place.

    Args:
        pair: whose teacher reads them.
        blueprint: of its run.
        labels: of its run.

    Raises:
        UserError: the texts (see `check_texts`) hold mistakes, or are too few.
    """
    name = _split(blueprint)
    split = prepare_split(blueprint, name, labels).splits[name]
    width = blueprint.teacher_width
    contexts = _spread(split, _TOKENS_A_DIMENSION * width)
    states = np.concatenate([_rows(own) for own in _states(pair, split, contexts)])
    if len(states) <= dimensions:
        what = f"are more than the {len(states):,} tokens of the {name} split can tell."
        raise UserError.single(f"--dimensions {dimensions}", what, "Take fewer.")
    return Projection.fitted(states, dimensions)


def _states(pair: TrainedPair, split: TokenizedSplit, contexts: Sequence[int]) -> Iterator[States]:
    for _, states in pair.states_of(split, contexts):
        yield states


def _rows(states: States) -> FloatArray:
    """(tokens, width) in fp32."""
    hidden = states.hidden
    own: FloatArray = hidden if isinstance(hidden, np.ndarray) else hidden.float().cpu().numpy()
    return own


def _spread(split: TokenizedSplit, num_tokens: int) -> list[int]:
    """Contexts from all parts of a split with about so many tokens, or all; each text once."""
    own = list({context_key(split, n): n for n in range(split.num_contexts)}.values())
    lengths: IntArray = split.context_lengths[own]
    step = max(int(lengths.sum()) // num_tokens, 1)
    return own[::step]
