"""The pair as a folder that `tsarch.load` reads: the run's model and its config, without paths of
the machine that trained it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from tsarch.export.models import TrainedModels
from tsarch.model_folder import save_weights
from tsarch.yaml_text import read_yaml, write_yaml


def write_pair(models: TrainedModels, folder: Path) -> None:
    """Write `config.yaml` and `model/`."""
    raw = read_yaml((models.folder / "config.yaml").read_text(encoding="utf-8"))
    for stage in models.merged:
        raw[stage.name]["lora"] = None
    text = write_yaml(portable(raw))
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    shutil.copytree(models.folder / "model", folder / "model")
    for stage in models.merged:
        state = {name: own.contiguous() for name, own in models.modules[stage].state_dict().items()}
        save_weights(folder / "model", stage, state)
    _forget_places(folder / "model")


def portable(raw: dict[str, Any]) -> dict[str, Any]:
    """A config with names in place of paths: files are named, not where they lie."""
    start = _named(raw["run"].get("start_from"))
    raw["run"] = {**raw["run"], "folder": None, "start_from": start}
    if raw.get("distillation"):
        raw["distillation"]["from_run"] = _named(raw["distillation"].get("from_run"))
    for key in ("train", "validation", "test", "unlabelled"):
        raw["data"][key] = _named(raw["data"].get(key))
    raw["data"]["cache_folder"] = None
    raw["data"]["tokenizer"] = _named(raw["data"].get("tokenizer"))
    for section in ("teacher", "student"):
        if raw.get(section):
            raw[section]["model"] = _named(raw[section].get("model"))
    if raw.get("checkpoint"):
        raw["checkpoint"]["folder"] = None
    return raw


def _named(value: Any) -> Any:
    """Names of files or folders for absolute paths; hub and package names as they are."""
    if isinstance(value, list):
        return [_named(own) for own in value]
    if isinstance(value, str) and (os.path.isabs(value) or value.startswith(("~", "."))):
        return os.path.basename(os.path.normpath(value))
    return value


def _forget_places(model: Path) -> None:
    """Take the trainer's paths out of configs of models and tokenizer."""
    for file in model.rglob("*config.json"):
        raw = json.loads(file.read_text(encoding="utf-8"))
        named = {key: _named(raw[key]) for key in ("_name_or_path", "name_or_path") if key in raw}
        if any(raw[key] != value for key, value in named.items()):
            text = json.dumps({**raw, **named}, indent=2, ensure_ascii=False)
            file.write_text(text + "\n", encoding="utf-8")
