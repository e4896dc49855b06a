"""One version of a run that is served, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from typing import Any, cast

from tsarch.config import Mode
from tsarch.errors import UserError
from tsarch.inputs.rows import Input, Predicted
from tsarch.prediction.batch import as_json
from tsarch.prediction.prepared import Prepared
from tsarch.prediction.trained_pair import TrainedPair
from tsarch.prediction.unread import OnUnread
from tsarch.serving.batcher import Batcher, Batching
from tsarch.serving.engine import Answered, RunInfo, ServiceError
from tsarch.serving.examples import examples_of
from tsarch.serving.metrics import Metrics
from tsarch.serving.usage import Usage

_MOST_PROBLEMS = 10
"""Inputs that are named."""
Results = tuple[dict[int, Predicted], dict[int, str]]


def info_of(run: str, version: str, pair: TrainedPair) -> RunInfo:
    """What is told of a run."""
    return RunInfo(
        run,
        pair.task,
        pair.labels,
        pair.modes,
        pair.default_mode,
        version,
        _examples(pair),
        pair.columns,
        pair.span_ends,
    )


class ServedPair:
    """A pair, its queue, and how many requests it still has to answer."""

    def __init__(
        self, run: str, version: str, pair: TrainedPair, batching: Batching, metrics: Metrics
    ) -> None:
        self.pair = pair
        self.info = info_of(run, version, pair)
        self._metrics = metrics
        self.batcher = Batcher[Prepared, Results](self._compute, batching, self._tell)
        self.usage = Usage()

    async def drained(self) -> None:
        """Wait for the requests that are at work here, then end the thread."""
        await self.usage.unused()
        await self.batcher.close()

    async def predict(
        self, inputs: Sequence[Input], mode: Mode, on_unread: OnUnread = "error"
    ) -> Answered:
        """Answers to inputs; `ServiceError`: see `Engine.predict`."""
        check_unread(self.pair, on_unread)
        with self.batcher.room.reserved_for(inputs):
            prepared = await asyncio.to_thread(self.pair.prepare, inputs)
        check_problems(prepared.inputs.problems)
        answers: dict[int, Predicted] = {}
        if prepared.split is not None:
            way = mode, on_unread
            try:
                answers, problems = await self.batcher.submit(way, prepared, prepared.num_tokens)
            except UserError as error:  # of what is kept here, such as a damaged store
                raise ServiceError(500, f"The server can't answer: {error}") from None
            check_problems(problems)
        found = [as_json(answers[number]) for number in range(len(inputs))]
        return Answered(self.info.name, self.info.version, mode, found, prepared.num_tokens)

    def _compute(self, way: Hashable, prepared: Sequence[Prepared]) -> Sequence[Results]:
        mode, on_unread = cast(tuple[Mode, OnUnread], way)
        return self.pair.answer(prepared, mode, on_unread=on_unread)

    def _tell(self, requests: int, tokens: int, seconds: float) -> None:
        run = self.info.name
        self._metrics.batch_requests.labels(run).observe(requests)
        self._metrics.batch_tokens.labels(run).observe(tokens)
        self._metrics.batch_seconds.labels(run).observe(seconds)


def _examples(pair: TrainedPair) -> tuple[Any, ...]:
    """Those that are read whole."""
    found = []
    for own in examples_of(pair.task, pair.columns, pair.span_ends):
        prepared = pair.prepare([own])
        if prepared.split is not None and not prepared.split.cuts:
            found.append(own)
    return tuple(found)


def check_unread(pair: TrainedPair, on_unread: OnUnread) -> None:
    """Raises `ServiceError` if this can't be done about what isn't read."""
    try:
        pair.check_unread(on_unread)
    except UserError as error:
        raise ServiceError(422, str(error)) from None


def check_problems(problems: dict[int, str]) -> None:
    """Raises `ServiceError` if inputs can't be read, and names them."""
    if problems:
        told = [f"inputs[{n}]: {what}" for n, what in sorted(problems.items())]
        if len(told) > _MOST_PROBLEMS:
            told = [*told[:_MOST_PROBLEMS], f"… and {len(told) - _MOST_PROBLEMS} more."]
        raise ServiceError(422, " ".join(told))
