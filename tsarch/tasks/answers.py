"""What tasks answer, decoded from the models' numbers: typed, with scores. No models in here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entity:
    """A named entity of a sentence."""

    type: str
    first: int
    """Its first word, counted from the sentence's first."""
    stop: int
    """The word after its last."""
    text: str
    """Its words, with spaces between them (`chinese.joined`)."""
    score: float
    """Mean probability of its words' tags, 0 to 1."""


@dataclass(frozen=True)
class Label:
    """The label of a text."""

    name: str
    score: float
    """Mean probability of the label over the places that vote, 0 to 1."""
    scores: dict[str, float]
    """The same of every label; their sum is 1."""


@dataclass(frozen=True)
class Relevance(Label):
    """How relevant a passage is to a query; `name` is the likeliest grade."""

    relevance: float
    """The expected grade: a query's passages are ordered by it."""


@dataclass(frozen=True)
class Relation:
    """How the two marked entities of a row are related."""

    name: str
    """As the training data has it, one that means none (`Other`) too."""
    head: str
    """The first entity's words, with spaces between them."""
    tail: str
    """The second's."""
    score: float
    """Probability, 0 to 1."""
    scores: dict[str, float]
    """The same of every relation; their sum is 1."""


@dataclass(frozen=True)
class SpanAnswer:
    """A piece of a passage that answers a question."""

    start: int
    """Its first character in the passage."""
    stop: int
    """The character after its last."""
    text: str
    score: float
    """Log-odds against no answer: above 0, an answer is likelier than none."""


@dataclass(frozen=True)
class NoAnswer:
    """The passage doesn't answer the question."""

    score: float
    """Log-odds of the best span against no answer; −∞ where nothing was read."""


@dataclass(frozen=True)
class GeneratedText:
    """A text made from a source."""

    text: str
    score: float
    """Log-probability of its tokens, divided by their number to the power of
    `decoding.length_penalty`; of several parts their mean."""
    parts: int = 1
    """That the source was read in: their texts stand here one after another."""


Answer = Entity | Label | Relation | SpanAnswer | NoAnswer | GeneratedText
