"""The model card (README.md) of an exported folder, with the metadata that the hub reads."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsarch.data.tokenizer import resolve_model_path
from tsarch.errors import UserError
from tsarch.export.origins import first_config
from tsarch.export.usage import usage
from tsarch.run.versions import VERSIONS

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

    from tsarch.export.models import TrainedModels

PIPELINES = {
    "ner": "token-classification",
    "classification": "text-classification",
    "relation": "text-classification",
    "ranking": "text-ranking",
    "multiple_choice": "multiple-choice",
    "qa": "question-answering",
    "translation": "translation",
    "summarization": "summarization",
    "dialogue": "text-generation",
    "code": "text-generation",
}
"""Task → the hub's name of it."""
_METRICS = {"f1_micro": "f1", "f1_macro": "f1", "f1_conlleval": "f1", "sacrebleu": "bleu"}
"""Metric here → the hub's, where it isn't the same."""
_UNKNOWN_LICENCE = "other"


@dataclass(frozen=True)
class Told:
    """What only the user knows; empty: nothing said."""

    name: str = ""
    licence: str = ""
    language: tuple[str, ...] = ()


@dataclass(frozen=True)
class Backbone:
    """A pretrained model that training started from, as its own folder tells."""

    name: str
    licence: str | None = None
    language: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """What an export has to say for itself."""

    parts: Mapping[str, str]
    """Part of the folder → what it is."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Part → why it isn't there."""
    checks: Sequence[str] = ()
    """Results of comparisons with the run, a sentence each."""


def write_card(models: TrainedModels, folder: Path, told: Told, report: Report) -> None:
    """Write README.md."""
    summary, names = _summary(models.folder), _names(models)
    backbones = [own for own in map(read_backbone, names or ()) if own is not None]
    data = _metadata(models, summary, backbones, told)
    name = data.model_name or models.blueprint.run.name
    parts = (
        f"---\n{data.to_yaml()}\n---",
        f"# {name}",
        _about(models),
        "## What is here",
        "\n".join(f"- `{part}`: {what}" for part, what in report.parts.items()),
        *_refused(report),
        "## How to use it",
        usage(models, report.parts),
        "## Data and metrics",
        _data(models, summary),
        _table(summary.get("after", {}), "test"),
        *(("## Checked against the run", _list(report.checks)) if report.checks else ()),
        "## Licence",
        _licences(backbones, data.license or _UNKNOWN_LICENCE, is_known=names is not None),
        "## Limits",
        _limits(models),
    )
    (folder / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _summary(folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def _names(models: TrainedModels) -> list[str] | None:
    """Pretrained models that the stages started from; None: nobody knows any more."""
    raw = first_config(models.folder)
    if raw is None:
        return None
    sections = (raw.get("teacher") or {}, raw.get("student") or {})
    return list(dict.fromkeys(own["model"] for own in sections if own.get("model")))


def read_backbone(name: str) -> Backbone | None:
    """What a model's folder tells of itself in its own card; a hub model is not downloaded."""
    from huggingface_hub import ModelCard, try_to_load_from_cache

    shown = name if not os.path.isabs(name) else os.path.basename(os.path.normpath(name))
    try:
        path = resolve_model_path(name)
        card: Any = Path(path) / "README.md"
        if not os.path.isdir(path):
            card = try_to_load_from_cache(path, "README.md")
        if not isinstance(card, str | Path) or not Path(card).is_file():
            return Backbone(shown)
        data = ModelCard.load(Path(card), ignore_metadata_errors=True).data
    except (UserError, OSError, ValueError):
        return Backbone(shown)
    languages = data.language or ()
    languages = (languages,) if isinstance(languages, str) else tuple(map(str, languages))
    return Backbone(shown, data.license, languages)


def _metadata(
    models: TrainedModels, summary: dict[str, Any], backbones: Sequence[Backbone], told: Told
) -> ModelCardData:
    from huggingface_hub import ModelCardData

    licences = {own.licence for own in backbones}
    licence = next(iter(licences)) if len(licences) == 1 else None
    languages = told.language or tuple(dict.fromkeys(n for own in backbones for n in own.language))
    hub = models.blueprint.data.hub
    name = told.name or models.blueprint.run.name
    results = _results(models, summary)
    bases = [own.name for own in backbones if own.name.count("/") == 1 and ":" not in own.name]
    return ModelCardData(
        license=told.licence or licence or _UNKNOWN_LICENCE,
        license_name=None if told.licence or licence else "unknown",
        language=list(languages) or None,
        library_name="tsarch",
        tags=["tsarch", "teacher-student", "distillation", models.task_file.task],
        pipeline_tag=PIPELINES[models.task_file.task],
        datasets=None if hub is None else [hub],
        base_model=bases or None,
        metrics=sorted({own.metric_type for own in results}) or None,
        model_name=name,
        eval_results=results or None,
    )


def _results(models: TrainedModels, summary: dict[str, Any]) -> list[EvalResult]:
    """The metrics of every mode on the test split."""
    from huggingface_hub import EvalResult

    task = PIPELINES[models.task_file.task]
    dataset = dataset_name(models)
    return [
        EvalResult(
            task_type=task,
            task_name=mode,
            dataset_type=models.blueprint.data.hub or "custom",
            dataset_name=dataset,
            dataset_split="test",
            metric_type=_METRICS.get(metric, metric),
            metric_name=f"{metric} ({mode})",
            metric_value=round(float(value), 4),
        )
        for mode, values in summary.get("after", {}).items()
        for metric, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    ]


def dataset_name(models: TrainedModels) -> str:
    """What the data is called: on the hub, or its folder's name; of a version of a run what the
    run's own is called."""
    data = models.blueprint.data.model_dump()
    if models.folder.parent.name == VERSIONS:
        data = (first_config(models.folder) or {}).get("data", {})
    if data.get("hub") is not None:
        return str(data["hub"])
    test = data.get("test")
    files = test if isinstance(test, list) else [test]
    first = next((own for own in files if own), "")
    return os.path.basename(os.path.dirname(str(first))) or os.path.basename(str(first)) or "data"


def _about(models: TrainedModels) -> str:
    modes = ", ".join(f"`{mode}`" for mode in models.blueprint.modes)
    return (
        f"A model for `{models.task_file.task}`, trained by tsarch: a teacher that reads long "
        "contexts and a student that reads short windows share one embedding table. "
        f"Ways to predict: {modes}."
    )


def _refused(report: Report) -> tuple[str, ...]:
    if not report.refused:
        return ()
    lines = [f"- `{part}`: {why}" for part, why in report.refused.items()]
    return ("Not here, since it can't be equal or isn't made:", "\n".join(lines))


def _data(models: TrainedModels, summary: dict[str, Any]) -> str:
    name = dataset_name(models)
    lines = [f"Trained on `{name}`."]
    for split, own in summary.get("data", {}).items():
        sizes = ", ".join(f"{value:,} {key}" for key, value in own.items() if _is_count(value))
        lines.append(f"- {split}: {sizes}")
    if models.task_file.labels:
        shown = ", ".join(f"`{label}`" for label in models.task_file.labels[:40])
        more = len(models.task_file.labels) - 40
        lines.append(f"\nLabels: {shown}" + (f" and {more} more" if more > 0 else ""))
    return "\n".join(lines)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _table(after: Mapping[str, Mapping[str, Any]], split: str) -> str:
    """Metrics of every mode."""
    if not after:
        return "The run has no summary with metrics."
    names = list(dict.fromkeys(name for own in after.values() for name in own))
    lines = [f"| {split} | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for mode, own in after.items():
        cells = (f"{own[name]:.4f}" if name in own else "" for name in names)
        lines.append(f"| {mode} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _licences(backbones: Sequence[Backbone], licence: str, is_known: bool) -> str:
    lines = [f"This model: {licence}."]
    for own in backbones:
        lines.append(f"- started from `{own.name}`: {own.licence or 'its folder names no licence'}")
    if not backbones:
        gone = "weights of a run that isn't there any more"
        lines.append(f"- started from {'random weights' if is_known else gone}")
    return "\n".join(lines)


def _limits(models: TrainedModels) -> str:
    blueprint = models.blueprint
    lines = [
        f"- Contexts of the teacher have up to {blueprint.batches.context_tokens} tokens, windows "
        f"of the student up to {blueprint.window_tokens}.",
        "- Measured on the data above alone; texts of another kind are answered less well.",
    ]
    return "\n".join(lines)
