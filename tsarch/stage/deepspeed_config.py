"""DeepSpeed's config of a stage: ours, the user's fragment over it, and what a fragment may say.

DeepSpeed lets many misspelt keys pass in silence. So it is given a mapping here that notes which
keys it reads, and a key that it doesn't read is a mistake.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ValidationError

from tsarch.errors import Mistake
from tsarch.specs import EngineSpec
from tsarch.topology import Stage

_FIXED = "stages are plain data-parallel worlds, so this stays as it is"
_OWNED = {
    "train_batch_size": "data.batch_tokens",
    "train_micro_batch_size_per_gpu": "data.batch_tokens and schedule.micro_batches",
    "gradient_accumulation_steps": "schedule.micro_batches",
    "managed_gradient_accumulation": "schedule.micro_batches",
    "gradient_clipping": "optimizer.clip_norm",
    "zero_optimization.compute_grad_norm": "optimizer.clip_norm",
    "optimizer": "optimizer.name",
    "zero_allow_untested_optimizer": "optimizer.name",
    "zero_force_ds_cpu_optimizer": "optimizer.name",
    "scheduler": "learning_rate",
    "bf16.enabled": "precision",
    "bf16.bf16_master_weights_and_grads": "precision",
    "bf16.bf16_optimizer_states": "precision",
    "bfloat16": "precision",
    "fp16": "precision",
    "torch_autocast": "precision",
    "data_types.param_dtype": "precision",
    "zero_optimization.stage": "topology.{stage}.zero_stage",
    "zero_optimization.cpu_offload": "topology.{stage}.offload_optimizer",
    "zero_optimization.cpu_offload_param": "topology.{stage}.offload_parameters",
    "activation_checkpointing": "{stage}.activation_checkpointing",
    "dataloader_drop_last": "data.batch_tokens",
    "data_efficiency": "data",
}
"""Key that tsarch sets → its own key for that."""
_REFUSED = (
    "gradient_allreduce_op",
    "pipeline",
    "tensor_parallel",
    "expert_parallel",
    "use_data_before_expert_parallelism",
    "sequence_parallel_size",
    "hybrid_engine",
    "autotuning",
    "data_parallel_group",
)
"""Keys that would change what a stage is."""


def engine_config(
    clip_norm: float,
    precision: str,
    zero_stage: int,
    replicas: int,
    num_micro_batches: int,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The whole config of a stage's engine; `extra` is merged over ours (`stage_extra`)."""
    own = {
        # Micro-batches are cut by tokens; this only has to be consistent.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": num_micro_batches,
        "train_batch_size": replicas * num_micro_batches,
        "gradient_clipping": clip_norm,
        "bf16": {"enabled": precision == "bf16"},
        "zero_optimization": {"stage": zero_stage},
        "zero_allow_untested_optimizer": True,
        # Offloaded state is stepped by torch's AdamW or SGD on the CPU, as everywhere else.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    return merge(own, extra or {})


def stage_extra(spec: EngineSpec, pin_memory: bool) -> dict[str, Any]:
    """Offloading by `topology.STAGE`, and `STAGE.deepspeed` over it.

    `pin_memory`: page-lock what is offloaded, which makes copies to a GPU asynchronous.
    """
    on_cpu = {"device": "cpu", "pin_memory": pin_memory}
    zero: dict[str, Any] = {}
    if spec.offload_optimizer:
        zero["offload_optimizer"] = on_cpu
    if spec.offload_parameters:
        zero["offload_param"] = on_cpu
    return merge({"zero_optimization": zero} if zero else {}, spec.deepspeed)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`; mappings in both are merged in turn."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            merged[key] = merge(old, value)
        else:
            merged[key] = value
    return merged


def check_fragment(
    stage: Stage, spec: EngineSpec, precision: str, num_micro_batches: int
) -> list[Mistake]:
    """All mistakes of `STAGE.deepspeed`. Imports DeepSpeed (2 s) if there is one at all."""
    if not spec.deepspeed:
        return []
    owned = [*_owned(stage, spec)]
    refused = {mistake.where.split(".deepspeed.")[1] for mistake in owned}
    rest = _without(spec.deepspeed, refused)
    own = stage_extra(replace(spec, deepspeed={}), pin_memory=False)
    base = engine_config(0.0, precision, spec.zero_stage, 1, num_micro_batches, own)
    return [*owned, *(m for key in rest for m in _check_key(base, key, rest[key], stage))]


def _owned(stage: Stage, own: EngineSpec) -> Iterator[Mistake]:
    """Keys of `STAGE.deepspeed` that tsarch sets itself."""
    owners = dict(_OWNED)
    if own.offload_optimizer:
        owners["zero_optimization.offload_optimizer.device"] = "topology.{stage}.offload_optimizer"
    if own.offload_parameters:
        owners["zero_optimization.offload_param.device"] = "topology.{stage}.offload_parameters"
    for path in _paths(own.deepspeed):
        where = f"{stage}.deepspeed.{path}"
        if path in owners:
            key = owners[path].format(stage=stage)
            yield Mistake(where, "is set by tsarch.", f"Use {key}.")
        elif path in _REFUSED:
            yield Mistake(where, f"can't be changed: {_FIXED}.")


def _paths(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of all keys, sections and what is in them."""
    for key, value in mapping.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _paths(value, f"{prefix}{key}.")


def _without(mapping: Mapping[str, Any], paths: set[str], prefix: str = "") -> dict[str, Any]:
    return {
        key: _without(value, paths, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in mapping.items()
        if f"{prefix}{key}" not in paths
    }


class _Noting(dict[str, Any]):
    """A mapping that notes which keys it is asked for.

    A section that DeepSpeed takes as a whole (`Model(**section)`) is asked for all of its keys, or
    for none if it is inside another one; DeepSpeed's models refuse unknown keys by themselves.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(
            {k: _Noting(v) if isinstance(v, Mapping) else v for k, v in values.items()}
        )
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def keys(self) -> Any:
        """DeepSpeed writes `key in section.keys()`."""
        return self

    def __iter__(self) -> Iterator[str]:
        # Overridden so that `**section` goes through `__getitem__` too.
        return super().__iter__()

    def __copy__(self) -> _Noting:
        return self

    def unread(self, wanted: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
        """(dotted name, hint) of each key of `wanted` in here that nobody asked for."""
        for key, value in wanted.items():
            if key not in self.asked:
                yield f"{prefix}{key}", _nearest(key, self.asked)
            elif isinstance(value, Mapping):
                inner = super().__getitem__(key)
                if inner.asked:
                    yield from inner.unread(value, f"{prefix}{key}.")


def _check_key(base: dict[str, Any], key: str, value: Any, stage: Stage) -> Iterator[Mistake]:
    """Let DeepSpeed read our config with one key of the fragment over it."""
    from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    where = f"{stage}.deepspeed.{key}"
    noting = _Noting(merge(base, {key: value}))
    try:
        DeepSpeedConfig(noting)
    except ValidationError as error:
        for e in error.errors():
            yield _invalid(f"{stage}.deepspeed", key, error.title, e)
        return
    except (DeepSpeedConfigError, ValueError, AssertionError, TypeError, KeyError) as error:
        yield Mistake(where, f"DeepSpeed refuses it: {str(error).strip() or repr(error)}")
        return
    for path, hint in noting.unread({key: value}):
        yield Mistake(f"{stage}.deepspeed.{path}", "is not a key of DeepSpeed's.", hint)


def _invalid(prefix: str, section: str, model: str, error: Any) -> Mistake:
    """A mistake that one of DeepSpeed's own models found."""
    location = [str(part) for part in error["loc"]]
    where = ".".join([prefix, section, *location])
    if error["type"] != "extra_forbidden":
        return Mistake(where, f"{error['msg']} (given: {error['input']!r}).")
    found = _model_named(model)
    for part in location[:-1]:
        found = None if found is None else _inner_model(found, part)
    keys = set() if found is None else _keys_of(found)
    return Mistake(where, "is not a key of DeepSpeed's.", _nearest(location[-1], keys))


def _model_named(name: str) -> type[BaseModel] | None:
    from deepspeed.runtime.config_utils import DeepSpeedConfigModel

    waiting: list[type[BaseModel]] = [DeepSpeedConfigModel]
    while waiting:
        model = waiting.pop()
        if model.__name__ == name:
            return model
        waiting += model.__subclasses__()
    return None


def _inner_model(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    """The model of a section inside a section (`Optional[Model]` or `Model`)."""
    for name, field in model.model_fields.items():
        if key in (name, field.alias):
            kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
            models = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
            return models[0] if models else None
    return None


def _keys_of(model: type[BaseModel]) -> set[str]:
    return {field.alias or name for name, field in model.model_fields.items()}


def _nearest(key: str, known: set[str]) -> str:
    close = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.5)
    return f"Did you mean `{close[0]}`?" if close else ""
