"""What becomes of rows with a source and a target: contexts of both, and windows of the target."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from tsarch.data.cuts import Span, with_places
from tsarch.data.layouts import PackingSpec
from tsarch.data.row_tokens import RowTokenizer
from tsarch.data.source_parts import source_parts
from tsarch.data.source_target import (
    LEAST_SOURCE_TOKENS,
    SourceTarget,
    SourceTargetTokens,
    TargetFrame,
    pack_targets,
)
from tsarch.data.tokenizer import end_token, special_tokens
from tsarch.errors import UserError
from tsarch.records import TokenizedSplit


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
        self._control = spec.control
        self.frame = _frame(spec, keep_last)

    def pack(self, rows: Sequence[SourceTarget]) -> TokenizedSplit:
        """Contexts and windows.

        Raises:
            UserError: a row asks for something that there is no rule for, or takes up too much room
                with it.
        """
        rows, controls = self._controlled(rows)
        parts = iter(self._tokens.texts([part for row in rows for part in row.parts]))
        targets = iter(self._tokens.texts([own.target for own in rows if own.target is not None]))
        tokenized = [
            SourceTargetTokens(
                list(itertools.islice(parts, len(row.parts))),
                None if row.target is None else next(targets),
                row.reads_last,
                control,
            )
            for row, control in zip(rows, controls, strict=True)
        ]
        packed = pack_targets(tokenized, self.frame)
        cuts = with_places(
            packed.cuts, "source", lambda row, own: self._characters(rows[row].parts, *own)
        )
        return replace(packed, rows=tuple(rows), cuts=cuts)

    def _controlled(
        self, rows: Sequence[SourceTarget]
    ) -> tuple[list[SourceTarget], list[list[int]]]:
        """The rows with what they ask for, if only by their targets, and the tokens that say so."""
        own = self._control
        if own is None:
            return [replace(row, control=None) for row in rows], [[]] * len(rows)
        rows = [
            replace(row, control=own.of_target(row.target))
            if row.control is None and row.target is not None
            else row
            for row in rows
        ]
        texts = iter(self._tokens.texts([own.before(r.control) for r in rows if r.control]))
        tokens = [next(texts) if row.control else [] for row in rows]
        for row, before in zip(rows, tokens, strict=True):
            what = own.mistake(row.control) if row.control else ""
            if not what and self.frame.max_source_tokens - len(before) < LEAST_SOURCE_TOKENS:
                what = f"has a control of {len(before)} tokens: no room is left for its source."
            if what:
                raise UserError.single(str(row.origin.place), what)
        return rows, tokens

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
        _, (control,) = self._controlled([row])
        room = max(self.frame.max_source_tokens - len(control) - shorter, 1)
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
