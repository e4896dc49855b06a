"""Tells a running server to read a run's current version."""

from __future__ import annotations

import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from tsarch.errors import UserError, one_line

_TRIES, _PAUSE_S, _TIMEOUT_S = 3, 1.0, 120.0


@dataclass(frozen=True)
class ServedRun:
    """A run behind a server of `tsarch serve`."""

    url: str
    name: str
    """Of the run there."""
    token: str | None = None

    @classmethod
    def of(cls, url: str, name: str, token_file: Path | None) -> ServedRun:
        """Checked.

        Raises:
            UserError: the URL is none of a server, or there is no token in the file.
        """
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise UserError.single(f"--server {url}", "is no http://HOST:PORT.")
        return cls(url.rstrip("/"), name, None if token_file is None else _token(token_file))

    def swap(self) -> str | None:
        """Have the server read the current version; why it hasn't, or None."""
        problem = None
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(_PAUSE_S)
            problem = self._post()
            if problem is None:
                break
        return problem

    def _post(self) -> str | None:
        target = f"{self.url}/runs/{urllib.parse.quote(self.name, safe='')}/reload"
        headers = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        request = urllib.request.Request(target, data=b"", headers=headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S):
                return None
        except urllib.error.HTTPError as error:
            told = error.read(2000).decode("utf-8", "replace")
            return f"{target}: {error.code} {one_line(OSError(told))}"
        except OSError as error:  # URLError among them
            return f"{target}: {one_line(error)}"


def _token(file: Path) -> str:
    """The first token of a file that `tsarch serve --token-file` takes.

    Raises:
        UserError: there is none.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        where = f"--token-file {file}"
        raise UserError.single(where, f"can't be read: {one_line(error)}.") from None
    tokens = [line for line in lines if line and not line.startswith("#")]
    if not tokens:
        raise UserError.single(f"--token-file {file}", "has no token.")
    return tokens[0]
