"""What a task is to the rest: labels in, losses and metrics out.

Tasks' files import no torch before they compute, since the config looks at their columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeGuard

from tsarch.config import Query, TaskConfig
from tsarch.records import Array, FloatArray, Predictions, TokenizedSplit, Windows
from tsarch.tasks.answers import Answer, GeneratedText
from tsarch.tasks.votes import likeliest
from tsarch.topology import READS, Reads

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tsarch.data.source_target import SourceTarget
    from tsarch.losses.objective import Objective
    from tsarch.tasks.collect import Collector

Metrics = dict[str, float]
References = Sequence[Sequence[str]]
"""One reference or more for each text."""


class WindowChoice(Protocol):
    """Chooses the windows that the student reads while evaluating, by what the teacher says."""

    def windows(
        self, split: TokenizedSplit, teacher: Array, max_tokens: int, count: int
    ) -> Windows:
        """Windows of at most `max_tokens` for (num_words, outputs) of the teacher; `count`:
        `evaluation.windows`."""

    def tiles(self, split: TokenizedSplit, max_tokens: int) -> Windows:
        """Windows of at most `max_tokens` that have every word once, where no teacher chooses."""

    def likely(
        self, split: TokenizedSplit, scores: FloatArray, max_tokens: int, count: int
    ) -> Windows:
        """Windows of at most `max_tokens` where (num_words, 1) scores of a `SliceScorer` are
        highest; `count`: `evaluation.windows`."""

    def inside(self, num_words: int, predictions: Sequence[Predictions]) -> Predictions:
        """The student's predictions for all words from those for words in windows."""

    def complete(
        self,
        teacher: FloatArray,
        predictions: Sequence[Predictions],
        joint_weights: Sequence[float],
    ) -> Predictions:
        """Predictions for all words from those for words in windows."""


class Task(Protocol):
    """A task over labelled words."""

    main_metric: str
    """Metric that decides which weights are best."""
    full_marks: Mapping[str, float]
    """Metrics of what is right everywhere."""
    lower_is_better: bool
    """Whether the best `main_metric` is the lowest."""
    table_metrics: tuple[str, ...]
    """Metrics that the final table shows, of those that were measured."""
    window_choice: WindowChoice | None
    """None: the student reads the split's own windows."""
    query: Query
    """Who reads what is asked; `student`: the teacher says nothing of it."""
    choices: tuple[str, ...]
    """What was chosen by the labels and can be set, for the user."""

    @property
    def objective(self) -> Objective:
        """Heads and losses."""

    def collector(self, joint_weights: Sequence[float]) -> Collector:
        """Takes predictions while the pipeline runs; `joint` is wanted for all of the weights."""

    def metrics(self, split: TokenizedSplit, predicted: Array) -> Metrics:
        """Metrics of (num_words, …) of what the collector kept for a mode."""

    def perfect(self, split: TokenizedSplit) -> Array:
        """(num_words, …) what the collector would keep of a model that is always right."""

    def missed(self, split: TokenizedSplit, predicted: Array) -> list[int]:
        """Rows with less than full marks, of tasks whose rows are marked one by one."""

    def lacks(self, split: TokenizedSplit) -> str:
        """What a split doesn't have that its scores need to mean something, in words behind "the
        split"; empty: nothing."""

    def label_texts(
        self, label_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase
    ) -> list[str]:
        """What label ids of a split mean, for people."""


class AnsweringTask(Task, Protocol):
    """A task whose answers are decoded from scores of words."""

    def score_collector(self, joint_weight: float) -> Collector:
        """As `Task.collector`, but keeps for each word what `answers` reads: (num_words, labels)
        probabilities, of a `qa` (num_words, 2) logits of start and end, −∞ where a mode has not
        read (`WindowChoice.complete`). `joint` has one row: for this weight of the teacher."""

    def decided(self, scores: FloatArray) -> Array:
        """What `metrics` reads, from what `score_collector` keeps."""

    def answers(self, split: TokenizedSplit, scores: FloatArray) -> list[tuple[Answer, ...]]:
        """Answers to every row of `split.rows`, from the (num_words, …) scores of one mode:
        entities in order, none or many; of all other tasks one answer a row.

        `Task.metrics` decides by the same code. Rows needn't have labels.
        """


class GenerativeTask(Task, Protocol):
    """A task whose targets are texts."""

    text_marks: Mapping[str, float]
    """Metrics of texts that are the references themselves."""

    def text_signatures(self, hypotheses: Sequence[str], references: References) -> dict[str, str]:
        """Metric → how it is computed, so that others can compare: tokenizer, version."""

    def text_metrics(self, hypotheses: Sequence[str], references: References) -> Metrics:
        """Metrics of generated texts against one reference or more each."""

    def measured(self, hypotheses: Sequence[str], rows: Sequence[SourceTarget]) -> Metrics:
        """The same against the targets of rows, and whether texts are as their rows ask."""

    @property
    def measured_marks(self) -> Mapping[str, float]:
        """`text_marks` of all of these."""

    def as_written(self, text: str) -> str:
        """A text as it is compared with others, without what makes no difference."""

    def spelled(
        self, tokens: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase
    ) -> list[str]:
        """The texts that tokens spell, as written."""

    def text_answers(
        self,
        tokens: Sequence[Sequence[int]],
        scores: Sequence[float],
        tokenizer: PreTrainedTokenizerBase,
    ) -> list[tuple[GeneratedText]]:
        """The texts that generated tokens spell, with the scores of `Decoder.best_score`."""


def is_answering(task: Task) -> TypeGuard[AnsweringTask]:
    """Whether the answers of a task are decoded from scores of words.

    Asks the class, not the task: `isinstance` of a protocol computes properties, and `objective`
    imports torch.
    """
    return hasattr(type(task), "answers")


def is_writing(task: Task) -> TypeGuard[GenerativeTask]:
    """Whether the targets of a task are texts; asks as `is_answering` does."""
    return hasattr(type(task), "text_answers")


def objective_of(task: Task, reads: Reads) -> Objective:
    """Heads and losses of a model that reads contexts, or windows."""
    if reads == "windows" or task.query == "both":
        return task.objective
    from tsarch.losses.asked import AskedSpanObjective

    return AskedSpanObjective()


def num_outputs(task: Task, num_labels: int) -> dict[Reads, int | None]:
    """Numbers that heads put out a position, see `Objective.num_outputs`."""
    return {reads: objective_of(task, reads).num_outputs(num_labels) for reads in READS}


class LabelTask:
    """The part of a `Task` that is the same for all with a label a word or a row."""

    lower_is_better = False
    window_choice: WindowChoice | None = None
    query: Query = "both"
    choices: tuple[str, ...] = ()

    def __init__(self, labels: Sequence[str], config: TaskConfig | None = None) -> None:
        self.labels = tuple(labels)

    @property
    def objective(self) -> Objective:
        """A label a position."""
        from tsarch.losses.objective import LabelObjective

        return LabelObjective()

    def label_texts(
        self, label_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase
    ) -> list[str]:
        """The labels' names."""
        return [self.labels[label] for label in label_ids]

    def collector(self, joint_weights: Sequence[float]) -> Collector:
        """Label ids."""
        from tsarch.tasks.collect import label_collector

        return label_collector(joint_weights)

    def perfect(self, split: TokenizedSplit) -> Array:
        """The labels."""
        return split.labels

    def missed(self, split: TokenizedSplit, predicted: Array) -> list[int]:
        """None: entities, votes and relations are marked together."""
        return []

    def score_collector(self, joint_weight: float) -> Collector:
        """(num_words, labels) probabilities."""
        from tsarch.tasks.collect import probability_collector

        return probability_collector(joint_weight)

    def decided(self, scores: FloatArray) -> Array:
        """The likeliest labels."""
        return likeliest(scores)
