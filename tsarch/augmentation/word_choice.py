"""Words in place of others: near ones in a table of embeddings, or what a masked language model
expects there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tsarch.data.near_words import MOST_CHOICES, NearWords, is_same, whole_words
from tsarch.data.tokenizer import resolve_model_path
from tsarch.errors import UserError, one_line
from tsarch.model_folder import load_table

_BATCH = 32

Choices = list[tuple[str, float]]
"""Words, with how likely each is to be taken."""


class WordChoice(Protocol):
    """Knows what may stand in place of words."""

    def choices(self, texts: Sequence[tuple[Sequence[str], int]]) -> list[Choices]:
        """Of the word at a place of each text's words: those that may stand there; none, where it
        doesn't know. The word itself isn't among them."""


class Neighbours:
    """Words that a table has near a word, wherever it stands; of tables of whole words.

    Args:
        run: folder of a trained pair, whose table and tokenizer these are.
    """

    def __init__(self, run: Path) -> None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(
            run / "model" / "tokenizer", trust_remote_code=False
        )
        self._words = {row: word for word, row in whole_words(tokenizer).items()}
        self._rows_of = {word: row for row, word in self._words.items()}
        self._near = NearWords(load_table(run / "model").float().numpy(), self._words)
        self._found: dict[int, Choices] = {}

    def choices(self, texts: Sequence[tuple[Sequence[str], int]]) -> list[Choices]:
        """The nearest by the cosine of their angle."""
        rows = [self._row_of(words[place]) for words, place in texts]
        new = sorted({row for row in rows if row is not None} - set(self._found))
        for row, near in zip(new, self._near.near(new), strict=True):
            self._found[row] = [(self._words[other], cosine) for other, cosine in near]
        return [[] if row is None else self._found[row] for row in rows]

    def _row_of(self, word: str) -> int | None:
        own = word if word in self._rows_of else word.lower()
        return self._rows_of.get(own)


class MaskedModel:
    """What a masked language model expects in a word's place.

    Raises:
        UserError: there is no such model, or its head isn't in its files.
    """

    def __init__(self, name: str) -> None:
        from transformers import AutoModelForMaskedLM, AutoTokenizer

        folder = resolve_model_path(name)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            model, found = AutoModelForMaskedLM.from_pretrained(
                folder, trust_remote_code=False, use_safetensors=True, output_loading_info=True
            )
        except (OSError, ValueError) as error:
            what = f"can't be loaded as a masked language model: {one_line(error)}"
            raise UserError.single(f"--model {name}", what) from None
        if missing := sorted(found["missing_keys"]):  # transformers makes up what isn't there
            what = f"was not trained to fill masks: it has no weights for {missing[0]}."
            raise UserError.single(f"--model {name}", what, "Name a masked language model.")
        self._model = model.eval()
        if self._tokenizer.mask_token_id is None:
            raise UserError.single(f"--model {name}", "has a tokenizer without a mask token.")
        self._whole = whole_words(self._tokenizer)
        self._names = {row: word for word, row in self._whole.items()}

    def choices(self, texts: Sequence[tuple[Sequence[str], int]]) -> list[Choices]:
        """The likeliest."""
        found: list[Choices] = []
        for start in range(0, len(texts), _BATCH):
            part = texts[start : start + _BATCH]
            for (words, place), own in zip(part, self._logits(part), strict=True):
                found.append([] if own is None else self._likely(own, words[place]))
        return found

    @torch.inference_mode()
    def _logits(self, texts: Sequence[tuple[Sequence[str], int]]) -> list[Tensor | None]:
        """(vocabulary,) at the word of each text; None: it is beyond what the model reads."""
        mask = self._tokenizer.mask_token
        masked = [[*w[:place], mask, *w[place + 1 :]] for w, place in texts]
        inputs = self._tokenizer(
            masked,
            is_split_into_words=True,
            padding=True,
            truncation=True,
            max_length=self._model.config.max_position_embeddings - 2,
            return_tensors="pt",
        )
        logits = self._model(**inputs).logits
        places = (inputs["input_ids"] == self._tokenizer.mask_token_id).int()
        return [
            own[int(at.argmax())] if bool(at.any()) else None
            for own, at in zip(logits, places, strict=True)
        ]

    def _likely(self, logits: Tensor, word: str) -> Choices:
        values, rows = F.softmax(logits.float(), dim=-1).topk(4 * MOST_CHOICES)
        found = [
            (self._names[row], value)
            for row, value in zip(rows.tolist(), values.tolist(), strict=True)
            if row in self._names and not is_same(self._names[row], word)
        ]
        return found[:MOST_CHOICES]


def in_case_of(word: str, other: str) -> str:
    """A word with the capitals of another one."""
    if other.isupper() and len(other) > 1:
        return word.upper()
    return word[:1].upper() + word[1:] if other[:1].isupper() else word


def drawn(choices: Choices, rng: np.random.Generator) -> str:
    """One of the choices, the likelier the oftener."""
    weights = np.array([weight for _, weight in choices])
    return choices[int(rng.choice(len(choices), p=weights / weights.sum()))][0]
