"""What of the rows nobody reads, or the student doesn't: counted by reason and row, and told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tsarch.records import Cut, TokenizedSplit

Span = tuple[int, int]
_MAX_SHOWN = 3
_UNKNOWN_SHARE = 0.01


@dataclass
class Cutting:
    """Counts while rows are packed."""

    _found: dict[tuple[str, bool], dict[int, int]] = field(default_factory=dict)
    _spans: dict[tuple[str, int], list[Span]] = field(default_factory=dict)
    _of: dict[str, str] = field(default_factory=dict)

    def add(
        self,
        what: str,
        row: int,
        num_tokens: int,
        is_read: bool = False,
        spans: Sequence[Span] = (),
        of: str = "words",
    ) -> None:
        """Count tokens of a row; see `Cut`."""
        if num_tokens > 0:
            rows = self._found.setdefault((what, is_read), {})
            rows[row] = rows.get(row, 0) + num_tokens
            self._spans.setdefault((what, row), []).extend(spans)
            self._of[what] = of

    def cuts(self) -> tuple[Cut, ...]:
        """All that was counted."""
        return tuple(
            Cut(
                what,
                tuple(rows),
                sum(rows.values()),
                is_read,
                tuple(tuple(self._spans[what, row]) for row in rows),
                self._of[what],
            )
            for (what, is_read), rows in self._found.items()
        )


def with_places(
    cuts: Sequence[Cut], of: str, place: Callable[[int, Span], Span]
) -> tuple[Cut, ...]:
    """The cuts with other spans in those that count in `of`: what `place` makes of a row's
    number and span."""
    return tuple(
        replace(
            cut,
            spans=tuple(
                tuple(place(row, span) for span in spans)
                for row, spans in zip(cut.rows, cut.spans, strict=True)
            ),
        )
        if cut.of == of
        else cut
        for cut in cuts
    )


@dataclass(frozen=True)
class CutCount:
    """A `Cut` without its rows."""

    what: str
    is_read: bool
    num_tokens: int
    num_rows: int
    places: tuple[str, ...]
    """Of the first rows."""

    def __add__(self, other: CutCount) -> CutCount:
        return replace(
            self,
            num_tokens=self.num_tokens + other.num_tokens,
            num_rows=self.num_rows + other.num_rows,
            places=(*self.places, *other.places)[:_MAX_SHOWN],
        )


def cut_counts(split: TokenizedSplit) -> Iterator[CutCount]:
    """Of every reason."""
    for cut in split.cuts:
        places = tuple(str(split.rows[row].origin.place) for row in cut.rows[:_MAX_SHOWN])
        yield CutCount(cut.what, cut.is_read, cut.num_tokens, len(cut.rows), places)


def cut_notes(splits: Mapping[str, TokenizedSplit]) -> tuple[str, ...]:
    """A sentence for every reason and split, with the first rows' places."""
    return tuple(
        cut_note(name, len(split.rows), cut)
        for name, split in splits.items()
        for cut in cut_counts(split)
    )


def cut_note(name: str, num_rows: int, cut: CutCount) -> str:
    """A sentence on what `num_rows` rows of a split lose for one reason."""
    more = cut.num_rows - len(cut.places)
    shown = ", ".join(cut.places) + (f" and {more:,} more" if more else "")
    end = "the teacher reads it" if cut.is_read else "nobody reads it"
    return (
        f"{name}: {cut.what}: {cut.num_tokens:,} tokens of {cut.num_rows:,} of {num_rows:,} rows "
        f"({shown}); {end}"
    )


def unknown_notes(splits: Mapping[str, TokenizedSplit], unknown: int | None) -> tuple[str, ...]:
    """A sentence for every split of whose tokens more than a hundredth are the `unknown` one, which
    stands for texts that the tokenizer can't spell, however long."""
    found: list[str] = []
    for name, split in splits.items():
        is_unknown = split.token_ids == unknown
        found += unknown_note(name, float(is_unknown.mean()) if len(is_unknown) else 0.0)
    return tuple(found)


def unknown_note(name: str, share: float) -> list[str]:
    """The sentence on a split, if the share is that large."""
    if share <= _UNKNOWN_SHARE:
        return []
    return [
        f"{name}: {share:.0%} of the tokens are the unknown one: the tokenizer can't spell these "
        "words, and no model can tell them apart"
    ]
