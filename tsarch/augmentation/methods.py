"""The ways in which rows are altered, by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tsarch.augmentation.back_translation import TASKS as TEXT_TASKS
from tsarch.augmentation.back_translation import BackTranslation, check_translates
from tsarch.augmentation.labelled_rows import Labelled, RowFile
from tsarch.augmentation.making import Alter
from tsarch.augmentation.masking import TASKS as MASK_TASKS
from tsarch.augmentation.masking import replaced
from tsarch.augmentation.swapping import Pool, entity_pool, swapped
from tsarch.augmentation.word_choice import MaskedModel, Neighbours
from tsarch.errors import Mistake, UserError
from tsarch.inputs.files import InputFile
from tsarch.inputs.reading import Reading
from tsarch.prediction.loading import folder_of, load
from tsarch.prediction.pieces import INPUTS, Limits, pieces
from tsarch.prediction.trained_pair import TrainedPair

METHODS = ("label", "swap", "mask", "translate")
_TASKS = {"swap": ("ner",), "mask": MASK_TASKS, "translate": TEXT_TASKS}
_SHOWN = 5
"""Mistakes that are told where no row is sound."""


@dataclass(frozen=True)
class Settings:
    """What is asked of `tsarch augment`."""

    method: str = "label"
    keep_above: float = 0.0
    """Least score of a row that is kept."""
    copies: int = 1
    """Altered rows of each."""
    share: float = 0.15
    """`mask`: of a row's words that get another."""
    seed: int = 0
    model: str | None = None
    """`mask`: masked language model; None: the nearest words of the run's table."""
    there: str | None = None
    """`translate`: run that translates the rows' texts."""
    back: str | None = None
    """`translate`: run that translates them back."""

    @property
    def identity(self) -> str:
        """Tells what is made from what others make."""
        return " ".join(f"{name}={value}" for name, value in vars(self).items())


def check_settings(settings: Settings, task: str) -> None:
    """Check what is asked of a run of a task, before its models are loaded.

    Raises:
        UserError: it makes no sense, or a run that it needs is another one.
    """
    method = settings.method
    if task not in _TASKS.get(method, (task,)):
        what = f"is for {', '.join(_TASKS[method])}, not for {task}."
        raise UserError.single(f"--method {method}", what, "Take label.")
    needs = {"translate": ("there", "back")}
    takes = {
        "swap": ("copies",),
        "mask": ("copies", "share", "model"),
        "translate": ("copies", *needs["translate"]),
    }
    for option in ("copies", "share", "model", "there", "back"):
        is_given = getattr(settings, option) != getattr(Settings, option)
        if is_given and option not in takes.get(method, ()):
            raise UserError.single(f"--{option}", f"is nothing for --method {method}.")
        if not is_given and option in needs.get(method, ()):
            what = f"is missing: --method {method} needs a translation run for each direction."
            raise UserError.single(f"--{option}", what)
    for option in needs.get(method, ()):
        check_translates(f"--{option}", str(getattr(settings, option)))


@dataclass(frozen=True)
class Altering:
    """How rows are altered."""

    alter: Alter | None
    """None: they aren't, but get labels."""
    revision: str = ""
    """Of the weights that it takes, beside those of the run that judges."""


def alteration(
    settings: Settings, run: str, pair: TrainedPair, files: Sequence[str], reading: Reading
) -> Altering:
    """How rows are altered.

    Raises:
        UserError: a model can't be loaded, or the files have no entities to be swapped.
    """
    match settings.method:
        case "swap":
            pool = entity_pool(_all_rows(pair, files, reading))
            return Altering(lambda rows, copy: _swapped(rows, pool, settings.seed, copy))
        case "mask":
            choice = Neighbours(folder_of(run)) if settings.model is None else None
            chosen = choice or MaskedModel(str(settings.model))
            own = settings.share, settings.seed
            return Altering(lambda rows, copy: replaced(rows, chosen, *own, copy))
        case "translate":
            assert settings.there is not None
            assert settings.back is not None
            translation = BackTranslation(load(settings.there), load(settings.back))
            return Altering(lambda rows, copy: translation.rows(rows), translation.revision)
    return Altering(None)


def _swapped(rows: Sequence[Labelled], pool: Pool, seed: int, copy: int) -> list[Labelled | None]:
    return [swapped(own, pool, seed, copy) for own in rows]


def _all_rows(pair: TrainedPair, files: Sequence[str], reading: Reading) -> Iterator[Labelled]:
    """The sound rows of all files; what is wrong with others is told when they are altered.

    Raises:
        UserError: there are none.
    """
    file = RowFile(pair)
    opened = [InputFile(path, reading) for path in files]
    wrong: list[Mistake] = []
    any_sound = False
    for piece in pieces(opened, Limits(INPUTS)):
        found, problems = file.read(piece.inputs)
        wrong += [Mistake(piece.inputs[n].place, what) for n, what in problems.items()]
        del wrong[_SHOWN:]
        any_sound = any_sound or bool(found)
        yield from found
    if wrong and not any_sound:
        raise UserError(wrong)
