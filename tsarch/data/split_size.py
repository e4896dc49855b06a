"""How much a split has."""

from __future__ import annotations

from dataclasses import dataclass

from tsarch.records import TokenizedSplit


@dataclass(frozen=True)
class SplitSize:
    """How much a split has: of the data, as a person counts it, and of what is made of it."""

    rows: int = 0
    words: int = 0
    labels: int = 0
    """Tags, labels of rows, right answers, or target texts."""
    contexts: int = 0
    windows: int = 0
    tokens: int = 0
    """Of all contexts."""

    @classmethod
    def of(cls, split: TokenizedSplit) -> SplitSize:
        """Counted."""
        return cls(
            rows=len(split.rows),
            words=sum(row.num_words for row in split.rows),
            labels=sum(row.num_labels for row in split.rows),
            contexts=split.num_contexts,
            windows=len(split.windows),
            tokens=len(split.token_ids),
        )

    def __add__(self, other: SplitSize) -> SplitSize:
        return SplitSize(*map(sum, zip(vars(self).values(), vars(other).values(), strict=True)))

    def __str__(self) -> str:
        data, made = (
            ", ".join(f"{getattr(self, name):,} {name}" for name in names)
            for names in (("rows", "words", "labels"), ("contexts", "windows", "tokens"))
        )
        return f"{data}; {made}"
