"""The tasks of the study of queries, and the ways to read what is asked that it compares."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from benchmarks.common import DEFAULT_MODEL
from tsarch.config import Mode

_LOCAL = ("topology.runner=local", "topology.device=cpu", "topology.threads=1", "precision=bf16")
_HALF = 3
BOUNDARIES = (1, _HALF)
"""Layers before which states leave: where quality is nearest to that of a teacher that reads the
question, and where half of the layers are saved."""
_FROZEN = (
    "teacher.freeze=all_but_head",
    "student.freeze=all_but_top_k",
    "student.top_k=3",
    "embedding.frozen=true",
)
"""DeFormer's split without training its lower part: three layers of six, and the table."""


@dataclass(frozen=True)
class QueryMethod:
    """A way to read what is asked."""

    name: str
    title: str
    config: Path
    mode: Mode
    reads_once: bool
    """Whether a document is read without what is asked, once."""
    overrides: tuple[str, ...] = ()
    taught_by: str | None = None
    """The method whose run gives further targets."""

    @property
    def settings(self) -> tuple[str, ...]:
        """All `key=value` of its run, but for folder, seed and who teaches."""
        taught = () if self.taught_by is None else ("distillation.weight=1.0",)
        return (*_LOCAL, "evaluation.before=false", *self.overrides, *taught)


@dataclass(frozen=True)
class QueryTask:
    """A task of the study."""

    name: str
    metric: str
    test: Path
    methods: tuple[QueryMethod, ...]

    def method(self, name: str) -> QueryMethod:
        """One of its methods."""
        return next(own for own in self.methods if own.name == name)

    def with_methods(self, names: Sequence[str]) -> Self:
        """With some methods alone."""
        return replace(self, methods=tuple(own for own in self.methods if own.name in names))

    def documents(self, number: int) -> list[tuple[Any, list[Any]]]:
        """(document, queries) of some documents of the test split, as a `Context` takes them."""
        lines = self.test.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        if self.name == "relation":
            pairs = [
                (row["tokens"], [(tuple(own["head"]), tuple(own["tail"])) for own in found])
                for row in rows
                if (found := row["relations"]) and len(row["tokens"]) < 250
            ]
            return pairs[:number]
        asked: dict[str, list[Any]] = {}
        for row in rows:
            for text in row["passages"] if self.name == "ranking" else [row["context"]]:
                asked.setdefault(text, []).append(row["query" if "query" in row else "question"])
        return list(asked.items())[:number]

    def row(self, document: Any, query: Any) -> dict[str, Any]:
        """A row as `TrainedPair.predict` takes it."""
        if self.name == "relation":
            return {"tokens": document, "head": query[0], "tail": query[1]}
        if self.name == "ranking":
            return {"passage": document, "query": query}
        return {"context": document, "question": query}


def _asked_with_text(config: Path, settings: tuple[str, ...]) -> tuple[QueryMethod, ...]:
    """Ways that read what is asked with the text; `settings`: what makes runs of `config` do so."""
    small = (
        "teacher=null",
        f"student.model={DEFAULT_MODEL}",
        "student.layers=[0,2,5]",
        "student.max_tokens=256",
        "data.context_tokens=256",
        "student.alone_weight=0",
        "student.fed_share=null",
        "evaluation.monitor=student_alone",
    )
    teacher = ("student=null", "evaluation.monitor=teacher")
    return (
        QueryMethod(
            "question-aware",
            "teacher that reads what is asked",
            config,
            "teacher",
            reads_once=False,
            overrides=(*settings, *teacher),
        ),
        QueryMethod(
            "small",
            "small model that reads what is asked",
            config,
            "student_alone",
            reads_once=False,
            overrides=(*settings, *small),
        ),
    )


def _asked_later(config: Path, settings: tuple[str, ...]) -> tuple[QueryMethod, ...]:
    """Ways that read the text once, with a boundary."""
    ways: dict[str, tuple[str, int, tuple[str, ...], str | None]] = {
        **{f"split-{layer}": ("trained together", layer, (), None) for layer in BOUNDARIES},
        "taught": ("taught by the first", _HALF, (), "question-aware"),
        "frozen": ("lower layers as pretrained", _HALF, _FROZEN, None),
    }
    return tuple(
        QueryMethod(
            name,
            f"read once, boundary before layer {layer}, {what}",
            config,
            "student",
            reads_once=True,
            overrides=(f"teacher.boundary_layer={layer}", *settings, *own),
            taught_by=teacher,
        )
        for name, (what, layer, own, teacher) in ways.items()
    )


def _added(config: Path, settings: tuple[str, ...] = ()) -> QueryMethod:
    """Without a boundary."""
    title = "read once, states added to the student's inputs"
    return QueryMethod("added", title, config, "student", reads_once=True, overrides=settings)


_CONFIGS = Path("configs")
_RELATION, _RANKING = (_CONFIGS / f"{n}.yaml" for n in ("relation-documents", "ranking-read-once"))
_WITHOUT_BOUNDARY = ("teacher.boundary_layer=null", "teacher.first_position=0")
_ADDED = ("student.layers=[0,2,5]", "student.bridge_scale=0", "student.bridge_multiplier=0.1")
_WITH_BOUNDARY = (
    "student.layers=[0,1,2,3,4,5]",
    "student.bridge_scale=1",
    "student.bridge_multiplier=1",
)
# With 768 tokens a step, two or three pairs of these, a teacher that reads the pair learns that
# nothing is related (micro F1 .0 after 4,481 steps).
TASKS = (
    QueryTask(
        "qa",
        "f1",
        _CONFIGS / "squadshifts" / "test.jsonl",
        (
            *_asked_with_text(_CONFIGS / "qa.yaml", ("distillation.weight=0.0",)),
            *_asked_later(_CONFIGS / "qa-read-once.yaml", ()),
        ),
    ),
    QueryTask(
        "relation",
        "f1_micro",
        _CONFIGS / "redocred" / "test.jsonl",
        (
            *_asked_with_text(_RELATION, ("task.query=both", "data.batch_tokens=6144")),
            _added(_RELATION),
            *_asked_later(_RELATION, _WITH_BOUNDARY),
        ),
    ),
    QueryTask(
        "ranking",
        "ndcg_10",
        _CONFIGS / "squadshifts_ranking" / "test.jsonl",
        (
            *_asked_with_text(_RANKING, ("task.query=both", *_WITHOUT_BOUNDARY)),
            _added(_RANKING, (*_WITHOUT_BOUNDARY, *_ADDED)),
            *_asked_later(_RANKING, ()),
        ),
    ),
)
