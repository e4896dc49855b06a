"""Where the stages run and how they talk: the sections `topology` and `link`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from tsarch.config.base import NonNegativeFloat, PositiveInt, Section


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

    sequence_parallel: PositiveInt = 1
    """Ranks of the teacher stage that share contexts, each with a slice of their tokens, for
    documents that are too long for one device; `replicas` must be a multiple of it, and so must the
    model's attention heads. 1: every rank has contexts of its own."""
    threads: PositiveInt | None = None
    """CPU threads of each rank of the stage. Default: as `topology.threads`."""
    nodes: dict[str, str] = Field(default={})
    """Labels of the nodes of a Ray cluster that the stage's ranks may be placed on, such as
    `{tsarch-stage: teacher}` (`ray start --labels`, and `labels` of a node type in a cluster file),
    or `{ray.io/accelerator-type: H100}`. Default: any node."""

    @model_validator(mode="after")
    def _groups_are_whole(self) -> Self:
        if self.replicas % self.sequence_parallel:
            raise ValueError(
                f"replicas ({self.replicas}) must be a multiple of sequence_parallel "
                f"({self.sequence_parallel}), the ranks that share contexts"
            )
        return self


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
    wait_for_nodes_s: NonNegativeFloat = 900.0
    """Seconds to wait, as a run starts, for nodes that the Ray cluster is still bringing up, if
    the ranks have no room without them."""
    spares: Annotated[int, Field(ge=0, le=16)] = 1
    """Processes a host (with `processes`, and with `ray` where ranks have no GPUs) that have
    imported everything and read the data, and wait to take a failed rank's place. They start after
    the first 10 s of training, and take the memory of their imports. 0: a failed rank's place is
    taken by a process that must import first."""
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
    def _contexts_are_shared(self) -> Self:
        if self.student.sequence_parallel > 1:
            raise ValueError(
                "student.sequence_parallel must be 1: ranks share the contexts of a teacher, and "
                "windows are short"
            )
        if self.teacher.sequence_parallel > 1 and (self.auto or self.min_replicas is not None):
            other = "auto" if self.auto else "min_replicas"
            raise ValueError(
                f"`{other}` changes the number of replicas, which teacher.sequence_parallel needs "
                "in whole groups: leave out one or the other"
            )
        return self

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
