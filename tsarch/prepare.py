"""Everything a rank needs to know before a model exists: tokenised splits, labels, tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tsarch.config import Config
from tsarch.data.corpus import read_splits
from tsarch.data.layouts import PackingSpec
from tsarch.data.row_tokens import RowTokenizer
from tsarch.data.tokenizer import end_token, load_tokenizer
from tsarch.records import TokenizedSplit
from tsarch.stage.build import stage_config
from tsarch.tasks.registry import is_generative, row_reader
from tsarch.topology import Stage

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
    end_token: int | None = None
    """Token that ends the texts of a generative task."""


def run_tokenizer(config: Config) -> PreTrainedTokenizerBase:
    """The tokenizer that a config asks for."""
    assert config.tokenizer_name is not None, "preflight checks that there is a tokenizer"
    return load_tokenizer(config.tokenizer_name)


def prepare_data(config: Config) -> Prepared:
    """Read and tokenise the data sets; cached, so that other ranks and runs read the result.

    Raises:
        UserError: the data holds mistakes; all of them are named.
    """
    reader = row_reader(config.task.name, config.data)
    corpus = read_splits(config.data, reader)
    spec = packing_spec(config)
    layout = reader.layout(spec, corpus.labels)
    splits = {split: layout.pack(rows) for split, rows in corpus.rows.items()}
    end = end_token(spec.tokens.tokenizer) if is_generative(config.task.name) else None
    return Prepared(splits, corpus.labels, corpus.notes, end)


def packing_spec(config: Config) -> PackingSpec:
    """What a config's contexts and windows depend on beside its rows."""
    teacher = stage_config(config, Stage.TEACHER)
    start = int(teacher.decoder_start_token_id) if teacher.is_encoder_decoder else None
    return PackingSpec(
        tokens=RowTokenizer(run_tokenizer(config), config.data.cache_folder),
        teacher_max_tokens=config.teacher.max_tokens,
        student_max_tokens=config.student.max_tokens,
        overlap_tokens=config.data.overlap_tokens,
        seed=config.run.seed,
        source_prefix=config.task.source_prefix,
        target_prefix=config.task.target_prefix,
        max_target_tokens=config.task.max_target_tokens,
        decoder_start=start,
    )
