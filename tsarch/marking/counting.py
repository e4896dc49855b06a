"""Counts of what was said beside what is right, and scores of every label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tsarch.marking.records import Counts, ScoreTable

NONE, WRONG_ENDS, MISSED = "none", "wrong ends", "missed"
"""Where there is no entity; one of the right type with other words; and where none was said."""
_MOST_NAMES = 16
"""Names that a table shows; the others are counted together."""


def counted(
    cells: Sequence[tuple[str, str]],
    names: Sequence[str],
    more_gold: Sequence[str] = (),
    more_said: Sequence[str] = (),
) -> Counts:
    """How often each (right, said) comes. Of many names those with most mistakes have rows and
    columns of their own.

    Args:
        names: that both can have.
        more_gold: rows behind them.
        more_said: columns behind them.
    """
    shown, others = _shown(cells, names)
    replace = dict.fromkeys(set(names) - set(shown), others)
    found = Counter((replace.get(g, g), replace.get(s, s)) for g, s in cells)
    both = [*shown, *([others] if others else [])]
    gold, said = [*both, *more_gold], [*both, *more_said]
    right = [[g == s and g != others for s in said] for g in gold]
    return Counts(gold, said, [[found[g, s] for s in said] for g in gold], right)


def _shown(cells: Sequence[tuple[str, str]], names: Sequence[str]) -> tuple[list[str], str]:
    """The names that are shown, in order, and what the others are called together."""
    if len(names) <= _MOST_NAMES:
        return list(names), ""
    wrong = Counter(name for own in cells if own[0] != own[1] for name in own)
    most = {name for name, _ in wrong.most_common() if name in set(names)}
    kept = [name for name in names if name in most][: _MOST_NAMES - 1]
    return kept, f"{len(names) - len(kept)} others"


def label_scores(gold: Sequence[str], said: Sequence[str], right: Sequence[str]) -> ScoreTable:
    """Precision, recall, F1 and number of every name, from the names of all that is right, of all
    that was said, and of what is both; those that come most often first."""
    num_gold, num_said, num_right = Counter(gold), Counter(said), Counter(right)
    rows: list[list[str | int | float]] = []
    for name in sorted(num_gold | num_said, key=lambda own: (-num_gold[own], own)):
        precision = num_right[name] / max(num_said[name], 1)
        recall = num_right[name] / max(num_gold[name], 1)
        f1 = 2 * num_right[name] / (num_gold[name] + num_said[name])
        rows.append([name, precision, recall, f1, num_gold[name], num_said[name]])
    return ScoreTable(["label", "precision", "recall", "f1", "support", "predicted"], rows)
