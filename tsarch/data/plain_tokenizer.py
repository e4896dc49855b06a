"""A tokenizer by the library `tokenizers` alone, where transformers' own adds nothing to it:
importing transformers takes longer than all else that a small ONNX model needs to answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FILE = "tokenizer.json"
_NAMES = ("cls", "bos", "sep", "eos", "unk", "pad")
_TYPES = "token_type_ids"
_OF_CALLS = ("truncation", "padding")
"""Settings that every call makes anew."""


def plain_tokenizer_ids(tokenizer: PreTrainedTokenizerBase, folder: Path) -> dict[str, Any] | None:
    """What `PlainTokenizer` must know of a tokenizer that was saved in a folder, beside its file;
    None: the file by itself is another tokenizer, as some classes of transformers make one anew."""
    own, saved = (
        {name: value for name, value in json.loads(text).items() if name not in _OF_CALLS}
        for text in (
            tokenizer.backend_tokenizer.to_str(),
            (folder / _FILE).read_text(encoding="utf-8"),
        )
    )
    if own != saved:
        return None
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in _NAMES}
    return {**ids, _TYPES: _TYPES in tokenizer.model_input_names}


class PlainTokenizer:
    """As much of transformers' tokenizers as making rows into tokens needs.

    Args:
        folder: with `tokenizer.json`.
        known: of `plain_tokenizer_ids`.
    """

    def __init__(self, folder: Path, known: Mapping[str, Any]) -> None:
        from tokenizers import Tokenizer

        self._own = Tokenizer.from_file(str(folder / _FILE))
        self._own.no_truncation()
        self._own.no_padding()
        self._has_types = bool(known[_TYPES])
        self.cls_token_id, self.bos_token_id, self.sep_token_id = (
            known[f"{name}_token_id"] for name in _NAMES[:3]
        )
        self.eos_token_id, self.unk_token_id, self.pad_token_id = (
            known[f"{name}_token_id"] for name in _NAMES[3:]
        )

    def __call__(
        self,
        text: str | list[str],
        pair: str | None = None,
        add_special_tokens: bool = True,
        **ignored: Any,
    ) -> dict[str, Any]:
        """Tokens of a text or a pair of them, or, with their offsets, of several texts."""
        if isinstance(text, list):
            found = self._own.encode_batch(text, add_special_tokens=add_special_tokens)
            return {
                "input_ids": [own.ids for own in found],
                "offset_mapping": [own.offsets for own in found],
            }
        own = self._own.encode(text, pair, add_special_tokens=add_special_tokens)
        encoded = _Encoded({"input_ids": own.ids, "sequence_ids": own.sequence_ids})
        if self._has_types:
            encoded[_TYPES] = own.type_ids
        return encoded


class _Encoded(dict[str, Any]):
    """Tokens of a text."""

    def sequence_ids(self) -> list[int | None]:
        """Of each token, the text of the pair that it is of; None: a special one."""
        own: list[int | None] = self["sequence_ids"]
        return own
