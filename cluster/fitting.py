"""Which rank goes on which node, and a table that shows why some have no room. Pure, no Ray.

A rank must fit on one node, which has the labels that its stage asks for. Replicas of a stage that
nobody feeds go on as few nodes as possible: they exchange gradients of a whole model. A stage that
is fed goes where most of the ranks are that feed it (each of them sends to all of its replicas),
and on as few nodes as possible. Ranks that share contexts trade tokens in every layer, and go on
one node, if all ranks have room so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

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
    labels: Mapping[str, str] = field(default_factory=dict)
    """What their nodes must be labelled with."""
    fed_by: tuple[str, ...] = ()
    """Stages that send hidden states to them."""
    group: int = 1
    """Neighbours that share contexts."""


@dataclass(frozen=True)
class NodeSupply:
    """What a node has."""

    name: str
    total: Resources
    free: Resources
    holders: tuple[str, ...] = ()
    """Who holds what is not free, as far as Ray can say."""
    labels: Mapping[str, str] = field(default_factory=dict)
    node_id: str = ""


Places = tuple[tuple[int, ...], ...]
"""For each demand: the node (an index) of each of its ranks that has room, in order."""


def assign(demands: Sequence[Demand], nodes: Sequence[NodeSupply], ever: bool) -> Places:
    """Where all ranks go, or as many as can be placed.

    Args:
        ever: as if nobody else used the nodes; else with what is free.
    """
    wanted = range(len(demands))
    by_size = sorted(wanted, key=lambda own: _size(demands[own].each), reverse=True)
    # The first order is the one that is wanted; others find room where it finds none.
    orders = (wanted, by_size, wanted[::-1])
    ways = [demands]
    if any(demand.group > 1 for demand in demands):
        ways.append([replace(demand, group=1) for demand in demands])
    found = []
    for own in ways:
        for order in orders:
            found.append(_assign(own, order, nodes, ever))
            if _count(found[-1]) == sum(demand.num_ranks for demand in demands):
                return found[-1]
    return max(found, key=_count)


def num_placed(demands: Sequence[Demand], nodes: Sequence[NodeSupply], ever: bool) -> int:
    """How many of the ranks have room; `ever` as for `assign`."""
    return _count(assign(demands, nodes, ever))


def refusal(demands: Sequence[Demand], nodes: Sequence[NodeSupply], ever: bool) -> Mistake | None:
    """Why the ranks have no room, with the table; None: they have.

    Args:
        ever: whether they would have room on these nodes if nobody else used them; else whether
            they have now.
    """
    num_ranks = sum(demand.num_ranks for demand in demands)
    placed = num_placed(demands, nodes, ever)
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


def _assign(
    demands: Sequence[Demand], order: Sequence[int], nodes: Sequence[NodeSupply], ever: bool
) -> Places:
    """Place one stage after the other, in an order."""
    left = [dict(node.total if ever else node.free) for node in nodes]
    places: dict[int, tuple[int, ...]] = {}
    for index, following in zip(order, [*order[1:], None]):
        demand = demands[index]
        rooms = [
            _num_fitting(demand.each, own) // demand.group * demand.group
            if _is_labelled(node, demand)
            else 0
            for own, node in zip(left, nodes, strict=True)
        ]
        feeding = Counter(
            node for i, own in places.items() if demands[i].stage in demand.fed_by for node in own
        )
        later = None if following is None else demands[following]
        chosen = _fewest(demand, later, rooms, left, nodes)
        if feeding:
            chosen = sorted(range(len(nodes)), key=lambda n: (-feeding[n], -rooms[n], n))
        places[index] = _filled(demand, chosen, rooms, left)
    return tuple(places[index] for index in range(len(demands)))


def _filled(
    demand: Demand, chosen: Sequence[int], rooms: Sequence[int], left: Sequence[dict[str, float]]
) -> tuple[int, ...]:
    """Fill nodes with a stage's ranks, in order, and take what they need from what is `left`."""
    places: list[int] = []
    for node in chosen:
        count = min(rooms[node], demand.num_ranks - len(places))
        places += [node] * count
        for name, amount in demand.each.items():
            left[node][name] = left[node].get(name, 0.0) - count * amount
    return tuple(places)


def _fewest(
    demand: Demand,
    later: Demand | None,
    rooms: Sequence[int],
    left: Sequence[Resources],
    nodes: Sequence[NodeSupply],
) -> list[int]:
    """Nodes to fill with a stage, in order: the fewest, and of the last one the smallest that does,
    but first one on which the next stage has room too."""
    chosen, waiting = [], demand.num_ranks
    others = sorted((n for n, room in enumerate(rooms) if room), key=lambda n: (-rooms[n], n))

    def room_beside(node: int) -> int:
        if later is None or not _is_labelled(nodes[node], later):
            return 0
        each = demand.each
        rest = {k: v - waiting * each.get(k, 0.0) for k, v in left[node].items()}
        return min(later.num_ranks, _num_fitting(later.each, rest))

    while waiting > 0 and others:
        enough = [node for node in others if rooms[node] >= waiting]
        best = others[0]
        if enough:
            best = min(enough, key=lambda n: (-room_beside(n), rooms[n], n))
        chosen.append(best)
        others.remove(best)
        waiting -= rooms[best]
    return chosen


def _count(places: Places) -> int:
    return sum(map(len, places))


def _size(each: Resources) -> tuple[float, float]:
    return each.get("GPU", 0.0), each.get("CPU", 0.0)


def _is_labelled(node: NodeSupply, demand: Demand) -> bool:
    return all(node.labels.get(name) == value for name, value in demand.labels.items())


def _num_fitting(each: Resources, supply: Resources) -> int:
    """How many ranks have room in what is there."""
    amounts = [(supply.get(name, 0.0), amount) for name, amount in each.items() if amount > 0]
    return max(0, min(int((have + _SLACK) / amount) for have, amount in amounts))


def _reason(demands: Sequence[Demand], nodes: Sequence[NodeSupply], placed: int) -> str:
    """Why there can never be room, as plainly as it can be said."""
    for name in dict.fromkeys(name for demand in demands for name in demand.each):
        needed, have = _needed(demands, name), sum(node.total.get(name, 0.0) for node in nodes)
        if needed > have + _SLACK:
            return f"they need {_number(needed)} {name}s, it has {_number(have)}"
    for demand in demands:
        labelled = [node for node in nodes if _is_labelled(node, demand)]
        if not labelled:
            wanted = ", ".join(f"{name}={value}" for name, value in demand.labels.items())
            return f"no node is labelled {wanted}, as `topology.{demand.stage}.nodes` asks for"
        if not any(_num_fitting(demand.each, node.total) for node in labelled):
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
