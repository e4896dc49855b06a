"""Everything a rank needs to know before a model exists: tokenised splits, labels, tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tsarch.config import Config
from tsarch.data.contexts import tokenize_corpus
from tsarch.data.corpus import read_splits
from tsarch.data.tokenizer import load_tokenizer
from tsarch.records import TokenizedSplit
from tsarch.tasks.registry import row_schema

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prepared:
    """Data of a run, the same on every rank."""

    splits: dict[str, TokenizedSplit]
    """`train`, `validation` and `test`."""
    labels: tuple[str, ...]
    notes: tuple[str, ...]
    """Remarks on the data for the user."""


def run_tokenizer(config: Config) -> PreTrainedTokenizerBase:
    """The tokenizer that a config asks for."""
    assert config.tokenizer_name is not None, "preflight checks that there is a tokenizer"
    return load_tokenizer(config.tokenizer_name)


def prepare_data(config: Config) -> Prepared:
    """Read and tokenise the data sets; cached, so that other ranks and runs read the result.

    Raises:
        UserError: the data holds mistakes; all of them are named.
    """
    corpus = read_splits(config.data, row_schema(config.task.name))
    splits = tokenize_corpus(
        corpus,
        run_tokenizer(config),
        config.teacher.max_tokens,
        config.student.max_tokens,
        config.data.cache_folder,
        config.data.overlap_tokens,
        config.run.seed,
    )
    return Prepared(splits, corpus.labels, corpus.notes)
