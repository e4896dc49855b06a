"""Entities beside the right ones: which belong to each other, and what is wrong with those that
differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tsarch.marking.counting import MISSED, NONE, WRONG_ENDS, counted, label_scores
from tsarch.marking.records import Fault, Marks, Span
from tsarch.records import FloatArray, TokenizedSplit
from tsarch.tasks.answers import Entity
from tsarch.tasks.chinese import joined
from tsarch.tasks.votes import likeliest

RIGHT, MISSING, SPURIOUS = "right", "missed", "spurious"
WRONG_TYPE, WRONG_BOUNDARY = "wrong_type", "wrong_boundary"


@dataclass(frozen=True)
class EntityPair:
    """A right entity and the one that was predicted in its place; None: there is none."""

    gold: Entity | None
    said: Entity | None

    @property
    def kind(self) -> str:
        """Right, or what is wrong. Of another type it is `wrong_type`, wherever it ends."""
        if self.gold is None:
            return SPURIOUS
        if self.said is None:
            return MISSING
        if self.gold.type != self.said.type:
            return WRONG_TYPE
        return RIGHT if _bounds(self.gold) == _bounds(self.said) else WRONG_BOUNDARY

    @property
    def span(self) -> Span:
        """The words of what was predicted (of what is missed: of that)."""
        own = self.said or self.gold
        assert own is not None
        return Span(own.first, own.stop, self.kind, self._note)

    @property
    def _note(self) -> str:
        gold, said = self.gold, self.said
        if said is None:
            return f"missed {gold.type if gold else ''}"
        if gold is None:
            return f"{said.type}, is none"
        if self.kind == RIGHT:
            return said.type
        whole = "" if _bounds(gold) == _bounds(said) else f": {gold.text}"
        return f"{said.type}, is {gold.type}{whole}"


def pairs(gold: Sequence[Entity], said: Sequence[Entity]) -> list[EntityPair]:
    """The entities of a sentence, each once, in order: the same ones first, then those over the
    same words, of the same type, and with most words in common belong together."""
    likeliest_first = sorted(
        (_unlikeness(g, s), a, b)
        for a, g in enumerate(gold)
        for b, s in enumerate(said)
        if min(g.stop, s.stop) > max(g.first, s.first)
    )
    partner: dict[int, int] = {}
    taken: set[int] = set()
    for _, a, b in likeliest_first:
        if a not in partner and b not in taken:
            partner[a] = b
            taken.add(b)
    found = [EntityPair(g, said[partner[a]] if a in partner else None) for a, g in enumerate(gold)]
    found += [EntityPair(None, s) for b, s in enumerate(said) if b not in taken]
    return sorted(found, key=lambda own: own.span.start)


def _unlikeness(gold: Entity, said: Entity) -> tuple[bool, bool, int]:
    other_words, other_type = _bounds(gold) != _bounds(said), gold.type != said.type
    return other_words, other_type, max(gold.first, said.first) - min(gold.stop, said.stop)


def _bounds(own: Entity) -> tuple[int, int]:
    return own.first, own.stop


def mark_entities(
    split: TokenizedSplit,
    gold: Sequence[Sequence[Entity]],
    said: Sequence[Sequence[Entity]],
    scores: FloatArray,
) -> Marks:
    """Entities of all rows, from (num_words, labels) probabilities of a mode."""
    rows = [pairs(*own) for own in zip(gold, said, strict=True)]
    best, ids = scores.max(-1), likeliest(scores)  # a mistake's score is that of `answers`
    faults = []
    for number, own in enumerate(rows):
        start = int(split.sentence_offsets[number])
        faults += [_fault(split, number, pair, best[start:]) for pair in own if pair.kind != RIGHT]
    every = [pair for own in rows for pair in own]
    names = Counter(e.type for pair in every for e in (pair.gold, pair.said) if e)
    return Marks(
        sorted(faults, key=lambda own: -own.score),
        sum(pair.kind == RIGHT for pair in every),
        counted(
            [_cell(pair) for pair in every],
            [name for name, _ in names.most_common()],
            (NONE,),
            (WRONG_ENDS, MISSED),
        ),
        label_scores(
            [pair.gold.type for pair in every if pair.gold],
            [pair.said.type for pair in every if pair.said],
            [pair.said.type for pair in every if pair.said and pair.kind == RIGHT],
        ),
        ids,
        (ids == split.labels).astype(float),
    )


def _cell(pair: EntityPair) -> tuple[str, str]:
    gold = pair.gold.type if pair.gold else NONE
    if pair.kind == WRONG_BOUNDARY:
        return gold, WRONG_ENDS
    return gold, pair.said.type if pair.said else MISSED


def _fault(split: TokenizedSplit, number: int, pair: EntityPair, best: FloatArray) -> Fault:
    """`best`: probabilities of the tags of the row's words, and of those behind it."""
    words = split.rows[number].words
    span = pair.span
    score = pair.said.score if pair.said else float(best[span.start : span.stop].mean())
    details = {
        "text": joined(words),
        "words": list(words),
        "gold": _as_json(pair.gold, False),
        "predicted": _as_json(pair.said, True),
    }
    gold, said = (f"{e.type} {e.text}" if e else "none" for e in (pair.gold, pair.said))
    return Fault(number, pair.kind, score, gold, said, (span,), details)


def _as_json(own: Entity | None, with_score: bool) -> dict[str, Any] | None:
    if own is None:
        return None
    return {name: value for name, value in asdict(own).items() if with_score or name != "score"}
