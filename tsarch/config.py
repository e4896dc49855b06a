"""The run's configuration: one strict pydantic model a section, every field documented below it.

Defaults live here only. No torch: reading a config costs milliseconds.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from tsarch.task_names import TASKS

_MOST = 2**31 - 1  # what every library here takes as a whole number
PositiveInt = Annotated[int, Field(ge=1, le=_MOST)]
NonNegativeInt = Annotated[int, Field(ge=0, le=_MOST)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]

Mode = Literal["teacher", "student", "joint", "student_alone"]
MODES: tuple[Mode, ...] = ("teacher", "student", "joint", "student_alone")


class Section(BaseModel):
    """Base of all sections: unknown keys and wrong types are errors."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )


class RunConfig(Section):
    """What the run is called, where it writes, and its seed."""

    name: str = Field(default="run", pattern=r"^\w[\w.-]*$", max_length=200)
    """Name of the run: letters, digits, `_`, `.` and `-`, the first a letter, digit or `_`."""
    folder: str | None = None
    """Folder the run writes, relative to the current folder. Default: `runs/NAME`."""
    trace: bool = False
    """Write `trace.json`: every instruction of every rank, for https://ui.perfetto.dev, and a
    timeline in the report (`tsarch train --trace`)."""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    """Seed of the weights, the batch order, dropout and `teacher_dropout`."""


class Columns(Section):
    """Names of the columns of a data set, where they differ from the task's own, which are the
    defaults. Each task has its columns in its file (`COLUMNS`)."""


class DataConfig(Section):
    """Where the data is and how it becomes batches."""

    train: str | None = None
    """Training file (JSON Lines, CoNLL, CSV, Parquet), relative to the config file's folder."""
    validation: str | None = None
    """Validation file: early stopping and the weight of `joint` are chosen on it."""
    test: str | None = None
    """Test file: the metrics before and after training."""
    hub: str | None = None
    """Hub name of a data set with train, validation and test splits, in place of the files."""
    hub_config: str | None = None
    """Configuration name of the hub data set."""
    format: Literal["auto", "jsonl", "conll", "csv", "parquet"] = "auto"
    """Format of the files; `auto` goes by the file name's ending."""
    tag_scheme: Literal["iob2", "iob1"] = "iob2"
    """Tag scheme of the files; `iob1` is converted to IOB2 when read."""
    columns: dict[str, str] = {}
    """Names of the task's columns, where they differ."""
    tokenizer: str | None = None
    """Tokenizer (hub name, `package:`, or folder, relative to the config file's folder or the
    current one). Default: the teacher's."""
    cache_folder: str | None = None
    """Folder of the tokenised data. Default: `~/.cache/tsarch`."""
    batch_tokens: PositiveInt = 4096
    """Padded teacher tokens of one step's global batch, over all replicas."""
    num_buckets: Annotated[int, Field(ge=1, le=1000)] = 8
    """Number of length buckets; contexts of one bucket are batched together."""
    overlap_tokens: NonNegativeInt = 128
    """`qa`: tokens that neighbouring contexts of a passage longer than `teacher.max_tokens` share;
    at most half of a context."""


def _known_task(name: str) -> str:
    if name not in TASKS:
        raise ValueError(f"`{name}` is no task; tasks are {', '.join(TASKS)}")
    return name


class TaskConfig(Section):
    """What is learned, and how it is measured."""

    name: Annotated[
        str, AfterValidator(_known_task), Field(json_schema_extra={"enum": list(TASKS)})
    ] = "ner"
    """Task; decides what a row is, labels and metrics."""
    source_prefix: str = ""
    """Generative tasks: text put before every source, such as `Summarize: `."""
    target_prefix: str = ""
    """Generative tasks: text between source and target, such as `Summary:`; not generated."""
    max_target_tokens: PositiveInt = 64
    """Generative tasks: tokens of a target at most, its end included. A context keeps so much
    room free of its source; what of a target is longer is cut off in training and counted."""


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
    """Keep keys and values of the tokens so far, in both stages; without, each token costs a pass
    over all."""
    batch: PositiveInt = 32
    """Texts that all replicas together generate at a time."""
    max_texts: PositiveInt = 200
    """Texts of a split that are generated for its metrics, evenly spread over it; perplexity is
    that of the whole split."""

    @model_validator(mode="after")
    def _beams_or_sampling(self) -> Self:
        if self.sample and self.num_beams > 1:
            raise ValueError("`sample` takes one beam: leave out one of `num_beams`, `sample`")
        return self


class LoraConfig(Section):
    """Low-rank adapters (Hu et al. 2021): the backbone is frozen, small matrices beside its linear
    layers train. Head, bridge and projections train as ever, the table as `embedding.frozen` says.
    """

    rank: PositiveInt = 8
    """Rank of the adapters."""
    alpha: PositiveFloat = 16.0
    """Adapters are multiplied by `alpha / rank`."""
    dropout: Probability = 0.0
    """Dropout probability of an adapter's input."""
    target_modules: Annotated[list[str], Field(min_length=1)] | None = None
    """Names of the linear layers that get adapters, such as `query`, or `attention.self.query` for
    the end of a longer name. Default: those that `peft` has for the architecture."""


class BackboneConfig(Section):
    """A Hugging Face encoder: pretrained, or random from a config."""

    model: str | None = None
    """Hub name, local folder, or `package:NAME/FOLDER` inside an installed Python package."""
    config: dict[str, Any] | None = None
    """Hugging Face config (with `model_type`) for random weights, in place of `model`."""
    max_tokens: Annotated[int, Field(ge=4, le=_MOST)] = 512
    """Tokens of one input, special tokens included: teacher context or student window."""
    dropout: Probability = 0.1
    """Dropout probability of hidden layers and of the head."""
    attention_dropout: Probability = 0.0
    """Dropout probability of attention weights. 0 lets PyTorch use its fast attention."""
    freeze: Literal["none", "all_but_top_k", "all_but_head"] = "none"
    """Which parameters stay as they are (the bridge always trains)."""
    top_k: NonNegativeInt = 0
    """Number of layers from the top that train under `freeze: all_but_top_k`."""
    lora: LoraConfig | None = None
    """Low-rank adapters in a frozen backbone, in place of `freeze`; `{}` takes the defaults."""
    activation_checkpointing: bool = False
    """Keep only the inputs of the backbone's layers for the backward pass and compute each layer
    twice: about a third more compute, activation memory of one layer."""
    deepspeed: dict[str, Any] = {}
    """DeepSpeed settings of this stage, merged over ours; refused where another key sets the same.
    Without effect on `topology.runner: local`."""

    @field_validator("lora")
    @classmethod
    def _lora_or_freeze(cls, lora: LoraConfig | None, info: ValidationInfo) -> LoraConfig | None:
        if lora is not None and info.data.get("freeze", "none") != "none":
            raise ValueError("lora freezes the whole backbone, so `freeze` must stay `none`")
        return lora


class TeacherConfig(BackboneConfig):
    """The larger model; it reads whole documents, up to `max_tokens` at a time."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.model is None) == (self.config is None):
            raise ValueError("give either `model` or `config`")
        return self


class StudentConfig(BackboneConfig):
    """The smaller model; it reads windows of at most `max_tokens`, fed by the teacher."""

    max_tokens: Annotated[int, Field(ge=4, le=_MOST)] = 128
    """Tokens of one student window."""
    layers: list[NonNegativeInt] | None = None
    """Layers of the teacher that start the student, in place of `model` and `config`."""
    teacher_dropout: Fraction = 0.0
    """Probability that a window's bridge term is dropped in training, so that the student
    learns to work alone too."""
    alone_weight: NonNegativeFloat = 0.0
    """Weight of a second pass over every window without the bridge term. 0: no second pass."""
    fed_weight: PositiveFloat = 1.0
    """Weight of passes with the bridge term. With less than `alone_weight` the student's layers and
    head learn chiefly to work alone; bridge and shortcut, whose only gradient is that of fed
    passes, learn as fast as ever with AdamW. `joint`: what flows to the teacher is weighed too."""
    no_teacher: Literal["zero", "learned"] = "zero"
    """What stands in for a dropped bridge term: nothing, or a learned vector."""
    bridge_scale: NonNegativeFloat = 1.0
    """What the bridge starts as: the identity (an orthogonal map, if widths differ) times this.
    Hidden states may be several times as long as embeddings (BERTs: five times), and at 1 then
    drown them. At 0 a fed window starts as one without the teacher."""
    shortcut: bool = False
    """Add what a head of its own, which starts as the teacher's, reads from the teacher's hidden
    states to the student's prediction: its layers and head then needn't carry what the teacher
    knows."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [n for n in ("model", "config", "layers") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of `model`, `config`, `layers` (given: {given or 'none'})")
        if self.layers is not None and (
            not self.layers or len(set(self.layers)) < len(self.layers)
        ):
            raise ValueError("`layers` must name at least one layer, and each only once")
        return self


class DistillationConfig(Section):
    """Temperature-scaled KL from the teacher's to the student's prediction on the window."""

    weight: NonNegativeFloat = 0.0
    """Weight of the term; 0 switches it off. (Hinton et al. 2015, section 2)."""
    temperature: PositiveFloat = 2.0
    """Temperature; the term is multiplied by its square to keep gradients comparable."""
    passes: Literal["all", "fed", "alone"] = "all"
    """Which windows the term is for: all, or only those with or without the bridge term."""


class EmbeddingConfig(Section):
    """The tied embedding table, replicated on every rank of both stages."""

    init: Literal["teacher", "student"] = "teacher"
    """Whose pretrained table it starts from."""
    frozen: bool = False
    """Keep the table as it is."""
    project: bool = True
    """Allow a learned projection where a stage's embedding width differs from the table's."""
    exchange: Literal["auto", "rows", "dense"] = "auto"
    """What ranks exchange: the gradient rows that the step touched, the whole gradient, or what is
    less (rows, unless the step touches the whole vocabulary)."""
    shard_optimizer: bool = False
    """Keep the table's optimizer state sharded over all ranks of both stages; the table itself
    stays replicated. Saves memory (AdamW: 8 bytes a value), costs an exchange of updated rows."""
    check_every: NonNegativeInt = 50
    """Steps between two checks that all replicas are bitwise equal. 0: only at the end."""


class AlternationConfig(Section):
    """m teacher updates, then n student updates, in a cycle of max(m, n) batches."""

    teacher_steps: PositiveInt = 1
    """Number of batches of a cycle, from its start, on which the teacher is updated."""
    student_steps: PositiveInt = 1
    """Number of batches of a cycle, from its end, on which the student is updated."""


class ScheduleConfig(Section):
    """How the stages' updates are ordered, and for how long."""

    name: Literal["sequential", "overlapped", "joint"] = "overlapped"
    """`sequential`: teacher, then student, on every batch. `overlapped`: both at once, the
    student one batch behind. `joint`: one step on the sum of both losses, the student's gradient
    flowing into the teacher; give it several `micro_batches`."""
    alternation: AlternationConfig = AlternationConfig()
    """Ratio of teacher to student updates; 1:1 with `joint`."""
    micro_batches: PositiveInt = 1
    """Micro-batches of a step on every rank; their gradients are accumulated."""
    in_flight: Annotated[int, Field(ge=2, le=_MOST)] = 3
    """`joint`: micro-batches that the teacher may be ahead of their backward pass. 2 is plain
    1F1B; more need more activation memory and even out unequal micro-batches."""
    epochs: Annotated[int, Field(ge=1, le=10_000)] = 5
    """Passes over the training data."""
    max_steps: PositiveInt | None = None
    """Stop after so many steps (batches), whatever the epochs say."""


class OptimizerConfig(Section):
    """Optimizer of both stages and of the tied embedding."""

    name: Literal["adamw", "sgd"] = "adamw"
    """AdamW (Loshchilov & Hutter 2019) or plain SGD."""
    teacher_learning_rate: PositiveFloat = 3e-4
    """Peak learning rate of the teacher."""
    student_learning_rate: PositiveFloat = 3e-4
    """Peak learning rate of the student and the bridge."""
    embedding_learning_rate: PositiveFloat = 3e-4
    """Peak learning rate of the tied embedding."""
    head_learning_rate_factor: PositiveFloat = 1.0
    """Factor on the learning rate of heads, bridge and projections, which start from scratch."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay; not applied to biases, norms and the tied embedding."""
    beta1: Probability = 0.9
    """AdamW's decay of the first moment."""
    beta2: Probability = 0.999
    """AdamW's decay of the second moment."""
    epsilon: PositiveFloat = 1e-8
    """AdamW's denominator offset."""
    momentum: Probability = 0.0
    """SGD's momentum."""
    clip_norm: NonNegativeFloat = 1.0
    """Largest global gradient norm of a stage (and of the table); 0: no clipping."""


class LearningRateConfig(Section):
    """Shape of the learning rate over the run."""

    warmup: Fraction = 0.1
    """Share of all steps in which the rate rises linearly from zero to its peak."""
    decay: Literal["linear", "cosine", "constant"] = "linear"
    """How the rate falls from its peak to zero at the last step."""


Monitor = Mode | Literal["mean"]
"""What the best weights are best for."""
MEAN_MODES: tuple[Mode, ...] = ("joint", "student_alone")
"""What `mean` is of: the answers with the teacher and those without. `teacher`, `student` and
`joint` are too much alike for the mean of all four to heed the student alone."""


class EvaluationConfig(Section):
    """Validation, early stopping and which weights are kept."""

    every_epochs: PositiveInt = 1
    """Epochs between two validations."""
    batch_tokens: PositiveInt = 8192
    """Padded teacher tokens of one evaluation batch."""
    monitor: Monitor = "joint"
    """Mode whose main metric on validation decides which weights are best; `mean`: the mean of
    `joint`'s and `student_alone`'s, so of the answers with the teacher and without it."""
    patience: PositiveInt | None = None
    """Stop after so many validations without a better result. Default: never stop early."""
    before: bool = True
    """Also measure the test split before training."""
    windows: PositiveInt = 2
    """`qa`: windows that the student reads of a question, around the teacher's best spans."""


class CheckpointConfig(Section):
    """When a run is saved so that it can be resumed, and where."""

    folder: str | None = None
    """Folder of the checkpoints, or an fsspec URL such as `s3://bucket/path` that all hosts reach.
    Default: `checkpoints` in the run folder."""
    every_steps: PositiveInt | None = None
    """Steps (batches) between two checkpoints. Default: not by steps."""
    every_s: PositiveFloat | None = 600.0
    """Seconds between two checkpoints; `null`: not by time."""
    at_epochs: bool = True
    """Save at the end of each epoch, after its validation if it has one."""
    keep_last: PositiveInt = 2
    """Number of newest checkpoints to keep: more than one, so that a damaged one isn't the end."""
    keep_best: NonNegativeInt = 0
    """Number of checkpoints to keep besides, those with the best validation (`model/` has the
    best weights anyway)."""


class FailureConfig(Section):
    """What a run puts up with."""

    max_bad_steps: NonNegativeInt = 10
    """Steps in a row with a loss or gradient that is not finite, and so without an update, after
    which one more ends the run."""
    max_restarts: NonNegativeInt = 3
    """How often a run on Ray starts again from its last checkpoint after a rank or node failed."""
    hang_timeout_s: PositiveFloat = 300.0
    """Seconds without an instruction done on any rank, or without an answer from one, after which
    the run counts as hanging. More than the longest single instruction takes."""
    node_wait_s: NonNegativeFloat = 30.0
    """Seconds to wait for a lost node to come back before going on with fewer replicas
    (`topology.min_replicas`) or ending."""


class LinkConfig(Section):
    """What travels between the stages."""

    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Type of hidden states and their gradients on the way; `auto` is that of the arithmetic."""


AUTO = "auto"
"""The whole section `topology` in one word."""


class StageTopology(Section):
    """Ranks of one stage."""

    replicas: PositiveInt = 1
    """Number of ranks (one device each) of the stage."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 0
    """DeepSpeed ZeRO stage inside the stage: 0 none, 1 optimizer state, 2 + gradients,
    3 + parameters sharded."""
    offload_optimizer: bool = False
    """Keep optimizer state and fp32 master weights in CPU memory and step there; ZeRO 1 or more."""
    offload_parameters: bool = False
    """Keep sharded parameters in CPU memory too until a layer needs them; ZeRO 3."""

    @field_validator("offload_optimizer")
    @classmethod
    def _optimizer_is_sharded(cls, offload: bool, info: ValidationInfo) -> bool:
        if offload and info.data.get("zero_stage") == 0:
            raise ValueError("needs zero_stage 1, 2 or 3")
        return offload

    @field_validator("offload_parameters")
    @classmethod
    def _parameters_are_sharded(cls, offload: bool, info: ValidationInfo) -> bool:
        if offload and info.data.get("zero_stage", 3) != 3:
            raise ValueError("needs zero_stage 3")
        return offload

    threads: PositiveInt | None = None
    """CPU threads of each rank of the stage. Default: as `topology.threads`."""


class TopologyConfig(Section):
    """Where the two stages run. `topology: auto` is short for `topology: {auto: true}`."""

    auto: bool = False
    """Measure both stages, one rank each, for a few steps before the run, and choose what leaves
    the least idle time: on GPUs the replicas; on CPUs the threads of one rank each, or, where
    `threads` says how many a rank has, the replicas."""
    runner: Literal["local", "processes", "ray"] = "ray"
    """`ray`: one actor a rank, DeepSpeed inside each stage. `processes`: the same with plain
    processes on this host, without Ray; also under `torchrun` (`tsarch.launch.torchrun`). `local`:
    both stages in this process on one device, without Ray and DeepSpeed; replicas and ZeRO stages
    don't matter."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of every rank; `auto` is cuda where there is one."""
    teacher: StageTopology = StageTopology()
    """Ranks of the teacher stage."""
    student: StageTopology = StageTopology()
    """Ranks of the student stage."""
    threads: PositiveInt | None = None
    """CPU threads of a rank. Default: cores / ranks on this host (a local Ray, `processes`), all
    cores with `local`."""
    cpus_per_rank: Annotated[float, Field(gt=0, le=10_000)] = 1.0
    """CPUs that Ray reserves for a rank (for each thread where its stage has `threads` of its
    own); below 1, ranks share a core."""
    min_replicas: PositiveInt | None = None
    """Replicas of each stage that a run must keep when nodes are lost and don't come back: it goes
    on with as many as there is place for. Default: all that it has."""
    timeout_s: Annotated[float, Field(gt=0, le=1e7)] = 600.0
    """Seconds after which a collective or a link message that never comes is an error."""

    @model_validator(mode="before")
    @classmethod
    def _spell_out(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value != AUTO:
            raise ValueError("must be a section, or `auto`")
        return {"auto": True}

    @model_validator(mode="after")
    def _auto_chooses(self) -> Self:
        if self.auto:
            stages = {"teacher": self.teacher, "student": self.student}
            given = [
                f"`{stage}.{key}`"
                for stage, own in stages.items()
                for key in ("replicas", "threads")
                if key in own.model_fields_set
            ]
            if given:
                raise ValueError(
                    f"`auto` chooses the replicas and threads of both stages, so "
                    f"{' and '.join(given)} can't be given too: leave out one or the other"
                )
        return self


def _or_auto(schema: dict[str, Any]) -> None:
    """Let the JSON Schema of the section `topology` take the word `auto` too."""
    schema["anyOf"] = [{"$ref": schema.pop("$ref")}, {"const": AUTO, "type": "string"}]


class Config(Section):
    """A complete run."""

    run: RunConfig = RunConfig()
    """Name, folder, seed."""
    task: TaskConfig = TaskConfig()
    """The task to learn."""
    data: DataConfig
    """Data files and batching."""
    teacher: TeacherConfig
    """The teacher."""
    student: StudentConfig
    """The student."""
    distillation: DistillationConfig = DistillationConfig()
    """Distillation term of the student's loss."""
    embedding: EmbeddingConfig = EmbeddingConfig()
    """The tied embedding."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Order and number of updates."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimizer."""
    learning_rate: LearningRateConfig = LearningRateConfig()
    """Learning-rate schedule."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Validation and early stopping."""
    decoding: DecodingConfig = DecodingConfig()
    """How texts are generated."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Saving the run so that it can be resumed."""
    failure: FailureConfig = FailureConfig()
    """What the run puts up with."""
    link: LinkConfig = LinkConfig()
    """Boundary messages between the stages."""
    topology: TopologyConfig = Field(default=TopologyConfig(), json_schema_extra=_or_auto)
    """Processes and devices; `auto`: let the run choose how many."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of both stages; (master) weights and optimizer state stay fp32."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.student.max_tokens > self.teacher.max_tokens:
            raise ValueError(
                f"student.max_tokens ({self.student.max_tokens}) must not exceed "
                f"teacher.max_tokens ({self.teacher.max_tokens}): a window is a slice of a context"
            )
        if self.data.batch_tokens < self.teacher.max_tokens:
            raise ValueError(
                f"data.batch_tokens ({self.data.batch_tokens}) must be at least "
                f"teacher.max_tokens ({self.teacher.max_tokens}), the size of one context"
            )
        if self.evaluation.batch_tokens < self.teacher.max_tokens:
            raise ValueError(
                f"evaluation.batch_tokens ({self.evaluation.batch_tokens}) must be at least "
                f"teacher.max_tokens ({self.teacher.max_tokens})"
            )
        if self.schedule.name == "joint" and self.schedule.alternation != AlternationConfig():
            raise ValueError(
                "schedule.alternation must stay 1:1 with the joint schedule, which updates both "
                "stages in one step"
            )
        if (self.data.train is None) == (self.data.hub is None):
            raise ValueError("give either data.train (with validation and test) or data.hub")
        if self.data.train is not None and None in (self.data.validation, self.data.test):
            raise ValueError("data.train needs data.validation and data.test beside it")
        return self

    @property
    def tokenizer_name(self) -> str | None:
        """The tokenizer: `data.tokenizer`, or that of the teacher's model."""
        return self.data.tokenizer or self.teacher.model

    @property
    def run_folder(self) -> str:
        """Folder that the run writes, relative to the current folder."""
        return self.run.folder or f"runs/{self.run.name}"
