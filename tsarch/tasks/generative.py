"""Tasks that generate a target from a source: what they share in reading, and perplexity."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tsarch.config import Columns, Query, TaskConfig
from tsarch.data.control import Control, read_control
from tsarch.data.layouts import Layout, PackingSpec
from tsarch.data.row_reader import PlainSplits
from tsarch.data.rows import Origin, Place, check_text, check_unicode, check_words, found, from_json
from tsarch.data.source_target import SourceTarget
from tsarch.data.target_layout import SourceTargetLayout
from tsarch.errors import Mistake
from tsarch.records import Array, TokenizedSplit
from tsarch.tasks.answers import GeneratedText
from tsarch.tasks.base import Metrics, References, WindowChoice

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tsarch.losses.objective import Objective
    from tsarch.tasks.collect import Collector


OBEDIENCE = "obedience"


class SourceTargetColumns(Columns):
    """The column that all have."""

    references: str = "references"
    """Column with all targets of a source (a list of strings), where there are several; a generated
    text is compared with each. Absent: the target alone."""
    control: str = "control"
    """Column with what is asked of the target, such as `short` (with `task.control`): a text, or a
    list of words. Absent: nothing, or what the target itself obeys."""


class SourceTargetReader(PlainSplits, ABC):
    """One source and one target a row: the part of a `RowReader` that is the same for all."""

    columns: SourceTargetColumns
    _labelled: bool

    keep_last = False
    """Of a source that is too long the end is kept, not the start."""

    @property
    @abstractmethod
    def source_column(self) -> str:
        """Column of the source."""

    @property
    @abstractmethod
    def label_column(self) -> str:
        """Column of the target."""

    @property
    def needed(self) -> tuple[str, ...]:
        """Source and target."""
        source, target = self.source_column, self.label_column
        return (source, target) if self._labelled else (source,)

    @property
    def optional(self) -> tuple[str, ...]:
        """What is asked of the target, and further references."""
        control, references = self.columns.control, self.columns.references
        return (control, references) if self._labelled else (control,)

    @property
    def word_lists(self) -> tuple[str, ...]:
        """None."""
        return ()

    def read(self, place: Place, raw: dict[str, Any]) -> tuple[SourceTarget | None, list[Mistake]]:
        """Two texts that aren't empty; every row is a context of its own."""
        mistakes = found(*(check_text(place, raw, name) for name in self.needed))
        if mistakes:
            return None, mistakes
        return self.row(place, raw, (raw[self.source_column],))

    def row(
        self, place: Place, raw: dict[str, Any], parts: tuple[str, ...], reads_last: bool = False
    ) -> tuple[SourceTarget | None, list[Mistake]]:
        """The row of a checked source, with its target and further references."""
        target, references = None, ()
        if self._labelled:
            target = raw[self.label_column]
            texts = from_json(raw.get(self.columns.references))
            if texts not in (None, ""):  # tables have cells without anything
                name = self.columns.references
                if mistakes := found(check_words(place, {name: texts}, name)):
                    return None, mistakes
                references = tuple(text for text in texts if text not in (target, ""))
        if mistakes := found(check_unicode(place, *parts, target or "", *references)):
            return None, mistakes
        control, mistakes = read_control(place, raw, self.columns.control)
        if mistakes := mistakes or found(check_unicode(place, control or "")):
            return None, mistakes
        origin = Origin(place, place.name)
        return SourceTarget(origin, parts, target, references, reads_last, control), []

    def raw(self, row: SourceTarget) -> dict[str, Any]:
        """Source, target, further references and control."""
        names = type(self.columns)()
        own: dict[str, Any] = {names.references: list(row.references)} if row.references else {}
        if row.control is not None:
            own[names.control] = row.control
        return {**self.raw_pair(row), **own}

    @abstractmethod
    def raw_pair(self, row: SourceTarget) -> dict[str, Any]:
        """Source and target, under the task's own names of columns."""

    def label_names(self, row: SourceTarget) -> Iterable[tuple[str, str]]:
        """None: whatever the vocabulary spells can be learned."""
        return ()

    def labels(self, names: Iterable[str]) -> tuple[str, ...]:
        """None."""
        return ()

    def nothing_to_learn(self, names: Sequence[str]) -> str:
        """Every row has a target."""
        return ""

    def layout(self, spec: PackingSpec, labels: Sequence[str]) -> Layout[SourceTarget]:
        """A source and a target a row."""
        return SourceTargetLayout(spec, self.keep_last)


class TargetTask(ABC):
    """The part of a `GenerativeTask` that is the same for all."""

    main_metric = "perplexity"
    lower_is_better = True
    full_marks: Mapping[str, float] = {"perplexity": 1.0}
    text_marks: Mapping[str, float]
    window_choice: WindowChoice | None = None
    query: Query = "both"
    choices: tuple[str, ...] = ()

    def __init__(self, labels: Sequence[str], config: TaskConfig | None = None) -> None:
        assert not labels
        asked = None if config is None else config.control
        self._control = None if asked is None else Control(asked)

    @abstractmethod
    def text_metrics(self, hypotheses: Sequence[str], references: References) -> Metrics:
        """Metrics of generated texts against one reference or more each."""

    def measured(self, hypotheses: Sequence[str], rows: Sequence[SourceTarget]) -> Metrics:
        """`text_metrics` against the rows' targets; where texts are controlled, `obedience`: the
        share of those that are asked for something that obey it, 0 to 1."""
        scores = self.text_metrics(hypotheses, [row.targets for row in rows])
        if self._control is not None:
            obeyed = [
                self._control.is_obeyed(row.control, text)
                for row, text in zip(rows, hypotheses, strict=True)
                if row.control is not None
            ]
            if obeyed:
                scores[OBEDIENCE] = sum(obeyed) / len(obeyed)
        return scores

    @property
    def measured_marks(self) -> Mapping[str, float]:
        """Metrics of texts that are the references themselves, and obey."""
        return {**self.text_marks, OBEDIENCE: 1.0}

    @property
    def objective(self) -> Objective:
        """A next token a position."""
        from tsarch.losses.objective import VocabularyObjective

        return VocabularyObjective()

    def collector(self, joint_weights: Sequence[float]) -> Collector:
        """Log-probabilities of the true next tokens."""
        from tsarch.tasks.collect import token_collector

        return token_collector(joint_weights)

    def label_texts(
        self, label_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase
    ) -> list[str]:
        """The tokens."""
        tokens: list[str] = tokenizer.convert_ids_to_tokens(list(label_ids))
        return tokens

    def metrics(self, split: TokenizedSplit, predicted: Array) -> Metrics:
        """Perplexity: exp of the mean negative log-likelihood of the targets' tokens, their ends
        included, each given the source and the true tokens before it."""
        split.check_labels("perplexity")
        return {"perplexity": float(np.exp(-predicted.astype(np.float64).mean()))}

    def perfect(self, split: TokenizedSplit) -> Array:
        """Log-probabilities of what is certain."""
        return np.zeros(split.num_words, dtype=np.float32)

    def missed(self, split: TokenizedSplit, predicted: Array) -> list[int]:
        """None: perplexity is that of all targets together."""
        return []

    def lacks(self, split: TokenizedSplit) -> str:
        """Nothing: every row has a target."""
        return ""

    def as_written(self, text: str) -> str:
        """In one line."""
        return " ".join(text.split())

    def spelled(
        self, tokens: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase
    ) -> list[str]:
        """Texts of tokens, as they are compared with others."""
        texts = tokenizer.batch_decode([list(own) for own in tokens], skip_special_tokens=True)
        return [self.as_written(text) for text in texts]

    def text_answers(
        self,
        tokens: Sequence[Sequence[int]],
        scores: Sequence[float],
        tokenizer: PreTrainedTokenizerBase,
    ) -> list[tuple[GeneratedText]]:
        """A text for every source."""
        own = zip(self.spelled(tokens, tokenizer), scores, strict=True)
        return [(GeneratedText(text, score),) for text, score in own]
