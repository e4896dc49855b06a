"""Pretrained weights, streamed from their files into a skeleton one parameter at a time.

Names are mapped as transformers maps them (base-model prefix, old `gamma` and `beta`, renamed and
fused weights of an architecture), but values never meet in a state dict: each parameter is read,
put in and handed to the construction before the next one is read.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Collection, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)
from transformers.utils.loading_report import LoadStateDictInfo

from tsarch.errors import UserError
from tsarch.models.construction import Construction, put
from tsarch.models.skeleton import Skeleton
from tsarch.models.weight_files import Checkpoint, some

_LOG = logging.getLogger(__name__)
Read = Callable[[str, str], Tensor]
"""(tensor in the files, name in the model) → values, or a tensor on the meta device."""


def check_weights(skeleton: Skeleton, checkpoint: Checkpoint) -> set[str]:
    """Compare names and shapes with the skeleton's; no values are read.

    Returns the names in `skeleton.source` of all that the files have for it.

    Raises:
        UserError: weights of the skeleton are missing or have another shape.
    """
    source = skeleton.source
    groups, unexpected = _groups(source, checkpoint, partial(_shape_only, checkpoint))
    shapes = {name: value.shape for name, value in _values(source, groups, groups.keys())}
    names = source.state_dict()
    info = LoadStateDictInfo(set(names) - set(shapes), unexpected, set(), [], {}, set())
    source._adjust_missing_and_unexpected_keys(info)
    wanted = {skeleton.origin(name) for name in skeleton.model.state_dict()}
    fixed = {name for name, p in source.named_parameters() if not p.requires_grad}
    if missing := (wanted & info.missing_keys) - fixed:
        raise UserError.single(
            checkpoint.name,
            f"its files have no weights for {some(missing)}.",
            "Take a complete copy of the model that belongs to its config.json.",
        )
    if other := {n for n in wanted & set(shapes) if shapes[n] != names[n].shape}:
        name = min(other)
        raise UserError.single(
            checkpoint.name,
            f"its config.json asks for other shapes than its files have: {some(other)} "
            f"({name}: {tuple(names[name].shape)}, in the files {tuple(shapes[name])}).",
            "Take weights and config.json of the same model.",
        )
    inside = tuple(
        f"{name}."
        for name, child in source.named_children()
        if any(True for _ in child.parameters())
    )
    if ignored := {name for name in info.unexpected_keys if name.startswith(inside)}:
        _LOG.warning(
            "%s: weights that its config has no place for: %s", checkpoint.name, some(ignored)
        )
    return set(shapes)


def load_weights(
    skeleton: Skeleton, checkpoint: Checkpoint, construction: Construction, with_table: bool
) -> None:
    """Put the files' values into `skeleton.model`, one parameter at a time, in the files' order.

    All ranks of a stage call it with the same files. The table stays out of the construction's
    hands: only ranks `with_table` read it, and whole.
    """
    model, table = skeleton.model, skeleton.origin(skeleton.table)
    targets: dict[str, list[str]] = {}
    for name in model.state_dict():
        targets.setdefault(skeleton.origin(name), []).append(name)
    if table and not with_table:
        del targets[table]
    # Buffers are never sharded, so every rank reads them.
    whole = {table, *(skeleton.origin(name) for name, _ in model.named_buffers())}
    with checkpoint.open() as from_file:

        def read(key: str, name: str) -> Tensor:
            if construction.reads or name in whole:
                return from_file(key)
            return _shape_only(checkpoint, key, name)

        groups, _ = _groups(skeleton.source, checkpoint, read)
        for name, value in _values(skeleton.source, groups, targets):
            for target in targets.get(name, ()):
                parameter = _put(model, target, value)
                if parameter is not None and name != table:
                    construction.settle([parameter])


def file_names(source: PreTrainedModel, checkpoint: Checkpoint) -> dict[str, str]:
    """Name in `source` → tensor in the files, of all that `source` takes from them as it is."""
    groups, _ = _groups(source, checkpoint, partial(_shape_only, checkpoint))
    plain = {name: own for name, own in groups.items() if isinstance(own, WeightRenaming)}
    return {name: own.source_patterns[0] for name, own in plain.items()}


def _put(model: PreTrainedModel, name: str, value: Tensor) -> nn.Parameter | None:
    old = model.get_parameter_or_buffer(name)
    own = torch.empty(old.shape, dtype=old.dtype)  # not a view of the file
    if not value.is_meta:
        own.copy_(value)
    return put(model, name, own)


def _groups(
    source: PreTrainedModel, checkpoint: Checkpoint, read: Read
) -> tuple[dict[str, WeightRenaming | WeightConverter], set[str]]:
    """transformers' transforms from the files to `source`, by the name of their first result;
    and names that `source` has no place for."""
    transforms = get_model_conversion_mapping(source)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    by_pattern = {pattern: c for c in converters for pattern in c.source_patterns}
    names, prefix = source.state_dict(), source.base_model_prefix
    groups: dict[str, WeightRenaming | WeightConverter] = {}
    unexpected = set()
    for key in sorted(checkpoint.shapes, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, prefix, names)
        if name not in names and key in names:
            name, pattern = key, None
        if name not in names:
            unexpected.add(name.removeprefix(f"{prefix}."))
            continue
        new = WeightRenaming(key, name) if pattern is None else copy.deepcopy(by_pattern[pattern])
        group = groups.setdefault(name, new)
        group.add_tensor(name, key, pattern or key, partial(read, key, name))
    return groups, unexpected


def _values(
    source: PreTrainedModel,
    groups: dict[str, WeightRenaming | WeightConverter],
    wanted: Collection[str],
) -> Iterator[tuple[str, Tensor]]:
    """(name, value) of the results of `groups`; those whose first result isn't wanted are not
    read (the results of one group lie in one layer)."""
    for first, group in groups.items():
        if first in wanted:
            for name, value in group.convert(first, model=source, config=source.config).items():
                yield name, value[0] if isinstance(value, list) else value


def _shape_only(checkpoint: Checkpoint, key: str, _: str) -> Tensor:
    return torch.empty(checkpoint.shapes[key], device="meta")
