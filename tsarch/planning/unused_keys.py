"""Keys of a config that say how something is done that is switched off."""

from __future__ import annotations

from collections.abc import Iterator

from tsarch.config import Config
from tsarch.config.base import Section

_HIDDEN = ("hidden_layers", "hidden_loss")
_RELATIONS = ("relations", "relation_heads")


def unused_keys(config: Config) -> Iterator[str]:
    """A remark for each, on what it waits for."""
    own = config.distillation
    if not own.hidden_weight:
        yield from _changed("distillation", own, _HIDDEN, "distillation.hidden_weight is 0")
    if not own.relation_weight:
        yield from _changed("distillation", own, _RELATIONS, "distillation.relation_weight is 0")
    if not own.hidden_weight and not own.relation_weight:
        what = "distillation.hidden_weight and relation_weight are 0"
        yield from _changed("distillation", own, ("match_passes",), what)
    if config.data.unlabelled is None:
        names = tuple(type(config.unlabelled).model_fields)
        yield from _changed("unlabelled", config.unlabelled, names, "there is no data.unlabelled")


def _changed(name: str, section: Section, keys: tuple[str, ...], why: str) -> Iterator[str]:
    fields = type(section).model_fields
    for key in keys:
        if getattr(section, key) != fields[key].get_default(call_default_factory=True):
            yield f"{name}.{key} is not used: {why}"
