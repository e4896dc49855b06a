"""Passwords and keys taken out of texts before they are printed or written.

A URL may carry them: `s3://KEY:SECRET@bucket/run`, `https://TOKEN@host`, `?token=…`. Libraries
repeat such URLs in their errors, with and without the protocol.
"""

from __future__ import annotations

import os
import re

HIDDEN = "***"
"""Stands in the place of a secret."""
_IN_URL = re.compile(
    r"(?<=://)(?:"
    r"[^\s/@:'\"]*:[^\s/]{0,500}"  # NAME:PASSWORD
    r"|[^\s/@:'\"]*:(?!\d{1,5}/)[^\s@]{0,500}"  # keys may hold slashes; 80/ is a port
    r"|[^\s/@'\"]+"  # TOKEN
    r")(?=@)"
)
_IN_QUERY = re.compile(
    r"(?<=[?&])([\w.-]*(?:token|secret|password|passwd|signature|credential|key|sig)[\w.-]*=)"
    r"[^\s&#'\"]+",
    re.IGNORECASE,
)
_BARE = re.compile(r"(?<![\w./@:-])[\w.+%-]+:(?!//)[^\s@'\":]{3,}(?=@[\w.-]+)")
_SECRET_VARIABLE = re.compile(
    r"(?:TOKEN|SECRET|PASSWORD|PASSWD|_KEY|ACCESS_KEY_ID|CONNECTION_STRING)$", re.IGNORECASE
)
_LEAST_LENGTH = 8
"""Shorter values of environment variables are words that may stand anywhere."""


def redact_urls(text: str) -> str:
    """`text` with `***` for the credentials in its URLs: for files, which must keep all else."""
    return _IN_QUERY.sub(rf"\g<1>{HIDDEN}", _IN_URL.sub(HIDDEN, text))


def redact(text: str) -> str:
    """For messages: as `redact_urls`, and without the values of environment variables such as
    `HF_TOKEN`, and what is left of a URL without its protocol (`KEY:SECRET@bucket`)."""
    for name, value in os.environ.items():
        if len(value) >= _LEAST_LENGTH and _SECRET_VARIABLE.search(name):
            text = text.replace(value, HIDDEN)
    return _BARE.sub(HIDDEN, redact_urls(text))


def is_redacted(url: str) -> bool:
    """Whether a URL has lost its credentials here."""
    return f"{HIDDEN}@" in url or f"={HIDDEN}" in url
