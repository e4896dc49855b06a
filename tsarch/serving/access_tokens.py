"""Who may ask: tokens from a file or the environment. They are kept as digests alone."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from tsarch.errors import UserError

LOG = logging.getLogger("tsarch.serving")
VARIABLE = "TSARCH_SERVE_TOKEN"
_LEAST_LENGTH = 16


class AccessTokens:
    """Tokens that are accepted; none: nobody is asked for one."""

    def __init__(self, tokens: Iterable[str] = ()) -> None:
        self._digests = [_digest(token) for token in tokens]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accepts(self, authorization: str | None) -> bool:
        """Whether a header `Authorization` has one of the tokens; takes the same time for all."""
        scheme, _, token = (authorization or "").partition(" ")
        digest = _digest(token.strip())
        found = [hmac.compare_digest(digest, own) for own in self._digests]
        return scheme.lower() == "bearer" and any(found)


def read_tokens(file: Path | None) -> AccessTokens:
    """The tokens of a file (one a line, `#` before remarks), and that of `TSARCH_SERVE_TOKEN`.

    Raises:
        UserError: there is none in the file, or one is short.
    """
    tokens = [os.environ[VARIABLE].strip()] if os.environ.get(VARIABLE, "").strip() else []
    where = [VARIABLE] * len(tokens)
    if file is not None:
        lines = _lines(file)
        tokens += lines
        where += [f"{file}, token {number}" for number in range(1, len(lines) + 1)]
    for place, token in zip(where, tokens, strict=True):
        if len(token) < _LEAST_LENGTH or not token.isascii() or not token.isprintable():
            what = f"must have at least {_LEAST_LENGTH} characters, all of ASCII."
            raise UserError.single(place, what, "Make one: openssl rand -hex 32.")
    return AccessTokens(tokens)


def _lines(file: Path) -> list[str]:
    try:
        text, mode = file.read_text(encoding="utf-8"), file.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise UserError.single(str(file), f"can't be read ({type(error).__name__}).") from None
    if os.name == "posix" and mode & (stat.S_IRGRP | stat.S_IROTH):
        LOG.warning("%s may be read by other accounts: chmod 600 %s", file, file)
    lines = [own for line in text.splitlines() if (own := line.strip()) and not own.startswith("#")]
    if not lines:
        hint = "Write one a line; make one: openssl rand -hex 32."
        raise UserError.single(str(file), "has no tokens.", hint)
    return lines


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="replace")).digest()
