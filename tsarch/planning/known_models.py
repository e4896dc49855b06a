"""Shapes of well-known models, and a tokenizer for sizes alone: to plan with what is not here.

A plan needs no weights and no vocabulary, only shapes and about how many tokens texts have. The
values are those of each model's own `config.json`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tsarch.blueprint import Blueprint
from tsarch.data.hub import is_hub_name

_CHARACTERS = 4
"""Of a token, about, in European languages."""


def _bert(kind: str, rows: int, width: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": kind,
        "vocab_size": rows,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "max_position_embeddings": 512,
        **more,
    }


def _llama(
    rows: int,
    width: int,
    layers: int,
    heads: tuple[int, int],
    inner: int,
    positions: int,
    tied: bool,
) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": rows,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "intermediate_size": inner,
        "max_position_embeddings": positions,
        "tie_word_embeddings": tied,
    }


_ROBERTA = {"max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1}
_SMOL_135M = _llama(49152, 576, 30, (9, 3), 1536, 8192, True)

KNOWN: Mapping[str, Mapping[str, Any]] = {
    "bert-base-cased": _bert("bert", 28996, 768, 12, 12),
    "bert-large-cased": _bert("bert", 28996, 1024, 24, 16),
    "bert-base-uncased": _bert("bert", 30522, 768, 12, 12),
    "bert-large-uncased": _bert("bert", 30522, 1024, 24, 16),
    "roberta-base": _bert("roberta", 50265, 768, 12, 12, **_ROBERTA),
    "roberta-large": _bert("roberta", 50265, 1024, 24, 16, **_ROBERTA),
    "xlm-roberta-base": _bert("xlm-roberta", 250002, 768, 12, 12, **_ROBERTA),
    "xlm-roberta-large": _bert("xlm-roberta", 250002, 1024, 24, 16, **_ROBERTA),
    "xlm-roberta-xl": _bert("xlm-roberta-xl", 250880, 2560, 36, 32, **_ROBERTA),
    "smollm2": _SMOL_135M,  # what `make smollm2` puts into models/
    "smollm2-135m": _SMOL_135M,
    "smollm2-360m": _llama(49152, 960, 32, (15, 5), 2560, 8192, True),
    "smollm2-1.7b": _llama(49152, 2048, 24, (32, 32), 8192, 8192, True),
    "llama-2-7b-hf": _llama(32000, 4096, 32, (32, 32), 11008, 4096, False),
    "llama-3.1-8b": _llama(128256, 4096, 32, (32, 8), 14336, 131072, False),
    "llama-3.1-70b": _llama(128256, 8192, 80, (64, 8), 28672, 131072, False),
    "llama-3.1-405b": _llama(128256, 16384, 126, (128, 8), 53248, 131072, False),
}
"""Last part of a name, in small letters → config."""


def is_here(name: str) -> bool:
    """Whether a model or tokenizer can be read without asking the hub."""
    if not is_hub_name(name):
        return True
    from huggingface_hub import try_to_load_from_cache

    try:
        return isinstance(try_to_load_from_cache(name, "config.json"), str)
    except ValueError:  # it can be no name at all
        return False


def known_config(name: str) -> Mapping[str, Any] | None:
    """Shapes of a model by its name; None: it isn't known."""
    short = name.rstrip("/").rpartition("/")[2].lower()
    return KNOWN.get(short) or KNOWN.get(short.removesuffix("-instruct"))


def with_known_models(blueprint: Blueprint, folder: Path) -> tuple[Blueprint, list[str]]:
    """The run with known shapes in the place of models that are not here, and a tokenizer of about
    as many tokens (written to `folder`); and what was put in, for the user. Models that are
    neither here nor known are left to the checks of the config."""
    sections: dict[str, dict[str, Any]] = {}
    notes: list[str] = []
    for stage, name, config in _absent(blueprint):
        sections[stage] = {"model": None, "config": dict(config)}
        notes.append(f"{name} is not here: planned by its known shapes")
    tokenizer = blueprint.tokenizer_name
    if tokenizer is not None and not is_here(tokenizer) and known_config(tokenizer) is not None:
        _write_tokenizer(folder)
        sections["data"] = {"tokenizer": str(folder)}
        notes.append(f"its tokenizer is not here: a token is taken to be {_CHARACTERS} characters")
    return (blueprint.altered(**sections) if sections else blueprint), notes


def _absent(blueprint: Blueprint) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(stage, name, shapes) of the models that are not here, but known."""
    for stage, own in blueprint.stages.items():
        name = own.architecture.model
        if name is None or own.architecture.section is not stage or is_here(name):
            continue
        if (config := known_config(name)) is not None:
            yield stage.value, name, config


def _write_tokenizer(folder: Path) -> None:
    """A fast tokenizer that cuts words into pieces of a few characters."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    special |= {"pad_token": "[PAD]", "eos_token": "[SEP]"}
    vocabulary = {name: place for place, name in enumerate(dict.fromkeys(special.values()))}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    pieces = Regex(rf"\w{{1,{_CHARACTERS}}}|[^\w\s]")
    made.pre_tokenizer = pre_tokenizers.Split(pieces, behavior="removed", invert=True)
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")],
    )
    PreTrainedTokenizerFast(tokenizer_object=made, **special).save_pretrained(str(folder))
