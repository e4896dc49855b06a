"""Questions with choices to contexts and windows: choices are always read whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from tsarch.data.cuts import Cutting
from tsarch.data.layouts import PackingSpec, TaggedWords, sentences_of, word_labels
from tsarch.data.packing import Sentence, pack
from tsarch.data.tokenizer import special_tokens
from tsarch.errors import Mistake, UserError
from tsarch.records import TokenizedSplit

_UNREAD = "starts of questions longer than a window has room for (student.max_tokens)"
_CUT = "starts of questions longer than a context has room for (teacher.max_tokens)"


class QuestionWithChoices(TaggedWords, Protocol):
    """A row whose words are those of a question, and of choices behind it."""

    @property
    def question_words(self) -> int:
        """How many stand before the choices."""


@dataclass(frozen=True)
class _Read:
    """What is read of a row."""

    sentence: Sentence
    """As the teacher reads it; only words that the student reads too are numbered, from 0."""
    first_word: int
    """The first that the student reads."""
    window: int
    """Tokens that it reads: the last ones."""


class ChoiceLayout:
    """Each row to one window, of a context that has it whole (`pack`). Of a question that is too
    long for what stands beside it the start is left out, and counted."""

    def __init__(self, spec: PackingSpec, labels: Sequence[str]) -> None:
        if spec.label_last:
            what = "judges a choice at its first word, before a causal model has read the choice."
            hint = "Take models that read in both directions, BERT-like ones."
            raise UserError.single("task.name: multiple_choice", what, hint)
        self._spec = spec
        self._label_ids = {label: index for index, label in enumerate(labels)}

    def pack(self, rows: Sequence[QuestionWithChoices]) -> TokenizedSplit:
        """Contexts and windows.

        Raises:
            UserError: choices are longer than a window; every such row is named.
        """
        spec, cutting = self._spec, Cutting()
        prefix, suffix = special_tokens(spec.tokens.tokenizer)
        room = spec.teacher_max_tokens - len(prefix) - len(suffix)
        sentences = sentences_of(spec.tokens, rows, [row.words for row in rows])
        numbered = enumerate(zip(rows, sentences, strict=True))
        read = [self._read(cutting, number, row, own, room) for number, (row, own) in numbered]
        if wrong := [own for own in read if isinstance(own, Mistake)]:
            raise UserError(wrong)
        found = [own for own in read if isinstance(own, _Read)]
        labels = [
            word_labels(row, self._label_ids)[own.first_word :]
            for row, own in zip(rows, found, strict=True)
        ]
        whole = spec.teacher_max_tokens
        packed = pack([own.sentence for own in found], labels, prefix, suffix, whole, whole)
        windows = packed.windows.copy()
        windows[:, 0] = windows[:, 1] - [own.window for own in found]
        return replace(packed, rows=tuple(rows), windows=windows, cuts=cutting.cuts())

    def _read(
        self, cutting: Cutting, number: int, row: QuestionWithChoices, own: Sentence, room: int
    ) -> _Read | Mistake:
        limit = min(self._spec.student_max_tokens, room)
        size, starts = len(own.token_ids), own.starts
        choices = size - starts.index(row.question_words)
        if choices > limit:
            key = "student" if limit < room else "teacher"
            what = (
                f"its choices have {choices} tokens, more than the {limit} that are read of a row."
            )
            return Mistake(str(row.origin.place), what, f"Set a larger {key}.max_tokens.")
        context, window = _ending(starts, room), _ending(starts, limit)
        cut, unread = size - context, context - window
        first = starts[size - window]
        spans = [(0, starts[cut])]
        cutting.add(_CUT, number, cut, spans=spans)
        cutting.add(_UNREAD, number, unread, is_read=True)
        words = [-1] * unread + [word - first if word >= 0 else -1 for word in starts[-window:]]
        return _Read(Sentence(own.document, own.token_ids[cut:], words), first, window)


def _ending(starts: Sequence[int], most: int) -> int:
    """Tokens of the longest ending of whole words that has at most so many."""
    first = next(n for n in range(max(len(starts) - most, 0), len(starts)) if starts[n] >= 0)
    return len(starts) - first
