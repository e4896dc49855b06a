"""Texts in other words, by way of another language and back (Sennrich et al. 2016, "Improving
Neural Machine Translation Models with Monolingual Data")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tsarch.augmentation.labelled_rows import Labelled
from tsarch.errors import UserError
from tsarch.prediction.trained_pair import TrainedPair
from tsarch.tasks.answers import GeneratedText

TASKS = ("classification",)
"""Those whose rows can be altered so: labels of words, or of spans, have no place in new words."""


class BackTranslation:
    """Two translation runs, one there and one back.

    Raises:
        UserError: one of them is none.
    """

    def __init__(self, there: TrainedPair, back: TrainedPair) -> None:
        for option, own in (("--there", there), ("--back", back)):
            if own.task != "translation":
                what = f"is a run of {own.task}, not of translation."
                raise UserError.single(option, what)
        self._there, self._back = there, back

    def rows(self, rows: Sequence[Labelled]) -> list[Labelled | None]:
        """Rows with texts that came back; None: it couldn't be translated, or is the same."""
        texts = [own.row.text for own in rows]
        there = _translated(self._there, dict(enumerate(texts)))
        back = _translated(self._back, there)
        return [
            replace(own, row=replace(own.row, text=back[n]))
            if back.get(n, "").strip() and back[n] != own.row.text
            else None
            for n, own in enumerate(rows)
        ]

    @property
    def revision(self) -> str:
        """Tells these runs' weights from others'."""
        return f"{self._there.revision} {self._back.revision}"


def _translated(pair: TrainedPair, texts: dict[int, str]) -> dict[int, str]:
    numbers = [n for n, text in texts.items() if text.strip()]
    found, _ = pair.try_predict([texts[n] for n in numbers], on_unread="parts")
    told = {numbers[place]: answer for place, answer in found.items()}
    return {n: own.text for n, own in told.items() if isinstance(own, GeneratedText)}
