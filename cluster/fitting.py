"""Whether ranks have room on the nodes of a cluster, and a table that shows why not. Pure, no Ray.

A rank must fit on one node. Nodes are filled as Ray's strategy PACK does it (bundles in decreasing
order, GPUs first; the next node is the one with the largest share of its resources left), which is
first-fit decreasing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tsarch.errors import Mistake

Resources = Mapping[str, float]
"""Name (`CPU`, `GPU`) → amount."""

_SLACK = 1e-6  # Ray counts in ten-thousandths


@dataclass(frozen=True)
class Demand:
    """Ranks of one stage."""

    stage: str
    num_ranks: int
    each: Resources
    """What Ray reserves for one of them."""


@dataclass(frozen=True)
class NodeSupply:
    """What a node has."""

    name: str
    total: Resources
    free: Resources
    holders: tuple[str, ...] = ()
    """Who holds what is not free, as far as Ray can say."""


def num_placed(demands: Sequence[Demand], supplies: Iterable[Resources]) -> int:
    """How many of the ranks have room."""
    waiting = sorted(
        (demand.each for demand in demands for _ in range(demand.num_ranks)),
        key=lambda each: (each.get("GPU", 0.0), each.get("CPU", 0.0)),
        reverse=True,
    )
    num_ranks = len(waiting)
    nodes = [dict(supply) for supply in supplies]
    while waiting and nodes:
        largest = waiting[0]
        node = max(nodes, key=lambda own: _share_left(largest, own))
        nodes.remove(node)
        waiting = _fill(node, waiting)
    return num_ranks - len(waiting)


def refusal(demands: Sequence[Demand], nodes: Sequence[NodeSupply], ever: bool) -> Mistake | None:
    """Why the ranks have no room, with the table; None: they have.

    Args:
        ever: whether they would have room on these nodes if nobody else used them; else whether
            they have now.
    """
    num_ranks = sum(demand.num_ranks for demand in demands)
    placed = num_placed(demands, (node.total if ever else node.free for node in nodes))
    if placed == num_ranks:
        return None
    who = " + ".join(f"{d.num_ranks} {d.stage}" for d in demands) + " replicas"
    if ever:
        what = f"{who} can never have room on this cluster: {_reason(demands, nodes, placed)}."
        hint = "Use fewer replicas, less for each (`topology.cpus_per_rank`), or a larger cluster."
    else:
        what = f"{who} have room on this cluster, but not now: there is room for {placed} of them."
        hint = "Wait until what others hold is free again, or use fewer replicas."
    return Mistake("topology", what, f"{hint}\n\n{table(demands, nodes)}")


def table(demands: Sequence[Demand], nodes: Sequence[NodeSupply]) -> str:
    """What is needed, and what each node has."""
    names = list(dict.fromkeys(name for demand in demands for name in demand.each))
    needed = [["needed", "ranks", *(f"{name} each" for name in names)]]
    for demand in demands:
        amounts = [_number(demand.each.get(name, 0.0)) for name in names]
        needed.append([demand.stage, str(demand.num_ranks), *amounts])
    sums = [_number(_needed(demands, name)) for name in names]
    needed.append(["in all", str(sum(d.num_ranks for d in demands)), *sums])
    had = [["node", *(word for name in names for word in (name, "free")), "held by"]]
    for node in nodes:
        amounts = [_number(own.get(name, 0.0)) for name in names for own in (node.total, node.free)]
        had.append([node.name, *amounts, "; ".join(node.holders) or "–"])
    return f"{_aligned(needed)}\n\n{_aligned(had)}"


def _fill(node: dict[str, float], waiting: Sequence[Resources]) -> list[Resources]:
    """Put on a node what fits, in order; what is left over."""
    left = []
    for each in waiting:
        if _share_left(each, node) < 0:
            left.append(each)
            continue
        for name, amount in each.items():
            node[name] = node.get(name, 0.0) - amount
    return left


def _share_left(each: Resources, supply: Resources) -> float:
    """Sum over resources of the share of `supply` that would be left; −1: `each` doesn't fit."""
    shares = 0.0
    for name, amount in each.items():
        have = supply.get(name, 0.0)
        if amount > have + _SLACK:
            return -1.0
        shares += (have - amount) / have if have > 0 else 0.0
    return max(shares, 0.0)


def _reason(demands: Sequence[Demand], nodes: Sequence[NodeSupply], placed: int) -> str:
    """Why there can never be room, as plainly as it can be said."""
    for name in dict.fromkeys(name for demand in demands for name in demand.each):
        needed, have = _needed(demands, name), sum(node.total.get(name, 0.0) for node in nodes)
        if needed > have + _SLACK:
            return f"they need {_number(needed)} {name}s, it has {_number(have)}"
    for demand in demands:
        if not any(_share_left(demand.each, node.total) >= 0 for node in nodes):
            each = " and ".join(f"{_number(v)} {name}s" for name, v in demand.each.items())
            return f"a {demand.stage} rank needs {each} on one node, and none has them"
    num_ranks = sum(demand.num_ranks for demand in demands)
    return f"a rank must fit on one node, and only {placed} of {num_ranks} do"


def _needed(demands: Sequence[Demand], name: str) -> float:
    return sum(demand.num_ranks * demand.each.get(name, 0.0) for demand in demands)


def _number(amount: float) -> str:
    return f"{amount + 0.0:.4g}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows as lines: first and last column to the left unless they are numbers."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column == 0 or rows[0][column] == "held by" else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return "\n".join(lines)
