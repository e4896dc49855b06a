"""What of the rows nobody reads, or the student doesn't: counted by reason and row, and told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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


def cut_notes(splits: Mapping[str, TokenizedSplit]) -> tuple[str, ...]:
    """A sentence for every reason and split, with the first rows' places."""
    return tuple(_note(name, split, cut) for name, split in splits.items() for cut in split.cuts)


def unknown_notes(splits: Mapping[str, TokenizedSplit], unknown: int | None) -> tuple[str, ...]:
    """A sentence for every split of whose tokens more than a hundredth are the `unknown` one, which
    stands for texts that the tokenizer can't spell, however long."""
    found = []
    for name, split in splits.items():
        is_unknown = split.token_ids == unknown
        share = float(is_unknown.mean()) if len(is_unknown) else 0.0
        if share > _UNKNOWN_SHARE:
            found.append(
                f"{name}: {share:.0%} of the tokens are the unknown one: the tokenizer can't spell "
                "these words, and no model can tell them apart"
            )
    return tuple(found)


def _note(name: str, split: TokenizedSplit, cut: Cut) -> str:
    places = [str(split.rows[row].origin.place) for row in cut.rows[:_MAX_SHOWN]]
    more = len(cut.rows) - len(places)
    shown = ", ".join(places) + (f" and {more:,} more" if more else "")
    num_rows = f"{len(cut.rows):,} of {len(split.rows):,} rows"
    end = "the teacher reads it" if cut.is_read else "nobody reads it"
    return f"{name}: {cut.what}: {cut.num_tokens:,} tokens of {num_rows} ({shown}); {end}"
