"""The app: what is asked over HTTP, and what is answered. It computes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from tsarch.clock import now_s
from tsarch.serving.access_tokens import AccessTokens
from tsarch.serving.bodies import (
    Health,
    PredictRequest,
    PredictResponse,
    Problem,
    Run,
    check_inputs,
)
from tsarch.serving.engine import Engine, RunInfo, ServiceError
from tsarch.serving.limits import Limits
from tsarch.serving.metrics import Metrics
from tsarch.serving.observing import Guarded, Observed
from tsarch.serving.openapi import with_examples
from tsarch.serving.page import page as try_page

_BEARER = HTTPBearer(auto_error=False, description="A token of the server's.")


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For the document: that these statuses have a `Problem`."""
    return {status: {"model": Problem} for status in statuses}


def make_app(
    engine: Engine,
    tokens: AccessTokens | None = None,
    limits: Limits | None = None,
    metrics: Metrics | None = None,
    hosts: Sequence[str] = ("*",),
    background: Callable[[], Any] | None = None,
) -> FastAPI:
    """The app in front of an engine, which it closes at its end.

    Args:
        tokens: that are accepted; None: everybody may ask.
        metrics: those that the engine tells of itself too.
        hosts: names by which it may be called (header `Host`).
        background: makes a coroutine that runs as long as the app.
    """
    limits, metrics = limits or Limits(), metrics or Metrics()
    app = FastAPI(
        title="tsarch",
        version=version("tsarch"),
        description="Answers of trained pairs of a teacher and a student.",
        docs_url=None,  # its page loads from another host
        redoc_url=None,
        lifespan=_lifespan(engine, background),
    )
    bearer = [Depends(_BEARER)] if tokens else []
    _add_routes(app, engine, limits, metrics, bearer)
    _add_handlers(app)
    app.add_middleware(Guarded, tokens=tokens or AccessTokens(), body_bytes=limits.body_bytes)
    if "*" not in hosts:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    app.add_middleware(Observed, metrics=metrics)
    app.openapi = lambda: _document(app, engine)  # type: ignore[method-assign]
    return app


def _lifespan(engine: Engine, background: Callable[[], Any] | None) -> Any:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        task = None if background is None else asyncio.create_task(background())
        yield
        if task is not None:
            task.cancel()
        await engine.close()

    return lifespan


def _add_routes(
    app: FastAPI, engine: Engine, limits: Limits, metrics: Metrics, bearer: Sequence[Any]
) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        own = try_page()
        return Response(own.body, headers=dict(own.headers))

    @app.get("/health", response_model=Health)
    async def health() -> Response:
        """Whether the server answers, and which version of each run."""
        versions = {own.name: own.version for own in engine.runs()}
        return JSONResponse({"status": "ok", "runs": versions})

    @app.get("/runs", response_model=list[Run], responses=_problems(401), dependencies=bearer)
    async def runs() -> Response:
        """What is served, with inputs to try."""
        return JSONResponse([asdict(own) for own in engine.runs()])

    @app.get("/metrics", response_class=PlainTextResponse, responses=_problems(401),
             dependencies=bearer)  # fmt: skip
    async def counts() -> Response:
        """Counts and times in Prometheus' text format."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.post("/runs/{name}/reload", response_model=Run, responses=_problems(401, 404, 503),
              dependencies=bearer)  # fmt: skip
    async def reload(name: str, request: Request) -> Response:
        """Serve the run's current version from now on; requests on their way are answered by the
        one that they met."""
        request.scope["tsarch"]["run"] = _run(engine, name).name
        return JSONResponse(asdict(await engine.reload(name)))

    _add_predict(app, engine, limits, bearer)


def _add_predict(app: FastAPI, engine: Engine, limits: Limits, bearer: Sequence[Any]) -> None:
    @app.post(
        "/predict",
        response_model=PredictResponse,
        responses=_problems(401, 404, 413, 422, 429, 503, 504),
        dependencies=bearer,
    )
    async def predict(asked: PredictRequest, request: Request) -> Response:
        """Answers to inputs, in their order."""
        started, about = now_s(), request.scope["tsarch"]
        run = _run(engine, asked.run)
        mode = asked.mode or run.default_mode
        about |= {"run": run.name, "mode": mode, "inputs": len(asked.inputs)}
        if mode not in run.modes:
            modes = ", ".join(run.modes)
            raise ServiceError(422, f"{run.name} has no mode {mode}. It has {modes}.")
        check_inputs(asked.inputs, limits)
        try:
            async with asyncio.timeout(limits.request_s):
                found = await engine.predict(run.name, asked.inputs, mode, asked.on_unread)
        except TimeoutError:
            what = f"There was no answer within {limits.request_s:g} s."
            raise ServiceError(504, f"{what} Send less at a time, or try again.", 5) from None
        about |= {"tokens": found.num_tokens, "version": found.version}
        return JSONResponse(
            {
                "run": found.run,
                "version": found.version,
                "mode": found.mode,
                "answers": found.answers,
                "seconds": round(now_s() - started, 6),
            }
        )


def _run(engine: Engine, name: str | None) -> RunInfo:
    """The run that is meant.

    Raises:
        ServiceError: it isn't there (404), or not named where there are several (422).
    """
    runs = engine.runs()
    if name is None and len(runs) == 1:
        return runs[0]
    names = ", ".join(own.name for own in runs)
    if name is None:
        raise ServiceError(422, f'Several runs are served: name one, "run": NAME, of {names}.')
    for own in runs:
        if own.name == name:
            return own
    raise ServiceError(404, f"There is no run of this name. Served: {names}.")


def _add_handlers(app: FastAPI) -> None:
    @app.exception_handler(ServiceError)
    async def refused(request: Request, error: ServiceError) -> Response:
        after = error.retry_after_s
        headers = {} if after is None else {"Retry-After": str(after)}
        return JSONResponse({"detail": error.detail}, error.status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return JSONResponse({"detail": _told(error)}, 422)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        if error.status_code == 400:  # JSON that Python's reader gives up on
            hint = "The body can't be read as JSON in UTF-8."
            return JSONResponse({"detail": hint}, 422)
        what = {
            404: "There is no such path. See /openapi.json for those that there are.",
            405: "This path takes another method. See /openapi.json.",
        }.get(error.status_code, str(error.detail))
        return JSONResponse({"detail": what}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        about = request.scope.get("tsarch", {}).get("id", "")
        what = f"The server failed at this request; its log says why (request {about})."
        return JSONResponse({"detail": what}, 500)


def _told(error: RequestValidationError) -> str:
    """What is wrong with a body, in a sentence or a few."""
    found: dict[str, str] = {}
    for own in error.errors():
        kind, loc = own["type"], [str(part) for part in own["loc"]]
        place = ".".join(loc[1:2])
        if len(loc) > 2 and loc[1] == "inputs" and loc[2].isdecimal():
            place = f"inputs[{loc[2]}]"
            what = "is no text, no list of words, and no row (column → value)"
        elif kind == "json_invalid":
            place, what = "body", f"is no JSON: {own['ctx']['error']}"
        elif kind in ("model_attributes_type", "missing") and not place:
            place, what = "body", "must be a JSON object, sent as Content-Type: application/json"
        else:
            what = str(own["msg"])
            what = what[:1].lower() + what[1:]
        found.setdefault(place, what)
    shown = [f"{place}: {what}." for place, what in list(found.items())[:10]]
    return " ".join(shown).encode("utf-8", "backslashreplace").decode()


def _document(app: FastAPI, engine: Engine) -> dict[str, Any]:
    """The OpenAPI document, with examples of what is served now."""
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    return with_examples(document, engine.runs())
