"""The safetensors files of a model: found by folder or hub name, and read tensor by tensor.

Only safetensors: pickled weights can run code when they are read, and can't be read in parts.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import get_safetensors_metadata, try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)
from transformers.utils.hub import cached_file, get_checkpoint_shard_files, has_file

from tsarch.errors import UserError, one_line

_WHOLE_BYTES = 2**22
_NUM_PARTS = 256


@dataclass(frozen=True)
class Checkpoint:
    """Where each tensor of a model's files is, and its shape; no values."""

    name: str
    """Folder or hub name, for messages."""
    files: Mapping[str, str]
    """Tensor → file; empty: they aren't on this machine until something is read."""
    shapes: Mapping[str, tuple[int, ...]]
    """Tensor → shape."""

    @contextmanager
    def open(self) -> Iterator[Callable[[str], Tensor]]:
        """A function that reads one tensor; it views the file, so copy what shall stay."""
        if not self.files:
            with open_checkpoint(self.name).open() as read:
                yield read
            return
        with ExitStack() as stack:
            handles = {
                file: stack.enter_context(safe_open(file, framework="pt"))
                for file in sorted(set(self.files.values()))
            }
            yield lambda key: handles[self.files[key]].get_tensor(key)


def open_checkpoint(model: str) -> Checkpoint:
    """The checkpoint of a local folder or hub name (downloaded, if it isn't cached).

    Raises:
        UserError: it has no safetensors files, or they can't be read.
    """
    files: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path in _find_files(model):
        try:
            with safe_open(path, framework="pt") as handle:
                for key in handle.keys():  # noqa: SIM118 - the handle is no mapping
                    files[key] = path
                    shapes[key] = tuple(handle.get_slice(key).get_shape())
        except (OSError, SafetensorError) as error:
            raise UserError.single(
                path, f"can't be read as safetensors: {one_line(error)}", "Get the file again."
            ) from None
    return Checkpoint(model, files, shapes)


def peek_checkpoint(model: str) -> Checkpoint:
    """As `open_checkpoint`, but of a hub model that isn't here only names and shapes are fetched.

    Raises:
        UserError: as there.
    """
    if os.path.isdir(model) or _is_cached(model):
        return open_checkpoint(model)
    try:
        files = get_safetensors_metadata(model).files_metadata.values()
    except Exception:  # the hub's client raises whatever its transport does
        return open_checkpoint(model)  # which says what is wrong, if anything is
    shapes = {key: tuple(own.shape) for file in files for key, own in file.tensors.items()}
    return Checkpoint(model, {}, shapes)


def model_digest(model: str, weights: bool) -> str:
    """Hexadecimal digest that tells the config of a folder, and its `weights`, from others,
    wherever it lies; of files larger than `_WHOLE_BYTES` by parts from all over them. Of a hub
    model: its name.
    """
    digest = hashlib.sha256()
    if not os.path.isdir(model):
        return hashlib.sha256(model.encode()).hexdigest()
    names = ("config.json", "*.safetensors") if weights else ("config.json",)
    for path in sorted(found for name in names for found in Path(model).glob(name)):
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        places = [0]
        part = size
        if size > _WHOLE_BYTES:
            part = _WHOLE_BYTES // _NUM_PARTS
            places = [number * (size - part) // (_NUM_PARTS - 1) for number in range(_NUM_PARTS)]
        with path.open("rb") as file:
            for place in places:
                file.seek(place)
                digest.update(file.read(part))
    return digest.hexdigest()


def check_safetensors(model: str) -> None:
    """Check without a download that a folder or hub model has safetensors weights.

    Raises:
        UserError: it has none.
    """
    if not any(_has(model, name) for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)):
        raise _no_safetensors(model)


def _find_files(model: str) -> list[str]:
    try:
        single = _cached(model, SAFE_WEIGHTS_NAME)
        if single is not None:
            return [single]
        index = _cached(model, SAFE_WEIGHTS_INDEX_NAME)
        if index is None:
            raise _no_safetensors(model)
        shards, _ = get_checkpoint_shard_files(model, index)
    except (OSError, KeyError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError.single(model, f"its weights can't be found: {one_line(error)}") from None
    missing = [str(Path(shard).name) for shard in shards if not os.path.isfile(shard)]
    if missing:
        raise UserError.single(
            model,
            f"{SAFE_WEIGHTS_INDEX_NAME} names files that are not there: {some(missing)}.",
            "Copy or download the whole folder.",
        )
    return [str(shard) for shard in shards]


def _is_cached(model: str) -> bool:
    """Whether a hub model's weights are on this machine."""
    names = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
    return any(isinstance(try_to_load_from_cache(model, name), str) for name in names)


def _cached(model: str, filename: str) -> str | None:
    path: str | None = cached_file(model, filename, _raise_exceptions_for_missing_entries=False)
    return path


def _has(model: str, filename: str) -> bool:
    if os.path.isdir(model):
        return os.path.isfile(os.path.join(model, filename))
    return bool(has_file(model, filename))


def _no_safetensors(model: str) -> UserError:
    if any(_has(model, name) for name in (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
        return UserError.single(
            model,
            f"has pickled weights only ({WEIGHTS_NAME}), which can run code when they are read.",
            "Convert them where you trust them, and name the new folder: python -c 'from "
            f'transformers import AutoModel; AutoModel.from_pretrained("{model}")'
            '.save_pretrained("FOLDER")\' (and copy the tokenizer files).',
        )
    return UserError.single(
        model, f"has no weights ({SAFE_WEIGHTS_NAME} or {SAFE_WEIGHTS_INDEX_NAME})."
    )


def some(names: Iterable[str]) -> str:
    """Names in a message: all of a few, the first of many."""
    ordered = sorted(names)
    rest = f" and {len(ordered) - 5} more" if len(ordered) > 5 else ""
    return ", ".join(ordered[:5]) + rest
