"""Texts with entities marked by characters, made into words with tags.

Words and sentences are those of a plain text (`plain_text.py`), as where such are predicted. Where
an entity begins or ends inside a word, the word is cut there, so that entities stay exactly what
they were; one that runs over sentences makes them one. Sentences of a text are a document.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tsarch.data.formats.shapes import Item, Raw
from tsarch.data.plain_text import sentence_bounds, word_bounds
from tsarch.data.rows import Place, check_unicode, shown


@dataclass(frozen=True, order=True)
class Span:
    """An entity: characters [start, stop) of a text."""

    start: int
    stop: int
    label: str
    said: str | None = None
    """What the file says that stands there."""


def sentences(
    item: Item, text: str, spans: Sequence[Span], doc_id: str | None = None
) -> Iterator[tuple[Place, Raw]]:
    """A row for each sentence of a text that has words."""
    if wrong := check_unicode(item.place, text):
        item.findings.mistakes.append(wrong)
        return
    sound = [own for span in spans if (own := _placed(item, text, span)) is not None]
    kept = _apart(item, sorted(set(sound)))
    words = _cut(list(map(tuple, word_bounds(text).tolist())), kept)
    parts = list(_parts(text, words, kept))
    for part in parts:
        tokens = [text[start:stop] for start, stop in part]
        tags = _tags(part, kept) if item.labelled else None
        place = item.place
        if doc_id is not None:  # a text file, whose lines have numbers
            place = replace(place, number=text.count("\n", 0, part[0][0]) + 1)
        document = item.raw.get(item.names["doc_id"], doc_id)
        if document is None and len(parts) > 1:
            document = str(item.place)
        yield place, item.row(tokens=tokens, tags=tags, doc_id=document)


def _placed(item: Item, text: str, span: Span) -> Span | None:
    """An entity without spaces around it, at its place; None: it has none (a mistake)."""
    start, stop = span.start, span.stop
    if span.said is not None and _plain(text[start:stop]) != _plain(span.said):
        start, stop = _from_utf16(text, start), _from_utf16(text, stop)  # as JavaScript counts
    what = f"entity `{shown(span.label)}` at [{span.start}, {span.stop})"
    if not 0 <= start < stop <= len(text):
        item.findings.mistake(item.place, f"{what} is empty or outside the {len(text)} characters.")
        return None
    if span.said is not None and _plain(text[start:stop]) != _plain(span.said):
        there = f"`{shown(text[start:stop])}` stands there, not `{shown(span.said)}`."
        item.findings.mistake(item.place, f"{what}: {there}")
        return None
    own = text[start:stop]
    start, stop = start + len(own) - len(own.lstrip()), stop - len(own) + len(own.rstrip())
    if start >= stop:
        item.findings.mistake(item.place, f"{what} has spaces only.")
        return None
    return Span(start, stop, span.label)


def _plain(text: str) -> str:
    return " ".join(text.split())


def _from_utf16(text: str, units: int) -> int:
    """The character at a place that is counted in UTF-16 units."""
    return len(text.encode("utf-16-le")[: 2 * max(units, 0)].decode("utf-16-le", errors="ignore"))


def _apart(item: Item, spans: Sequence[Span]) -> list[Span]:
    """Entities that don't overlap: of those that do the longest."""
    kept: list[Span] = []
    for span in sorted(spans, key=lambda own: (own.start - own.stop, own.start)):
        if all(span.stop <= own.start or own.stop <= span.start for own in kept):
            kept.append(span)
        else:
            item.findings.count(
                "{} entities overlap longer ones and are left out, the first in {}: a word has "
                "one tag",
                item.place,
            )
    return sorted(kept)


def _cut(words: Sequence[tuple[int, int]], spans: Sequence[Span]) -> list[tuple[int, int]]:
    """Words, cut where an entity begins or ends."""
    borders = sorted({place for span in spans for place in (span.start, span.stop)})
    result, next_border = [], 0
    for start, stop in words:
        while next_border < len(borders) and borders[next_border] <= start:
            next_border += 1
        while next_border < len(borders) and borders[next_border] < stop:
            result.append((start, borders[next_border]))
            start = borders[next_border]
            next_border += 1
        result.append((start, stop))
    return result


def _parts(
    text: str, words: Sequence[tuple[int, int]], spans: Sequence[Span]
) -> Iterator[list[tuple[int, int]]]:
    """The words of each sentence; an entity holds the sentences together that it has a part of."""
    stops = [stop for _, stop in sentence_bounds(text)][:-1]
    cuts = [own for own in stops if not any(s.start < own < s.stop for s in spans)]
    part: list[tuple[int, int]] = []
    for start, stop in words:
        while cuts and cuts[0] <= start:
            cuts.pop(0)
            if part:
                yield part
                part = []
        part.append((start, stop))
    if part:
        yield part


def _tags(words: Sequence[tuple[int, int]], spans: Sequence[Span]) -> list[str]:
    tags = []
    for start, stop in words:
        own = next((s for s in spans if s.start <= start and stop <= s.stop), None)
        tags.append("O" if own is None else f"{'B' if own.start == start else 'I'}-{own.label}")
    return tags
