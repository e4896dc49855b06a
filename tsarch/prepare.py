"""Everything a rank needs to know before a model exists: tokenised splits, labels, tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from tsarch.blueprint import Blueprint
from tsarch.data.altering import Alteration, mentions_of, replaceable_words
from tsarch.data.control import Control, check_controls
from tsarch.data.corpus import read_split, read_splits
from tsarch.data.cuts import cut_notes, unknown_notes
from tsarch.data.layouts import PackingSpec
from tsarch.data.mixing import mixed
from tsarch.data.row_digest import rows_digest
from tsarch.data.row_tokens import RowTokenizer
from tsarch.data.split_size import SplitSize
from tsarch.data.stored_split import StoredSplit
from tsarch.data.streaming import Streaming
from tsarch.data.tokenizer import end_token, unknown_token
from tsarch.errors import UserError
from tsarch.inputs.unlabelled import read_unlabelled
from tsarch.model_folder import load_table, start_labels
from tsarch.records import FloatArray, TokenizedSplit
from tsarch.tasks.base import LabelTask
from tsarch.tasks.label_weights import check_loss, label_weights, told
from tsarch.tasks.registry import is_generative, make_task, row_reader
from tsarch.taught import Taught, taught_by, teaching_runs
from tsarch.timings import TIMINGS


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
    label_weights: tuple[float, ...] | None = None
    """How much each label counts in the loss; None: all the same."""
    unlabelled: TokenizedSplit | None = None
    """Text without labels that is trained on too."""
    taught: Taught | None = None
    """What another run says of the training split; None: it isn't asked."""
    alteration: Alteration | None = None
    """What becomes of the training split's tokens in every epoch; None: they stay."""

    @cached_property
    def training(self) -> TokenizedSplit:
        """What is trained on: the training split, and behind it the text without labels."""
        train = self.splits["train"]
        return train if self.unlabelled is None else mixed(train, self.unlabelled)

    @property
    def held(self) -> dict[str, TokenizedSplit]:
        """The splits, and with them, as `unlabelled`, text without labels."""
        beside = {} if self.unlabelled is None else {"unlabelled": self.unlabelled}
        return {**self.splits, **beside}

    @cached_property
    def sizes(self) -> dict[str, SplitSize]:
        """Split → how much it has."""
        return {
            name: split.about.size if isinstance(split, StoredSplit) else SplitSize.of(split)
            for name, split in self.held.items()
        }

    @cached_property
    def digests(self) -> dict[str, str]:
        """Split → what tells its data from another's."""
        return {
            name: split.about.digest if isinstance(split, StoredSplit) else rows_digest(split.rows)
            for name, split in self.splits.items()
        }


@TIMINGS.during("reading and tokenising the data")
def prepare_data(blueprint: Blueprint, asks: bool = True) -> Prepared:
    """Read and tokenise the data sets; cached, so that other ranks and runs read the result.

    Args:
        asks: ask the runs that teach this one (`distillation.from_run`), which takes a while.

    Raises:
        UserError: the data holds mistakes; all of them are named.
    """
    check_loss(blueprint.loss, make_task(blueprint.task.name, ()), blueprint.task.name)
    reader = row_reader(blueprint.task.name, blueprint.data)
    streaming = _streaming(blueprint) if blueprint.data.streamed else None
    names = None if streaming is None else lambda: streaming.split.about.names
    corpus = read_splits(blueprint.data, reader, start_labels(blueprint), names)
    task = make_task(blueprint.task.name, corpus.labels, blueprint.task)
    spec = packing_spec(blueprint)
    layout = reader.layout(spec, corpus.labels)
    splits = {split: layout.pack(rows) for split, rows in corpus.rows.items()}
    check_controls(blueprint.task.control, {name: own.rows for name, own in splits.items()})
    unlabelled, told_of = _unlabelled(blueprint, spec, corpus.labels)
    beside = {} if unlabelled is None else {"unlabelled": unlabelled}
    notes = (*corpus.notes, *told_of, *task.choices, *_token_notes(splits | beside, spec))
    if streaming is not None:
        splits = {"train": streaming.split, **splits}
        notes = (*streaming.split.about.notes, *notes)
    end = end_token(spec.tokens.tokenizer) if is_generative(blueprint.task.name) else None
    counts = splits["train"].label_counts(len(corpus.labels))
    weights = label_weights(blueprint.loss, corpus.labels, counts)
    notes = notes if weights is None else (*notes, told(weights, corpus.labels))
    spec_of = partial(packing_spec, keep_tokens=False)
    runs = teaching_runs(blueprint, corpus.labels)
    asked = runs if asks else ()
    taught = taught_by(asked, blueprint.data, splits["train"], corpus.labels, spec_of)
    alteration = _alteration(blueprint, splits["train"], corpus.labels, spec)
    notes = notes if alteration is None else (*notes, alteration.note)
    return Prepared(splits, corpus.labels, notes, end, weights, unlabelled, taught, alteration)


def _alteration(
    blueprint: Blueprint, train: TokenizedSplit, labels: Sequence[str], spec: PackingSpec
) -> Alteration | None:
    """What becomes of the training split while it is trained on.

    Raises:
        UserError: nothing of it can be altered so.
    """
    own, tokenizer = blueprint.data.augmentation, spec.tokens.tokenizer
    if not own.is_used:
        return None
    mentions = replaceable = None
    if own.swap > 0:
        mentions = mentions_of(train, labels, tokenizer.all_special_ids)
        if len(mentions.starts) == 0:
            what = "finds no entity of train that another one of its type and length could be."
            raise UserError.single("data.augmentation.swap", what)
    if own.mask > 0:
        outside = labels.index("O") if blueprint.task.name == "ner" else None
        replaceable = replaceable_words(train, tokenizer, _first_table(blueprint), outside)
        if len(replaceable.places) == 0:
            what = "finds no word of train that the table has others near to."
            raise UserError.single("data.augmentation.mask", what)
    seed, token_ids = blueprint.seed, train.token_ids
    return Alteration(seed, token_ids, own.swap, mentions, own.mask, replaceable)


def _first_table(blueprint: Blueprint) -> FloatArray:
    """(vocabulary, width) the table that training starts from: a pretrained one, or that of
    `run.start_from`."""
    if blueprint.run.start_from is not None:
        found: FloatArray = load_table(Path(blueprint.run.start_from)).float().numpy()
        return found
    from tsarch.models.pretrained_table import pretrained_table

    source = blueprint.stages[blueprint.table.stage].architecture
    assert source.path is not None, "the config is checked for it"
    return pretrained_table(source.config, source.path)


def _unlabelled(
    blueprint: Blueprint, spec: PackingSpec, labels: Sequence[str]
) -> tuple[TokenizedSplit | None, tuple[str, ...]]:
    """Text without labels, if there is any, and notes on it."""
    data, task = blueprint.data, blueprint.task.name
    if data.unlabelled is None:
        return None, ()
    reader = row_reader(task, data, labelled=False)
    found = read_unlabelled(data.unlabelled, task, reader, data)
    return reader.layout(spec, labels).pack(found.rows), found.notes


def _streaming(blueprint: Blueprint) -> Streaming:
    data = blueprint.data
    if data.tag_scheme == "auto":  # told from all rows, which nobody holds
        data = data.model_copy(update={"tag_scheme": "iob2"})
    labels = start_labels(blueprint)
    return Streaming(
        data,
        row_reader(blueprint.task.name, data),
        packing_spec(blueprint, keep_tokens=False),
        None if labels is None else tuple(labels),
        isinstance(make_task(blueprint.task.name, ()), LabelTask),
    )


@TIMINGS.during("reading and tokenising the data")
def prepare_split(blueprint: Blueprint, split: str, labels: tuple[str, ...]) -> Prepared:
    """One split alone, for a trained model that knows `labels`. It stands for the training split
    too, whose batches a rank lays out when it is built; nothing is trained.

    Raises:
        UserError: the data holds mistakes; all of them are named.
    """
    reader = row_reader(blueprint.task.name, blueprint.data)
    rows, notes = read_split(split, blueprint.data, reader, labels)
    spec = packing_spec(blueprint)
    own = reader.layout(spec, labels).pack(rows)
    check_controls(blueprint.task.control, {split: own.rows})
    end = end_token(spec.tokens.tokenizer) if is_generative(blueprint.task.name) else None
    notes = (*notes, *_token_notes({split: own}, spec))
    return Prepared({"train": own, split: own}, labels, notes, end)


def _token_notes(splits: dict[str, TokenizedSplit], spec: PackingSpec) -> tuple[str, ...]:
    """What of the splits is not read."""
    unknown = unknown_token(spec.tokens.tokenizer)
    return (*cut_notes(splits), *unknown_notes(splits, unknown))


def packing_spec(
    blueprint: Blueprint, keep_tokens: bool = True, overlaps: bool = False
) -> PackingSpec:
    """What a run's contexts and windows depend on beside its rows; `keep_tokens`: see
    `RowTokenizer`, `overlaps`: see `PackingSpec`."""
    readers = [blueprint.stages[stage] for stage in blueprint.topology.graph.reading("contexts")]
    start = None
    if readers and readers[0].architecture.is_seq2seq:
        start = int(readers[0].architecture.config.decoder_start_token_id)
    tokens = RowTokenizer(
        blueprint.tokenizer(), blueprint.data.cache_folder, keep_tokens and blueprint.data.cache
    )
    spec = known_packing_spec(blueprint, tokens, bool(blueprint.causal_stages), start)
    return replace(spec, overlaps=overlaps)


def known_packing_spec(
    blueprint: Blueprint, tokens: RowTokenizer, label_last: bool, decoder_start: int | None
) -> PackingSpec:
    """The same where it is known what the models' architectures ask for, which take torch to read;
    see `PackingSpec`."""
    task = blueprint.task
    return PackingSpec(
        tokens=tokens,
        teacher_max_tokens=blueprint.batches.context_tokens,
        student_max_tokens=blueprint.window_tokens,
        overlap_tokens=blueprint.data.overlap_tokens,
        seed=blueprint.seed,
        source_prefix=task.source_prefix,
        target_prefix=task.target_prefix,
        max_target_tokens=task.max_target_tokens,
        label_last=label_last,
        decoder_start=decoder_start,
        control=None if task.control is None else Control(task.control),
        query=task.query,
        queries_per_context=blueprint.data.queries_per_context,
    )
