"""Checks that have passed before, of which only what they remarked is wanted again.

A check is known by all that its outcome depends on: the config, the bytes of the models' files, the
code here, the versions of the libraries, the processor, and what data it reads. If any of it is
another, or can't be known (a model on the hub), the check is made. Only what passed is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tsarch.blueprint import Blueprint
from tsarch.data.cache import cache_root, code_digest
from tsarch.data.tokenizer import resolve_model_path
from tsarch.errors import UserError

_LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "deepspeed", "peft", "numpy",
              "seqeval", "sacrebleu", "rouge_score", "scipy", "scikit-learn")  # fmt: skip
_IGNORED = ("run", "checkpoint", "failure")
"""Sections of the config that no check here reads."""
_MOST_BYTES = 4_000_000_000
"""Of a model's files: of larger ones a small copy is checked, sooner than they are read."""


class PassedChecks:
    """Those of one run.

    Args:
        blueprint: of the run; with `data.cache: false` nothing is kept.
    """

    def __init__(self, blueprint: Blueprint) -> None:
        self._blueprint = blueprint

    def run(
        self,
        name: str,
        check: Callable[[], list[str]],
        data: Iterable[str] = (),
        may_leave_out: bool = False,
    ) -> list[str]:
        """Remarks of a check that raises if it doesn't pass; from before if it has passed.

        Args:
            data: what it reads beside the config and the files of models and tokenizer.
            may_leave_out: its remarks say what was left out; then it is not kept.
        """
        if self._key is None or self._folder is None:
            return check()
        digest = hashlib.sha256(f"{name} {self._key}".encode())
        digest.update("\n".join(data).encode())
        path = self._folder / f"{name}-{digest.hexdigest()}.json"
        known = _read(path)
        if known is None:
            known = check()
            if not (may_leave_out and known):
                _write(path, known)
        return known

    @cached_property
    def _key(self) -> str | None:
        """None: nothing is kept."""
        return _key(self._blueprint) if self._blueprint.data.cache else None

    @cached_property
    def _folder(self) -> Path | None:
        """None: it can't be written."""
        try:
            return cache_root(self._blueprint.data.cache_folder) / "checks"
        except UserError:
            return None


def _key(blueprint: Blueprint) -> str | None:
    """Of all that every check depends on; None: it can't be known."""
    config: dict[str, Any] = blueprint.config.model_dump(mode="json", exclude=set(_IGNORED))
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    names = {own.architecture.model for own in blueprint.stages.values()}
    names.add(blueprint.tokenizer_name)
    for name in sorted(name for name in names if name is not None):
        try:
            folder = Path(resolve_model_path(name))
            found = _folder_digest(folder) if folder.is_dir() else None
        except (UserError, OSError):  # the check says so
            return None
        if found is None:
            return None
        digest.update(found.encode())
    digest.update(f"{code_digest()} {_surroundings()}".encode())
    return digest.hexdigest()


def _folder_digest(folder: Path) -> str | None:
    """Of the names and bytes of a model's files; None: they are too large."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    if sum(path.stat().st_size for path in files) > _MOST_BYTES:
        return None
    digest = hashlib.sha256(str(folder).encode())
    for path in files:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


@cache
def _surroundings() -> str:
    """Versions and processor."""
    versions = [f"{name} {_version(name)}" for name in _LIBRARIES]
    return "\n".join([sys.version, platform.machine(), *_processor(), *versions])


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def _processor() -> Iterator[str]:
    """What tells this processor's arithmetic from another's, on Linux."""
    try:
        with open("/proc/cpuinfo") as file:
            lines = set(file)
    except OSError:
        return
    kinds = ("model name", "flags", "Features")
    yield from sorted(line for line in lines if line.startswith(kinds))


def _read(path: Path) -> list[str] | None:
    try:
        notes = json.loads(path.read_text(encoding="utf-8"))["notes"]
        return [str(note) for note in notes]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, notes: list[str]) -> None:
    """Whole or not at all, since other runs may read it."""
    own = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(exist_ok=True)
        own.write_text(json.dumps({"notes": notes}), encoding="utf-8")
        own.replace(path)
    except OSError:  # it will be checked again
        own.unlink(missing_ok=True)
