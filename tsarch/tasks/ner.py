"""Named entities: word-level IOB2 tags, scored by entity with seqeval: strict, and as conlleval."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tsarch.config import DataConfig
from tsarch.data.formats.findings import Findings
from tsarch.data.formats.shapes import Shape
from tsarch.data.formats.span_shapes import NER_SHAPES
from tsarch.data.layouts import Layout, PackingSpec, TaggedWordsLayout
from tsarch.data.names import CLEANED, cleaned
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
from tsarch.tasks.tag_schemes import first_broken, scheme_of, to_iob2
from tsarch.tasks.votes import likeliest

_SCHEMES = {
    "iob2": "IOB2",
    "iob1": "IOB1",
    "bioes": "BIOES",
    "bilou": "BILOU",
    "bmes": "BMES",
    "io": "names of types alone (IO)",
}
_NUMBER = re.compile(r"[-+]?[\d.,]*\d[\d.,]*")


@dataclass(frozen=True, slots=True)
class TaggedSentence:
    """A sentence with an IOB2 tag for each of its words."""

    origin: Origin = field(repr=False)
    words: list[str]
    tags: list[str] | None
    """None: not known."""

    @property
    def num_words(self) -> int:
        """Of the sentence."""
        return len(self.words)

    @property
    def num_labels(self) -> int:
        """A tag for every word."""
        return len(self.tags or ())


class NerColumns(DocumentColumns):
    """Columns of `ner`."""

    tokens: str = "tokens"
    """Column with the words of the sentence (a list of strings)."""
    tags: str = "tags"
    """Column with a tag for every word (strings, or class numbers that the set names)."""


class NerReader:
    """One sentence a row: `tokens`, and an IOB2 tag for each in `tags`."""

    shapes: tuple[Shape, ...] = NER_SHAPES

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
        """Equally many words and tags, tags of whatever scheme (`complete`)."""
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
        return TaggedSentence(origin, words, tags), []

    def complete(
        self, rows: list[TaggedSentence], source: str, findings: Findings
    ) -> list[TaggedSentence]:
        """Words must be words, and tags of one scheme, which becomes IOB2."""
        odd = [] if self._keeps_odd_words else _check_odd_words(rows, source, self._labelled)
        if odd:
            findings.mistakes += odd
            return []
        if not self._labelled:
            return rows
        rows = [_with_clean_tags(row, findings) for row in rows]
        scheme: str = self._tag_scheme
        if scheme == "auto":
            scheme = scheme_of([row.tags or () for row in rows])
        if scheme != "iob2":
            findings.note(f"tags are {_SCHEMES[scheme]}, read as IOB2")
        return [own for row in rows if (own := _with_iob2(row, scheme, findings)) is not None]

    def raw(self, row: TaggedSentence) -> dict[str, Any]:
        """Words and IOB2 tags."""
        return {"tokens": row.words, "tags": row.tags}

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
        from tsarch.tasks.seqeval_import import (
            IOB2,
            accuracy_score,
            f1_score,
            precision_recall_fscore_support,
        )

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


def _with_clean_tags(row: TaggedSentence, findings: Findings) -> TaggedSentence:
    """The row with names of types as they are compared."""
    tags = [sys.intern(_clean_tag(tag)) for tag in row.tags or ()]
    if tags == row.tags:
        return row
    findings.count(CLEANED, row.origin.place)
    return replace(row, tags=tags)


def _clean_tag(tag: str) -> str:
    tag = cleaned(tag)
    return tag[:2] + cleaned(tag[2:]) if tag[1:2] == "-" else tag


def _with_iob2(row: TaggedSentence, scheme: str, findings: Findings) -> TaggedSentence | None:
    """The row with IOB2 tags; None: they aren't of the scheme (a mistake)."""
    tags = row.tags or []
    place = first_broken(tags, scheme)
    if place is None:
        return row if scheme == "iob2" else replace(row, tags=to_iob2(tags, scheme))
    tag, where = shown(tags[place]), row.origin.place.of_word(place)
    if tags[place][:2] in ("B-", "I-", "E-", "L-", "S-", "U-", "M-") and len(tags[place]) > 2:
        pair = f"`{tag}` after `{shown(tags[place - 1]) if place else 'O'}`"
        if place + 1 < len(tags) and scheme in ("bioes", "bilou", "bmes"):
            pair += f" and before `{shown(tags[place + 1])}`"
        what = f"tag {place + 1} is {pair}, which {_SCHEMES[scheme]} doesn't allow."
        hint = "Other schemes: data.tag_scheme."
        if scheme == "iob2":
            hint = "If the file is IOB1, set `data.tag_scheme: iob1`."
        findings.mistake(where, what, hint)
    else:
        findings.mistake(where, f"tag {place + 1} is `{tag}`, not O, B-TYPE or I-TYPE.")
    return None


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


COLUMNS, READER, TASK = NerColumns, NerReader, NerTask
