"""How a run goes: the sections `run`, `schedule`, `optimizer`, `learning_rate`, `evaluation`,
`checkpoint`, `failure` and `tracking`."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from tsarch.config.base import (
    MOST,
    Fraction,
    Mode,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    Section,
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
    profile_steps: NonNegativeInt = 0
    """Steps, from the third on, that torch's profiler records on every rank: a trace of each in
    `profile`, and a table of where a step's time goes (`tsarch train --profile`: 5)."""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    """Seed of the weights, the batch order, dropout and `teacher_dropout`."""
    start_from: str | None = None
    """Folder `model` of a finished run whose weights and labels this run starts from: its models
    are the same, and its data may lack labels, but has no others (`tsarch refit`)."""


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
    in_flight: Annotated[int, Field(ge=2, le=MOST)] = 3
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
    `joint`'s and `student_alone`'s, so of the answers with the teacher and without it. With
    `task.query: student` there is no `joint`: `student` takes its place."""
    patience: PositiveInt | None = None
    """Stop after so many validations without a better result; of equal ones the later weights are
    kept. Default: never stop early."""
    before: bool = True
    """Also measure the test split before training."""
    windows: PositiveInt = 2
    """`qa`: windows that the student reads of a question, around the teacher's best spans; with
    `task.query: student` those that `student.scorer` chooses, or, without it, the whole passage."""
    window_tokens: PositiveInt | None = None
    """`qa`: tokens of these windows, the question's among them, at most `student.max_tokens`, the
    default: shorter ones than in training cost less. For a long question a window grows up to that,
    so that the passage has half as many tokens in it as the question."""

    def check_windows(self, most: int) -> None:
        """`most`: tokens of the longest windows that are learned for questions; 0: none.

        Raises:
            ValueError: `window_tokens` doesn't go with that.
        """
        if self.window_tokens is not None and most == 0:
            raise ValueError("evaluation.window_tokens is for qa with a student: it reads windows")
        if self.window_tokens is not None and self.window_tokens > most:
            raise ValueError(
                f"evaluation.window_tokens ({self.window_tokens}) must not exceed "
                f"student.max_tokens ({most}), the longest windows that are learned"
            )


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
    in_memory_every_steps: PositiveInt | None = 5
    """Steps between two cuts that ranks keep in host memory (`ray`, `processes`), to go back to
    after a failure; fewer cuts where they would take more than 2 % of the time. `null`: none, a
    failed run goes back to its last checkpoint."""
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
    """How often a run on ranks (`ray`, `processes`) starts again from its last checkpoint after a
    rank or node failed."""
    hang_timeout_s: PositiveFloat = 300.0
    """Seconds without an instruction done on any rank, or without an answer from one, after which
    the run counts as hanging. More than the longest single instruction takes."""
    node_timeout_s: PositiveFloat = 10.0
    """Seconds of silence, of a node's ranks and of Ray on it, after which the node counts as lost;
    the same for the cluster's head. A node that is there but refuses connections, since Ray on it
    has ended, is noticed within about 1.5 s. Less notices an unplugged host sooner; more where the
    network or a host may be away for longer."""
    head_wait_s: PositiveFloat = 5.0
    """Seconds to train on without the head of the Ray cluster, after which the run saves a
    checkpoint and ends. More if the cluster keeps what its head knows in an external store, so
    that it can come back."""
    node_wait_s: NonNegativeFloat = 30.0
    """Seconds to wait for a lost node to come back before going on with fewer replicas
    (`topology.min_replicas`) or ending."""


TRACKERS = ("tensorboard", "wandb", "mlflow", "prometheus")
"""Those that come with tsarch, by their names."""
_OWN_TRACKER = re.compile(r"[\w.]+:\w+")


class TrackingConfig(Section):
    """Who is told what a run does while it does it, besides the files of its folder."""

    trackers: list[str] = Field(default_factory=lambda: ["tensorboard"])
    """`tensorboard`: curves in the run folder. `wandb`: Weights & Biases. `mlflow`: a server of
    MLflow. `prometheus`: gauges among the metrics of the run's Ray cluster
    (`topology.runner: ray`). `MODULE:NAME`: one of your own, of a module that Python finds, also in
    the folder in which the run is started."""
    project: Annotated[str, Field(min_length=1)] = "tsarch"
    """Project of `wandb`, experiment of `mlflow`."""
    mlflow_uri: str | None = None
    """Address of the MLflow server, such as `http://HOST:5000`. Default: that of the environment
    variable `MLFLOW_TRACKING_URI`."""
    wandb_mode: Literal["online", "offline"] | None = None
    """`offline`: write the folder `wandb` in the run folder, for `wandb sync`. Default: as the
    environment variable `WANDB_MODE` says, else `online`."""

    @field_validator("trackers")
    @classmethod
    def _known(cls, trackers: list[str]) -> list[str]:
        for name in trackers:
            if name not in TRACKERS and _OWN_TRACKER.fullmatch(name) is None:
                known = ", ".join(f"`{own}`" for own in TRACKERS)
                raise ValueError(f"`{name}` is none of {known} and no MODULE:NAME of your own")
        if len(set(trackers)) < len(trackers):
            raise ValueError("names a tracker twice")
        return trackers
