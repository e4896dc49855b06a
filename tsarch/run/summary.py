"""What a run came to: `summary.json`, typed. The fields are its keys, in their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tsarch.blueprint import StageBlueprint
from tsarch.config import Mode, Monitor
from tsarch.rank.rank_stats import RankStats
from tsarch.tasks.base import Metrics
from tsarch.telling.step_table import Totals
from tsarch.topology import Stage, Topology


@dataclass(frozen=True)
class StageSummary:
    """One stage."""

    model: Any
    """Name or config of the model, or the teacher's layers that it started from."""
    parameters: int
    replicas: int
    zero_stage: int | None
    """None: DeepSpeed had no part in it."""


@dataclass(frozen=True)
class Work:
    """What the steps took, over the whole run."""

    steps: int
    tokens: int
    """Real tokens that both stages trained on."""
    wall_s: float
    """From the start to the end, evaluations included, breaks before a resume left out."""
    train_s: float
    pipeline_s: float
    tokens_per_s: float
    stage_busy_s: dict[str, float]
    """Seconds of work of each stage, averaged over its ranks."""
    stage_busy_share: dict[str, float]
    bubble_fraction: float
    real_share: dict[str, float | None]
    """Real tokens over the positions that each stage's model computed in training."""
    link_bytes_per_step: float
    tied_bytes_per_step: float
    link_s_per_step: float
    link_wait_s_per_step: float
    tied_s_per_step: float
    tied_wait_s_per_step: float

    @classmethod
    def of(cls, totals: Totals, topology: Topology, wall_s: float) -> Work:
        """From the totals of all steps."""
        steps = max(totals.steps, 1)
        return cls(
            steps=totals.steps,
            tokens=totals.tokens,
            wall_s=wall_s,
            train_s=totals.train_s,
            pipeline_s=totals.pipeline_s,
            tokens_per_s=totals.tokens_per_s,
            stage_busy_s={
                s.name: totals.busy_s.get(s.name, 0.0) / topology.replicas(s)
                for s in topology.stages
            },
            stage_busy_share={s.name: totals.busy_share(s, topology) for s in topology.stages},
            bubble_fraction=totals.bubble_fraction(topology),
            real_share={s.name: totals.real_share(s) for s in topology.stages},
            link_bytes_per_step=totals.link_bytes / steps,
            tied_bytes_per_step=totals.tied_bytes / steps,
            link_s_per_step=totals.link_s / steps,
            link_wait_s_per_step=totals.link_wait_s / steps,
            tied_s_per_step=totals.tied_s / steps,
            tied_wait_s_per_step=totals.tied_wait_s / steps,
        )


@dataclass(frozen=True)
class RunSummary:
    """All of `summary.json`."""

    task: str
    schedule: str
    runner: str
    teacher: StageSummary | None
    """None: there is none."""
    student: StageSummary | None
    embedding_parameters: int
    main_metric: str
    lower_is_better: bool
    before: dict[Mode, Metrics] | None
    """Metrics of the test split before training."""
    after: dict[Mode, Metrics]
    """The same with the best weights."""
    validation: dict[Mode, Metrics]
    """Metrics of the validation split with the best weights."""
    best_epoch: int
    """From 1; of equally good ones the last."""
    selected_by: Monitor | None
    """Mode that chose it on validation; None: scores there can't differ, so it is the last."""
    joint_weight: float
    work: Work
    """Its fields are keys of their own."""
    tied_max_abs_diff: float
    peak_memory_bytes: dict[str, int]
    data: dict[str, dict[str, int]]
    """Split → rows, words and labels of the data, and contexts, windows and tokens made of it."""
    num_cut_tokens: dict[str, int]
    """Split → tokens of its rows that are in no context."""
    signatures: dict[str, str]
    """Metric of generated texts → how it is computed on the test split."""
    notes: list[str]
    """Remarks on the data: of what is cut the rows, among others."""
    balance: dict[str, Any] | None
    """What `topology: auto` measured and chose."""
    samples: list[dict[str, str]]
    """Some generated texts."""
    generation: dict[Mode, dict[str, float]]
    """Mode → how the texts of the test split were written, where one process did it."""
    bad_steps: int
    checkpoints: dict[str, Any]
    resumes: int
    restarts: int
    failures: list[dict[str, Any]]
    timings: dict[str, Any]
    """What the seconds of the command went into, see `Timings.as_json`."""

    def as_json(self) -> dict[str, Any]:
        """For `summary.json`."""
        items: list[tuple[str, Any]] = []
        for name, value in asdict(self).items():
            items += value.items() if name == "work" else [(name, value)]
        return dict(items)


def stage_summary(
    own: StageBlueprint, topology: Topology, is_one_process: bool, stats: Sequence[RankStats]
) -> StageSummary:
    """A stage, from what its ranks know."""
    return StageSummary(
        model=own.architecture.name,
        parameters=stats[0].stage_parameters[own.stage.name],
        replicas=topology.replicas(own.stage),
        zero_stage=None if is_one_process else own.engine.zero_stage,
    )


def peak_memory_bytes(stats: Mapping[Stage, Sequence[RankStats]]) -> dict[str, int]:
    """Of the rank of each stage that took most."""
    return {stage.name: max(s.peak_memory_bytes for s in own) for stage, own in stats.items()}


def tied_max_abs_diff(stats: Mapping[Stage, Sequence[RankStats]]) -> float:
    """Largest difference between any two replicas of the table."""
    return max(s.tied_max_abs_diff for own in stats.values() for s in own)
