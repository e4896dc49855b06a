"""Exports of annotation tools: doccano, Prodigy, Label Studio. Entities are spans of characters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tsarch.data.formats.shapes import Item, Raw, Shape
from tsarch.data.formats.span_text import Span, sentences
from tsarch.data.rows import Place, shown

_SPAN_KEYS = ("spans", "entities", "label", "labels", "annotations", "ner")
_STARTS = ("start", "start_offset", "begin", "start_char")
_STOPS = ("end", "end_offset", "end_char", "stop")
_LABELS = ("label", "labels", "type", "entity", "entity_type", "tag")


def _text(raw: Raw, names: Mapping[str, str]) -> str | None:
    """The text of a row."""
    for name in (names.get("tokens", ""), names.get("text", ""), "text", "data", "sentence"):
        if isinstance(value := raw.get(name), str):
            return value
    return None


def _spans(raw: Raw) -> list[Any] | None:
    """The spans of a row, whatever their key is called; None: it has none such."""
    keys = [key for key in _SPAN_KEYS if isinstance(raw.get(key), list)]
    keys += [key for key, value in raw.items() if isinstance(value, list) and key not in keys]
    full = [key for key in keys if raw[key] and all(_span(own) is not None for own in raw[key])]
    if full:
        return list(raw[full[0]])
    known = [key for key in _SPAN_KEYS if raw.get(key) == []]
    return [] if known else None


def _span(value: Any) -> Span | None:
    """A span that is a list or an object; None: it is none."""
    match value:
        case [int(start), int(stop), str(label)]:
            return Span(start, stop, label)
        case dict():
            first, last, kind = (_first(value, keys) for keys in (_STARTS, _STOPS, _LABELS))
            if isinstance(kind, list) and len(kind) == 1:
                kind = kind[0]
            said = value.get("text")
            if type(first) is int and type(last) is int and isinstance(kind, str):
                return Span(first, last, kind, said if isinstance(said, str) else None)
    return None


def _first(value: Raw, keys: Sequence[str]) -> Any:
    return next((value[key] for key in keys if key in value), None)


def _is_spans(raw: Raw, names: Mapping[str, str]) -> bool:
    return _text(raw, names) is not None and _spans(raw) is not None


def _is_prodigy(raw: Raw, names: Mapping[str, str]) -> bool:
    marked = "answer" in raw or "_task_hash" in raw or "tokens" in raw
    return isinstance(raw.get("text"), str) and isinstance(raw.get("spans"), list) and marked


def _span_text(item: Item) -> str | None:
    text = _text(item.raw, item.names)
    if text is None:
        item.findings.mistake(item.place, f"has no text. Columns: {shown(', '.join(item.raw))}.")
    return text


def _span_rows(item: Item) -> Iterator[tuple[Place, Raw]]:
    text = _span_text(item)
    if text is None:
        return
    found = _spans(item.raw) if item.labelled else []
    if found is None:
        keys = shown(", ".join(item.raw))
        item.findings.mistake(item.place, f"has no list of entities. Columns: {keys}.")
        return
    yield from sentences(item, text, [own for value in found if (own := _span(value))])


def _prodigy_rows(item: Item) -> Iterator[tuple[Place, Raw]]:
    if item.raw.get("answer", "accept") != "accept":
        note = "{} texts that weren't accepted in Prodigy are left out, the first is {}"
        item.findings.count(note, item.place)
        return
    yield from _span_rows(item)


# ---- Label Studio


def _is_label_studio(raw: Raw, names: Mapping[str, str]) -> bool:
    done = raw.get("annotations", raw.get("completions"))
    return isinstance(raw.get("data"), dict) and isinstance(done, list)


def _task(item: Item) -> tuple[str, list[Raw]] | None:
    """Text and results of a Label Studio task; None: there is nothing to read."""
    texts = {key: own for key, own in item.raw["data"].items() if isinstance(own, str)}
    text = texts.get("text") or next(iter(texts.values()), None)
    if text is None or (len(texts) > 1 and "text" not in texts):
        keys = shown(", ".join(item.raw["data"]))
        item.findings.mistake(item.place, f"has no text of its own in `data` (keys: {keys}).")
        return None
    if not item.labelled:
        return text, []
    given = item.raw.get("annotations", item.raw.get("completions"))
    done = [own for own in given or () if not own.get("was_cancelled")]
    if not done:
        item.findings.count(
            "{} tasks without an annotation are left out, the first is {}", item.place
        )
        return None
    if len(done) > 1:
        item.findings.count(
            "of {} tasks with several annotations the first is read, such as {}", item.place
        )
    return text, [own for own in done[0].get("result", []) if isinstance(own.get("value"), dict)]


def _label_studio_rows(item: Item) -> Iterator[tuple[Place, Raw]]:
    task = _task(item)
    if task is None:
        return
    spans = []
    for result in task[1]:
        value = result["value"]
        if "labels" not in value:
            continue
        if (span := _span({**value, "label": value["labels"]})) is None:
            what = f"has a region that is no entity with one label: {shown(value)}."
            item.findings.mistake(item.place, what)
            continue
        spans.append(span)
    yield from sentences(item, task[0], spans)


def _task_text(item: Item) -> str | None:
    task = _task(item)
    return None if task is None else task[0]


def _choice_rows(item: Item) -> Iterator[tuple[Place, Raw]]:
    task = _task(item)
    if task is None:
        return
    chosen = [name for own in task[1] for name in own["value"].get("choices", [])]
    if item.labelled and len(chosen) != 1:
        what = f"has {len(chosen)} choices ({shown(', '.join(chosen))}); a text has one label."
        item.findings.mistake(item.place, what)
        return
    yield item.place, item.row(text=task[0], label=chosen[0] if chosen else None)


NER_SHAPES = (
    Shape("label_studio", "Label Studio's JSON", _is_label_studio, _label_studio_rows, _task_text),
    Shape("prodigy", "Prodigy's spans", _is_prodigy, _prodigy_rows, _span_text),
    Shape(
        "doccano", "texts with spans of characters, as doccano's", _is_spans, _span_rows, _span_text
    ),
)
CHOICE_SHAPES = (
    Shape("label_studio", "Label Studio's JSON", _is_label_studio, _choice_rows, _task_text),
)
