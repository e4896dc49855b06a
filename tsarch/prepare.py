"""Everything a rank needs to know before a model exists: tokenised splits, labels, tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tsarch.config import Config
from tsarch.data.contexts import special_tokens, tokenize_corpus
from tsarch.data.corpus import read_splits
from tsarch.data.source_target import PairLayout
from tsarch.data.tokenizer import load_tokenizer
from tsarch.records import TokenizedSplit
from tsarch.stage.build import stage_config
from tsarch.tasks.generative import PairRows
from tsarch.tasks.registry import row_schema
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
    schema = row_schema(config.task.name)
    corpus = read_splits(config.data, schema)
    tokenizer = run_tokenizer(config)
    layout = pair_layout(config, tokenizer) if isinstance(schema, PairRows) else None
    splits = tokenize_corpus(
        corpus,
        tokenizer,
        config.teacher.max_tokens,
        config.student.max_tokens,
        config.data.cache_folder,
        layout,
        config.data.overlap_tokens,
        config.run.seed,
    )
    return Prepared(splits, corpus.labels, corpus.notes, layout.end if layout else None)


def pair_layout(config: Config, tokenizer: PreTrainedTokenizerBase) -> PairLayout:
    """How sources and targets stand in a context of the config's teacher.

    A causal teacher reads both as one text, the target after a separator, or after
    `task.target_prefix`; the encoder of a sequence-to-sequence one reads the source and its
    decoder the target, from the model's own start token on.
    """
    schema = row_schema(config.task.name)
    assert isinstance(schema, PairRows)
    before, after = special_tokens(tokenizer)
    separator = end_token(tokenizer)

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    teacher = stage_config(config, Stage.TEACHER)
    if teacher.is_encoder_decoder:
        start, suffix = int(teacher.decoder_start_token_id), after
    else:
        *suffix, start = ids(config.task.target_prefix) or [separator]
    return PairLayout(
        prefix=(*before, *ids(config.task.source_prefix)),
        separator=separator,
        suffix=tuple(suffix),
        start=start,
        end=separator,
        teacher_max_tokens=config.teacher.max_tokens,
        student_max_tokens=config.student.max_tokens,
        max_target_tokens=config.task.max_target_tokens,
        keep_last=schema.keep_last,
        student_reads_source=not teacher.is_encoder_decoder,
    )


def end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Token that ends texts, and parts of texts: the tokenizer's end or separator."""
    found = (tokenizer.eos_token_id, tokenizer.sep_token_id)
    return int(next((token for token in found if token is not None), 0))
