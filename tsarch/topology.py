"""Who is who: rank numbers, stages and the pairs that the link connects. Pure, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tsarch.config import StageTopology, TopologyConfig


class Stage(StrEnum):
    """One of the two pipeline stages."""

    TEACHER = "teacher"
    STUDENT = "student"

    @property
    def other(self) -> Stage:
        """The stage at the other end of the link."""
        return Stage.STUDENT if self is Stage.TEACHER else Stage.TEACHER


STAGES = (Stage.TEACHER, Stage.STUDENT)


@dataclass(frozen=True)
class Topology:
    """Replica counts of the two stages; teacher ranks come first in the global numbering."""

    teacher_replicas: int
    student_replicas: int

    @classmethod
    def from_config(cls, topology: TopologyConfig) -> Topology:
        """One replica of each stage for the local runner, the config's counts on Ray."""
        if topology.runner == "local":
            return cls(1, 1)
        return cls(topology.teacher.replicas, topology.student.replicas)

    @property
    def num_ranks(self) -> int:
        """Ranks of both stages."""
        return self.teacher_replicas + self.student_replicas

    def replicas(self, stage: Stage) -> int:
        """Number of ranks of `stage`."""
        return self.teacher_replicas if stage is Stage.TEACHER else self.student_replicas

    def rank(self, stage: Stage, stage_rank: int) -> int:
        """Global rank of the `stage_rank`-th replica of `stage`."""
        assert 0 <= stage_rank < self.replicas(stage)
        return stage_rank + (0 if stage is Stage.TEACHER else self.teacher_replicas)

    def place(self, rank: int) -> tuple[Stage, int]:
        """(stage, stage_rank) of a global rank; the inverse of `rank`."""
        assert 0 <= rank < self.num_ranks
        if rank < self.teacher_replicas:
            return Stage.TEACHER, rank
        return Stage.STUDENT, rank - self.teacher_replicas

    def label(self, rank: int) -> str:
        """Name of a rank in messages, such as `student 1 (rank 3)`."""
        stage, stage_rank = self.place(rank)
        return f"{stage} {stage_rank} (rank {rank})"


def stage_topology(topology: TopologyConfig, stage: Stage) -> StageTopology:
    """The config's part on one stage."""
    return topology.teacher if stage is Stage.TEACHER else topology.student


def rank_cpus(topology: TopologyConfig, stage: Stage) -> float:
    """CPUs to reserve for a rank of `stage`."""
    return topology.cpus_per_rank * (stage_topology(topology, stage).threads or 1)


def total_cpus(topology: TopologyConfig) -> float:
    """CPUs to reserve for all ranks of both stages."""
    return sum(
        stage_topology(topology, stage).replicas * rank_cpus(topology, stage) for stage in STAGES
    )
