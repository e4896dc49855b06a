"""A document that the teacher has read: its states are kept, and windows of it asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from tsarch.config import Mode
from tsarch.data.chosen_windows import window_slices
from tsarch.errors import UserError
from tsarch.inputs.rows import Inputs, Predicted, TextEntity
from tsarch.pair.answering import context_key
from tsarch.pair.state_files import EncodedStates, StateFile, StoredAs, write_states
from tsarch.pair.states import States
from tsarch.records import IntArray, TokenizedSplit, Windows

if TYPE_CHECKING:
    from tsarch.prediction.trained_pair import TrainedPair


class ReadDocument:
    """A document and the teacher's states of it, whatever is asked then."""

    def __init__(
        self,
        pair: TrainedPair,
        document: Any,
        inputs: Inputs,
        split: TokenizedSplit,
        states: Sequence[States],
    ) -> None:
        lengths = [len(own.hidden) for own in states]
        assert lengths == split.context_lengths.tolist(), "states of another document"
        self._pair = pair
        self._document = document
        self._inputs = inputs
        self._split = split
        self._states = list(states)

    @property
    def num_bytes(self) -> int:
        """Of the states that are kept."""
        return sum(own.num_bytes for own in self._states)

    def save(self, path: str | os.PathLike[str], states: StoredAs = "fp32") -> None:
        """Keep it in a file (safetensors), for `TrainedPair.load_context` of the same pair.

        Args:
            states: how its states are stored, see `EncodedStates`.

        Raises:
            UserError: it can't be written, or states can't be stored so.
        """
        if states not in get_args(StoredAs):
            raise UserError.single(f"states {states!r}", "is unknown.", "It is fp32, bf16 or int8.")
        keys = [context_key(self._split, number) for number in range(self._split.num_contexts)]
        encoded = [EncodedStates.of(own, states) for own in self._states]
        document = json.dumps(self._document, ensure_ascii=False)
        contexts = dict(zip(keys, encoded, strict=True))
        write_states(Path(path), contexts, states, self._pair.revision, {"document": document})


class Context(ReadDocument):
    """A document of which windows are asked. Made by `TrainedPair.read`."""

    @property
    def num_sentences(self) -> int:
        """Sentences of the document."""
        return len(self._inputs.rows)

    def predict(self, window: int | tuple[int, int] | None = None, mode: Mode | None = None) -> Any:
        """Answers to a window of the document, without the teacher running again.

        Args:
            window: a sentence's number; or, of a plain text, the characters [start, stop) of a
                window of any length, whose words are read together as far as they fit into one.
                None: the whole document.
            mode: who predicts. Default: the pair's.

        Returns:
            What `TrainedPair.predict` gives for the document or the sentence; entities of a plain
            text say where in the document they stand.

        Raises:
            UserError: there is no such window or mode.
        """
        match window:
            case None:
                answers = self._answers(self._split, mode)
                return answers[0] if 0 in self._inputs.texts else list(answers.values())
            case (int(start), int(stop)):
                return self._between(start, stop, mode)
            case int() if not isinstance(window, bool):
                pass
            case _:
                what = "is neither a sentence's number nor the two characters (start, stop)."
                raise UserError.single(f"window {window!r}", what)
        if not 0 <= window < self.num_sentences:
            hint = f"It has {self.num_sentences}, counted from 0."
            raise UserError.single(f"window {window}", "is no sentence of the document.", hint)
        own = self._answers(self._split.with_windows(self._windows_of(window)), mode)
        return own[0] if 0 in self._inputs.texts else own[window]

    def _answers(self, split: TokenizedSplit, mode: Mode | None) -> dict[int, Predicted]:
        found = self._pair.answers(split, mode, self._states)
        return self._inputs.answers([(split, found)])

    def _windows_of(self, sentence: int) -> Windows:
        """The split's own windows that have words of a sentence."""
        numbers = [row.origin.place.number - 1 for row in self._split.rows]
        first, stop = self._split.sentence_offsets[numbers.index(sentence) :][:2].tolist()
        return _chosen(self._split, np.arange(first, stop))

    def _between(self, start: int, stop: int, mode: Mode | None) -> Any:
        text = self._inputs.texts.get(0)
        where = f"window ({start}, {stop})"
        if text is None:
            hint = "Give a sentence's number."
            raise UserError.single(where, "needs a document that is a plain text.", hint)
        bounds = np.concatenate(text.bounds)
        words = np.flatnonzero((bounds[:, 1] > start) & (bounds[:, 0] < stop))
        if start >= stop or not len(words):
            raise UserError.single(where, "has no words of the document.")
        slices = window_slices(self._split, words, self._pair.window_tokens)
        found = self._answers(self._split.with_windows(slices), mode)[0]
        assert isinstance(found, tuple)
        return tuple(
            own
            for own in found
            if isinstance(own, TextEntity) and own.end > start and own.start < stop
        )


def _chosen(split: TokenizedSplit, words: IntArray) -> Windows:
    """Those of the split's windows that have one of the words."""
    kept: list[int] = []
    offsets = [0]
    for context in range(split.num_contexts):
        for number in range(*split.window_offsets[context : context + 2].tolist()):
            if np.isin(split.window_words(number), words).any():
                kept.append(number)
        offsets.append(len(kept))
    answered = None if split.answered is None else split.answered[kept]
    return Windows(split.windows[kept], np.array(offsets), answered)


def load_document(path: Path, revision: str) -> tuple[Any, dict[bytes, States]]:
    """The document of a file, and the states of its contexts by their keys.

    Raises:
        UserError: it can't be read, or is another pair's than that of `revision`.
    """
    file = StateFile(path)
    if file.document is None:
        what = "is a part of a store, not a context that was saved."
        raise UserError.single(str(path), what, "Load the pair with the store's folder.")
    file.check_revision(revision)
    states = {key: file.states(number) for number, key in enumerate(file.keys)}
    return json.loads(file.document), states
