"""A run, resolved once: all that follows from the config, as frozen plain values.

The config is what a user wrote; a blueprint is what it means. Whoever checks, plans, builds or
trains takes the blueprint, or the part of it that it needs. No torch: architectures are read from
the models' files when they are first asked for, once in a process, so that a blueprint costs
nothing to make or to send.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tsarch.architecture import Architecture
from tsarch.config import (
    STUDENT_MODES,
    BackboneConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    DecodingConfig,
    EvaluationConfig,
    FailureConfig,
    LearningRateConfig,
    LoraConfig,
    LossConfig,
    Mode,
    Monitor,
    RunConfig,
    StageTopology,
    StudentConfig,
    TaskConfig,
    TeacherConfig,
    TrackingConfig,
)
from tsarch.config_changes import altered
from tsarch.config_specs import (
    batch_spec,
    bridge_spec,
    runner_spec,
    schedule_spec,
    unlabelled_spec,
)
from tsarch.data.tokenizer import load_tokenizer
from tsarch.specs import (
    BatchSpec,
    BridgeSpec,
    DistillationSpec,
    DraftingSpec,
    EngineSpec,
    OpenSpec,
    OptimizerSpec,
    RunnerSpec,
    ScheduleSpec,
    ScorerSpec,
    UnlabelledSpec,
)
from tsarch.topology import Graph, Stage, Topology, stage_named

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class StageBlueprint:
    """One stage: its model, its optimizer, its ranks."""

    stage: Stage
    architecture: Architecture
    max_tokens: int
    """Tokens of one input."""
    freeze: str
    top_k: int
    lora: LoraConfig | None
    activation_checkpointing: bool
    offload_activations: bool
    bridge: BridgeSpec | None
    """None: it reads nothing of another stage's."""
    boundary_layer: int | None
    """Layer before which its states leave, or another stage's enter; None: the last ones leave, and
    are added to embeddings."""
    first_position: int
    """Of a context's first token, where states leave between layers."""
    optimizer: OptimizerSpec
    engine: EngineSpec
    replicas: int
    sequence_parallel: int
    """Replicas that share contexts."""
    threads: int | None
    """CPU threads of a rank; None: whatever the machine has for it."""
    cpus: float
    """CPUs that are reserved for a rank."""
    nodes: Mapping[str, str] = field(default_factory=dict)
    """Labels of the nodes of a cluster that its ranks may be on."""
    depths: tuple[int, ...] = ()
    """Numbers of first layers that it works with besides all of them."""


@dataclass(frozen=True)
class TableBlueprint:
    """The tied table."""

    stage: Stage
    """The one whose table it starts from."""
    architecture: Architecture
    frozen: bool
    project: bool
    exchange: Literal["auto", "rows", "dense"]
    shard_optimizer: bool
    check_every: int
    optimizer: OptimizerSpec
    """Without weight decay, with a rate of its own."""

    @property
    def shape(self) -> tuple[int, int]:
        """(vocabulary, width)."""
        return self.architecture.vocabulary, self.architecture.embedding_width

    @property
    def scale(self) -> float:
        """Factor of what is compared with the table's rows to give logits, of both stages: tables
        are trained for one (T5, Granite, Cohere)."""
        scale = self.architecture.output.scale
        return 1.0 if scale is None else scale


@dataclass(frozen=True)
class Blueprint:
    """A run. Sections of the config that one place alone uses, as they are, are handed on."""

    config: Config
    """To be written and compared with another run's, not to be looked into."""
    run: RunConfig
    folder: str
    """Folder that the run writes, relative to the current folder."""
    task: TaskConfig
    data: DataConfig
    batches: BatchSpec
    tokenizer_name: str | None
    """None: the config lacks one, which preflight tells."""
    stages: Mapping[Stage, StageBlueprint]
    topology: Topology
    runner: RunnerSpec
    table: TableBlueprint
    schedule: ScheduleSpec
    learning_rate: LearningRateConfig
    distillation: DistillationSpec
    unlabelled: UnlabelledSpec
    loss: LossConfig
    precision: Precision
    """fp32 as long as `precision: auto` is open."""
    products_up_to: int
    """Most keys of attention by products; 0 as long as it is open."""
    is_open: OpenSpec
    link_dtype: Literal["fp32", "bf16", "fp16"]
    evaluation: EvaluationConfig
    decoding: DecodingConfig
    checkpoint: CheckpointConfig
    failure: FailureConfig
    tracking: TrackingConfig

    @property
    def seed(self) -> int:
        """Seed of all that is random."""
        return self.run.seed

    @property
    def modes(self) -> tuple[Mode, ...]:
        """Prediction modes that there are."""
        own = STUDENT_MODES if self.task.query == "student" else self.topology.graph.modes
        return ("teacher",) if self.drafting is not None else own

    @property
    def window_tokens(self) -> int:
        """Tokens of a window at most; without a student whole contexts are windows."""
        students = self.topology.graph.reading("windows")
        return self.stages[students[0]].max_tokens if students else self.batches.context_tokens

    @property
    def asked_window_tokens(self) -> int:
        """The same of windows that are chosen for a question, which may be shorter than those that
        were learned."""
        return self.evaluation.window_tokens or self.window_tokens

    @property
    def drafting(self) -> DraftingSpec | None:
        """How the student proposes; None: it doesn't."""
        return None if self._bridge is None else self._bridge.drafting

    @property
    def scorer(self) -> ScorerSpec | None:
        """What tells the student which parts of a text to read; None: nothing."""
        return None if self._bridge is None else self._bridge.scorer

    @property
    def _bridge(self) -> BridgeSpec | None:
        bridges = (own.bridge for own in self.stages.values())
        return next((own for own in bridges if own is not None), None)

    @property
    def taps(self) -> tuple[int, ...]:
        """Layers of the teacher whose states travel beside its last ones, see `DraftingConfig`."""
        if self.drafting is None:
            return ()
        return self.drafting.taps(self.stages[Stage.TEACHER].architecture.built.num_hidden_layers)

    @property
    def teacher_width(self) -> int:
        """Of the teacher's hidden states; 0: there is no teacher."""
        teachers = self.topology.graph.reading("contexts")
        width = self.stages[teachers[0]].architecture.hidden_width if teachers else 0
        return (len(self.taps) + 1) * width

    @property
    def causal_stages(self) -> tuple[Stage, ...]:
        """Stages whose models see earlier tokens only."""
        return tuple(stage for stage, own in self.stages.items() if own.architecture.is_causal)

    @property
    def monitor(self) -> Monitor:
        """What decides on the best weights; the first mode, if the wanted one isn't there."""
        known = (*self.modes, "mean") if len(self.modes) > 1 else self.modes
        return self.evaluation.monitor if self.evaluation.monitor in known else self.modes[0]

    @property
    def total_cpus(self) -> float:
        """CPUs that are reserved for all ranks."""
        return sum(own.replicas * own.cpus for own in self.stages.values())

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, read once in a process.

        Raises:
            UserError: there is none.
        """
        assert self.tokenizer_name is not None, "preflight checks that there is a tokenizer"
        return load_tokenizer(self.tokenizer_name)

    def altered(self, **sections: Any) -> Blueprint:
        """The run with other values of some keys, such as `topology={"teacher": {"replicas": 2}}`.
        What has been read of its models stays."""
        return resolve(altered(self.config, sections), self)

    def placed_like(self, other: Blueprint) -> Blueprint:
        """The run on the ranks and devices of another one."""
        placed = self.config.model_copy(update={"topology": other.config.topology})
        return resolve(placed, self)


def resolve(config: Config, known: Blueprint | None = None) -> Blueprint:
    """What a config means; nothing is read. `known`: one of a like run, whose architectures serve
    where they are the same.

    Whether it can be built is another question, which `planning.preflight.check_run` answers.
    """
    stages, runner = _stages(config, known), runner_spec(config)
    precision: Precision = "bf16" if config.precision == "bf16" else "fp32"
    ranks = [(own.replicas, own.sequence_parallel) for own in stages.values()]
    counts, slices = zip(*((1, 1) if runner.is_one_process else own for own in ranks), strict=True)
    return Blueprint(
        config=config,
        run=config.run,
        folder=config.run_folder,
        task=config.task,
        data=config.data,
        batches=batch_spec(config),
        tokenizer_name=config.tokenizer_name,
        stages=stages,
        topology=Topology(Graph.of(stages), counts, slices),
        runner=runner,
        table=_table(config, stages),
        schedule=schedule_spec(config),
        learning_rate=config.learning_rate,
        distillation=DistillationSpec(**config.distillation.model_dump()),
        unlabelled=unlabelled_spec(config),
        loss=config.loss,
        precision=precision,
        products_up_to=config.attention.products_up_to or 0,
        is_open=OpenSpec(
            config.precision == "auto",
            config.attention.products_up_to is None,
            config.student is not None and config.student.layers == "auto",
        ),
        link_dtype=precision if config.link.dtype == "auto" else config.link.dtype,
        evaluation=config.evaluation,
        decoding=config.decoding,
        checkpoint=config.checkpoint,
        failure=config.failure,
        tracking=config.tracking,
    )


def _stages(config: Config, known: Blueprint | None) -> dict[Stage, StageBlueprint]:
    teacher, student, rates = config.teacher, config.student, config.optimizer
    made: dict[Stage, Architecture] = {}
    if teacher is not None:
        made[Stage.TEACHER] = _architecture(Stage.TEACHER, teacher, teacher, None)
    if student is not None:
        is_cut_from_teacher = student.layers is not None and teacher is not None
        layers = student.taken_layers
        origin = Stage.TEACHER if is_cut_from_teacher else Stage.STUDENT
        source = teacher if teacher is not None and is_cut_from_teacher else student
        made[Stage.STUDENT] = _architecture(origin, source, student, layers)
    for stage, own in known.stages.items() if known is not None else ():
        if own.architecture == made.get(stage):
            made[stage] = own.architecture
    sections = {Stage.TEACHER: teacher, Stage.STUDENT: student}
    ranks = {Stage.TEACHER: config.topology.teacher, Stage.STUDENT: config.topology.student}
    peaks = {
        Stage.TEACHER: rates.teacher_learning_rate,
        Stage.STUDENT: rates.student_learning_rate,
    }
    bridges = (
        {} if student is None else {Stage.STUDENT: bridge_spec(student, made.get(Stage.TEACHER))}
    )
    return {
        stage: _stage(
            config, stage, made[stage], section, ranks[stage], peaks[stage], bridges.get(stage)
        )
        for stage, section in sections.items()
        if section is not None
    }


def _architecture(
    origin: Stage, source: BackboneConfig, own: BackboneConfig, layers: tuple[int, ...] | None
) -> Architecture:
    return Architecture(
        origin, source.model, source.config, layers, own.dropout, own.attention_dropout
    )


def _stage(
    config: Config,
    stage: Stage,
    architecture: Architecture,
    section: BackboneConfig,
    ranks: StageTopology,
    learning_rate: float,
    bridge: BridgeSpec | None,
) -> StageBlueprint:
    o, topology = config.optimizer, config.topology
    return StageBlueprint(
        stage=stage,
        architecture=architecture,
        max_tokens=section.max_tokens,
        freeze=section.freeze,
        top_k=section.top_k,
        lora=section.lora,
        activation_checkpointing=section.activation_checkpointing,
        offload_activations=section.offload_activations,
        bridge=bridge,
        boundary_layer=config.boundaries[stage.reads],
        first_position=section.first_position if isinstance(section, TeacherConfig) else 0,
        optimizer=_optimizer(config, learning_rate, o.weight_decay, o.head_learning_rate_factor),
        engine=EngineSpec(
            ranks.zero_stage, ranks.offload_optimizer, ranks.offload_parameters, section.deepspeed
        ),
        replicas=ranks.replicas,
        sequence_parallel=ranks.sequence_parallel,
        threads=ranks.threads or topology.threads,
        cpus=topology.cpus_per_rank * (ranks.threads or 1),
        nodes=ranks.nodes,
        depths=tuple((section.depths or ())[:-1]) if isinstance(section, StudentConfig) else (),
    )


def _table(config: Config, stages: Mapping[Stage, StageBlueprint]) -> TableBlueprint:
    own = config.embedding
    wanted = stage_named(own.init)
    stage = wanted if wanted in stages else next(iter(stages))
    return TableBlueprint(
        stage=stage,
        architecture=stages[stage].architecture,
        frozen=own.frozen,
        project=own.project,
        exchange=own.exchange,
        shard_optimizer=own.shard_optimizer,
        check_every=own.check_every,
        optimizer=_optimizer(config, config.optimizer.embedding_learning_rate, 0.0, 1.0),
    )


def _optimizer(
    config: Config, learning_rate: float, weight_decay: float, head_factor: float
) -> OptimizerSpec:
    o = config.optimizer
    return OptimizerSpec(
        name=o.name,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        betas=(o.beta1, o.beta2),
        epsilon=o.epsilon,
        momentum=o.momentum,
        clip_norm=o.clip_norm,
        head_learning_rate_factor=head_factor,
    )
