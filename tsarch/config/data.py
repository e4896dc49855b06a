"""What is learned of which data: the sections `data`, `task` and `decoding`."""

from __future__ import annotations

import codecs
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from tsarch.config.augmentation import AugmentationConfig
from tsarch.config.base import (
    MOST,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ProposalSource,
    Query,
    Section,
    SpanEnds,
)
from tsarch.config.control import ControlConfig
from tsarch.task_names import TASKS


class Columns(Section):
    """Names of the columns of a data set, where they differ from the task's own, which are the
    defaults. Each task has its columns in its file (`COLUMNS`)."""


def _known_encoding(name: str) -> str:
    try:
        codecs.lookup(name)
        "".encode(name)
    except (LookupError, ValueError):
        raise ValueError(f"`{name}` is no encoding of texts; try utf-8, latin-1, cp1252") from None
    return name


def _delimiter(given: Any) -> Any:
    """A tab is hard to write in a shell."""
    return "\t" if given in ("\\t", "tab") else given


def _column_name(name: Any) -> Any:
    """Columns may be numbered."""
    return str(name) if isinstance(name, int) and not isinstance(name, bool) else name


class DataConfig(Section):
    """Where the data is and how it becomes batches."""

    train: str | list[str] | None = None
    """Training file (JSON, CoNLL, CSV, Parquet and others, see Data formats), relative to the
    config file's folder; two for parallel texts: `[train.en, train.de]`."""
    validation: str | list[str] | None = None
    """Validation file: early stopping and the weight of `joint` are chosen on it."""
    test: str | list[str] | None = None
    """Test file: the metrics before and after training."""
    unlabelled: str | Annotated[list[str], Field(min_length=1)] | None = None
    """Files of text without labels, or patterns such as `texts/*.txt`: the student learns what the
    teacher says of it, beside the labelled rows (section `unlabelled`). Plain text (each line that
    isn't empty), or rows in any format of `tsarch predict`, also behind fsspec URLs; labels that
    they have aren't read. See [Text without labels](unlabelled.md)."""
    augmentation: AugmentationConfig = AugmentationConfig()
    """How training rows are altered as they are read."""
    hub: str | None = None
    """Hub name of a data set with train, validation and test splits, in place of the files; of one
    without a validation split a part of train is it (`validation_share`)."""
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the training split's documents that a hub data set without a validation split is
    validated on; they aren't trained on."""
    hub_config: str | None = None
    """Configuration name of the hub data set."""
    format: Literal[
        "auto", "jsonl", "json", "conll", "csv", "parquet",
        "doccano", "prodigy", "label_studio", "squad", "tacred", "docred", "pairs", "opennre",
        "marked", "candidates", "positives", "messages", "sharegpt", "turns", "multiwoz", "dialog",
    ] = "auto"  # fmt: skip
    """Format of the files, or the layout of their rows; `auto` goes by the file name's ending and
    by what the file begins with."""
    encoding: Annotated[str, AfterValidator(_known_encoding)] | None = None
    """Encoding of text files, such as `latin-1`. Default: UTF-8, or what a byte order mark says."""
    delimiter: (
        Annotated[str, BeforeValidator(_delimiter), Field(min_length=1, max_length=1)] | None
    ) = None
    """Character between the columns of CSV and CoNLL files (`\\t` or `tab`: a tab). Default: told
    from the file."""
    quoting: Literal["auto", "csv", "none"] = "auto"
    """CSV: `csv`: cells may stand between quotation marks; `none`: a quotation mark is a character
    like others; `auto`: `csv`, but for tab-separated files what fits the file."""
    tag_scheme: Literal["auto", "iob2", "iob1", "bioes", "bilou", "bmes", "io"] = "auto"
    """`ner`: scheme of the tags, made IOB2 when read; `auto`: that which the tags of a split show.
    `io`: names of types without a letter before them; neighbours of one type are one entity."""
    span_ends: SpanEnds = "exclusive"
    """`relation`: whether `head` and `tail` are [start, end) or [first word, last word]."""
    odd_words: Literal["refuse", "keep"] = "refuse"
    """`ner`: files whose words are all numbers, or whose sentences all have one word, are refused,
    since mostly another column is meant; `keep`: they are meant."""
    columns: dict[str, Annotated[str, BeforeValidator(_column_name)]] = Field(default={})
    """Names of the task's columns, where they differ; numbers, from 1, in files without names
    (CoNLL, CSV without a header line)."""
    tokenizer: str | None = None
    """Tokenizer (hub name, `package:`, or folder, relative to the config file's folder or the
    current one). Default: the teacher's."""
    cache: bool = True
    """Keep the tokenised data, and Arrow's copies of Parquet files and hub data sets, so that other
    ranks and runs needn't make them again. Without, nothing of the data is written but in the run
    folder (and by the hub's client what it downloads, in `HF_HOME`)."""
    cache_folder: str | None = None
    """Folder of what is kept, made for this user alone (mode 0700). Default: `~/.cache/tsarch`."""
    batch_tokens: PositiveInt = 4096
    """Padded teacher tokens of one step's global batch, over all replicas."""
    batch_windows: PositiveInt | None = None
    """Windows of one step's global batch at most, over all replicas: sentences, rows or questions
    as the student reads them. Of short ones `batch_tokens` alone takes many into a step, and so
    makes few steps. No context is cut for it: one with more windows is a batch by itself. Default:
    as many as `batch_tokens` has room for."""
    num_buckets: Annotated[int, Field(ge=1, le=1000)] = 8
    """Number of length buckets; contexts of one bucket are batched together."""
    streamed: bool = False
    """The training split may be larger than memory: it is read a few thousand rows at a time, once,
    into files in the cache, and a rank maps those parts of them that a step needs. Validation and
    test are held in memory as ever. See [Data larger than memory](data.md#data-larger-than-memory).
    """
    shuffled_contexts: PositiveInt = 262_144
    """Contexts that are shuffled together. Of more of them so many at a time are, 64 stretches of
    neighbours drawn anew in every epoch, so that a rank holds the order of these alone."""
    unpadded: bool = True
    """Training and its evaluations lay the sequences of a batch end to end, so that no padding is
    computed, where the architecture computes the same that way (models with windowed attention,
    convolutions or recurrent layers don't, nor sequence-to-sequence ones). `false`: never."""
    keep_states_gb: NonNegativeFloat = 1.0
    """GB of host memory on each rank for hidden states of a teacher that is frozen up to its head
    (`freeze: all_but_head`), with `embedding.frozen`: they are the same in every epoch (its layers
    have no dropout then), so they are computed once, as far as they fit. 0: each time, as always
    under ZeRO 3."""
    context_tokens: Annotated[int, Field(ge=4, le=MOST)] | None = None
    """Tokens of a context where there is no teacher to read it: batches are made of contexts all
    the same. Default: `student.max_tokens`."""
    queries_per_context: PositiveInt = 64
    """`task.query: student`: questions, queries or pairs that a context is asked at most. A
    text with more is read again for the rest, so that the windows of a step stay as few as there is
    memory for."""
    overlap_tokens: NonNegativeInt = 128
    """`qa`: tokens that neighbouring contexts of a passage longer than `teacher.max_tokens` share;
    at most half of a context."""

    @model_validator(mode="after")
    def _streams_files(self) -> Self:
        if not self.streamed:
            return self
        if self.hub is not None:
            raise ValueError(
                "`streamed` reads a file: write the hub's training split as Parquet, and give all "
                "three splits as files"
            )
        if self.unlabelled is not None:
            raise ValueError(
                "`streamed` training has labelled rows alone: leave out one of `streamed`, "
                "`unlabelled`"
            )
        if not isinstance(self.train, str | None):
            raise ValueError("`streamed` reads one file, or a pattern, not two of parallel texts")
        if not self.cache:
            raise ValueError("`streamed` keeps the tokenised split in the cache: leave out `cache`")
        return self


class UnlabelledConfig(Section):
    """How the student learns of text without labels (`data.unlabelled`): by the terms of section
    `distillation`, in the passes that these are for. Losses of labels have no part in it."""

    ratio: PositiveFloat = 1.0
    """Tokens of contexts without labels that each step has beside one of its labelled ones, on
    average (μ of Sohn et al. 2020, "FixMatch"). They come on top of `data.batch_tokens`."""
    weight: PositiveFloat = 1.0
    """Weight of its terms, which are means over it alone, beside those of labelled rows."""
    temperature: PositiveFloat | None = None
    """Temperature of the teacher's and the student's predictions on it. Default:
    `distillation.temperature`."""
    min_confidence: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Predictions of the teacher count whose likeliest label has this probability at least: the
    others add nothing, and the mean stays one over all (as FixMatch's τ). 0: all count."""


def _known_task(name: str) -> str:
    if name not in TASKS:
        raise ValueError(f"`{name}` is no task; tasks are {', '.join(TASKS)}")
    return name


def _as_label(value: object) -> object:
    """Labels that YAML reads as something else: `false` and `0` without quotes."""
    return str(value).lower() if isinstance(value, bool | int) else value


class TaskConfig(Section):
    """What is learned, and how it is measured."""

    name: Annotated[
        str, AfterValidator(_known_task), Field(json_schema_extra={"enum": list(TASKS)})
    ] = "ner"
    """Task; decides what a row is, labels and metrics."""
    query: Query = "both"
    """`qa`, `ranking`, `relation`: who reads what is asked, a question, a query or which entities
    are meant. `both`: the teacher reads it with the text, so once more each time. `student`: the
    teacher reads each passage or document once, alone, and the student what is asked and windows of
    the text, fed with its states ([Read once, ask many](read-once.md))."""
    no_relation: Annotated[str | None, BeforeValidator(_as_label)] = "auto"
    """`relation`: label of rows whose entities aren't related, which the metrics leave out. `auto`:
    the one among the labels that is usual for it, such as `NA`, `no_relation`, `Other`, `none` or
    `false`; `null`: every label is a relation."""
    language: Literal["python"] | None = "python"
    """`code`: programming language whose grammar the texts are checked with; `null`: none."""
    source_prefix: str = ""
    """Generative tasks: text put before every source, such as `Summarize: `."""
    target_prefix: str = ""
    """Generative tasks: text between source and target, such as `Summary:`; not generated."""
    control: ControlConfig | None = None
    """Generative tasks: what rows ask of their texts, such as a length; `null`: nothing."""
    max_target_tokens: PositiveInt = 64
    """Generative tasks: tokens of a target at most, its end included. A context keeps so much
    room free of its source; what of a target is longer is cut off in training and counted."""


class SpeculativeConfig(Section):
    """How tokens are proposed that a model then checks in one pass. The text is the one that it
    writes without."""

    tokens: Annotated[int, Field(ge=1, le=8)] | Literal["auto"] = "auto"
    """Tokens that are proposed at most at a time. `auto`: as many as are worth it, from how many
    were right so far and from what passes take here; none where that pays best, as in large
    batches."""
    sources: Annotated[
        list[ProposalSource],
        Field(min_length=1, default_factory=lambda: ["prompt"]),
    ]
    """Where they come from. `prompt`: from the source and the text so far, where the last three
    tokens (else two, else one) have come before. `drafter`: from the student (`student.role:
    drafter`), where the teacher writes. Of both: what promises more."""


class DecodingConfig(Section):
    """How generative tasks make text of predictions, for the metrics of the test split."""

    num_beams: Annotated[int, Field(ge=1, le=1000)] = 1
    """Hypotheses that are kept at a time; 1: the likeliest token every time."""
    length_penalty: float = 1.0
    """Beam search: a hypothesis' log-probability is divided by its length to this power
    (Wu et al. 2016, "Google's Neural Machine Translation System", section 7)."""
    sample: bool = False
    """Draw tokens at random, with `temperature`, `top_k` and `top_p`, in place of the likeliest."""
    temperature: PositiveFloat = 1.0
    """Logits are divided by it before drawing."""
    top_k: NonNegativeInt = 0
    """Draw among so many likeliest tokens. 0: among all."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw among the likeliest tokens that have this probability together (Holtzman et al. 2020,
    "The Curious Case of Neural Text Degeneration", section 3.1)."""
    no_repeat_ngram: NonNegativeInt = 0
    """No group of so many tokens comes twice in a text. 0: no rule."""
    cache: bool = True
    """Keep keys and values of the tokens so far, in both stages; without, and for a model whose
    layers keep other things (Mamba's kin), each token costs a pass over all."""
    batch: PositiveInt = 32
    """Texts that all replicas together generate at a time."""
    speculative: SpeculativeConfig | None = None
    """Write several tokens a pass where the text says what may come next: see
    [Generated text sooner](generation.md). `null`: one token a pass. Ranks in several processes
    write one token a pass."""
    exact: bool = False
    """In `bf16`: the same text to the last token with `speculative` and without. Every pass then
    has four tokens a text and looks at all places of the longest one, since numbers of bf16 differ
    in the last bit with the size of a product. Costs a plain pass the time of four tokens in place
    of one. In `fp32` texts are the same without it."""
    max_texts: PositiveInt = 200
    """Texts of a split that are generated for its metrics, evenly spread over it; perplexity is
    that of the whole split."""

    @model_validator(mode="after")
    def _beams_or_sampling(self) -> Self:
        if self.sample and self.num_beams > 1:
            raise ValueError("`sample` takes one beam: leave out one of `num_beams`, `sample`")
        if self.speculative is not None and self.num_beams > 1:
            raise ValueError(
                "`speculative` takes one beam: leave out one of `num_beams`, `speculative`"
            )
        if self.exact and self.speculative is not None and self.speculative.tokens in range(4, 9):
            raise ValueError("`exact` checks three tokens at most: lower `speculative.tokens`")
        return self
