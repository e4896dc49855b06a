"""The page to try a pair, as one response: parts in `page/`, put together with a strict policy."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent / "page"
_SCRIPTS = (
    "text.js",
    "marks.js",
    "api.js",
    "snippets.js",
    "forms.js",
    "relation.js",
    "answers.js",
    "panels.js",
    "summary.js",
    "page.js",
    "events.js",
)
"""In the order in which they run: together they are one module."""


@dataclass(frozen=True)
class Page:
    """What `GET /` answers."""

    body: bytes
    headers: Mapping[str, str]
    """With the content type."""


@cache
def page() -> Page:
    """The page with its style and script inside; it asks no other host for anything."""
    style = _part("style.css")
    script = "".join(_part(name) for name in _SCRIPTS)
    body = _part("index.html").replace("{{ style }}", style).replace("{{ script }}", script)
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": _policy(style, script),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cache-Control": "no-cache",
    }
    return Page(body.encode(), headers)


def _part(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Nothing but this style, this script and requests to this server; texts never become
    markup."""
    rules = {
        "default-src": "'none'",
        "style-src": _hash(style),
        "script-src": _hash(script),
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
