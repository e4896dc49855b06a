"""Who answers in the inference benchmark: tsarch's modes and its neighbours, each behind the same
few calls. What a side needs is imported when it is opened."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

Row = dict[str, Any]
"""`doc_id`, `tokens`, and `context`: numbers of the rows that the teacher reads with it."""
Span = tuple[str, int, int]
"""Type, first word, stop word."""
_MANY_WINDOWS = 16


class Side(ABC):
    """Answers sentences with entities."""

    timed: list[int] | None = None
    """Rows that times are taken of; None: all."""

    @abstractmethod
    def answer(self, rows: Sequence[Row]) -> list[list[Span]]:
        """Entities of rows, asked for together as this side likes it best."""

    def answer_again(self, rows: Sequence[Row]) -> None:
        """The same, for the time that it takes."""
        self.answer(rows)

    def asked(self, row: Row) -> Callable[[], Any]:
        """Ask for one row by itself."""
        return lambda: self.answer([row])


class OurSide(Side):
    """A mode of `tsarch.load(RUN).predict`."""

    def __init__(self, pair: Any, mode: str) -> None:
        self.pair = pair
        self.mode = mode

    def answer(self, rows: Sequence[Row]) -> list[list[Span]]:
        """By documents."""
        inputs = [{"tokens": row["tokens"], "doc_id": row["doc_id"]} for row in rows]
        return [_spans(own) for own in self.pair.predict(inputs, self.mode)]


class ReadingSide(OurSide):
    """The teacher, asked for a window: it reads the context that the window is in."""

    def __init__(self, pair: Any, mode: str, job: Mapping[str, Any]) -> None:
        super().__init__(pair, mode)
        self._rows = job["rows"]
        self.timed = _in_long_documents(self._rows)

    def answer_again(self, rows: Sequence[Row]) -> None:
        """One window after the other."""
        for row in rows:
            self.asked(row)()

    def asked(self, row: Row) -> Callable[[], Any]:
        """The rows of its context, of which one is wanted."""
        context = [self._rows[number] for number in row["context"]]
        return lambda: self.answer(context)


class KeepingSide(OurSide):
    """The student, asked for a window of a document whose states are kept."""

    def __init__(self, pair: Any, mode: str, job: Mapping[str, Any]) -> None:
        super().__init__(pair, mode)
        documents: dict[str, list[Row]] = {}
        for row in job["rows"]:
            documents.setdefault(row["doc_id"], []).append(row)
        self._places = {id(r): n for own in documents.values() for n, r in enumerate(own)}
        self._contexts = {
            name: pair.read([row["tokens"] for row in own]) for name, own in documents.items()
        }
        self.timed = _in_long_documents(job["rows"])

    def answer(self, rows: Sequence[Row]) -> list[list[Span]]:
        """One window after the other."""
        return [_spans(self.asked(row)()) for row in rows]

    def asked(self, row: Row) -> Callable[[], Any]:
        """A window of its document."""
        context, place = self._contexts[row["doc_id"]], self._places[id(row)]
        return lambda: context.predict(place, self.mode)


class PipelineSide(Side):
    """`transformers.pipeline("token-classification")` with the exported teacher."""

    def __init__(self, folder: str) -> None:
        from transformers import pipeline

        self._pipe = pipeline(
            "token-classification", model=folder, aggregation_strategy="first", device="cpu"
        )

    def answer(self, rows: Sequence[Row]) -> list[list[Span]]:
        """Sentences by themselves, 16 at a time."""
        found = self._pipe([" ".join(row["tokens"]) for row in rows], batch_size=16)
        return [
            spans_at(row["tokens"], [(e["entity_group"], e["start"], e["end"]) for e in own])
            for row, own in zip(rows, found, strict=True)
        ]


class RuntimeSide(Side):
    """The exported teacher under plain onnxruntime: a session, the tokenizer, and the likeliest
    tag of each word's first token."""

    def __init__(self, folder: str, file: str, threads: int) -> None:
        from tokenizers import Tokenizer

        onnxruntime = import_module("onnxruntime")

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(file, options)
        self._tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
        self._tokenizer.enable_padding()
        import json

        config = json.loads(Path(folder, "config.json").read_text())
        self._labels = [config["id2label"][str(n)] for n in range(len(config["id2label"]))]

    def answer(self, rows: Sequence[Row]) -> list[list[Span]]:
        """Sentences by themselves, 16 of like lengths at a time."""
        import numpy as np

        order = sorted(range(len(rows)), key=lambda n: len(rows[n]["tokens"]))
        found: dict[int, list[Span]] = {}
        for start in range(0, len(rows), 16):
            own = order[start : start + 16]
            texts = [rows[n]["tokens"] for n in own]
            encoded = self._tokenizer.encode_batch(texts, is_pretokenized=True)
            feeds = {
                "input_ids": np.array([e.ids for e in encoded]),
                "attention_mask": np.array([e.attention_mask for e in encoded]),
                "token_type_ids": np.array([e.type_ids for e in encoded]),
            }
            wanted = {own.name for own in self._session.get_inputs()}
            given = {name: value for name, value in feeds.items() if name in wanted}
            logits = self._session.run(None, given)[-1]  # behind the hidden states
            for number, encoding, ids in zip(own, encoded, logits.argmax(-1), strict=True):
                found[number] = self._tagged(encoding.word_ids, ids)
        return [found[number] for number in range(len(rows))]

    def _tagged(self, word_ids: Sequence[int | None], ids: Any) -> list[Span]:
        firsts: dict[int, str] = {}
        for word, label in zip(word_ids, ids.tolist(), strict=True):
            if word is not None and word not in firsts:
                firsts[word] = self._labels[label]
        return tagged_spans(firsts)


class SpacySide(Side):
    """spaCy's small English pipeline: trained on other data, its types mapped to these."""

    TYPES: Mapping[str, str] = {
        "PERSON": "PER",
        "ORG": "ORG",
        **dict.fromkeys(("GPE", "LOC", "FAC"), "LOC"),
        **dict.fromkeys(("NORP", "EVENT", "WORK_OF_ART", "PRODUCT", "LAW", "LANGUAGE"), "MISC"),
    }

    def __init__(self, name: str) -> None:
        spacy = import_module("spacy")

        others = ["tagger", "parser", "attribute_ruler", "lemmatizer"]
        self._model = spacy.load(name, exclude=others)
        self._doc = spacy.tokens.Doc

    def answer(self, rows: Sequence[Row]) -> list[list[Span]]:
        """Words as they are, in batches as spaCy makes them."""
        documents = [self._doc(self._model.vocab, words=row["tokens"]) for row in rows]
        found = self._model.pipe(documents)
        return [
            [(self.TYPES[e.label_], e.start, e.end) for e in own.ents if e.label_ in self.TYPES]
            for own in found
        ]


def tagged_spans(tags: Mapping[int, str]) -> list[Span]:
    """Entities of IOB2 tags of words; an I- without one before it is none."""
    found: list[Span] = []
    for word, tag in sorted(tags.items()):
        if tag.startswith("B-"):
            found.append((tag[2:], word, word + 1))
        elif found and tag == f"I-{found[-1][0]}" and found[-1][2] == word:
            found[-1] = (found[-1][0], found[-1][1], word + 1)
    return found


def spans_at(tokens: Sequence[str], found: Sequence[tuple[str, int, int]]) -> list[Span]:
    """Entities by words, from characters of the words with spaces between them."""
    starts, here = [], 0
    for token in tokens:
        starts.append(here)
        here += len(token) + 1
    spans: list[Span] = []
    for kind, start, end in found:
        words = [n for n, s in enumerate(starts) if s < end and s + len(tokens[n]) > start]
        if words:
            spans.append((kind, words[0], words[-1] + 1))
    return spans


def _spans(entities: Sequence[Any]) -> list[Span]:
    return [(own.type, own.first, own.stop) for own in entities]


def _in_long_documents(rows: Sequence[Row]) -> list[int]:
    names = [row["doc_id"] for row in rows]
    counts = {name: names.count(name) for name in set(names)}
    return [n for n, name in enumerate(names) if counts[name] >= _MANY_WINDOWS]


def open_side(job: Mapping[str, Any]) -> Side:
    """The side that a job names, loaded."""
    kind, mode = job["kind"], job["mode"]
    if kind == "pipeline":
        return PipelineSide(job["folder"])
    if kind == "runtime":
        return RuntimeSide(job["folder"], job["file"], job["threads"])
    if kind == "spacy":
        return SpacySide(job["model"])
    pair = _our_pair(job)
    if kind == "keeping":
        return KeepingSide(pair, mode, job)
    return ReadingSide(pair, mode, job) if kind == "reading" else OurSide(pair, mode)


def _our_pair(job: Mapping[str, Any]) -> Any:
    import tsarch
    from tsarch.launch.training import quieten

    quieten()
    return tsarch.load(job["run"], **job["load"])
