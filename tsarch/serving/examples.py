"""Inputs to try a run with, as its task and its columns are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tsarch.config import SpanEnds

_NEWS = (
    "Ada Lovelace met Charles Babbage in London. Years later the Royal Society honoured both of "
    "them, and a museum in Paris shows their letters."
)
_SHORT = "The ship left Rotterdam on Monday and reached New York nine days later."
_PASSAGE = (
    "The bridge was opened in 1937. It spans the strait between the bay and the ocean, and more "
    "than a hundred thousand cars cross it every day."
)
_SENTENCE = ("The", "engine", "drives", "a", "large", "pump", "in", "the", "harbour", ".")

_EXAMPLES: Mapping[str, tuple[Any, ...]] = {
    "ner": (_NEWS, _SHORT, {"tokens": list(_SENTENCE)}),
    "classification": (_SHORT, "We compare three methods on two data sets.", {"text": _PASSAGE}),
    "relation": (
        {"tokens": list(_SENTENCE), "head": [1, 2], "tail": [5, 6]},
        {"tokens": list(_SENTENCE), "head": [5, 6], "tail": [8, 9]},
    ),
    "ranking": (
        {"query": "When was the bridge opened?", "passage": _PASSAGE},
        {"query": "When was the bridge opened?", "passage": _NEWS},
        {"query": "Which engine?", "passage": "The engine drives a large pump."},
    ),
    "multiple_choice": (
        {"question": "a wheel is a part of", "choices": ["a song", "a car", "a river"]},
        {"question": "the opposite of hot is", "choices": ["cold", "wide", "green"]},
    ),
    "qa": (
        {"context": _PASSAGE, "question": "When was the bridge opened?"},
        {"context": _PASSAGE, "question": "Who built the tunnel?"},
        {"context": "Ada sings in Rome.", "question": "Who sings?"},
    ),
    "translation": ({"source": "Where is the station?"}, {"source": "Good morning."}),
    "summarization": ({"document": _PASSAGE}, {"document": _NEWS}, {"document": "It rains."}),
    "dialogue": (
        {"history": ["I'm looking for a place to eat."]},
        {"history": ["Hello!", "Hello, how can I help?", "I need a train to Cambridge."]},
        {"history": ["Hello!"]},
    ),
    "code": (
        {"description": "Return the larger of two numbers.", "start": "def larger(a, b):"},
        {"description": "The full name.", "start": "def name(self):"},
        {"start": "def __len__(self):"},
    ),
}


def examples_of(
    task: str, columns: Mapping[str, str], span_ends: SpanEnds = "exclusive"
) -> tuple[Any, ...]:
    """Inputs of a task.

    Args:
        columns: the task's own name of a column → what the run calls it.
        span_ends: what ends `head` and `tail` in rows of the run.
    """
    last = 1 if span_ends == "inclusive" else 0

    def value(name: str, own: Any) -> Any:
        return [own[0], own[1] - last] if name in ("head", "tail") else own

    return tuple(
        {columns[name]: value(name, own) for name, own in each.items()}
        if isinstance(each, dict)
        else each
        for each in _EXAMPLES[task]
    )
