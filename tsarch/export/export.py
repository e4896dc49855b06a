"""A finished run for others: what is written, in which order, and what is said of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from tsarch.config import Mode
from tsarch.data.tokenizer import load_tokenizer
from tsarch.errors import UserError
from tsarch.export.card import Report, Told, write_card
from tsarch.export.drafter import VERIFIER, VERSION, write_drafter
from tsarch.export.models import TrainedModels, read_models
from tsarch.export.onnx import check_graphs, losses_by_rounding, write_onnx
from tsarch.export.ordinary import TOLERANCE, difference, ordinary_model
from tsarch.export.pair_folder import write_pair
from tsarch.export.same_tokens import compare_tokens
from tsarch.export.sample import Sample, read_sample, tokens_read
from tsarch.export.tokenizers import save_tokenizer
from tsarch.export.writing import check_room, check_target, made_whole, size_of
from tsarch.prediction.onnx_pair import Weights
from tsarch.prepare import packing_spec
from tsarch.run.versions import current_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tsarch.models.drafter_model import DrafterModel
    from tsarch.models.student_model import StudentModel
    from tsarch.models.teacher_model import TeacherModel

Say = Callable[[str], None]
_MOST_SEQUENCES = 32
"""Contexts or windows that ordinary models are compared on."""
WORD_TASKS = "ner", "relation", "multiple_choice"
"""Their rows are words: each is tokenised as it is after a space, the first too."""


@dataclass
class Exported:
    """What an export wrote."""

    parts: dict[str, str] = field(default_factory=dict)
    """Part of the folder → what it is."""
    refused: dict[str, str] = field(default_factory=dict)
    """Part → why it isn't there."""
    checks: list[str] = field(default_factory=list)
    """Results of comparisons with the run."""


@dataclass(frozen=True)
class Wanted:
    """What to export beside the pair."""

    ordinary: bool = True
    onnx: bool = True
    int8: bool = False
    rows: int = 300
    """Rows to compare on at most."""


def export_run(run: Path, target: Path, wanted: Wanted, told: Told, say: Say) -> Exported:
    """Write a run's current version as a folder; it appears whole or not at all.

    Raises:
        UserError: the run can't be read, the folder can't be written, or an exported model doesn't
            say what the run says.
    """
    check_target(target)
    folder = current_folder(run)
    models = read_models(folder)
    copies = 1 + 2 * wanted.ordinary + 2 * wanted.onnx
    check_room(target, copies * size_of(folder / "model"))
    sample = read_sample(models.blueprint, models.task_file, wanted.rows)
    done = Exported()
    with made_whole(target) as new:
        _write(models, new, wanted, sample, done, say)
        write_card(models, new, told, Report(done.parts, done.refused, done.checks))
        about = {"tsarch": version("tsarch"), "transformers": version("transformers")}
        text = json.dumps({**about, **asdict(done)}, indent=2, ensure_ascii=False)
        (new / "export.json").write_text(text + "\n", encoding="utf-8")
    return done


def _write(
    models: TrainedModels, new: Path, wanted: Wanted, sample: Sample, done: Exported, say: Say
) -> None:
    write_pair(models, new)
    done.parts["model/"] = "the pair, which `tsarch.load` reads (with `config.yaml`)"
    if wanted.ordinary:
        if models.teacher is not None:
            _ordinary(models, models.teacher, "teacher", new, sample, done)
        if models.student is not None:
            _ordinary(models, models.student, "student_alone", new, sample, done)
        if models.drafter is not None:
            _drafter(models, models.drafter, new, done)
    if wanted.onnx:
        say("making ONNX graphs")
        _onnx(models, new / "onnx", wanted.int8, sample, done, say)


def _onnx(
    models: TrainedModels, folder: Path, int8: bool, sample: Sample, done: Exported, say: Say
) -> None:
    """Write and check graphs, or say why there can't be any."""
    try:
        write_onnx(models, folder, int8)
    except UserError as error:
        shutil.rmtree(folder, ignore_errors=True)
        done.refused["onnx/"] = str(error)
        return
    say(f"comparing them with the run on {sample.num_rows} {sample.source}")
    precisions: tuple[Weights, ...] = ("fp32", "int8") if int8 else ("fp32",)
    found = check_graphs(models, folder, sample, precisions)
    for precision, compared in found.items():
        what = "weights of 8 bits" if precision == "int8" else "fp32"
        for file in sorted(folder.glob("*.onnx")):
            if (".int8." in file.name) == (precision == "int8"):
                done.parts[f"onnx/{file.name}"] = f"ONNX, {what}; any number of texts and tokens"
        done.checks += [
            f"`onnx/` in {precision}, {own.told(sample.num_rows)}: {sample.num_rows} "
            f"{sample.source}"
            for own in compared
        ]
    done.checks += losses_by_rounding(found)
    if models.blueprint.scorer is not None:
        done.checks.append(
            "`onnx/` reads all windows of a text, the run those that its scorer chooses "
            "(`student.scorer`), so its answers may be others"
        )


def _ordinary(
    models: TrainedModels,
    module: TeacherModel | StudentModel,
    mode: Mode,
    new: Path,
    sample: Sample,
    done: Exported,
) -> None:
    """Write a model as an ordinary one, or say why it can't be."""
    folder = new / mode
    try:
        if models.is_generative:
            model, checked = _writer(models, module)
        else:
            model, checked = _reader(models, module, mode, sample)
        model.save_pretrained(folder)
        checked += _tokenizer(models, model, mode, folder, sample)
    except UserError as error:
        shutil.rmtree(folder, ignore_errors=True)
        done.refused[f"{mode}/"] = str(error)
        return
    done.parts[f"{mode}/"] = f"an ordinary `{type(model).__name__}` of transformers"
    done.checks.append(f"`{mode}/` as {type(model).__name__}: {checked}")


def _tokenizer(
    models: TrainedModels, model: PreTrainedModel, mode: Mode, folder: Path, sample: Sample
) -> str:
    """Write an ordinary model's tokenizer, and say in how many rows its tokens are the run's.

    Raises:
        UserError: in most they aren't.
    """
    blueprint = models.blueprint
    is_teacher = mode == "teacher"
    save_tokenizer(
        blueprint.tokenizer(),
        folder,
        model,
        blueprint.batches.context_tokens if is_teacher else blueprint.window_tokens,
        special_tokens=is_teacher or models.is_generative,
        leads=models.task_file.task in WORD_TASKS,
    )
    if models.is_generative:  # whoever asks puts the space there
        return ""
    tokens = packing_spec(blueprint, keep_tokens=False).tokens
    exported = load_tokenizer(str(folder.absolute()))
    return "; " + compare_tokens(sample.split.rows, tokens, exported, sample.source)


def _drafter(models: TrainedModels, drafter: DrafterModel, new: Path, done: Exported) -> None:
    """Write a drafter for the ordinary model of its teacher, or say why it can't be."""
    try:
        if f"{VERIFIER}/" in done.refused:
            what = "isn't here, and it is what the drafter proposes to."
            raise UserError.single(f"{VERIFIER}/", what)
        write_drafter(models, drafter, new / "drafter")
    except UserError as error:
        done.refused["drafter/"] = str(error)
        return
    what = f"its drafter (EAGLE-3) in the layout of speculators {VERSION}"
    done.parts["drafter/"] = what


def _reader(
    models: TrainedModels, module: TeacherModel | StudentModel, mode: Mode, sample: Sample
) -> tuple[PreTrainedModel, str]:
    """The ordinary model for a task with labels or spans, and how near it is.

    Raises:
        UserError: none is near enough.
    """
    if mode == "teacher" and models.blueprint.task.query == "student":
        what = "is none of its modes: the teacher doesn't read what is asked."
        raise UserError.single("teacher", what)
    model = ordinary_model(models, module)
    ids, types = tokens_read(sample, mode, _MOST_SEQUENCES)
    gap = difference(models, module, model, ids, types)
    if not gap <= TOLERANCE:
        what = f"computes something else (logits differ by {gap:.1g})."
        raise UserError.single(type(model).__name__, what)
    kind = "contexts" if mode == "teacher" else "windows"
    return model, f"logits within {gap:.1g} of the run's on {len(ids)} {kind} of {sample.source}"


def _writer(
    models: TrainedModels, module: TeacherModel | StudentModel
) -> tuple[PreTrainedModel, str]:
    """The ordinary language model, and how near it is.

    Raises:
        UserError: none is near enough.
    """
    from tsarch.export.language import language_model

    model, gap = language_model(models, module)
    return model, f"logits within {gap:.1g} of the run's on random tokens"
