"""Every request: who may ask, how much they may send, what became of it, and how long it took."""

from __future__ import annotations

import logging
import secrets
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tsarch.clock import now_s
from tsarch.serving.access_tokens import AccessTokens
from tsarch.serving.metrics import Metrics

ACCESS = logging.getLogger("tsarch.serving.access")
PATHS = ("/predict", "/health", "/runs", "/metrics", "/", "/openapi.json")
RELOAD = "/runs/{name}/reload"
OPEN = ("/", "/health")
"""Paths that need no token."""


class Observed:
    """Counts and logs requests, and gives each an id."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["tsarch"] = about = {"id": secrets.token_hex(6)}
        status, started = 500, now_s()

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = about["id"]
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            self._tell(scope, about, status, now_s() - started)

    def _tell(self, scope: Scope, about: dict[str, Any], status: int, seconds: float) -> None:
        path, run = _known(scope["path"]), about.get("run", "")
        self._metrics.requests.labels(path, run, status).inc()
        self._metrics.seconds.labels(path, run).observe(seconds)
        client = scope.get("client")
        details = " ".join(f"{name}={value}" for name, value in about.items())
        ACCESS.info(
            "%s %s %s %d %.1f ms %s",
            client[0] if client else "-",
            scope["method"],
            ascii(scope["path"])[1:-1][:100],
            status,
            1000 * seconds,
            details,
        )


class Guarded:
    """Lets in who has a token, and no more of a body than is allowed."""

    def __init__(self, app: ASGIApp, tokens: AccessTokens, body_bytes: int) -> None:
        self._app = app
        self._tokens = tokens
        self._body_bytes = body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it before its body is read."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        known = scope["path"] in OPEN or not self._tokens
        if not known and not self._tokens.accepts(headers.get("authorization")):
            what = "A token is needed: send the header Authorization: Bearer TOKEN."
            answer = JSONResponse({"detail": what}, 401, {"WWW-Authenticate": "Bearer"})
            await answer(scope, receive, send)
            return
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self._body_bytes:
            answer = JSONResponse({"detail": self._too_large}, 413, {"Connection": "close"})
            await answer(scope, receive, send)
            return
        await self._app(scope, self._counting(receive), send)

    @property
    def _too_large(self) -> str:
        most = f"{self._body_bytes / 2**20:.3g} MiB"
        return f"The body has more than {most}. Split it over several requests."

    def _counting(self, receive: Receive) -> Receive:
        read = 0

        async def receiving() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._body_bytes:
                raise HTTPException(413, self._too_large, {"Connection": "close"})
            return message

        return receiving


def _known(path: str) -> str:
    if path.startswith("/runs/") and path.endswith("/reload"):
        return RELOAD
    return path if path in PATHS else "other"
