"""What was measured once, kept in the cache for machines like this one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from typing import Any

import torch

from tsarch.config import DataConfig
from tsarch.data.cache import cache_root


def remembered(data: DataConfig, name: str, about: Any, measure: Callable[[], Any]) -> Any:
    """What `measure` found on a machine with these processors and this version of torch, or finds
    now; JSON. With `data.cache: false` it measures each time.

    Args:
        about: all else that it depends on, JSON too.
    """
    if not data.cache:
        return measure()
    what = [torch.__version__, dict(torch.cpu.get_capabilities()), about]
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:24]
    path = cache_root(data.cache_folder) / "measured" / f"{name}-{key}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))["measured"]
    except (OSError, ValueError, KeyError, TypeError):
        found = measure()
    path.parent.mkdir(exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")  # another run may write it too
    aside.write_text(json.dumps({"about": about, "measured": found}), encoding="utf-8")
    aside.replace(path)
    return found
