"""Trackers by the names that a config gives them, and what must be there for each."""

from __future__ import annotations

import importlib
import netrc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from tsarch.blueprint import Blueprint
from tsarch.config import TrackingConfig
from tsarch.errors import Mistake, one_line
from tsarch.telling.tracker import TrackedRun, Tracker

_PLACES = {
    "tensorboard": "tsarch.telling.curves:TensorBoard",
    "wandb": "tsarch.telling.wandb_run:open_wandb",
    "mlflow": "tsarch.telling.mlflow_run:open_mlflow",
    "prometheus": "tsarch.cluster.run_metrics:RunMetrics",
}
_METHODS = ("ticks", "step", "evaluation", "texts", "rewind", "close")
Open = Callable[[TrackedRun], Tracker]


def tracker_named(name: str) -> Open:
    """What makes the tracker of that name.

    Raises:
        ImportError: its module, or what that needs, isn't there.
        AttributeError: the module has nothing of that name.
    """
    module, _, attribute = _PLACES.get(name, name).partition(":")
    here = str(Path.cwd())
    if here not in sys.path:  # as with `python -m`
        sys.path.append(here)
    return cast(Open, getattr(importlib.import_module(module), attribute))


def is_of_the_user(name: str) -> bool:
    """Whether it is none of those that come with tsarch."""
    return name not in _PLACES


def tracker_mistakes(blueprint: Blueprint) -> list[Mistake]:
    """What keeps the trackers of a run from being told of it. Imports their libraries."""
    found = []
    for name in blueprint.tracking.trackers:
        where = f"tracking.trackers: {name}"
        if name == "prometheus" and blueprint.runner.name != "ray":
            what = f"needs a run on Ray, and topology.runner is {blueprint.runner.name}."
            found.append(Mistake(where, what))
        elif (lack := _lack(name, blueprint.tracking)) is not None:
            found.append(Mistake(where, *lack))
    return found


def _lack(name: str, tracking: TrackingConfig) -> tuple[str, str] | None:
    """What a tracker lacks, and what to do about it."""
    try:
        made_by = tracker_named(name)
    except ModuleNotFoundError as error:
        if name in ("wandb", "mlflow") and error.name == name:
            what = f"needs the package {name}, which is not installed."
            return what, f"pip install 'tsarch[{name}]'"
        return f"can't be imported: {one_line(error)}.", ""
    except Exception as error:  # of a module of the user's
        return f"can't be imported: {one_line(error)}.", ""
    return next(_unfit(name, made_by, tracking), None)


def _unfit(name: str, made_by: Any, tracking: TrackingConfig) -> Iterator[tuple[str, str]]:
    """What is wrong with one that can be imported."""
    if not callable(made_by):
        yield "is not called with a run: it is no class and no function.", ""
    elif isinstance(made_by, type):
        missing = [own for own in _METHODS if not callable(getattr(made_by, own, None))]
        if missing:
            yield f"is no tracker: it has no {', '.join(missing)}.", ""
    if name == "mlflow" and not (tracking.mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI")):
        hint = "Set tracking.mlflow_uri, or MLFLOW_TRACKING_URI."
        yield "needs the address of a server.", hint
    if name == "wandb" and not _is_offline(tracking) and not _has_wandb_key():
        hint = "Run `wandb login`, set WANDB_API_KEY, or tracking.wandb_mode: offline."
        yield "has no key for Weights & Biases.", hint


def _is_offline(tracking: TrackingConfig) -> bool:
    mode = tracking.wandb_mode or os.environ.get("WANDB_MODE", "online")
    return mode not in ("online", "shared")


def _has_wandb_key() -> bool:
    """Whether wandb, which would ask for a key on the terminal, finds one."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False
