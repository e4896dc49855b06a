"""A corpus to teacher contexts and student windows, tokenised once and cached."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tsarch.data.corpus import Corpus
from tsarch.data.packing import Sentence, pack, pack_rows
from tsarch.data.passages import Limits, pack_passages, pair_specials, split_row
from tsarch.data.source_target import Pair, PairLayout, pack_pairs
from tsarch.data.sources import cache_root
from tsarch.data.tokenizer import tokenizer_digest
from tsarch.records import TextPair, TokenizedSplit

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_FORMAT = "3"
"""Part of the cache's key: a new value whenever what is stored changes."""


def tokenize_corpus(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    teacher_max_tokens: int,
    student_max_tokens: int,
    cache_folder: str | None,
    pair_layout: PairLayout | None = None,
    overlap_tokens: int = 0,
    seed: int = 0,
) -> dict[str, TokenizedSplit]:
    """Contexts and windows of every split, from a fast tokenizer.

    `pair_layout` is for corpora of pairs.
    Tokenising is cached in `cache_folder` (default `~/.cache/tsarch`) by the content of the data
    and of the tokenizer; several processes may do it at once.
    """
    if corpus.layout == "pairs":
        assert pair_layout is not None
        return _pairs(corpus, tokenizer, pair_layout, cache_folder)
    label_ids = {label: index for index, label in enumerate(corpus.labels)}
    prefix, suffix = special_tokens(tokenizer)
    digest = tokenizer_digest(tokenizer)
    result = {}
    for split, dataset in corpus.splits.items():
        tokenized = _tokenized(split, dataset, tokenizer, digest, cache_folder)
        columns = (
            dataset["doc_id"][:],
            tokenized["token_ids"][:],
            tokenized["starts"][:],
            dataset["focus"][:],
        )
        sentences = [Sentence(*row) for row in zip(*columns, strict=True)]
        labels = [[label_ids[tag] for tag in tags] for tags in dataset["tags"][:]]
        limits = prefix, suffix, teacher_max_tokens, student_max_tokens
        if corpus.layout == "passages":
            details = corpus.details[split]
            result[split] = pack_passages(
                [
                    split_row(own.token_ids, own.starts, passage.num_question_words)
                    for own, passage in zip(sentences, details, strict=True)
                ],
                details,
                pair_specials(tokenizer),
                Limits(teacher_max_tokens, student_max_tokens, overlap_tokens),
                seed,
            )
        elif corpus.layout == "rows":
            own = [label for (label,) in labels]
            result[split] = pack_rows(sentences, own, label_token(tokenizer), *limits)
        else:
            result[split] = pack(sentences, labels, *limits)
    return result


def _pairs(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    layout: PairLayout,
    cache_folder: str | None,
) -> dict[str, TokenizedSplit]:
    """Sources and targets of every split; texts are tokenised whole."""
    digest = tokenizer_digest(tokenizer)
    result = {}
    for split, dataset in corpus.splits.items():
        tokenized = _tokenized(split, dataset, tokenizer, digest, cache_folder, whole_texts=True)
        parts, texts = dataset["tokens"][:], dataset["tags"][:]
        columns = tokenized["source"][:], tokenized["target"][:], dataset["focus"][:]
        pairs = [
            Pair(source, target, reads_last=focus is not None)
            for source, target, focus in zip(*columns, strict=True)
        ]
        written = [
            TextPair("\n".join(own), tuple(targets))
            for own, targets in zip(parts, texts, strict=True)
        ]
        result[split] = pack_pairs(pairs, written, layout)
    return result


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Tokens that the tokenizer puts before and after a text."""
    encoded = tokenizer(["a"], is_split_into_words=True)
    ids = list(encoded["input_ids"])
    places = [place for place, word in enumerate(encoded.word_ids()) if word is not None]
    return ids[: places[0]], ids[places[-1] + 1 :]


def label_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Token put into a row to carry its label: of `[CLS]`, `[SEP]` and their like the first that
    the tokenizer has."""
    names = ("cls_token_id", "bos_token_id", "sep_token_id", "eos_token_id", "unk_token_id")
    found = (getattr(tokenizer, name) for name in names)
    return int(next((token for token in found if token is not None), 0))


def _tokenized(
    split: str,
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    tokenizer_digest: str,
    cache_folder: str | None,
    whole_texts: bool = False,
) -> Dataset:
    """The split as token_ids and starts, from the cache if it is there; with `whole_texts` as
    tokens of each part of the source and of the target.

    `map` writes to a temporary file beside the cache file and renames it, so that another process
    finds the whole file or none.
    """
    texts = [dataset["tokens"][:], *([dataset["tags"][:]] if whole_texts else [])]
    content = json.dumps([_FORMAT, tokenizer_digest, *texts])
    fingerprint = hashlib.sha256(content.encode()).hexdigest()[:32]
    folder = cache_root(cache_folder) / "tokenized"
    folder.mkdir(parents=True, exist_ok=True)
    return dataset.map(
        lambda rows: (
            _tokenize_texts(rows["tokens"], rows["tags"], tokenizer)
            if whole_texts
            else _tokenize(rows["tokens"], tokenizer)
        ),
        batched=True,
        remove_columns=dataset.column_names,
        new_fingerprint=fingerprint,
        cache_file_name=str(folder / f"{fingerprint}.arrow"),
        load_from_cache_file=True,
        desc=f"Tokenising {split}",
    )


def _tokenize(
    rows: Sequence[list[str]], tokenizer: PreTrainedTokenizerBase
) -> dict[str, list[list[int]]]:
    """token_ids and starts of sentences given as words."""
    encoded = tokenizer(
        list(rows),
        is_split_into_words=True,
        add_special_tokens=False,
        truncation=False,
        verbose=False,
    )
    token_ids, starts = [], []
    for place, words in enumerate(rows):
        ids, own = _with_all_words(
            encoded["input_ids"][place],
            encoded.word_ids(place),
            len(words),
            tokenizer.unk_token_id or 0,
        )
        token_ids.append(ids)
        starts.append(own)
    return {"token_ids": token_ids, "starts": starts}


def _tokenize_texts(
    sources: Sequence[list[str]], targets: Sequence[list[str]], tokenizer: PreTrainedTokenizerBase
) -> dict[str, list[Any]]:
    """Tokens of every part of the sources, and of the targets."""

    def ids(texts: list[str]) -> list[list[int]]:
        encoded = tokenizer(texts, add_special_tokens=False, truncation=False, verbose=False)
        return list(encoded["input_ids"])

    return {
        "source": [ids(parts) for parts in sources],
        "target": ids([target for target, *_ in targets]),
    }


def _with_all_words(
    ids: list[int], word_ids: list[int | None], num_words: int, unknown: int
) -> tuple[list[int], list[int]]:
    """Give words without a token (such as a lone control character) the unknown token."""
    by_word: list[list[int]] = [[] for _ in range(num_words)]
    for token, word in zip(ids, word_ids):
        if word is not None:
            by_word[word].append(token)
    result, starts = [], []
    for word, tokens in enumerate(by_word):
        tokens = tokens or [unknown]
        result += tokens
        starts += [word] + [-1] * (len(tokens) - 1)
    return result, starts
