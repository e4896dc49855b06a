"""Changes of a run that make it fit, and how a run is best shared out on given hardware. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

from pydantic import ValidationError

from tsarch.blueprint import Blueprint
from tsarch.config import Config
from tsarch.planning.capacity import Feeding
from tsarch.planning.hardware import Hardware
from tsarch.planning.run_plan import RunPlan, plan_run
from tsarch.planning.sequence_checks import sequence_mistakes
from tsarch.planning.stage_profile import StageProfile, Workload
from tsarch.schedule.plan import ScheduleName
from tsarch.stage.deepspeed_config import check_fragment
from tsarch.topology import STAGES, Stage

_MOST_CHANGES = 3
_MICRO_BATCHES = (1, 2, 4, 8)
_SLICES = (2, 4, 8, 16)
_SCHEDULES: tuple[ScheduleName, ...] = ("overlapped", "joint", "sequential")
Sections = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Option:
    """Another way to run."""

    changes: tuple[str, ...]
    """As `--set` takes them."""
    plan: RunPlan


@dataclass(frozen=True)
class Planner:
    """Plans of one run, shared out in any way."""

    blueprint: Blueprint
    profiles: Mapping[Stage, StageProfile]
    work: Workload
    hardware: Hardware
    feeding: Feeding
    """What the steps of its data hold for replicas and micro-batches."""
    opening: tuple[str, ...] = ()
    """What `--set` must take before keys of `topology`, if the run would choose them itself."""

    def plan(self, changes: Mapping[str, Any] | None = None) -> RunPlan:
        """With other values of some keys (`topology.teacher.replicas`)."""
        return plan_run(self.changed(changes or {}), self.profiles, self.work, self.hardware)

    def allows(self, changes: Mapping[str, Any]) -> bool:
        """Whether training would take the run with other values of some keys: the config's own
        rules, DeepSpeed's, and work in a step for every replica."""
        changed = self.changed(changes)
        lacks = self.feeding.shared(changed).lacks()
        if any(lack > self._own_lacks.get(stage, 0) for stage, lack in lacks.items()):
            return False
        return _mistakes(changed) <= self._own_mistakes

    @cached_property
    def _own_mistakes(self) -> set[str]:
        return _mistakes(self.blueprint)

    @cached_property
    def _own_lacks(self) -> dict[Stage, int]:
        """Not 0 where it isn't known what steps hold."""
        return self.feeding.shared(self.blueprint).lacks()

    def changed(self, changes: Mapping[str, Any]) -> Blueprint:
        """The run with other values of some keys."""
        if self.opening and _of_topology(changes):
            changes = {"topology.auto": False, **changes}
        return self.blueprint.altered(**_sections(changes)) if changes else self.blueprint

    def option(self, changes: Mapping[str, Any], plan: RunPlan) -> Option:
        """These changes, as they are told."""
        opening = self.opening if _of_topology(changes) else ()
        return Option((*opening, *_told(changes)), plan)


def _of_topology(changes: Mapping[str, Any]) -> bool:
    return any(key.startswith("topology.") for key in changes)


def _mistakes(blueprint: Blueprint) -> set[str]:
    """What keys of a config ask of one another that others don't give."""
    found = set()
    try:
        Config.model_validate(blueprint.config.model_dump(exclude_unset=True))
    except ValidationError as error:
        found = {str(own["msg"]) for own in error.errors()}
    for stage, own in blueprint.stages.items():
        number = blueprint.schedule.micro_batches
        mistakes = check_fragment(stage, own.engine, blueprint.precision, number)
        found |= {str(mistake) for mistake in mistakes}
    return found


def fitting(planner: Planner) -> Option | None:
    """The change, or the fewest changes, that make a run fit; of those the fastest. None: none of
    those that are known does."""
    single = [own for own in _changes(planner) if planner.allows(own)]
    for number in range(1, _MOST_CHANGES + 1):
        found = []
        for chosen in combinations(single, number):
            changes = {key: value for own in chosen for key, value in own.items()}
            if len(changes) < sum(map(len, chosen)):
                continue  # two values of one key
            plan = planner.plan(changes)
            if plan.fits and planner.allows(changes):
                found.append(planner.option(changes, plan))
        if found:
            return min(found, key=lambda option: option.plan.step_s)
    return None


def _changes(planner: Planner) -> Iterator[dict[str, Any]]:
    """What takes less memory and leaves what is learned as it is."""
    blueprint = planner.blueprint
    alone = blueprint.runner.is_one_process
    for stage, own in blueprint.stages.items():
        can_checkpoint = True in planner.profiles[stage].activations
        if can_checkpoint and not own.activation_checkpointing:
            yield {f"{stage}.activation_checkpointing": True}
        replicas = blueprint.topology.replicas(stage)
        for zero_stage in range(own.engine.zero_stage + 1, 4) if replicas > 1 else ():
            yield {f"topology.{stage}.zero_stage": zero_stage}
        if not (alone or planner.hardware.is_cpu or own.engine.offload_optimizer):
            yield {f"topology.{stage}.offload_optimizer": True}
        for factor in () if alone else (2, 4, 8):
            yield {f"topology.{stage}.replicas": own.replicas * factor}
    for slices in _more_slices(planner):
        groups = -(-blueprint.topology.replicas(Stage.TEACHER) // slices)
        yield _slices(slices) | {"topology.teacher.replicas": groups * slices}
    for micro_batches in _MICRO_BATCHES:
        if micro_batches > blueprint.schedule.micro_batches:
            yield {"schedule.micro_batches": micro_batches}
    if blueprint.precision == "fp32":
        yield {"precision": "bf16"}


def search(planner: Planner, num_devices: int) -> list[Option]:
    """The fastest way to share the run out on so many devices, of each schedule; the fastest first.
    Schedules don't learn alike (`joint` trains the teacher for the student's sake too), so the
    choice among them is the user's. More ranks share contexts where a context has no room,
    or a step too few contexts, otherwise."""
    found = []
    for schedule in _SCHEDULES:
        for slices in (_num_slices(planner), *_more_slices(planner)):
            options = list(_options(planner, schedule, num_devices, slices))
            if options:
                found.append(min(options, key=lambda option: option.plan.step_s))
                break
    return sorted(found, key=lambda option: option.plan.step_s)


def _num_slices(planner: Planner) -> int:
    return planner.blueprint.topology.num_slices(Stage.TEACHER)


def _slices(number: int) -> dict[str, Any]:
    return {"topology.teacher.sequence_parallel": number}


def _more_slices(planner: Planner) -> Iterator[int]:
    """Numbers of ranks, more than now, that can share contexts."""
    blueprint = planner.blueprint
    if blueprint.runner.is_one_process or Stage.TEACHER not in blueprint.stages:
        return
    for number in _SLICES:
        changes = _slices(number) | {"topology.teacher.replicas": number}
        is_more = number > _num_slices(planner) and planner.allows(changes)
        if is_more and not any(sequence_mistakes(planner.changed(changes))):
            yield number


def _options(
    planner: Planner, schedule: ScheduleName, num_devices: int, slices: int
) -> Iterator[Option]:
    if not planner.allows({"schedule.name": schedule}):
        return
    shared = _slices(slices) if slices != _num_slices(planner) else {}
    for teachers in _counts(num_devices - 1, slices):
        for micro_batches in _MICRO_BATCHES:
            base: dict[str, Any] = {
                "schedule.name": schedule,
                "schedule.micro_batches": micro_batches,
                "topology.teacher.replicas": teachers,
                "topology.student.replicas": num_devices - teachers,
                **shared,
            }
            if planner.allows(base):
                yield from _sharded(planner, base)


def _sharded(planner: Planner, base: dict[str, Any]) -> Iterator[Option]:
    """With the ZeRO stage of each model at which a rank has room and is fastest."""
    plans = [planner.plan({**base, **_zero_stages(number, number)}) for number in range(4)]
    best = []
    for stage in STAGES:
        most = planner.hardware.memory_bytes
        own = [
            (plan.ranks[stage].times.total_s, zero_stage)
            for zero_stage, plan in enumerate(plans)
            if planner.hardware.is_cpu or plan.ranks[stage].on_device <= most
        ]
        if not own:
            return
        best.append(min(own)[1])
    changes = {**base, **_zero_stages(*best)}
    plan = planner.plan(changes)
    if plan.fits and planner.allows(changes):
        yield planner.option(changes, plan)


def _zero_stages(teacher: int, student: int) -> dict[str, Any]:
    return {"topology.teacher.zero_stage": teacher, "topology.student.zero_stage": student}


def _counts(most: int, slices: int) -> list[int]:
    """Numbers of teachers to look at, in whole groups: all of a few, of many about sixteen."""
    groups = most // slices
    if groups <= 16:
        return [slices * number for number in range(1, groups + 1)]
    return sorted({slices * max(round(groups * part / 16), 1) for part in range(1, 17)})


def _sections(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys to nested sections."""
    nested: dict[str, Any] = {}
    for key, value in changes.items():
        *sections, last = key.split(".")
        own = nested
        for section in sections:
            own = own.setdefault(section, {})
        own[last] = value
    return nested


def _told(changes: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(f"{key}={str(value).lower()}" for key, value in changes.items())


def has_both(blueprint: Blueprint) -> bool:
    """Whether there is anything to share out between stages."""
    return set(blueprint.stages) == set(STAGES) and not blueprint.runner.is_one_process
