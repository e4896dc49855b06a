"""`precision: auto`: a few steps of the run in fp32 and in bf16, in this process.

The trial trains for real, so its weights are thrown away. Without dropout, and at the peak learning
rate from the first step on: differences that a whole warm-up would take to show are seen at once.
"""

from __future__ import annotations

import gc
import itertools
import math
import statistics
import time
from dataclasses import dataclass

from tsarch.blueprint import Blueprint, Precision
from tsarch.clock import now_s
from tsarch.feeds import batch_plan, num_training_steps
from tsarch.planning.threads import num_threads
from tsarch.prepare import Prepared
from tsarch.rank.local_crew import LocalCrew
from tsarch.telling.step_table import StepTable

NUM_STEPS = 8
MOST_APART = 0.02
"""Of a step's loss in bf16 from that in fp32."""
LEAST_GAIN = 1.1
"""How many times as fast a step in bf16 must be."""


@dataclass(frozen=True)
class Trial:
    """A few steps in one precision."""

    losses: tuple[float, ...]
    """Of each step, all parts together; NaN where one was not finite."""
    step_cpu_s: float
    """CPU seconds of this process, which what else the machine does hardly changes."""


@dataclass(frozen=True)
class Choice:
    """A precision, and why."""

    precision: Precision
    gain: float
    """How many times as fast a step in bf16 is."""
    apart: float
    """Largest relative difference of a step's loss."""

    def __str__(self) -> str:
        return (
            f"{self.precision}: a step in bf16 is {self.gain:.2f} × as fast as one in fp32, "
            f"its loss at most {self.apart:.2%} from that one's"
        )


def choose(fp32: Trial, bf16: Trial) -> Choice:
    """bf16, if its steps are faster and its losses those of fp32."""
    gaps = [abs(b - a) / abs(a) for a, b in zip(fp32.losses, bf16.losses, strict=True) if a != 0]
    apart = math.inf if any(map(math.isnan, gaps)) else max(gaps, default=0.0)
    gain = fp32.step_cpu_s / bf16.step_cpu_s if bf16.step_cpu_s > 0 else 0.0
    pays = gain >= LEAST_GAIN and apart <= MOST_APART
    return Choice("bf16" if pays else "fp32", gain, apart)


def try_steps(blueprint: Blueprint, prepared: Prepared) -> Trial:
    """The first steps of a run that is `in_one_process`."""
    plan = batch_plan(blueprint, prepared.training)
    num_steps = min(NUM_STEPS, num_training_steps(blueprint, plan))
    with num_threads(None):
        crew = LocalCrew(blueprint, prepared)
        table = StepTable(crew.topology)
        table.start_span(now_s())
        rows, times_s = [], [time.process_time()]
        for reports in crew.train(0, num_steps):
            rows += table.add(reports, 0)
            times_s.append(time.process_time())
        crew.close()
    del crew
    gc.collect()
    losses = [
        [math.nan if v is None else float(v) for k, v in row.items() if k.startswith("loss_")]
        for row in rows
    ]
    step_s = statistics.median(b - a for a, b in itertools.pairwise(times_s))
    return Trial(tuple(sum(own) for own in losses), step_s)


def in_one_process(blueprint: Blueprint) -> Blueprint:
    """The run in this process, without dropout and with one learning rate."""
    none = {"dropout": 0.0, "attention_dropout": 0.0}
    given = [stage.value for stage in blueprint.stages]
    return blueprint.altered(
        topology={"runner": "local", "auto": False},
        learning_rate={"warmup": 0.0, "decay": "constant"},
        embedding={"check_every": 0},
        **dict.fromkeys(given, none),
    )
