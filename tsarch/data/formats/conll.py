"""CoNLL files: a word and its tag a line, blank lines between sentences.

Which columns are the word and the tag is told from the whole file, or said by the config; never
from the place of a column in one line.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tsarch.data.formats.findings import Findings, Found
from tsarch.data.formats.text import Text
from tsarch.data.rows import Place
from tsarch.errors import UserError

_LOOKED_AT = 1000
_NEW_DOCUMENT = ("-DOCSTART-", "# newdoc")
_TAG = re.compile(r"O|[A-Z]-.+")
_INDEX = re.compile(r"\d+")
_PART_INDEX = re.compile(r"\d+[-.]\d+")
"""Of CoNLL-U: a line for several words together, or for one that isn't in the text."""
_CHUNKS = frozenset(
    ("NP", "VP", "PP", "ADVP", "SBAR", "ADJP", "PRT", "CONJP", "INTJ", "LST", "UCP", "NX", "QP")
)
_LABEL_STUDIO = re.compile(r"\S+ -X- _ ")


@dataclass(frozen=True)
class ConllSentence:
    """One sentence; its words stand on consecutive lines."""

    line: int
    """Line of the first word, counted from 1."""
    document: str | None
    """Number of the document; None: the file has not marked one yet."""
    words: list[list[str]]
    """Columns of each word."""

    def column(self, place: int) -> list[str]:
        """What stands in a column; empty where a line has none there."""
        return [columns[place] if place < len(columns) else "" for columns in self.words]


def conll_rows(
    path: str,
    text: Text,
    names: Mapping[str, str],
    delimiter: str | None,
    findings: Findings,
    labelled: bool = True,
) -> Found:
    """A row for each sentence.

    Args:
        names: the task's own name of a column → its name, or its number from 1.
        labelled: whether tags are wanted; without, sentences are read one by one, and which column
            is the word is told from the first ones.

    Raises:
        UserError: it can't be told which columns are the word and the tag.
    """
    found = read_conll(text, delimiter)
    first = list(found) if labelled else list(itertools.islice(found, _LOOKED_AT))
    if not first:
        return
    token, tag = _word_and_tag(first, names, path, findings, labelled)
    sentences: Iterable[ConllSentence] = itertools.chain(first, found)
    if _INDEX.fullmatch(names["tokens"]) is None and token:
        sentences = (own for each in sentences for own in _without_parts(each))
    by_sentence = _documents_are_sentences(text, first, findings)
    for sentence in sentences:
        place = Place(path, sentence.line, line_per_word=True)
        words = sentence.column(token)
        if "" in words:
            what = f"has an empty word (column {token + 1})."
            hint = "Write it, or take the line out."
            findings.mistake(place.of_word(words.index("")), what, hint)
            continue
        row: dict[str, Any] = {names["tokens"]: words}
        if labelled:
            row[names["tags"]] = [""] * len(words) if tag is None else sentence.column(tag)
        for name in ("doc_id", "sent_id"):
            if (number := _number(names[name])) is not None:
                row[names[name]] = sentence.column(number)[0]
        if sentence.document is not None and not by_sentence:
            row.setdefault(names["doc_id"], sentence.document)
        yield place, row


def read_conll(text: Text, delimiter: str | None = None) -> Iterator[ConllSentence]:
    """Sentences of the text of a CoNLL file, in order.

    Columns are separated by `delimiter`, or by tabs, or by spaces in lines without a tab.
    `-DOCSTART-` or `# newdoc` starts a document; a file with neither is one document a sentence.
    """
    # Not splitlines(): it would also cut at characters such as U+2028 inside a word.
    start = [line.rstrip("\r") for line in text.start.split("\n")]
    # Label Studio writes `WORD -X- _ TAG`, with labels that may have spaces.
    most = 3 if any(_LABEL_STUDIO.match(line) for line in start) else -1
    width = _num_columns(start, delimiter, most)
    document = 0
    words: list[list[str]] = []
    for number, own in enumerate(itertools.chain(text.lines(), ("",)), 1):
        line = own.rstrip("\r")
        starts_document = line.startswith(_NEW_DOCUMENT)
        if line.strip(" \t") and not starts_document:
            columns = _columns(line, delimiter, most)
            if words or not _is_comment(columns, width):
                words.append(columns)
            continue
        if words:
            yield ConllSentence(number - len(words), str(document) if document else None, words)
            words = []
        document += starts_document


def _columns(line: str, delimiter: str | None, most: int) -> list[str]:
    """Columns of a line; other white space, such as U+00A0, belongs to the words."""
    if delimiter not in (None, " "):
        return [column.strip(" ") for column in line.split(delimiter)]
    if "\t" in line and delimiter is None:
        return [column.strip(" ") for column in line.split("\t")]
    if most > 0:
        return line.split(" ", most)
    return [column for column in line.split(" ") if column]


def _num_columns(lines: Sequence[str], delimiter: str | None, most: int) -> int:
    """Number of columns of the first line that can only be a word."""
    for line in lines:
        if line.strip(" \t") and not line.startswith(("#", "-DOCSTART-")):
            return len(_columns(line, delimiter, most))
    return 2


def _is_comment(columns: Sequence[str], width: int) -> bool:
    """Whether a line before a sentence is a comment, and not the word `#` or `#tag`."""
    is_word = len(columns) == width and any(_TAG.fullmatch(own) for own in columns[1:])
    return columns[0].startswith("#") and not is_word


def _number(name: str) -> int | None:
    """A column that the config numbers, from 0; None: it isn't a number."""
    return int(name) - 1 if _INDEX.fullmatch(name) else None


def _word_and_tag(
    sentences: Sequence[ConllSentence],
    names: Mapping[str, str],
    path: str,
    findings: Findings,
    labelled: bool,
) -> tuple[int, int | None]:
    """Columns of the word and the tag, from 0; the tag's is None where there is one column, or none
    is wanted.

    Raises:
        UserError: several columns hold tags, or a column that is named isn't there.
    """
    width = max(len(columns) for own in sentences for columns in own.words)
    token, tag = _number(names["tokens"]), _number(names["tags"])
    wanted = (("tokens", token), ("tags", tag)) if labelled else (("tokens", token),)
    for own, number in wanted:
        if number is not None and not 0 <= number < width:
            what = f"has {width} columns, but data.columns.{own} is {number + 1}."
            raise UserError.single(path, what, "The first column is 1.")
    indexed = token is None and width > 1 and tag != 1 and _is_indexed(sentences)
    if indexed and width == 2:  # words that are numbers, with their tags
        indexed = not all(_TAG.fullmatch(own) for each in sentences for own in each.column(1))
    if token is None:
        token = int(indexed)
    if tag is None and labelled:
        tag = _tag_column(sentences, token, path)
    if indexed:
        shown = "" if tag is None else f", its tag column {tag + 1}"
        findings.note(f"the first column counts the words: the word is column {token + 1}{shown}")
    return token, tag


def _is_indexed(sentences: Sequence[ConllSentence]) -> bool:
    """Whether the first column counts the words of every sentence, from 0 or 1."""
    if all(len(own.words) == 1 for own in sentences):
        return False
    return any(all(_counts(own, first) for own in sentences) for first in (1, 0))


def _counts(sentence: ConllSentence, first: int) -> bool:
    index = [own for own in sentence.column(0) if _PART_INDEX.fullmatch(own) is None]
    return index == [str(first + place) for place in range(len(index))]


def _without_parts(sentence: ConllSentence) -> Iterator[ConllSentence]:
    """The words of a counted sentence, without CoNLL-U's lines for several words together."""
    kept = [own for own in sentence.words if _PART_INDEX.fullmatch(own[0]) is None]
    if kept:
        yield ConllSentence(sentence.line, sentence.document, kept)


def _tag_column(sentences: Sequence[ConllSentence], token: int, path: str) -> int | None:
    """The column after the word that holds tags; the last where none does."""
    widths = Counter(len(columns) for own in sentences for columns in own.words)
    usual = widths.most_common(1)[0][0]
    places = range(token + 1, max(widths))
    values = {
        place: Counter(tag for own in sentences for tag in own.column(place)) for place in places
    }
    whole = [place for place in places if all(_TAG.fullmatch(tag) for tag in values[place])]
    # The chunks of CoNLL-2003 look like tags, too.
    whole = [place for place in whole if not _are_chunks(values[place])] or whole
    told = [place for place in whole if set(values[place]) != {"O"}] or whole[-1:]
    if len(told) > 1:
        shown = " and ".join(f"{place + 1} ({_examples(values[place])})" for place in told)
        example = f"Say which is meant, such as data.columns.tags={told[0] + 1}."
        raise UserError.single(path, f"has tags in columns {shown}.", example)
    if told:
        return told[0]
    num_words = sum(widths.values())
    shares = {p: sum(n for tag, n in values[p].items() if _TAG.fullmatch(tag)) for p in places}
    likely = [place for place in places if shares[place] > num_words / 2]
    if likely:
        return max(likely, key=lambda place: (shares[place], place))
    return usual - 1 if usual - 1 > token else (places[-1] if places else None)


def _are_chunks(tags: Mapping[str, int]) -> bool:
    types = {tag[2:] for tag in tags if tag != "O"}
    return bool(types) and types <= _CHUNKS


def _examples(tags: Mapping[str, int]) -> str:
    return ", ".join([tag for tag in tags if tag != "O"][:3])


def _documents_are_sentences(
    text: Text, sentences: Sequence[ConllSentence], findings: Findings
) -> bool:
    """Whether the one document mark of a file says nothing: Label Studio puts it before tasks that
    have nothing to do with each other."""
    if len(sentences) < 2 or {own.document for own in sentences} != {"1"}:
        return False
    if any(_LABEL_STUDIO.match(line) for line in text.start.split("\n", 20)[:20]):
        findings.note("read as Label Studio's CoNLL: every task is a document")
        return True
    number = f"its {len(sentences):,}" if text.is_whole else "its"
    findings.note(f"the file has one document mark: {number} sentences are one document")
    return False
