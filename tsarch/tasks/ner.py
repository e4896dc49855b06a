"""Named entities: word-level IOB2 tags, scored by entity with seqeval: strict, and as conlleval."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tsarch.config import DataConfig
from tsarch.data.formats.findings import Findings
from tsarch.data.layouts import Layout, PackingSpec, TaggedWordsLayout
from tsarch.data.rows import (
    DocumentColumns,
    Origin,
    Place,
    check_unicode,
    check_words,
    found,
    read_origin,
    shown,
)
from tsarch.errors import Mistake
from tsarch.records import FloatArray, IntArray, TokenizedSplit
from tsarch.tasks.answers import Entity
from tsarch.tasks.base import LabelTask, Metrics
from tsarch.tasks.chinese import joined
from tsarch.tasks.votes import likeliest

_NUMBER = re.compile(r"[-+]?[\d.,]*\d[\d.,]*")


@dataclass(frozen=True, slots=True)
class TaggedSentence:
    """A sentence with an IOB2 tag for each of its words."""

    origin: Origin = field(repr=False)
    words: list[str]
    tags: list[str] | None
    """None: not known."""


class NerColumns(DocumentColumns):
    """Columns of `ner`."""

    tokens: str = "tokens"
    """Column with the words of the sentence (a list of strings)."""
    tags: str = "tags"
    """Column with a tag for every word (strings, or class numbers that the set names)."""


class NerReader:
    """One sentence a row: `tokens`, and an IOB2 tag for each in `tags`."""

    def __init__(self, data: DataConfig, labelled: bool = True) -> None:
        self.columns = NerColumns(**data.columns)
        self._labelled = labelled
        self._tag_scheme = data.tag_scheme
        self._keeps_odd_words = data.odd_words == "keep"

    @property
    def needed(self) -> tuple[str, ...]:
        """Words and tags."""
        tokens, tags = self.columns.tokens, self.columns.tags
        return (tokens, tags) if self._labelled else (tokens,)

    @property
    def optional(self) -> tuple[str, ...]:
        """Document and place in it."""
        return self.columns.doc_id, self.columns.sent_id

    @property
    def word_lists(self) -> tuple[str, ...]:
        """All of them."""
        return self.needed

    @property
    def label_column(self) -> str:
        """The tags."""
        return self.columns.tags

    def read(
        self, place: Place, raw: dict[str, Any]
    ) -> tuple[TaggedSentence | None, list[Mistake]]:
        """Equally many words and tags, tags of the IOB2 scheme (or IOB1, converted)."""
        mistakes = found(*(check_words(place, raw, name) for name in self.needed))
        if mistakes:
            return None, mistakes
        # Words come again and again: one text of each is enough.
        words = [sys.intern(word) for word in raw[self.columns.tokens]]
        tags = None
        if self._labelled:
            tags = [sys.intern(tag) for tag in raw[self.columns.tags]]
        origin = read_origin(place, raw, self.columns)
        if mistakes := found(check_unicode(place, origin.doc_id, *words, *(tags or ()))):
            return None, mistakes
        if tags is not None and len(words) != len(tags):
            what = f"has {len(words)} tokens but {len(tags)} tags."
            return None, [Mistake(str(place), what)]
        if not words:
            return None, [Mistake(str(place), "has no tokens.")]
        if tags is None:
            return TaggedSentence(origin, words, None), []
        if self._tag_scheme == "iob1":
            tags = iob1_to_iob2(tags)
        return TaggedSentence(origin, words, tags), _check_tags(place, tags)

    def complete(
        self, rows: list[TaggedSentence], source: str, findings: Findings
    ) -> list[TaggedSentence]:
        """Words must be words."""
        if not self._keeps_odd_words:
            findings.mistakes += _check_odd_words(rows, source, self._labelled)
        return rows

    def label_names(self, row: TaggedSentence) -> Iterable[tuple[str, str]]:
        """Entity types."""
        for word, tag in enumerate(row.tags or ()):
            if tag != "O":
                yield tag[2:], row.origin.place.of_word(word)

    def labels(self, names: Iterable[str]) -> tuple[str, ...]:
        """`O`, then B- and I- of every entity type."""
        return ("O", *(f"{prefix}-{name}" for name in names for prefix in "BI"))

    def nothing_to_learn(self, names: Sequence[str]) -> str:
        """No entity."""
        return "" if names or not self._labelled else "has no entity"

    def layout(self, spec: PackingSpec, labels: Sequence[str]) -> Layout[TaggedSentence]:
        """A label a word."""
        return TaggedWordsLayout(spec, labels)


class NerTask(LabelTask):
    """Entities as tags of words; an entity counts if its type and both its ends are right."""

    main_metric = "f1"
    full_marks: Mapping[str, float] = {"f1": 1.0, "f1_conlleval": 1.0}
    table_metrics: tuple[str, ...] = ("precision", "recall", "f1", "f1_conlleval")

    def metrics(self, split: TokenizedSplit, predicted: IntArray) -> Metrics:
        """Strict entity precision, recall and F1 (micro), F1 by the rules of the script conlleval,
        and accuracy over words.

        Both F1 differ where predicted tags aren't IOB2: an I- tag that no entity of its type comes
        before is no entity to the strict one, and the start of one to conlleval, which is seqeval's
        default and in most published figures.
        """
        split.check_labels("measuring tags")
        from seqeval.metrics import accuracy_score, f1_score
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
            "f1_conlleval": float(f1_score(gold, guess, average="micro", zero_division=0)),
            "accuracy": float(accuracy_score(gold, guess)),
        }

    def lacks(self, split: TokenizedSplit) -> str:
        """Entities."""
        return "" if (split.labels != self.labels.index("O")).any() else "has no entity"

    def answers(self, split: TokenizedSplit, scores: FloatArray) -> list[tuple[Entity, ...]]:
        """The entities of every sentence."""
        tags = self._sentences(split, likeliest(scores))
        best, starts = scores.max(-1), split.sentence_offsets.tolist()
        found = []
        for row, own, start in zip(split.rows, tags, starts):
            found.append(
                tuple(
                    Entity(
                        kind,
                        first,
                        stop,
                        joined(row.words[first:stop]),
                        float(best[start + first : start + stop].mean()),
                    )
                    for kind, first, stop in entities(own)
                )
            )
        return found

    def _sentences(self, split: TokenizedSplit, label_ids: IntArray) -> list[list[str]]:
        tags = [self.labels[i] for i in label_ids.tolist()]
        bounds = split.sentence_offsets.tolist()
        return [tags[start:stop] for start, stop in itertools.pairwise(bounds)]


def entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """(type, first word, stop word) of the entities of IOB2 tags, by seqeval's strict rules: an I-
    tag that doesn't go on with an entity of its type is outside."""
    found: list[tuple[str, int, int]] = []
    is_open = False
    for word, tag in enumerate(tags):
        if tag.startswith("B-"):
            found.append((tag[2:], word, word + 1))
            is_open = True
        elif is_open and tag == f"I-{found[-1][0]}":
            kind, first, _ = found[-1]
            found[-1] = (kind, first, word + 1)
        else:
            is_open = False
    return found


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


def _check_odd_words(rows: Sequence[TaggedSentence], source: str, labelled: bool) -> list[Mistake]:
    """A split whose words are hardly words: mostly another column is meant."""
    hint = "If they are meant, set data.odd_words: keep. If not, say which column has the words: "
    hint += "data.columns.tokens"
    if len(rows) < 2:
        return []
    if all(_NUMBER.fullmatch(word) for row in rows for word in row.words):
        first = " ".join(rows[0].words[:5])
        return [
            Mistake(source, f"has numbers only for words, such as `{shown(first)}`.", f"{hint}.")
        ]
    if labelled and all(len(row.words) == 1 for row in rows):
        what = f"has one word in each of its {len(rows):,} sentences."
        return [Mistake(source, what, f"{hint}, and which the sentence: data.columns.sent_id.")]
    return []


def _check_tags(place: Place, tags: Sequence[str]) -> list[Mistake]:
    previous = "O"
    for word, tag in enumerate(tags):
        if tag != "O" and (tag[:2] not in ("B-", "I-") or len(tag) < 3):
            what = f"tag {word + 1} is `{shown(tag)}`, not O, B-TYPE or I-TYPE."
            return [Mistake(place.of_word(word), what)]
        if tag.startswith("I-") and previous[1:] != tag[1:]:
            pair = f"`{shown(tag)}` after `{shown(previous)}`"
            what = f"tag {word + 1} is {pair}, which IOB2 doesn't allow."
            hint = "If the file is IOB1, set `data.tag_scheme: iob1`."
            return [Mistake(place.of_word(word), what, hint)]
        previous = tag
    return []


COLUMNS, READER, TASK = NerColumns, NerReader, NerTask
