"""Texts in other words, by way of another language and back (Sennrich et al. 2016, "Improving
Neural Machine Translation Models with Monolingual Data")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tsarch.augmentation.labelled_rows import Labelled
from tsarch.errors import UserError
from tsarch.prediction.loading import folder_of, opened
from tsarch.prediction.trained_pair import TrainedPair
from tsarch.tasks.answers import GeneratedText

TASKS = ("classification",)
"""Those whose rows can be altered so: labels of words, or of spans, have no place in new words."""


def check_translates(option: str, run: str) -> None:
    """Check that the run of an option translates, before it is loaded.

    Raises:
        UserError: it does something else, or can't be read.
    """
    _, task_file = opened(folder_of(run), "torch")
    if task_file.task != "translation":
        what = f"is a run of {task_file.task}, not of translation."
        raise UserError.single(f"{option} {run}", what)


class BackTranslation:
    """Two translation runs, one there and one back."""

    def __init__(self, there: TrainedPair, back: TrainedPair) -> None:
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
