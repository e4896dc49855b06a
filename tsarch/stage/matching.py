"""What of the models' inside is matched (`distillation`): layers of both, and parts of their last
attention."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tsarch.blueprint import Blueprint
from tsarch.errors import Mistake, UserError, one_line
from tsarch.models.depths import name_of_finish
from tsarch.models.inner_states import PARTS, Part, Shown, shown_widths
from tsarch.topology import Stage

Pair = tuple[int | None, int | None]
"""A layer of the student and one of the teacher; None: the hidden states at the end."""
_OWN_PARTS: dict[str, tuple[Part, Part]] = {
    "values": ("values", "values"),
    "queries": ("queries", "queries"),
    "keys": ("keys", "keys"),
    "attention": ("queries", "keys"),
}
"""Relation → the parts of an attention that it is between."""


@dataclass(frozen=True)
class Matching:
    """What a student's stage compares, and where it is in what a model shows."""

    pairs: tuple[Pair, ...]
    relations: tuple[tuple[Part, Part], ...]
    num_heads: int
    """Of relations."""
    teacher: Shown
    teacher_widths: tuple[int, ...]
    """Numbers a position of each thing that the teacher shows, in its order."""
    student: Shown
    student_widths: tuple[int, ...]

    @property
    def width(self) -> int:
        """Numbers that the teacher shows a position."""
        return sum(self.teacher_widths)


def layer_pairs(blueprint: Blueprint) -> list[Pair]:
    """Layers whose states are matched. A pair of both last layers is of the hidden states at the
    end, which travel anyway."""
    spec = blueprint.distillation
    if spec.hidden_weight == 0:
        return []
    if spec.hidden_layers == "last":
        return [(None, None)]
    depths = [_depth(blueprint, stage) for stage in _ends(blueprint)]
    if spec.hidden_layers == "uniform":
        own, other = depths
        pairs = [(i, max(round((i + 1) * other / own) - 1, 0)) for i in range(own)]
    else:
        pairs = [(own, other) for own, other in spec.hidden_layers]
    return [_at_ends(pair, depths) for pair in pairs]


def _at_ends(pair: tuple[int, int], depths: list[int]) -> Pair:
    own, other = (None if layer == depth - 1 else layer for layer, depth in zip(pair, depths))
    return own, other


def shown_of(blueprint: Blueprint, stage: Stage) -> Shown:
    """What a stage's model shows of its inside while it trains."""
    side = 0 if stage.reads == "windows" else 1
    layers = {own for pair in layer_pairs(blueprint) if (own := pair[side]) is not None}
    layers |= {depth - 1 for depth in blueprint.stages[stage].depths}
    wanted = {part for relation in _relations(blueprint) for part in relation}
    return Shown(tuple(sorted(layers)), tuple(part for part in PARTS if part in wanted))


def matching_of(blueprint: Blueprint) -> Matching | None:
    """What is matched; None: nothing is."""
    spec = blueprint.distillation
    if spec.hidden_weight == 0 and spec.relation_weight == 0:
        return None
    student, teacher = _ends(blueprint)
    shown = {stage: shown_of(blueprint, stage) for stage in (student, teacher)}
    widths = {stage: _widths(blueprint, stage, own) for stage, own in shown.items()}
    return Matching(
        tuple(layer_pairs(blueprint)),
        _relations(blueprint),
        relation_heads(blueprint),
        shown[teacher],
        widths[teacher],
        shown[student],
        widths[student],
    )


def relation_heads(blueprint: Blueprint) -> int:
    """Heads of relations: as many as the teacher's attention has, if nothing is said."""
    own = blueprint.distillation.relation_heads
    if own is not None:
        return own
    config = blueprint.stages[_ends(blueprint)[1]].architecture.config
    return int(getattr(config, "num_attention_heads", 1) or 1)


def matching_mistakes(blueprint: Blueprint) -> Iterator[Mistake]:
    """What of `distillation` these models can't do."""
    yield from _depth_mistakes(blueprint)
    spec = blueprint.distillation
    if not spec.shows or len(blueprint.stages) < 2:
        return
    for stage, own in blueprint.stages.items():
        if own.architecture.is_seq2seq:
            key = "relation_weight" if spec.relation_weight > 0 else "hidden_layers"
            what = f"the {stage} is an encoder with a decoder, whose layers aren't matched."
            yield Mistake(f"distillation.{key}", what)
            return
    if spec.pairs_layers and (beyond := list(_beyond(blueprint))):
        yield from beyond
        return
    try:
        matching = matching_of(blueprint)
    except Exception as error:  # whatever an architecture raises that can't be watched
        what = f"these models don't show their layers' states or attention: {one_line(error)}"
        yield Mistake("distillation", what, "Use hidden_layers: last and relation_weight: 0.")
        return
    assert matching is not None
    for side, shown, widths in (
        ("student", matching.student, matching.student_widths),
        ("teacher", matching.teacher, matching.teacher_widths),
    ):
        for part, width in zip(shown.parts, widths[len(shown.layers) :]):
            if width % matching.num_heads:
                what = f"the {side}'s {part} are {width} wide, no multiple of {matching.num_heads}."
                yield Mistake("distillation.relation_heads", what, "Take a divisor of all widths.")


def _depth_mistakes(blueprint: Blueprint) -> Iterator[Mistake]:
    for stage, own in blueprint.stages.items():
        if not own.depths:
            continue
        try:
            if own.architecture.is_seq2seq:
                raise UserError.single("student.depths", "are not for encoders with a decoder.")
            shown_widths(own.architecture.built, Shown(tuple(d - 1 for d in own.depths)))
            name_of_finish(own.architecture.built)
        except Exception as error:  # whatever an architecture raises that can't be watched
            what = f"can't be had of this architecture: {one_line(error)}"
            yield Mistake(f"{stage}.depths", what, "Leave it out.")


def _beyond(blueprint: Blueprint) -> Iterator[Mistake]:
    pairs = blueprint.distillation.hidden_layers
    for place, stage in enumerate(_ends(blueprint)):
        depth = _depth(blueprint, stage)
        named = [] if isinstance(pairs, str) else [pair[place] for pair in pairs]
        if beyond := sorted({layer for layer in named if layer >= depth}):
            what = f"{beyond} are not among the {stage}'s layers 0 … {depth - 1}."
            yield Mistake("distillation.hidden_layers", what, "Pairs are [student, teacher].")


def _relations(blueprint: Blueprint) -> tuple[tuple[Part, Part], ...]:
    spec = blueprint.distillation
    return tuple(_OWN_PARTS[name] for name in spec.relations) if spec.relation_weight > 0 else ()


def _widths(blueprint: Blueprint, stage: Stage, shown: Shown) -> tuple[int, ...]:
    return shown_widths(blueprint.stages[stage].architecture.built, shown) if shown else ()


def _depth(blueprint: Blueprint, stage: Stage) -> int:
    return int(blueprint.stages[stage].architecture.built.num_hidden_layers)


def _ends(blueprint: Blueprint) -> tuple[Stage, Stage]:
    """The student and the stage that feeds it."""
    graph = blueprint.topology.graph
    student = graph.reading("windows")[0]
    return student, graph.sources(student)[0]
