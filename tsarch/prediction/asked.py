"""A document that the teacher has read, without what is asked about it: its states are kept, and
questions asked of it, or pairs of entities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from tsarch.config import Mode
from tsarch.errors import Mistake, UserError
from tsarch.inputs.rows import Input, Predicted
from tsarch.prediction.context import ReadDocument

if TYPE_CHECKING:
    from tsarch.prediction.trained_pair import TrainedPair

Pair = tuple[Sequence[int], Sequence[int]]
"""Head and tail of a relation: spans of words, whose ends are as in the rows of its data."""
Query = str | Pair
_COLUMNS = {
    "qa": ("context", "question"),
    "ranking": ("passage", "query"),
    "relation": ("tokens", "head", "tail"),
}
"""Of a document, and of what is asked of it."""


class AskedDocument(ReadDocument):
    """A passage of which questions are asked (`qa`), or which may be what queries look for
    (`ranking`), or the words of a document and pairs of its entities (`relation`). Made by
    `TrainedPair.read`."""

    def predict(self, query: Query | Sequence[Query], mode: Mode | None = None) -> Any:
        """Answers to what is asked about the document, without the teacher running again.

        Args:
            query: a question, a query, or the head and the tail of a relation; or several in a
                list.
            mode: who answers. Default: the pair's.

        Returns:
            What `TrainedPair.predict` gives for the document with the query; of several a list.

        Raises:
            UserError: names every query that can't be read, or not whole; or there is no such mode.
        """
        queries = list(query) if isinstance(query, list) else [query]
        if not queries:
            return []
        prepared = self._pair.prepare(_rows(self._pair, self._document, queries))
        split, problems = prepared.split, prepared.inputs.problems
        answers: dict[int, Predicted] = {}
        if split is not None:
            # Many queries have several contexts, all of the one document.
            states = self._states * (split.num_contexts // len(self._states))
            ((answers, problems),) = self._pair.answer([prepared], mode, [states])
        if problems:
            raise UserError(Mistake(f"query {n + 1}", what) for n, what in sorted(problems.items()))
        found = [answers[number] for number in range(len(queries))]
        return found if isinstance(query, list) else found[0]


def alone(pair: TrainedPair, document: Any) -> list[Input]:
    """A row that asks anything of a document, whose contexts are the same whatever is asked."""
    word = (0, 0 if pair.span_ends == "inclusive" else 1)
    return _rows(pair, document, [(word, word) if pair.task == "relation" else "?"])


def asking(pair: TrainedPair, given: Input) -> Input:
    """An input that asks something of its document, which what is `given` need not."""
    if not pair.asks_later:
        return given
    if pair.task != "relation" and isinstance(given, str):
        return alone(pair, given)[0]
    document, *asked = (pair.columns[own] for own in _COLUMNS[pair.task])
    if isinstance(given, Mapping) and document in given and not any(o in given for o in asked):
        (own,) = alone(pair, given[document])
        return {**given, **cast(Mapping[str, Any], own)}
    return given


def _rows(pair: TrainedPair, document: Any, queries: Sequence[Any]) -> list[Input]:
    """Rows that ask of a document."""
    names = pair.columns
    if pair.task != "relation":
        read, asked = _COLUMNS[pair.task]
        return [{names[read]: document, names[asked]: own} for own in queries]
    spans = [_spans(own) for own in queries]
    return [
        {names["tokens"]: document, names["head"]: head, names["tail"]: tail}
        for head, tail in spans
    ]


def _spans(query: Any) -> tuple[list[int], list[int]]:
    """Head and tail of a pair.

    Raises:
        UserError: it is none.
    """
    match query:
        case [[int(), int()] as head, [int(), int()] as tail]:
            return list(head), list(tail)
    hint = "Give the words of head and tail, such as ((0, 2), (5, 6))."
    raise UserError.single(f"query {query!r}", "is no pair of spans of words.", hint)
