"""A config as dotted keys with their values: to compare runs, and to tell what one changes of the
defaults."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from tsarch.config import Config, Section
from tsarch.config_loading import columns_of, dump_config
from tsarch.yaml_text import read_yaml

S = TypeVar("S", bound=Section)
MISSING = object()
"""In place of a default that a key doesn't have."""


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything in nested mappings."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from leaves(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def flat_config(config: Config) -> dict[str, Any]:
    """Dotted key → value of plain YAML, without the credentials of URLs."""
    return dict(leaves(read_yaml(dump_config(config))))


def changed_keys(config: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted key → (default, value) of what a config has otherwise than its defaults; `MISSING`
    where a key has none."""
    raw = _with_defaults(config).model_dump(mode="json", warnings=False)
    raw["data"]["columns"] = columns_of(config.task.name)().model_dump()
    defaults = dict(leaves(raw))
    own = flat_config(config)
    return {
        key: (defaults.get(key, MISSING), value)
        for key, value in own.items()
        if defaults.get(key, MISSING) != value
    }


def unused_keys(config: Config) -> Iterator[str]:
    """A remark for each key that says how something is done that is switched off."""
    changed, own = changed_keys(config), config.distillation
    hidden = "" if own.hidden_weight else "distillation.hidden_weight is 0"
    relations = "" if own.relation_weight else "distillation.relation_weight is 0"
    no_hub = "there is no data.hub" if config.data.hub is None else ""
    reasons = {
        "distillation.hidden_layers": hidden,
        "distillation.hidden_loss": hidden,
        "distillation.relations": relations,
        "distillation.relation_heads": relations,
        "distillation.match_passes": f"{hidden} and {relations}" if hidden and relations else "",
        "optimizer.momentum": "" if config.optimizer.name == "sgd" else "it is SGD's",
        "data.hub_config": no_hub,
        "data.validation_share": no_hub,
    }
    if own.weight == 0:
        predictions = ("distillation.temperature", "distillation.divergence")
        bounds = ("unlabelled.temperature", "unlabelled.min_confidence")
        reasons |= dict.fromkeys(predictions + bounds, "distillation.weight is 0")
    if config.student is not None and config.student.role != "drafter":
        why = "student.role isn't drafter"
        reasons |= {key: why for key in changed if key.startswith("student.drafting.")}
    if config.data.unlabelled is None:
        reasons |= {
            key: "there is no data.unlabelled" for key in changed if key.startswith("unlabelled.")
        }
    for key, why in reasons.items():
        if why and key in changed:
            yield f"{key} is not used: {why}"


def altered(section: S, values: Mapping[str, Any]) -> S:
    """A section, or the whole config, with other values of some keys."""
    update = {
        key: altered(old, value) if isinstance(old := getattr(section, key), Section) else value
        for key, value in values.items()
    }
    return section.model_copy(update=update)


def shown(value: Any) -> str:
    """A value as YAML has it; a dash for `MISSING`."""
    if value is MISSING:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _with_defaults(section: Section) -> Section:
    """A section with the same sections in it and nothing else but defaults."""
    values: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        own = getattr(section, name)
        if isinstance(own, Section):
            is_given = isinstance(field.default, Section)
            values[name] = field.default if is_given else _with_defaults(own)
        elif not field.is_required():
            values[name] = field.get_default(call_default_factory=True)
    return type(section).model_construct(**values)
