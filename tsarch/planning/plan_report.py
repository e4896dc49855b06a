"""What the user sees of a plan: tables, and the same as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table

from tsarch.planning.plan_search import Option
from tsarch.planning.run_plan import RankPlan, RunPlan

_GB = 1e9


def rank_table(plan: RunPlan) -> Table:
    """Memory, arithmetic and traffic of a rank of each stage."""
    title = f"one rank of each stage, on {plan.hardware.name}"
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    columns = [dict(_lines(own)) for own in plan.ranks.values()]
    for own in plan.ranks.values():
        table.add_column(f"{own.stage} × {own.need.replicas}", justify="right", no_wrap=True)
    for name in columns[0]:
        table.add_row(name, *(column[name] for column in columns))
    return table


def _lines(own: RankPlan) -> Iterator[tuple[str, str]]:
    need = own.need
    yield "parameters", _size(need.states.weights)
    yield "gradients", _size(need.states.gradients)
    yield "optimizer state", _size(need.states.optimizer)
    yield "table, with its optimizer state", _size(need.table.total)
    yield "activations", _size(own.activations)
    other = own.activations_otherwise
    yield "  the other way of checkpointing", "–" if other is None else _size(other)
    yield "buffers", _size(own.buffers)
    yield "all", _size(need.total + own.activations + own.buffers)
    yield "of it in host memory (offloaded)", _size(need.offloaded)
    yield "host: copy for checkpoints", _size(need.copy)
    yield "FLOPs a step", _count(own.flops)
    yield "sent a step: link", _size(own.link_bytes)
    yield "  collectives of the stage", _size(own.collective_bytes)
    yield "  the table's gradient", _size(own.tied_bytes)
    yield "seconds a step: passes", f"{own.times.compute_s:.4f}"
    yield "  of it the stage's collectives", f"{own.collective_s:.4f}"
    yield "  optimizer, table", f"{own.times.step_s + own.times.exchange_s:.4f}"


def plan_lines(plan: RunPlan, changes: Option | None) -> list[str]:
    """Step, total, cost, and whether it fits."""
    lines = [
        f"{plan.step_s:.3f} s a step, {plan.idle_share:.0%} of it idle; {plan.num_steps:,} steps: "
        f"{_duration(plan.total_s)} of training, evaluations left out"
    ]
    if plan.cost is not None:
        lines.append(
            f"cost: {plan.cost:,.2f} ({plan.num_ranks} devices at "
            f"{plan.hardware.price_an_hour:g} an hour)"
        )
    if plan.fits:
        lines.append("it fits")
        return lines
    where = "this machine" if plan.hardware.is_cpu else "a device"
    lines.append(f"it does not fit: {where} lacks {_size(plan.missing_bytes)}")
    if changes is None:
        lines.append("no change that leaves what is learned as it is makes it fit")
    else:
        lines.append(f"the cheapest change that makes it fit: {_set(changes)}")
    return lines


def option_lines(options: Sequence[Option]) -> Iterator[str]:
    """What a search has found."""
    if not options:
        yield "search: nothing that was tried fits on these devices and into the steps of the data"
    for option in options:
        yield (
            f"search: {option.plan.step_s:.3f} s a step, {option.plan.idle_share:.0%} idle: "
            f"{_set(option)}"
        )


def _set(option: Option) -> str:
    cost = f"--set {' --set '.join(option.changes)}"
    return f"{cost} ({option.plan.step_s:.3f} s a step, {option.plan.num_ranks} devices)"


def as_json(
    plan: RunPlan, changes: Option | None, options: Sequence[Option] | None
) -> dict[str, Any]:
    """All of it."""
    return {
        "hardware": plan.hardware.name,
        "stages": {stage.value: _rank_json(own) for stage, own in plan.ranks.items()},
        "steps": plan.num_steps,
        "step_s": plan.step_s,
        "idle_share": plan.idle_share,
        "total_s": plan.total_s,
        "cost": plan.cost,
        "fits": plan.fits,
        "missing_bytes": plan.missing_bytes,
        "cheapest_change": None if changes is None else list(changes.changes),
        "search": None if options is None else [_option_json(own) for own in options],
    }


def _option_json(option: Option) -> dict[str, Any]:
    plan = option.plan
    return {"set": list(option.changes), "step_s": plan.step_s, "idle_share": plan.idle_share}


def _rank_json(own: RankPlan) -> dict[str, Any]:
    need = own.need
    return {
        "replicas": need.replicas,
        "parameters_bytes": need.states.weights,
        "gradients_bytes": need.states.gradients,
        "optimizer_bytes": need.states.optimizer,
        "table_bytes": need.table.total,
        "activations_bytes": own.activations,
        "activations_otherwise_bytes": own.activations_otherwise,
        "buffers_bytes": own.buffers,
        "offloaded_bytes": need.offloaded,
        "checkpoint_copy_bytes": need.copy,
        "flops_per_step": own.flops,
        "link_bytes_per_step": own.link_bytes,
        "collective_bytes_per_step": own.collective_bytes,
        "tied_bytes_per_exchange": own.tied_bytes,
        "compute_s": own.times.compute_s,
        "optimizer_s": own.times.step_s,
        "exchange_s": own.times.exchange_s,
    }


def _size(nbytes: float) -> str:
    return f"{nbytes / _GB:,.2f} GB" if nbytes >= _GB / 10 else f"{nbytes / 1e6:,.1f} MB"


def _count(number: float) -> str:
    for factor, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G")):
        if number >= factor:
            return f"{number / factor:,.1f} {unit}"
    return f"{number / 1e6:,.1f} M"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:,.1f} hours"
