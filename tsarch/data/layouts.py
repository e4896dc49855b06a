"""What becomes of rows: a layout makes teacher contexts and student windows of one kind of them.

Words with a label each, one label a row, questions about passages, sources with targets. A task
names its layout (`RowReader.layout`); its rows have what the layout asks for.
"""

from __future__ import annotations

import itertools
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from tsarch.config import Query
from tsarch.data.asked_passages import PassageFrame, grouped, pack_asked_passages
from tsarch.data.cuts import Span, with_places
from tsarch.data.packing import Sentence, pack, pack_rows
from tsarch.data.passage_packer import pack_passages
from tsarch.data.passages import Limits, PassageTokens, Question, WordSpan, pair_specials
from tsarch.data.row_tokens import RowTokenizer
from tsarch.data.rows import Row
from tsarch.data.source_parts import source_parts
from tsarch.data.source_target import (
    LEAST_SOURCE_TOKENS,
    SourceTarget,
    SourceTargetTokens,
    TargetFrame,
    pack_targets,
)
from tsarch.data.text_places import Parts, PlacedTokens, parts_of, word_starts
from tsarch.data.tokenizer import end_token, label_token, special_tokens
from tsarch.errors import UserError
from tsarch.records import IGNORED, TokenizedSplit

RowT_contra = TypeVar("RowT_contra", bound=Row, contravariant=True)


@dataclass(frozen=True)
class PackingSpec:
    """What contexts and windows depend on beside the rows."""

    tokens: RowTokenizer
    teacher_max_tokens: int
    student_max_tokens: int
    overlap_tokens: int
    """What neighbouring contexts of a long passage share, and, with `overlaps`, neighbouring
    contexts and windows of a long sentence."""
    seed: int
    source_prefix: str
    """Generative tasks: see `TaskConfig`."""
    target_prefix: str
    max_target_tokens: int
    label_last: bool
    """A row's one label stands after what it is about, for models that see earlier tokens only."""
    decoder_start: int | None
    """First token of a sequence-to-sequence teacher's decoder; None: the teacher has none."""
    query: Query = "both"
    """Who reads what is asked: see `TaskConfig`."""
    queries_per_context: int = 64
    """See `DataConfig`."""
    overlaps: bool = False
    """Parts of a long sentence overlap; for predictions, where the rows aren't those of training.
    """


class Layout(Protocol[RowT_contra]):
    """Makes contexts and windows of rows."""

    def pack(self, rows: Sequence[RowT_contra]) -> TokenizedSplit:
        """A split of these rows, which are in order, those of a document together."""


class TaggedWords(Row, Protocol):
    """A row with a label for every word."""

    @property
    def words(self) -> Sequence[str]:
        """The words."""

    @property
    def tags(self) -> Sequence[str] | None:
        """Name of each word's label; None: not known."""


class LabelledWords(Row, Protocol):
    """A row with one label."""

    @property
    def words(self) -> Sequence[str]:
        """The words."""

    @property
    def label(self) -> str | None:
        """Name of the label; None: not known."""

    @property
    def focus(self) -> int:
        """Word that the label stands before, where it stands before what it is about."""

    @property
    def marked(self) -> tuple[tuple[int, int], ...]:
        """Words [start, stop) of the spans that the label is about."""


class LabelledText(Row, Protocol):
    """A text with one label."""

    @property
    def text(self) -> str:
        """The text."""

    @property
    def label(self) -> str | None:
        """Name of the label; None: not known."""


class TaggedWordsLayout:
    """Sentences to contexts of whole sentences and a window each (`pack`)."""

    def __init__(self, spec: PackingSpec, labels: Sequence[str]) -> None:
        self._spec = spec
        self._label_ids = {label: index for index, label in enumerate(labels)}

    def pack(self, rows: Sequence[TaggedWords]) -> TokenizedSplit:
        """Contexts and windows."""
        sentences = sentences_of(self._spec.tokens, rows, [row.words for row in rows])
        labels = [self._labels(row) for row in rows]
        packed = pack(
            sentences,
            labels,
            *special_tokens(self._spec.tokens.tokenizer),
            self._spec.teacher_max_tokens,
            self._spec.student_max_tokens,
            self._spec.overlap_tokens if self._spec.overlaps else 0,
        )
        return replace(packed, rows=tuple(rows))

    def _labels(self, row: TaggedWords) -> list[int]:
        if row.tags is None:
            return [IGNORED] * len(row.words)
        return [self._label_ids[tag] for tag in row.tags]


class LabelledWordsLayout:
    """Rows of words with one label to contexts of whole rows and a window each (`pack_rows`)."""

    def __init__(self, spec: PackingSpec, labels: Sequence[str]) -> None:
        self._spec = spec
        self._label_ids = {label: index for index, label in enumerate(labels)}

    def pack(self, rows: Sequence[LabelledWords]) -> TokenizedSplit:
        """Contexts and windows.

        Raises:
            UserError: the marked spans of a row have more tokens than a context.
        """
        sentences = sentences_of(self._spec.tokens, rows, [row.words for row in rows])
        marked = [
            replace(own, focus=row.focus, marked=row.marked, place=str(row.origin.place))
            for own, row in zip(sentences, rows, strict=True)
        ]
        labels = [IGNORED if row.label is None else self._label_ids[row.label] for row in rows]
        return replace(rows_with_labels(self._spec, marked, labels), rows=tuple(rows))


class LabelledTextLayout:
    """Texts with one label to contexts of whole texts and a window each (`pack_rows`)."""

    def __init__(self, spec: PackingSpec, labels: Sequence[str]) -> None:
        self._spec = spec
        self._label_ids = {label: index for index, label in enumerate(labels)}

    def pack(self, rows: Sequence[LabelledText]) -> TokenizedSplit:
        """Contexts and windows."""
        placed = self._spec.tokens.placed([row.text for row in rows])
        sentences = [
            Sentence(row.origin.doc_id, own.token_ids, word_starts(own))
            for row, own in zip(rows, placed, strict=True)
        ]
        labels = [IGNORED if row.label is None else self._label_ids[row.label] for row in rows]
        return replace(rows_with_labels(self._spec, sentences, labels), rows=tuple(rows))


def rows_with_labels(
    spec: PackingSpec, sentences: Sequence[Sentence], labels: Sequence[int]
) -> TokenizedSplit:
    """Contexts of whole rows that have one label each, and a window each (`pack_rows`)."""
    tokenizer = spec.tokens.tokenizer
    return pack_rows(
        sentences,
        labels,
        label_token(tokenizer),
        *special_tokens(tokenizer),
        spec.teacher_max_tokens,
        spec.student_max_tokens,
        spec.label_last,
    )


_KNOWN_PASSAGES = 64


class QuestionLayout:
    """Questions to contexts with their passages, or the passages alone, and windows of these."""

    def __init__(self, spec: PackingSpec) -> None:
        self._spec = spec
        self._known: dict[str, tuple[PlacedTokens, Parts]] = {}
        """The last passages, which may be asked again."""

    def pack(self, rows: Sequence[Question]) -> TokenizedSplit:
        """Contexts and windows.

        Raises:
            UserError: the tokenizer has no token for an answer.
        """
        spec = self._spec
        questions = list(spec.tokens.placed([row.question for row in rows]))
        placed, passages = self._passages(rows)
        packed = self._packed(
            rows,
            [
                PassageTokens(question.token_ids, parts.tokens(own.token_ids), parts.bounds)
                for question, own, parts in zip(questions, placed, passages, strict=True)
            ],
            [_answer_words(row, parts) for row, parts in zip(rows, passages, strict=True)],
        )

        def of_question(row: int, own: Span) -> Span:
            return questions[row].starts[own[0]], questions[row].stops[own[1] - 1]

        def of_passage(row: int, own: Span) -> Span:
            bounds = passages[row].bounds
            return int(bounds[own[0], 0]), int(bounds[own[1] - 1, 1])

        cuts = with_places(packed.cuts, "question", of_question)
        cuts = with_places(cuts, "context", of_passage)
        return replace(packed, rows=tuple(rows), cuts=cuts)

    def _passages(self, rows: Sequence[Question]) -> tuple[list[PlacedTokens], list[Parts]]:
        """The tokens of each row's passage, and its words; a passage is tokenised once."""
        known, wanted = self._known, [row.passage for row in rows]
        new = [passage for passage in dict.fromkeys(wanted) if passage not in known]
        found = {own.text: (own, parts_of(own)) for own in self._spec.tokens.placed(new)}
        found |= {passage: known[passage] for passage in wanted if passage in known}
        self._known = dict(itertools.islice(found.items(), _KNOWN_PASSAGES))
        return [found[own][0] for own in wanted], [found[own][1] for own in wanted]

    def _packed(
        self,
        rows: Sequence[Question],
        tokens: Sequence[PassageTokens],
        answers: Sequence[list[WordSpan] | None],
    ) -> TokenizedSplit:
        spec = self._spec
        specials, types = pair_specials(spec.tokens.tokenizer)
        limits = Limits(spec.teacher_max_tokens, spec.student_max_tokens, spec.overlap_tokens)
        if spec.query == "both":
            return pack_passages(tokens, answers, specials, limits, spec.seed, types)
        groups = grouped([row.passage for row in rows], spec.queries_per_context)
        frame = PassageFrame(special_tokens(spec.tokens.tokenizer), specials, types)
        return pack_asked_passages(tokens, groups, answers, frame, limits, spec.seed)


def _answer_words(row: Question, parts: Parts) -> list[WordSpan] | None:
    """First and last word of each answer: the fewest tokens that have all of it."""
    if row.spans is None:
        return None
    found = []
    for answer, span in zip(row.answers or (), row.spans, strict=True):
        own = parts.covering(*span)
        if own is None:
            what = f"the tokenizer has no token for the answer {reprlib.repr(answer)}."
            raise UserError.single(str(row.origin.place), what)
        found.append(own)
    return found


class SourceTargetLayout:
    """Sources and targets to a context each, and windows of the targets (`pack_targets`).

    A causal teacher reads both as one text, the target after a separator, or after
    `target_prefix`; the encoder of a sequence-to-sequence one reads the source and its decoder the
    target, from the model's own start token on.

    Args:
        keep_last: of a source that is too long the end is kept, not the start.

    Raises:
        UserError: prefixes and targets leave a context no room for sources.
    """

    def __init__(self, spec: PackingSpec, keep_last: bool) -> None:
        self._tokens = spec.tokens
        self.frame = _frame(spec, keep_last)

    def pack(self, rows: Sequence[SourceTarget]) -> TokenizedSplit:
        """Contexts and windows."""
        parts = iter(self._tokens.texts([part for row in rows for part in row.parts]))
        targets = iter(self._tokens.texts([own.target for own in rows if own.target is not None]))
        tokenized = [
            SourceTargetTokens(
                list(itertools.islice(parts, len(row.parts))),
                None if row.target is None else next(targets),
                row.reads_last,
            )
            for row in rows
        ]
        packed = pack_targets(tokenized, self.frame)
        cuts = with_places(
            packed.cuts, "source", lambda row, own: self._characters(rows[row].parts, *own)
        )
        return replace(packed, rows=tuple(rows), cuts=cuts)

    @property
    def takes_parts(self) -> bool:
        """Whether what is made of a source's parts makes sense one after another: not where it
        answers the last of them."""
        return not self.frame.keep_last

    def in_parts(self, row: SourceTarget, shorter: int = 0) -> list[SourceTarget]:
        """A row whose source is too long as several, each with a part of it that fits.

        Args:
            shorter: tokens that parts leave free: by itself a part may have a few more than it has
                in the text.
        """
        (text,) = row.parts
        (tokens,) = self._tokens.text_spans([text])
        room = max(self.frame.max_source_tokens - shorter, 1)
        return [
            replace(row, parts=(text[start:stop],))
            for start, stop in source_parts(text, tokens, room)
        ]

    def _characters(self, parts: Sequence[str], start: int, stop: int) -> Span:
        """Characters of a source, its parts with a line break between them, that some of its
        tokens stand for."""
        places: list[Span] = []
        first = 0
        for part, spans in zip(parts, self._tokens.text_spans(parts), strict=True):
            places += [(first + a, first + b) for a, b in spans]
            first += len(part) + 1
            places.append((first - 1, first))  # the separator
        return places[start][0], places[stop - 1][1]


def _frame(spec: PackingSpec, keep_last: bool) -> TargetFrame:
    tokenizer = spec.tokens.tokenizer
    before, after = special_tokens(tokenizer)
    separator = end_token(tokenizer)
    own_prefix, own_suffix = (
        _prefix_tokens(spec.tokens, text) for text in (spec.source_prefix, spec.target_prefix)
    )
    _check_room(spec, len(own_prefix) + len(own_suffix))
    if spec.decoder_start is not None:
        start, suffix = spec.decoder_start, after
    else:
        *suffix, start = own_suffix or [separator]
    return TargetFrame(
        prefix=(*before, *own_prefix),
        separator=separator,
        suffix=tuple(suffix),
        start=start,
        end=separator,
        teacher_max_tokens=spec.teacher_max_tokens,
        student_max_tokens=spec.student_max_tokens,
        max_target_tokens=spec.max_target_tokens,
        keep_last=keep_last,
        student_reads_source=spec.decoder_start is None,
    )


def _prefix_tokens(tokens: RowTokenizer, text: str) -> list[int]:
    if not text:
        return []
    return list(tokens.tokenizer(tokens.after_space(text), add_special_tokens=False)["input_ids"])


def _check_room(spec: PackingSpec, num_prefix: int) -> None:
    room = spec.teacher_max_tokens - spec.max_target_tokens - num_prefix
    if num_prefix and room < LEAST_SOURCE_TOKENS:
        raise UserError.single(
            "task.source_prefix, task.target_prefix",
            f"take {num_prefix} tokens and targets up to {spec.max_target_tokens}, which leaves "
            f"{max(room, 0)} of teacher.max_tokens ({spec.teacher_max_tokens}) for sources.",
            "Shorten them, lower task.max_target_tokens, or raise teacher.max_tokens.",
        )


def sentences_of(
    tokens: RowTokenizer, rows: Sequence[Row], words: Sequence[Sequence[str]]
) -> list[Sentence]:
    """The rows' words, tokenised."""
    token_ids, starts = tokens.words(words)
    own = zip(rows, token_ids, starts, strict=True)
    return [Sentence(row.origin.doc_id, ids, places) for row, ids, places in own]
