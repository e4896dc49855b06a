"""What becomes of rows: a layout makes teacher contexts and student windows of one kind of them.

Words with a label each, one label a row, questions about passages, sources with targets. A task
names its layout (`RowReader.layout`); its rows have what the layout asks for.
"""

from __future__ import annotations

import itertools
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from tsarch.config import Query
from tsarch.data.asked_passages import PassageFrame, grouped, pack_asked_passages
from tsarch.data.control import Control
from tsarch.data.cuts import Span, with_places
from tsarch.data.packing import Sentence, pack, pack_rows
from tsarch.data.passage_packer import pack_passages
from tsarch.data.passages import Limits, PassageTokens, Question, WordSpan, pair_specials
from tsarch.data.row_tokens import RowTokenizer
from tsarch.data.rows import Row
from tsarch.data.text_places import Parts, PlacedTokens, parts_of, word_starts
from tsarch.data.tokenizer import label_token, special_tokens
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
    control: Control | None = None
    """What rows ask of their texts; None: nothing."""
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
        labels = [word_labels(row, self._label_ids) for row in rows]
        packed = pack(
            sentences,
            labels,
            *special_tokens(self._spec.tokens.tokenizer),
            self._spec.teacher_max_tokens,
            self._spec.student_max_tokens,
            self._spec.overlap_tokens if self._spec.overlaps else 0,
        )
        return replace(packed, rows=tuple(rows))


def word_labels(row: TaggedWords, label_ids: Mapping[str, int]) -> list[int]:
    """The label of each word; `IGNORED` where none is known."""
    if row.tags is None:
        return [IGNORED] * len(row.words)
    return [label_ids[tag] for tag in row.tags]


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


def sentences_of(
    tokens: RowTokenizer, rows: Sequence[Row], words: Sequence[Sequence[str]]
) -> list[Sentence]:
    """The rows' words, tokenised."""
    token_ids, starts = tokens.words(words)
    own = zip(rows, token_ids, starts, strict=True)
    return [Sentence(row.origin.doc_id, ids, places) for row, ids, places in own]
