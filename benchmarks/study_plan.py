"""What the study runs, and in which order: pure functions of what is finished already.

Every method gets the same data, batches, optimizer and number of steps, and each is tuned alike: of
`RATES` it keeps the one that is best on validation with the first seed. That is the teacher's rate
where the teacher trains by itself, and the student's in the three other methods; a teacher that
they need has the rate that it kept by itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict

from tsarch.config import MEAN_MODES, Mode
from tsarch.tasks.base import Metrics

Method = Literal["teacher", "small", "distilled", "ours"]
METHODS: tuple[Method, ...] = ("teacher", "small", "distilled", "ours")
"""The teacher trained alone; the student's model trained alone; the same with the teacher's
predictions distilled into it; both trained by tsarch."""
WITH_TEACHER: tuple[Method, ...] = ("distilled", "ours")
"""Methods that need the teacher's learning rate too."""
RATES: Mapping[str, tuple[float, ...]] = {
    "ner": (1e-4, 3e-4),
    "classification": (3e-4,),  # its config's, to save time
    "relation": (1e-4, 3e-4),
}
"""Task → peak learning rates that are tried."""
SEEDS = (0, 1, 2)
OWN_MODE: Mapping[Method, Mode] = {
    "teacher": "teacher",
    "small": "student_alone",
    "distilled": "student_alone",
}
"""The one mode of a model by itself."""

OURS_ALONE: Mapping[str, tuple[str, ...]] = {
    "student": (
        "alone_weight",
        "fed_weight",
        "fed_share",
        "teacher_dropout",
        "no_teacher",
        "bridge_scale",
        "shortcut",
    ),
    "distillation": (
        "weight",
        "temperature",
        "passes",
        "divergence",
        "hidden_weight",
        "hidden_loss",
        "hidden_layers",
        "relation_weight",
        "relations",
        "relation_heads",
        "match_passes",
    ),
    "schedule": ("name",),
    "evaluation": ("monitor",),
}
"""Section → keys of a task's config that change only what `ours` trains."""
DISTILLED: Mapping[str, float] = {"weight": 0.5, "temperature": 2.0}
"""`distillation` of the method `distilled`, whatever the task's config has for ours."""


@dataclass(frozen=True)
class StudyTask:
    """A task of the study."""

    name: str
    config: Path
    num_train_rows: int | None = None
    """So many rows from the start of the training file; None: all."""
    epochs: int = 5
    overrides: tuple[str, ...] = ()
    """Further `key=value` of its config."""

    def digest(self, method: Method) -> str:
        """Changes with the subset and with what the method takes from the task's config, so that
        results of other settings are not taken up."""
        sections: dict[str, Any] = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        if method != "ours":
            for section, keys in OURS_ALONE.items():
                for key in keys:
                    sections.get(section, {}).pop(key, None)
                if sections.get(section) == {}:
                    del sections[section]
        text = f"{self!r}\n{json.dumps(sections)}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class RunKey(BaseModel):
    """One training run."""

    model_config = ConfigDict(frozen=True)

    task: str
    method: Method
    rates: tuple[float, ...]
    """Peak learning rate of the teacher, or of the student; of both if the run needs both."""
    seed: int

    @property
    def name(self) -> str:
        """Name of its file, without the ending; its folder is the task's."""
        rates = "-".join(f"{rate:g}" for rate in self.rates)
        return f"{self.task}/{self.method}-{rates}-seed{self.seed}"

    @property
    def teacher(self) -> Self:
        """The run whose teacher a distilled run learns from."""
        return self.model_copy(update={"method": "teacher", "rates": self.rates[:1]})


class RunResult(BaseModel):
    """What a run reached and cost."""

    key: RunKey
    settings: str
    """Digest of what the task was when it ran (`StudyTask.digest`)."""
    main_metric: str
    validation: dict[Mode, Metrics]
    """Mode → metrics, of the last epoch."""
    test: dict[Mode, Metrics]
    steps: int
    parameters: int
    """Of the model that answers, table included; `ours`: of both and the table."""
    train_s: float
    """CPU seconds of training, on one thread; without what trained a distilled model's teacher."""

    @property
    def score(self) -> float:
        """What chooses between rates: main metric on validation, for ours the mean that
        `evaluation.monitor: mean` is."""
        modes = MEAN_MODES if self.key.method == "ours" else (OWN_MODE[self.key.method],)
        return fmean(self.validation[mode][self.main_metric] for mode in modes)


Results = Mapping[RunKey, RunResult]


def rates_to_try(results: Results, task: str, method: Method) -> list[tuple[float, ...]]:
    """What a method's learning rates are chosen from; empty while the teacher's is not known."""
    if method not in WITH_TEACHER:
        return [(rate,) for rate in RATES[task]]
    teacher = chosen_rates(results, task, "teacher")
    return [] if teacher is None else [(*teacher, rate) for rate in RATES[task]]


def tried_runs(results: Results, task: str, method: Method) -> list[RunResult]:
    """Finished runs of the first seed that learning rates are chosen from."""
    rates = rates_to_try(results, task, method)
    found = (results.get(_key(task, method, tried, SEEDS[0])) for tried in rates)
    return [result for result in found if result is not None]


def chosen_rates(results: Results, task: str, method: Method) -> tuple[float, ...] | None:
    """The learning rates of a method; None while one that is needed has not been found."""
    tried = tried_runs(results, task, method)
    if len(tried) < len(RATES[task]):
        return None
    return max(tried, key=lambda result: result.score).key.rates


def chosen_runs(results: Results, task: str, method: Method) -> list[RunResult]:
    """Finished runs of all seeds with the chosen learning rates."""
    rates = chosen_rates(results, task, method)
    if rates is None:
        return []
    found = (results.get(_key(task, method, rates, seed)) for seed in SEEDS)
    return [result for result in found if result is not None]


def ready_runs(results: Results, tasks: Sequence[str]) -> list[RunKey]:
    """Runs that are not finished and wait for no other, in the order to start them."""
    wanted = (key for seed in SEEDS for task in tasks for key in _wanted(results, task, seed))
    return [key for key in wanted if key not in results and _can_start(results, key)]


def _wanted(results: Results, task: str, seed: int) -> Iterator[RunKey]:
    """Runs of a task with a seed, as far as learning rates are known."""
    for method in METHODS:
        if seed == SEEDS[0]:
            rates = rates_to_try(results, task, method)
        else:
            chosen = chosen_rates(results, task, method)
            rates = [] if chosen is None else [chosen]
        yield from (_key(task, method, each, seed) for each in rates)


def _can_start(results: Results, key: RunKey) -> bool:
    return key.method != "distilled" or key.teacher in results


def _key(task: str, method: Method, rates: tuple[float, ...], seed: int) -> RunKey:
    return RunKey(task=task, method=method, rates=rates, seed=seed)
