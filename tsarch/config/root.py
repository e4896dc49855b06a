"""The whole config: all sections, and what they ask of one another."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from tsarch.config.base import Section
from tsarch.config.data import DataConfig, DecodingConfig, TaskConfig, UnlabelledConfig
from tsarch.config.models import (
    AttentionConfig,
    DistillationConfig,
    EmbeddingConfig,
    LossConfig,
    StudentConfig,
    TeacherConfig,
)
from tsarch.config.topology import AUTO, LinkConfig, StageTopology, TopologyConfig
from tsarch.config.training import (
    AlternationConfig,
    CheckpointConfig,
    EvaluationConfig,
    FailureConfig,
    LearningRateConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TrackingConfig,
)
from tsarch.task_names import QUERY_TASKS, WRITING_TASKS


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
    unlabelled: UnlabelledConfig = UnlabelledConfig()
    """How text without labels is learned."""
    teacher: TeacherConfig | None = None
    """The teacher. Without it the student is trained by itself, on its windows."""
    student: StudentConfig | None = None
    """The student. Without it the teacher is trained by itself."""
    loss: LossConfig = LossConfig()
    """Losses of rare labels."""
    distillation: DistillationConfig = DistillationConfig()
    """Distillation terms of the student's loss."""
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
    tracking: TrackingConfig = TrackingConfig()
    """Who is told what the run does."""
    link: LinkConfig = LinkConfig()
    """Boundary messages between the stages."""
    topology: TopologyConfig = Field(default=TopologyConfig(), json_schema_extra=_or_auto)
    """Processes and devices; `auto`: let the run choose how many."""
    attention: AttentionConfig = AttentionConfig()
    """How attention is computed on CPUs."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """Arithmetic of both stages; (master) weights, optimizer state, softmax and losses stay fp32.
    `bf16` is for GPUs and for CPUs that multiply it (AVX512-BF16, AMX); on others it is fp32.
    `auto`: bf16, if a few steps of the run are faster with it and their losses the same within 2 %.
    """

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        tokens, origin = self._context
        if self.task.query == "student":
            self._check_query()
        if self.distillation.from_run is not None:
            self._check_taught()
        if self.data.augmentation.is_used:
            self._check_augmentation()
        if self.task.control is not None and self.task.name not in WRITING_TASKS:
            raise ValueError(
                f"task.control is for tasks that write texts ({', '.join(WRITING_TASKS)}), not for "
                f"{self.task.name}"
            )
        if self.teacher is not None and self.student is not None:
            self._check_pair(self.teacher, self.student)
        else:
            self._check_alone()
        own = self.student.max_tokens if self.student is not None and self.task.name == "qa" else 0
        self.evaluation.check_windows(own)
        if self.data.unlabelled is not None:
            self._check_unlabelled()
        if self.topology.teacher.sequence_parallel > 1:
            self._check_shared()
        if self.data.batch_tokens < tokens:
            raise ValueError(
                f"data.batch_tokens ({self.data.batch_tokens}) must be at least "
                f"{origin} ({tokens}), the size of one context"
            )
        if self.evaluation.batch_tokens < tokens:
            raise ValueError(
                f"evaluation.batch_tokens ({self.evaluation.batch_tokens}) must be at least "
                f"{origin} ({tokens})"
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

    def _check_pair(self, teacher: TeacherConfig, student: StudentConfig) -> None:
        """What a teacher and a student ask of each other."""
        if student.max_tokens > teacher.max_tokens:
            raise ValueError(
                f"student.max_tokens ({student.max_tokens}) must not exceed "
                f"teacher.max_tokens ({teacher.max_tokens}): a window is a slice of a context"
            )
        self.distillation.check_passes(student)
        if student.role == "drafter":
            self._check_drafter(student)
        if student.model is not None and student.layers is not None:
            raise ValueError(
                "student: give one of `model`, `config`, `layers`, which are layers of the teacher"
            )
        if student.scorer is not None and (self.task.name, self.task.query) != ("qa", "student"):
            raise ValueError(
                "student.scorer is for qa with task.query: student; with task.query: both the "
                "teacher's answers tell what to read"
            )
        self._check_boundary(teacher, student)
        if self.data.context_tokens is not None:
            raise ValueError(
                "data.context_tokens is for students by themselves: a context has "
                f"teacher.max_tokens ({teacher.max_tokens})"
            )

    def _check_boundary(self, teacher: TeacherConfig, student: StudentConfig) -> None:
        """What a boundary inside the models asks of them."""
        below, own = teacher.boundary_layer, student.boundary_layer
        if below is None:
            if own is not None:
                raise ValueError("student.boundary_layer needs teacher.boundary_layer")
            if teacher.first_position:
                raise ValueError("teacher.first_position needs teacher.boundary_layer")
            return
        if self.task.query != "student":
            raise ValueError(
                "teacher.boundary_layer needs task.query: student; a teacher that reads what is "
                "asked feeds the student with its last states"
            )
        wrong = {
            "student.layers: auto": student.layers == "auto",
            "student.depths": student.depths is not None,
            "student.no_teacher: learned": student.no_teacher == "learned",
            "student.bridge_scale: 0": student.bridge_scale == 0,
        }
        if given := [key for key, is_wrong in wrong.items() if is_wrong]:
            raise ValueError(
                f"{', '.join(given)} can't be asked with teacher.boundary_layer: states take the "
                "place of what the student's lower layers make of a token, they aren't added to it"
            )
        if own is None and student.layers is None:
            raise ValueError(
                "teacher.boundary_layer needs student.layers, or student.boundary_layer for a "
                "student of its own"
            )
        if own is not None or student.layers is None:
            return
        is_below = [layer < below for layer in student.taken_layers or ()]
        if is_below != sorted(is_below, reverse=True) or all(is_below):
            raise ValueError(
                f"student.layers {student.layers} must have layers from teacher.boundary_layer "
                f"({below}) on, and behind those below it"
            )

    def _check_drafter(self, student: StudentConfig) -> None:
        """What can't be asked of a student that proposes."""
        if self.distillation.weight == 0:
            raise ValueError(
                "student.role: drafter learns what the teacher says alone: distillation.weight "
                "must be above 0"
            )
        wrong = {
            "schedule.name: joint": self.schedule.name == "joint",
            "student.model": student.model is not None,
            "student.layers": student.layers is not None,
            "student.alone_weight": student.alone_weight > 0,
            "student.teacher_dropout": student.teacher_dropout > 0,
            "student.shortcut": student.shortcut,
            "student.lora": student.lora is not None,
            "student.activation_checkpointing": student.activation_checkpointing,
            "student.depths": student.depths is not None,
            "distillation.hidden_weight": self.distillation.hidden_weight > 0,
            "distillation.relation_weight": self.distillation.relation_weight > 0,
            "distillation.from_run": self.distillation.from_run is not None,
            "data.unlabelled": self.data.unlabelled is not None,
            "topology.teacher.sequence_parallel": self.topology.teacher.sequence_parallel > 1,
            "evaluation.monitor": self.evaluation.monitor
            not in ("teacher", EvaluationConfig().monitor),
        }
        if given := [key for key, is_wrong in wrong.items() if is_wrong]:
            raise ValueError(
                f"{', '.join(given)} can't be asked with student.role: drafter, which proposes "
                "what the teacher says next"
            )

    def _check_query(self) -> None:
        """What can't be asked where the teacher doesn't read what is asked."""
        if self.task.name not in QUERY_TASKS:
            raise ValueError(
                f"task.query: student is for {', '.join(QUERY_TASKS)}, not for {self.task.name}"
            )
        if self.teacher is None or self.student is None:
            raise ValueError("task.query: student needs the sections `teacher` and `student`")
        if self.data.streamed:
            raise ValueError(
                "task.query: student gathers all rows of a passage or document, which nobody holds "
                "with data.streamed: leave out one of the two"
            )
        is_taught = self.distillation.from_run is not None
        wrong = {
            "distillation.weight": self.distillation.weight > 0 and not is_taught,
            "distillation.hidden_weight": self.distillation.hidden_weight > 0,
            "data.unlabelled": self.data.unlabelled is not None,
            "distillation.relation_weight": self.distillation.relation_weight > 0,
            "evaluation.monitor: teacher": self.evaluation.monitor == "teacher",
        }
        if given := [key for key, is_wrong in wrong.items() if is_wrong]:
            raise ValueError(
                f"{', '.join(given)} can't be asked with task.query: student, where the teacher "
                "doesn't read what is asked, and so gives no answers (distillation.from_run takes "
                "them from another run)"
            )

    def _check_taught(self) -> None:
        """What another run's predictions are learned by, and can't be given for."""
        if self.distillation.weight == 0:
            raise ValueError("distillation.from_run needs a distillation.weight above 0")
        wrong = {
            f"task.name: {self.task.name}": self.task.name in WRITING_TASKS,
            "data.unlabelled": self.data.unlabelled is not None,
            "data.streamed": self.data.streamed,
        }
        if given := [key for key, is_wrong in wrong.items() if is_wrong]:
            raise ValueError(
                f"{', '.join(given)} can't be given with distillation.from_run, whose predictions "
                "are of the words of a training split in memory"
            )

    def _check_augmentation(self) -> None:
        """What can't be altered while training."""
        own, tasks = self.data.augmentation, ("ner", "classification")
        first = self.teacher if self.embedding.init == "teacher" or self.student is None else None
        table = first or self.student
        wrong = {
            f"data.augmentation.swap with task.name: {self.task.name}": own.swap > 0
            and self.task.name != "ner",
            f"data.augmentation.mask with task.name: {self.task.name}": own.mask > 0
            and self.task.name not in tasks,
            "data.augmentation.mask without a pretrained table (teacher.model)": own.mask > 0
            and (table is None or table.model is None)
            and self.run.start_from is None,
            "data.augmentation with data.streamed": self.data.streamed,
            "data.augmentation with distillation.from_run, which is of rows as they are,": (
                self.distillation.from_run is not None
            ),
        }
        if given := [key for key, is_wrong in wrong.items() if is_wrong]:
            raise ValueError(f"{'; '.join(given)} can't be asked")

    def _check_shared(self) -> None:
        """What can't be asked where ranks share contexts, whose slices they read in one way."""
        wrong = {
            "data.unlabelled": self.data.unlabelled is not None,
            "distillation.relation_weight": self.distillation.relation_weight > 0,
            "distillation.hidden_layers": self.distillation.hidden_weight > 0
            and self.distillation.hidden_layers != "last",
            "teacher.boundary_layer": self.teacher is not None
            and self.teacher.boundary_layer is not None,
        }
        if given := [key for key, is_wrong in wrong.items() if is_wrong]:
            raise ValueError(
                f"{', '.join(given)} can't be given with topology.teacher.sequence_parallel: leave "
                "out one or the other"
            )

    def _check_unlabelled(self) -> None:
        """What text without labels is learned by."""
        if self.teacher is None or self.student is None:
            raise ValueError(
                "data.unlabelled needs the sections `teacher` and `student`: the student learns "
                "what the teacher says of it"
            )
        if not self.distillation.is_used:
            what = "data.unlabelled is learned by the terms of `distillation`"
            raise ValueError(f"{what}: set distillation.weight above 0")
        if self.task.name in WRITING_TASKS:
            raise ValueError(
                f"data.unlabelled can't be given for {self.task.name}: a text has to be written "
                "before it can be learned. `tsarch augment --method label` writes the teacher's "
                "own as training rows"
            )
        if self.task.name == "qa" and self.unlabelled.min_confidence > 0:
            raise ValueError(
                "unlabelled.min_confidence is for tasks with labels: leave it at 0 for qa"
            )

    def _check_alone(self) -> None:
        """What can't be asked of a model by itself."""
        alone = self.teacher, self.student
        if alone == (None, None):
            raise ValueError("give `teacher`, `student` or both")
        if self.student is not None and self.student.layers and self.student.model is None:
            raise ValueError("student.layers needs student.model where there is no teacher")
        if any(own is not None and own.boundary_layer is not None for own in alone):
            raise ValueError("boundary_layer needs both `teacher` and `student`")
        missing, own = ("student", "teacher") if self.student is None else ("teacher", "student")
        modes = ("teacher",) if self.student is None else ("student_alone",)
        # Defaults are no wish: a run's config.yaml has them too.
        init, monitor = self.embedding.init, self.evaluation.monitor
        wrong = {
            "distillation.weight": self.distillation.weight > 0,
            "distillation.hidden_weight": self.distillation.hidden_weight > 0,
            "distillation.relation_weight": self.distillation.relation_weight > 0,
            "schedule.alternation": self.schedule.alternation != AlternationConfig(),
            "topology.auto": self.topology.auto,
            f"topology.{missing}": getattr(self.topology, missing) != StageTopology(),
            f"embedding.init: {init}": init == missing and init != EmbeddingConfig().init,
            f"evaluation.monitor: {monitor}": monitor not in modes
            and monitor != EvaluationConfig().monitor,
        }
        if given := [key for key, is_wrong in wrong.items() if is_wrong]:
            raise ValueError(
                f"{', '.join(given)} can't be asked of a {own} by itself: "
                f"there is no section `{missing}`"
            )

    @property
    def _context(self) -> tuple[int, str]:
        """Tokens of a context, and the key that says so."""
        if self.teacher is not None:
            return self.teacher.max_tokens, "teacher.max_tokens"
        if self.data.context_tokens is not None:
            return self.data.context_tokens, "data.context_tokens"
        return (0 if self.student is None else self.student.max_tokens), "student.max_tokens"

    @property
    def context_tokens(self) -> int:
        """Tokens of a context."""
        return self._context[0]

    @property
    def student_boundary(self) -> int | None:
        """The student's layer before which states enter it; None: they are added to embeddings."""
        teacher, student = self.teacher, self.student
        if teacher is None or teacher.boundary_layer is None or student is None:
            return None
        if student.boundary_layer is not None:
            return student.boundary_layer
        return sum(layer < teacher.boundary_layer for layer in student.taken_layers or ())

    @property
    def boundaries(self) -> dict[str, int | None]:
        """Layer before which states leave what reads `contexts`, and enter what reads `windows`."""
        left = None if self.teacher is None else self.teacher.boundary_layer
        return {"contexts": left, "windows": self.student_boundary}

    @property
    def tokenizer_name(self) -> str | None:
        """The tokenizer: `data.tokenizer`, or that of the teacher's (or only) model."""
        first = self.teacher or self.student
        return self.data.tokenizer or (None if first is None else first.model)

    @property
    def run_folder(self) -> str:
        """Folder that the run writes, relative to the current folder."""
        return self.run.folder or f"runs/{self.run.name}"
