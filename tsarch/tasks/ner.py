"""Named entities: word-level IOB2 tags, scored by entity with seqeval in strict mode."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from tsarch.config import ColumnsConfig, DataConfig
from tsarch.data.rows import Layout, Place, Row, RowOrMistakes, check_words, found, make_row, shown
from tsarch.errors import Mistake
from tsarch.records import IntArray, TokenizedSplit
from tsarch.tasks.base import LabelTask, Metrics


class NerRows:
    """One sentence a row: `tokens`, and an IOB2 tag for each in `tags`."""

    layout: Layout = "words"

    def needed(self, columns: ColumnsConfig) -> tuple[str, ...]:
        """Words and tags."""
        return columns.tokens, columns.tags

    def word_lists(self, columns: ColumnsConfig) -> tuple[str, ...]:
        """Both."""
        return self.needed(columns)

    def label_column(self, columns: ColumnsConfig) -> str:
        """The tags."""
        return columns.tags

    def read(self, place: Place, raw: dict[str, Any], data: DataConfig) -> RowOrMistakes:
        """Equally many words and tags, tags of the IOB2 scheme (or IOB1, converted)."""
        columns = data.columns
        mistakes = found(*(check_words(place, raw, name) for name in self.needed(columns)))
        if mistakes:
            return None, mistakes
        tokens, tags = raw[columns.tokens], raw[columns.tags]
        row, mistakes = make_row(place, raw, columns, tokens, tags)
        if row is None:
            return None, mistakes
        if len(tokens) != len(tags):
            what = f"has {len(tokens)} tokens but {len(tags)} tags."
            return None, [Mistake(str(place), what)]
        if not tokens:
            return None, [Mistake(str(place), "has no tokens.")]
        if data.tag_scheme == "iob1":
            row = replace(row, tags=iob1_to_iob2(tags))
        return row, _check_tags(row)

    def label_names(self, row: Row) -> Iterable[tuple[str, str]]:
        """Entity types."""
        for word, tag in enumerate(row.tags):
            if tag != "O":
                yield tag[2:], row.place.of_word(word)

    def labels(self, names: Iterable[str]) -> tuple[str, ...]:
        """`O`, then B- and I- of every entity type."""
        return ("O", *(f"{prefix}-{name}" for name in names for prefix in "BI"))


class NerTask(LabelTask):
    """Entities as tags of words; an entity counts if its type and both its ends are right."""

    main_metric = "f1"
    table_metrics: tuple[str, ...] = ("precision", "recall", "f1")

    def metrics(self, split: TokenizedSplit, predicted: IntArray) -> Metrics:
        """Strict entity precision, recall and F1 (micro), and accuracy over words."""
        from seqeval.metrics import accuracy_score
        from seqeval.metrics.v1 import precision_recall_fscore_support  # seqeval's strict mode
        from seqeval.scheme import IOB2

        gold, guess = self._sentences(split, split.labels), self._sentences(split, predicted)
        precision, recall, f1, _ = precision_recall_fscore_support(
            gold, guess, average="micro", scheme=IOB2, zero_division=0
        )
        return {
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
            "accuracy": float(accuracy_score(gold, guess)),
        }

    def _sentences(self, split: TokenizedSplit, label_ids: IntArray) -> list[list[str]]:
        tags = [self.labels[i] for i in label_ids.tolist()]
        bounds = split.sentence_offsets.tolist()
        return [tags[start:stop] for start, stop in itertools.pairwise(bounds)]


def iob1_to_iob2(tags: Sequence[str]) -> list[str]:
    """IOB1 (B- only between touching entities of a type) to IOB2 (B- at every start)."""
    result = []
    previous = "O"
    for tag in tags:
        if tag.startswith("I-") and previous[1:] != tag[1:]:
            result.append("B" + tag[1:])
        else:
            result.append(tag)
        previous = tag
    return result


def _check_tags(row: Row) -> list[Mistake]:
    previous = "O"
    for word, tag in enumerate(row.tags):
        if tag != "O" and (tag[:2] not in ("B-", "I-") or len(tag) < 3):
            what = f"tag {word + 1} is `{shown(tag)}`, not O, B-TYPE or I-TYPE."
            return [Mistake(row.place.of_word(word), what)]
        if tag.startswith("I-") and previous[1:] != tag[1:]:
            pair = f"`{shown(tag)}` after `{shown(previous)}`"
            what = f"tag {word + 1} is {pair}, which IOB2 doesn't allow."
            hint = "If the file is IOB1, set `data.tag_scheme: iob1`."
            return [Mistake(row.place.of_word(word), what, hint)]
        previous = tag
    return []


ROWS, TASK = NerRows, NerTask
