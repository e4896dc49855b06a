"""Which label says that two entities aren't related: data sets have many names for it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tsarch.data.rows import shown
from tsarch.errors import UserError

AUTO = "auto"
_KEY = "task.no_relation"
_USUAL = {
    *("na", "none", "no", "nil", "null", "norelation", "norelations", "norel", "norelationship"),
    *("o", "other", "others", "false", "0", "negative", "neg", "ddifalse", "unrelated"),
    *("notrelated", "nota", "noneoftheabove", "nointeraction", "noassociation", "unknown"),
    *("无", "无关系", "其他"),
}
"""Names, as `_plain` has them, of TACRED, DocRED, SemEval-2010, ChemProt, DDI and others."""


def no_relation(labels: Sequence[str], wanted: str | None) -> str | None:
    """The label among `labels` that means no relation: the one that is `wanted`, of `auto` the one
    whose name is usual for it; None: there is none.

    Raises:
        UserError: the wanted one is no label; of `auto`, there are several.
    """
    if wanted is None or not labels:
        return None
    if wanted != AUTO or wanted in labels:
        return _named(labels, wanted)
    usual = [label for label in labels if _plain(label) in _USUAL]
    if len(usual) > 1:
        names = " and ".join(f"`{shown(label)}`" for label in usual)
        hint = f"Set {_KEY} to the one that does, or to null if all labels are relations."
        raise UserError.single(_KEY, f"{names} are labels that may mean no relation.", hint)
    return usual[0] if usual else None


def _named(labels: Sequence[str], wanted: str) -> str:
    """The label that is meant, in whatever case."""
    alike = [label for label in labels if label.casefold() == wanted.casefold()]
    if wanted in labels:
        return wanted
    if len(alike) == 1:
        return alike[0]
    raise UserError.single(
        _KEY,
        f"`{shown(wanted)}` is not a label of the training split.",
        f"Labels: {shown(', '.join(labels))}.",
    )


def _plain(label: str) -> str:
    """A name without case, spaces and marks."""
    return re.sub(r"[\W_]+", "", label).casefold()
