"""Plain numbers of the parts of a run, as a blueprint has them. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tsarch.architecture import Architecture
from tsarch.config.base import Divergence, HiddenLoss
from tsarch.schedule.plan import Alternation, ScheduleName
from tsarch.topology import Stage


@dataclass(frozen=True)
class OptimizerSpec:
    """Plain numbers of an optimizer; see `OptimizerConfig` for their meaning."""

    name: str
    learning_rate: float
    weight_decay: float
    betas: tuple[float, float]
    epsilon: float
    momentum: float
    clip_norm: float
    head_learning_rate_factor: float = 1.0


@dataclass(frozen=True)
class DraftingSpec:
    """See `DraftingConfig`."""

    layers: Sequence[int] | None
    steps: int
    vocabulary: int

    def taps(self, num_layers: int) -> tuple[int, ...]:
        """Layers of a teacher of so many whose states travel beside its last ones."""
        if self.layers is not None:
            return tuple(sorted(set(self.layers)))
        inside = {num_layers // 2 + 1, num_layers - 3} & set(range(1, num_layers))
        return tuple(sorted(inside))


@dataclass(frozen=True)
class ScorerSpec:
    """See `ScorerConfig`."""

    dimensions: int
    weight: float


@dataclass(frozen=True)
class BridgeSpec:
    """How a stage is fed with another one's hidden states; see `StudentConfig`."""

    stage: Stage
    """The one that feeds it."""
    source: Architecture
    """That stage's."""
    learned_no_teacher: bool
    scale: float
    multiplier: float
    shortcut: bool
    teacher_dropout: float
    alone_weight: float
    fed_weight: float
    fed_share: float | None
    drafting: DraftingSpec | None = None
    """None: it answers."""
    scorer: ScorerSpec | None = None
    """What tells by the states which parts of a text to read; None: nothing."""


@dataclass(frozen=True)
class EngineSpec:
    """What DeepSpeed is to do in a stage's world; without effect in one process."""

    zero_stage: int
    offload_optimizer: bool
    offload_parameters: bool
    deepspeed: Mapping[str, Any]
    """The user's own settings."""


@dataclass(frozen=True)
class ScheduleSpec:
    """Order and number of updates; see `ScheduleConfig`."""

    name: ScheduleName
    alternation: Alternation
    micro_batches: int
    in_flight: int
    epochs: int
    max_steps: int | None


@dataclass(frozen=True)
class BatchSpec:
    """Padded tokens of a batch's contexts, in training and in evaluation."""

    tokens: int
    windows: int | None
    """Of a training batch at most; None: as many as `tokens` have room for."""
    num_buckets: int
    shuffled_contexts: int
    """Contexts of the training split that are shuffled together."""
    evaluation_tokens: int
    context_tokens: int
    """Of a context at most."""
    unpadded: bool
    """Whether models read batches without padding, where that is exact."""
    unlabelled_share: float = 0.0
    """Tokens without labels beside each that `tokens` counts, in training."""

    @property
    def step_tokens(self) -> int:
        """Tokens of a training step, labelled or not."""
        return round(self.tokens * (1 + self.unlabelled_share))


@dataclass(frozen=True)
class DistillationSpec:
    """See `DistillationConfig`."""

    from_run: str | Sequence[str] | None
    weight: float
    temperature: float
    passes: Literal["all", "fed", "alone"]
    divergence: Divergence
    hidden_weight: float
    hidden_loss: HiddenLoss
    hidden_layers: Literal["last", "uniform"] | Sequence[Sequence[int]] = "last"
    relation_weight: float = 0.0
    relations: Sequence[Literal["values", "queries", "keys", "attention"]] = ("values",)
    relation_heads: int | None = None
    match_passes: Literal["all", "fed", "alone"] | None = None

    @property
    def reads_unfed(self) -> bool:
        """Whether some term is for windows that the teacher doesn't feed, so that what it is of
        travels for them too."""
        matches = self.hidden_weight > 0 or self.relation_weight > 0
        return (self.sends_predictions and self.passes != "fed") or (
            matches and (self.match_passes or self.passes) != "fed"
        )

    @property
    def taught_passes(self) -> Literal["all", "fed", "alone"]:
        """Which windows any of the terms is for."""
        matches = self.hidden_weight > 0 or self.relation_weight > 0
        wanted = {self.passes} if self.weight > 0 else set()
        if matches:
            wanted.add(self.match_passes or self.passes)
        return wanted.pop() if len(wanted) == 1 else "all"

    @property
    def pairs_layers(self) -> bool:
        """Whether hidden states of other layers than the last are matched."""
        return self.hidden_weight > 0 and self.hidden_layers != "last"

    @property
    def shows(self) -> bool:
        """Whether more of the teacher's inside travels than its hidden states."""
        return self.relation_weight > 0 or self.pairs_layers

    @property
    def teaching_runs(self) -> tuple[str, ...]:
        """Folders of the runs that teach."""
        named = self.from_run or ()
        return (named,) if isinstance(named, str) else tuple(named)

    @property
    def sends_predictions(self) -> bool:
        """Whether it takes what the teacher of the run says."""
        return self.weight > 0 and self.from_run is None


@dataclass(frozen=True)
class UnlabelledSpec:
    """How text without labels is learned; see `UnlabelledConfig`."""

    is_used: bool
    """Whether there is any."""
    ratio: float
    weight: float
    temperature: float
    min_confidence: float


@dataclass(frozen=True)
class RunnerSpec:
    """Where ranks run, as far as it is the same for all of them; see `TopologyConfig`."""

    name: Literal["local", "processes", "ray"]
    device: Literal["auto", "cpu", "cuda"]
    threads: int | None
    cpus_per_rank: float
    min_replicas: int | None
    spares: int
    timeout_s: float
    wait_for_nodes_s: float
    is_auto: bool
    """Replicas or threads are still to be chosen."""

    @property
    def is_one_process(self) -> bool:
        """Whether both stages share this process, without DeepSpeed."""
        return self.name == "local"


@dataclass(frozen=True)
class OpenSpec:
    """What a measurement is still to choose before ranks start."""

    precision: bool
    attention: bool
    layers: bool = False


@dataclass(frozen=True)
class PredictionSpec:
    """What a stage's model says of a position."""

    width: int
    """Numbers."""
    are_logits: bool
    """Of the whole vocabulary, from a model that has an output of its own, and of the labelled
    positions alone."""
