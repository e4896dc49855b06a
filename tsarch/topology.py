"""Who is who: stages, who feeds whom, their ranks. Pure, no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

from tsarch.config import MODES, Mode

Reads = Literal["contexts", "windows"]
READS: tuple[Reads, ...] = ("contexts", "windows")


class Stage:
    """A pipeline stage: a model with ranks of its own. There is one object of each.

    What a stage does follows from what it reads, never from its name: `contexts` (a teacher), or
    `windows` of them (a student), fed by those that read contexts.
    """

    TEACHER: ClassVar[Stage]
    STUDENT: ClassVar[Stage]

    def __init__(self, name: str, reads: Reads) -> None:
        """Use `make_stage`, which gives each stage one object."""
        self.name = name
        self.reads = reads

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def __lt__(self, other: Stage) -> bool:
        return (self.reads, self.name) < (other.reads, other.name)

    def __reduce__(self) -> tuple[Any, ...]:
        return make_stage, (self.name, self.reads)

    @property
    def value(self) -> str:
        """The name, as files have it."""
        return self.name


@cache
def make_stage(name: str, reads: Reads) -> Stage:
    """The one stage of a name."""
    return Stage(name, reads)


Stage.TEACHER = make_stage("teacher", "contexts")
Stage.STUDENT = make_stage("student", "windows")
STAGES = (Stage.TEACHER, Stage.STUDENT)
"""Those that a config can have."""


def stage_named(name: str) -> Stage:
    """The stage of a config that has this name."""
    return next(stage for stage in STAGES if stage.name == name)


@dataclass(frozen=True)
class Graph:
    """Stages, and edges from those that send hidden states to those that take them."""

    stages: tuple[Stage, ...]
    """In the order of the updates of the schedule `sequential`, and of global ranks."""
    edges: tuple[tuple[Stage, Stage], ...] = ()

    @classmethod
    def of(cls, stages: Iterable[Stage]) -> Graph:
        """Every stage that reads contexts feeds all that read windows."""
        own = tuple(stages)
        edges = [(a, b) for a in own for b in own if (a.reads, b.reads) == ("contexts", "windows")]
        return cls(own, tuple(edges))

    def sources(self, stage: Stage) -> tuple[Stage, ...]:
        """Stages that feed `stage`."""
        return tuple(a for a, b in self.edges if b is stage)

    def targets(self, stage: Stage) -> tuple[Stage, ...]:
        """Stages that `stage` feeds."""
        return tuple(b for a, b in self.edges if a is stage)

    def depth(self, stage: Stage) -> int:
        """Edges on the longest way to `stage`: how many batches it is behind in `overlapped`."""
        return max((self.depth(source) + 1 for source in self.sources(stage)), default=0)

    @property
    def modes(self) -> tuple[Mode, ...]:
        """Prediction modes that these stages have."""
        if self.edges:
            return MODES
        return ("teacher",) if self.reading("contexts") else ("student_alone",)

    def reading(self, reads: Reads) -> tuple[Stage, ...]:
        """Stages that read contexts, or windows."""
        return tuple(stage for stage in self.stages if stage.reads == reads)


PAIR = Graph.of(STAGES)


@dataclass(frozen=True)
class Topology:
    """A graph with replica counts; ranks are numbered through all stages, in the graph's order."""

    graph: Graph
    counts: tuple[int, ...]
    """Replicas of each stage."""
    sequence_parallel: tuple[int, ...] = ()
    """Replicas of each stage that share contexts, each with a slice of their tokens: neighbours,
    which together are a group. Where nothing is said, each replica has contexts of its own."""

    def __post_init__(self) -> None:
        """Say it of every stage."""
        if not self.sequence_parallel:
            object.__setattr__(self, "sequence_parallel", (1,) * len(self.counts))

    @classmethod
    def pair(cls, teacher: int, student: int, sequence_parallel: int = 1) -> Topology:
        """A teacher and a student of so many replicas; `sequence_parallel`: of the teacher's."""
        return cls(PAIR, (teacher, student), (sequence_parallel, 1))

    @classmethod
    def alone(cls, stage: Stage, replicas: int = 1) -> Topology:
        """One stage by itself."""
        return cls(Graph.of([stage]), (replicas,))

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages, in the order of their ranks."""
        return self.graph.stages

    @property
    def num_ranks(self) -> int:
        """Ranks of all stages."""
        return sum(self.counts)

    def replicas(self, stage: Stage) -> int:
        """Number of ranks of `stage`; 0 if there is no such stage."""
        return dict(zip(self.stages, self.counts, strict=True)).get(stage, 0)

    def num_slices(self, stage: Stage) -> int:
        """Slices that the contexts of a group of `stage` are cut into, one a replica; 1: each
        replica has whole contexts."""
        return dict(zip(self.stages, self.sequence_parallel, strict=True)).get(stage, 1)

    def num_groups(self, stage: Stage) -> int:
        """Groups of replicas of `stage` that share contexts."""
        number, left = divmod(self.replicas(stage), self.num_slices(stage))
        assert left == 0
        return number

    def rank(self, stage: Stage, stage_rank: int) -> int:
        """Global rank of the `stage_rank`-th replica of `stage`."""
        assert 0 <= stage_rank < self.replicas(stage)
        return sum(self.counts[: self.stages.index(stage)]) + stage_rank

    def place(self, rank: int) -> tuple[Stage, int]:
        """(stage, stage_rank) of a global rank; the inverse of `rank`."""
        assert 0 <= rank < self.num_ranks
        for stage, count in zip(self.stages, self.counts, strict=True):
            if rank < count:
                return stage, rank
            rank -= count
        raise AssertionError("no such rank")

    def label(self, rank: int) -> str:
        """Name of a rank in messages, such as `student 1 (rank 3)`."""
        stage, stage_rank = self.place(rank)
        return f"{stage} {stage_rank} (rank {rank})"

    def named(self, name: str) -> Stage:
        """The stage of a name."""
        return next(stage for stage in self.stages if stage.name == name)
