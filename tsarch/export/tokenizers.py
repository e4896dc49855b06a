"""Tokenizers for ordinary models: they give a text the tokens that the model was trained on."""

from __future__ import annotations

import copy
import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsarch.data.passages import PairTypes, pair_specials
from tsarch.data.tokenizer import word_lead

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_OFFSETS = ("ByteLevel", "RobertaProcessing")
"""Post-processors that also take spaces out of offsets, but for one that was put before a text
(`add_prefix_space`)."""


def save_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    model: PreTrainedModel,
    max_tokens: int,
    special_tokens: bool,
    leads: bool,
) -> None:
    """Write a tokenizer for a model.

    Args:
        max_tokens: of a text, special tokens counted.
        special_tokens: whether they stand around a text. Without, a pair of texts still has those
            before and between both: a question is asked so of a part of a passage.
        leads: whether the first word gets the tokens that it has after a space.
    """
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = max_tokens
    taken = inspect.signature(model.forward).parameters
    tokenizer.model_input_names = [n for n in tokenizer.model_input_names if n in taken]
    needs_lead = leads and word_lead(tokenizer) == " "
    tokenizer.save_pretrained(folder)
    if special_tokens and not needs_lead:
        return
    file = folder / "tokenizer.json"
    raw = json.loads(file.read_text(encoding="utf-8"))
    if not special_tokens:
        raw["post_processor"] = _bare(tokenizer, raw.get("post_processor"))
    if needs_lead:
        raw["normalizer"] = _with_lead(raw.get("normalizer"))
        for own in _taking_spaces_out(raw.get("post_processor")):
            own["add_prefix_space"] = True  # one that is no character of the text
    file.write_text(json.dumps(raw, ensure_ascii=False), encoding="utf-8")
    _read_as_it_is(folder / "tokenizer_config.json", tokenizer.model_input_names)


def _bare(tokenizer: PreTrainedTokenizerBase, post_processor: Any) -> dict[str, Any]:
    """A post-processor that adds nothing to a text, and nothing behind a pair of texts."""
    specials, types = pair_specials(tokenizer)
    kinds = types or PairTypes([0] * 9, 0, [0] * 9, 0, [])
    names = {n: tokenizer.convert_ids_to_tokens(n) for n in (*specials.before, *specials.between)}
    pair: list[dict[str, Any]] = [
        {"SpecialToken": {"id": names[token], "type_id": kind}}
        for token, kind in zip(specials.before, kinds.before)
    ]
    pair.append({"Sequence": {"id": "A", "type_id": kinds.question}})
    pair += [
        {"SpecialToken": {"id": names[token], "type_id": kind}}
        for token, kind in zip(specials.between, kinds.between)
    ]
    pair.append({"Sequence": {"id": "B", "type_id": kinds.passage}})
    template = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}],
        "pair": pair,
        "special_tokens": {
            name: {"id": name, "ids": [token], "tokens": [name]} for token, name in names.items()
        },
    }
    places = [
        {
            "type": "ByteLevel",
            "add_prefix_space": own["add_prefix_space"],
            "trim_offsets": own["trim_offsets"],
            "use_regex": True,
        }
        for own in _taking_spaces_out(post_processor)
    ]
    return {"type": "Sequence", "processors": [*places, template]} if places else template


def _taking_spaces_out(post_processor: Any) -> list[dict[str, Any]]:
    """The parts of a post-processor that take spaces out of offsets."""
    if post_processor is None:
        return []
    parts = post_processor.get("processors", [post_processor])
    return [own for own in parts if own["type"] in _OFFSETS]


def _with_lead(normalizer: Any) -> dict[str, Any]:
    """A normalizer that puts a space before a text first."""
    lead = {"type": "Prepend", "prepend": " "}
    parts = [lead] if normalizer is None else [lead, normalizer]
    return {"type": "Sequence", "normalizers": parts}


def _read_as_it_is(file: Path, inputs: list[str]) -> None:
    """Classes of single architectures write their own post-processor; the general one takes what
    tokenizer.json has."""
    raw = json.loads(file.read_text(encoding="utf-8"))
    raw |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": inputs}
    file.write_text(json.dumps(raw, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
