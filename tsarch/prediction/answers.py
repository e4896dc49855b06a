"""From the contexts and windows of inputs to answers, whatever the task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from tsarch.config import Mode
from tsarch.pair.generation import prompts_of
from tsarch.pair.states import States
from tsarch.pair.writing import Writing
from tsarch.records import TokenizedSplit
from tsarch.tasks.answers import Answer
from tsarch.tasks.base import GenerativeTask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Answers(Protocol):
    """Answers rows: `Answering`, or `WritingAnswers`."""

    @property
    def window_tokens(self) -> int:
        """Tokens of the student's windows at most."""

    def answers(
        self, split: TokenizedSplit, mode: Mode, states: Sequence[States] | None = None
    ) -> list[tuple[Answer, ...]]:
        """Answers to every row of `split.rows`; `states`: see `Answering.answers`."""


class NoAnswers:
    """Of a pair whose models are elsewhere."""

    def __init__(self, window_tokens: int) -> None:
        self.window_tokens = window_tokens

    def answers(
        self, split: TokenizedSplit, mode: Mode, states: Sequence[States] | None = None
    ) -> list[tuple[Answer, ...]]:
        """None: a mistake of the program."""
        raise AssertionError("this pair was loaded without its models")


class WritingAnswers:
    """Answers that are texts."""

    def __init__(
        self, writing: Writing, task: GenerativeTask, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self._writing = writing
        self._task = task
        self._tokenizer = tokenizer
        self.window_tokens = writing.window_tokens

    def answers(
        self, split: TokenizedSplit, mode: Mode, states: Sequence[States] | None = None
    ) -> list[tuple[Answer, ...]]:
        """A text for every row."""
        written = self._writing.write(prompts_of(split, range(split.num_contexts)), mode)
        tokens, scores = [own.tokens for own in written], [own.score for own in written]
        return list(self._task.text_answers(tokens, scores, self._tokenizer))
