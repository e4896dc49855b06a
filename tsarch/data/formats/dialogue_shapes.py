"""Whole dialogues, made into a row for each turn that answers those before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tsarch.data.formats.shapes import Item, Raw, Shape
from tsarch.data.rows import Place, shown

_ANSWERERS = frozenset(
    ("assistant", "gpt", "model", "bot", "chatgpt", "bing", "bard", "chatbot", "agent", "sys", "1")
)
"""Who answers, where roles have names; of turns between a user and a system also the system."""
_WHO = ("role", "from", "speaker", "author", "sender", "user")
_WHAT = ("content", "value", "utterance", "text", "message")
_LISTS = ("dialog", "dialogue", "dialogs", "utterances", "turns", "conversation")


def _objects(value: Any) -> list[Raw] | None:
    """Turns that are objects, also where columns are lists (as `datasets` keeps them)."""
    if isinstance(value, dict) and value and all(isinstance(own, list) for own in value.values()):
        known = [key for key in (*_WHO, *_WHAT) if key in value]
        value = [dict(zip(known, own)) for own in zip(*(value[key] for key in known))]
    if isinstance(value, list) and value and all(isinstance(own, dict) for own in value):
        return value
    return None


def _has(turns: list[Raw] | None, who: Sequence[str], what: Sequence[str]) -> bool:
    if turns is None:
        return False
    return any(key in turns[0] for key in who) and any(key in turns[0] for key in what)


def _is_messages(raw: Raw, names: Mapping[str, str]) -> bool:
    return _has(_objects(raw.get("messages")), ("role",), ("content",))


def _is_sharegpt(raw: Raw, names: Mapping[str, str]) -> bool:
    own = _objects(raw.get("conversations", raw.get("conversation")))
    return _has(own, _WHO, _WHAT)


def _is_turns(raw: Raw, names: Mapping[str, str]) -> bool:
    return _has(_objects(raw.get("turns")), ("speaker",), _WHAT)


def _is_multiwoz(raw: Raw, names: Mapping[str, str]) -> bool:
    log = _objects(raw.get("log"))
    return log is not None and "text" in log[0]


def _is_dialog(raw: Raw, names: Mapping[str, str]) -> bool:
    return names["history"] not in raw and _dialog(raw) is not None


def _dialog(raw: Raw) -> list[Any] | None:
    for name in _LISTS:
        value = raw.get(name)
        if isinstance(value, list) and len(value) > 1 and all(isinstance(t, str) for t in value):
            return value
        if (own := _objects(value)) is not None and any(key in own[0] for key in _WHAT):
            return [next((turn[key] for key in _WHAT if key in turn), None) for turn in own]
    return None


def _messages_rows(item: Item) -> Iterator[tuple[Place, Raw]]:
    yield from _spoken(item, "messages", _ANSWERERS)


def _sharegpt_rows(item: Item) -> Iterator[tuple[Place, Raw]]:
    key = "conversations" if "conversations" in item.raw else "conversation"
    yield from _spoken(item, key, _ANSWERERS)


def _turns_rows(item: Item) -> Iterator[tuple[Place, Raw]]:
    yield from _spoken(item, "turns", _ANSWERERS | {"system"})


def _spoken(item: Item, key: str, answerers: frozenset[str]) -> Iterator[tuple[Place, Raw]]:
    """Rows of turns that say whose they are."""
    turns = _objects(item.raw.get(key))
    if turns is None:
        what = f"has no list of turns in `{key}`. Columns: {shown(', '.join(item.raw))}."
        item.findings.mistake(item.place, what)
        return
    said = []
    for turn in turns:
        who = str(next((turn[name] for name in _WHO if name in turn), "")).lower()
        text = _content(next((turn[name] for name in _WHAT if name in turn), None))
        if text is None:
            item.findings.mistake(item.place, f"has a turn that is no text: {shown(turn)}.")
            return
        said.append((who in answerers, text))
    if item.labelled and not any(answers for answers, _ in said):
        roles = {str(turn.get(name)) for turn in turns for name in _WHO if name in turn}
        what = f"has no turn that answers. Who speaks: {shown(', '.join(sorted(roles)))}."
        item.findings.mistake(item.place, what, f"Answers are those of {_who(answerers)}.")
        return
    yield from _answered(item, said)


def _who(answerers: frozenset[str]) -> str:
    return ", ".join(sorted(answerers))


def _content(value: Any) -> str | None:
    """The text of a turn: a string, or the parts of one; None: something else."""
    if isinstance(value, list):
        given = [own.get("text") if isinstance(own, dict) else own for own in value]
        parts = [own for own in given if isinstance(own, str)]
        return "\n".join(parts) if len(parts) == len(given) else None
    return "" if value is None else value if isinstance(value, str) else None


def _multiwoz_rows(item: Item) -> Iterator[tuple[Place, Raw]]:
    """The user begins, then both take turns."""
    log = _objects(item.raw.get("log")) or []
    texts = [_content(turn.get("text")) for turn in log]
    if not texts or None in texts:
        item.findings.mistake(item.place, "has no list `log` of turns with a `text`.")
        return
    yield from _answered(item, [(bool(n % 2), text or "") for n, text in enumerate(texts)])


def _dialog_rows(item: Item) -> Iterator[tuple[Place, Raw]]:
    """Nobody is the one who answers: every turn but the first does."""
    texts = [_content(turn) for turn in _dialog(item.raw) or []]
    if len(texts) < 2 or None in texts:
        item.findings.mistake(item.place, "has no list of two turns or more.")
        return
    yield from _answered(item, [(True, text or "") for text in texts])


def _answered(item: Item, said: Sequence[tuple[bool, str]]) -> Iterator[tuple[Place, Raw]]:
    """(whether it answers, text) of turns to rows."""
    history: list[str] = []
    for answers, text in said:
        if not text.strip():
            note = "{} turns without a text, such as calls of tools, are left out, the first in {}"
            item.findings.count(note, item.place)
            continue
        if answers and history:
            response = text if item.labelled else None
            yield item.place, item.row(history=list(history), response=response)
        history.append(text)
    if not item.labelled and history and not said[-1][0]:
        yield item.place, item.row(history=history)  # what is asked last


DIALOGUE_SHAPES = (
    Shape("messages", "messages with roles", _is_messages, _messages_rows),
    Shape("sharegpt", "conversations as ShareGPT's", _is_sharegpt, _sharegpt_rows),
    Shape("turns", "dialogues of turns with speakers", _is_turns, _turns_rows),
    Shape("multiwoz", "MultiWOZ's logs", _is_multiwoz, _multiwoz_rows),
    Shape("dialog", "dialogues as lists of turns", _is_dialog, _dialog_rows),
)
