"""CoNLL files: a word and its tag a line, blank lines between sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_NEW_DOCUMENT = ("-DOCSTART-", "# newdoc")
_TAG = re.compile(r"O|[A-Z]-.+")


@dataclass(frozen=True)
class ConllSentence:
    """One sentence; its words stand on consecutive lines."""

    line: int
    """Line of the first word, counted from 1."""
    document: str | None
    """Number of the document; None: the file has not marked one yet."""
    tokens: list[str]
    tags: list[str]
    """Tag of each word; empty where a line has one column only."""


def read_conll(text: str) -> Iterator[ConllSentence]:
    """Sentences of the text of a CoNLL file, in order.

    The first column is the word, the last its tag; columns are separated by tabs, or by spaces in
    lines without a tab. `-DOCSTART-` or `# newdoc` starts a document; a file with neither is one
    document a sentence.
    """
    # Not splitlines(): it would also cut at characters such as U+2028 inside a word.
    lines = [line.rstrip("\r") for line in text.split("\n")]
    width = _num_columns(lines)
    document = 0
    words: list[list[str]] = []
    for number, line in enumerate([*lines, ""], 1):
        starts_document = line.startswith(_NEW_DOCUMENT)
        if line.strip(" \t") and not starts_document:
            columns = _columns(line)
            if words or not _is_comment(columns, width):
                words.append(columns)
            continue
        if words:
            yield _sentence(number - len(words), str(document) if document else None, words)
            words = []
        document += starts_document


def _sentence(line: int, document: str | None, words: Sequence[list[str]]) -> ConllSentence:
    tokens = [columns[0] for columns in words]
    tags = [columns[-1] if len(columns) > 1 else "" for columns in words]
    return ConllSentence(line, document, tokens, tags)


def _columns(line: str) -> list[str]:
    """Columns of a line; other white space, such as U+00A0, belongs to the words."""
    if "\t" in line:
        return [column.strip(" ") for column in line.strip("\t").split("\t") if column]
    return [column for column in line.split(" ") if column]


def _num_columns(lines: Sequence[str]) -> int:
    """Number of columns of the first line that can only be a word."""
    for line in lines:
        if line.strip(" \t") and not line.startswith(("#", "-DOCSTART-")):
            return len(_columns(line))
    return 2


def _is_comment(columns: Sequence[str], width: int) -> bool:
    """Whether a line before a sentence is a comment, and not the word `#` or `#tag`."""
    is_word = len(columns) == width and _TAG.fullmatch(columns[-1]) is not None
    return columns[0].startswith("#") and not is_word
