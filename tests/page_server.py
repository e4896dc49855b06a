"""The app of the page in front of an engine whose answers are known beforehand."""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI

from tsarch.config import Mode
from tsarch.inputs.rows import Input, Predicted, TextEntity
from tsarch.prediction.batch import as_json
from tsarch.prediction.unread import OnUnread
from tsarch.serving.engine import Answered, RunInfo, ServiceError
from tsarch.tasks.answers import Entity, GeneratedText, Label, NoAnswer, Relation, SpanAnswer

MODES: tuple[Mode, ...] = ("teacher", "student", "joint", "student_alone")
TEXT = (
    "👩‍🚀 Ada Lovelace met Zoe\u0308 Müller in New York.\r\n"
    "<b>Rome</b> & 羅馬 are far.\r\n\r\n"
    "التقت ليلى حداد بسامي في القاهرة يوم الأحد. 🇮🇹 Roma!"
)
"""With signs of several code points and UTF-16 units, markup, CR LF, Chinese and Arabic."""
PASSAGE = "🚀🚀 The mill was built in 1712.\nIts owner, Ann Lee, sold it in 1730."
EXAMPLES: dict[str, list[Any]] = {
    "ner": [TEXT, {"tokens": ["Ann", "Lee", "left", "Oslo", "."], "doc_id": "d"}],
    "classification": ["We show that it works."],
    "relation": [
        {"tokens": ["Ann", "Lee", "was", "born", "in", "Rome", "."], "head": [0, 2], "tail": [5, 6]}
    ],
    "qa": [{"question": "Who sold it?", "context": PASSAGE}],
    "translation": ["I need another one."],
    "summarization": ["The river rose. The old mill was lost. Nobody was hurt."],
    "dialogue": [{"history": ["I need a place to eat", "In which city?", "In Milpitas."]}],
}
LABELS = {
    "ner": ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"],
    "classification": ["result", "method", "<i>odd</i>"],
    "relation": ["birthplace", "Other"],
}


def found(text: str, type_: str, word: str, score: float = 0.9) -> TextEntity:
    """The entity where a word stands last."""
    start = text.rindex(word)
    return TextEntity(type_, start, start + len(word), word, score)


def ner_answer(text: Any, mode: str) -> Predicted:
    if isinstance(text, dict):
        own = [Entity("PER", 0, 2, "Ann Lee", 0.8)]
        return tuple(own if mode == "student_alone" else [*own, Entity("LOC", 3, 4, "Oslo", 0.7)])
    wanted = [
        ("PER", "Ada Lovelace"),
        ("PER", "Zoe\u0308 Müller"),
        ("LOC", "New York"),
        ("LOC", "Rome"),
        ("LOC", "羅馬"),
        ("PER", "ليلى حداد"),
        ("LOC", "القاهرة"),
        ("LOC", "Roma"),
    ]
    if mode == "student_alone":
        wanted = [("PER", "Ada"), *wanted[2:]]
    if mode == "student":
        wanted = [("PER", "New York") if own[1] == "New York" else own for own in wanted]
    entities = [found(text, *own) for own in wanted if own[1] in text]
    return tuple(sorted(entities, key=lambda own: own.start))


def answer(task: str, own: Any, mode: str) -> Predicted:
    """What a pair of the task would say."""
    alone = mode == "student_alone"
    if task == "ner":
        return ner_answer(own, mode)
    if task == "classification":
        scores = {"result": 0.7, "method": 0.2, "<i>odd</i>": 0.1}
        if alone:
            scores = {"result": 0.3, "method": 0.6, "<i>odd</i>": 0.1}
        name = max(scores, key=scores.__getitem__)
        return Label(name, scores[name], scores)
    if task == "relation":
        head, tail = (" ".join(own["tokens"][slice(*own[end])]) for end in ("head", "tail"))
        return Relation("birthplace", head, tail, 0.9, {"birthplace": 0.9, "Other": 0.1})
    if task == "qa":
        if alone:
            return NoAnswer(-1.5)
        place = own["context"].index("Ann Lee")
        return SpanAnswer(place, place + 7, "Ann Lee", 3.25)
    text = "The old mill was lost" if alone else "The old mill has been lost 🌊"
    return GeneratedText(text, -0.5)


class FakeEngine:
    """Answers of pairs that were never trained; they may be changed while it serves."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[Any], str | None]] = []
        """(run, inputs, mode) of each request so far."""
        self.errors: list[ServiceError] = []
        """Given in place of the next answers."""
        self.wait_s = 0.0
        self.answer: Callable[[str, Any, str], Predicted] = answer
        self.versions: Iterator[str] = itertools.repeat("20260102")
        self.infos = tuple(run_of(task) for task in EXAMPLES)

    def runs(self) -> tuple[RunInfo, ...]:
        return self.infos

    async def predict(
        self,
        run: str,
        inputs: Sequence[Input],
        mode: Mode | None,
        on_unread: OnUnread = "error",
    ) -> Answered:
        self.asked.append((run, list(inputs), mode))
        if self.errors:
            raise self.errors.pop(0)
        await asyncio.sleep(self.wait_s)
        task = next(own.task for own in self.infos if own.name == run)
        assert mode is not None
        answers = [as_json(self.answer(task, own, mode)) for own in inputs]
        return Answered(run, next(self.versions), mode, answers, 9)

    async def reload(self, run: str) -> RunInfo:
        raise ServiceError(503, "It stays as it is.")

    async def close(self) -> None:
        pass


def run_of(task: str) -> RunInfo:
    columns = {own: own for own in ("tokens", "head", "tail", "context", "question", "history")}
    examples = tuple(EXAMPLES[task])
    labels = tuple(LABELS.get(task, ()))
    return RunInfo(
        f"my-{task}", task, labels, MODES, "joint", "20260102", examples, columns, "exclusive"
    )


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The address of an app on a free port of this machine."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)
