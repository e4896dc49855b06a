"""CSV, TSV and the like: with a header line, or with columns that the config numbers."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tsarch.config import DataConfig
from tsarch.data.formats.findings import Findings, Found
from tsarch.data.formats.opening import inner_name
from tsarch.data.formats.shapes import fitting
from tsarch.data.formats.text import Text, at_hand
from tsarch.data.row_reader import RowReader
from tsarch.data.rows import Place, from_json, no_column, shown
from tsarch.errors import Mistake, UserError

_DELIMITERS = (",", "\t", ";", "|")
_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "`|`"}
_LOOKED_AT = 20
_MOST_OF_A_CELL = 2**28
_NUMBER = re.compile(r"[1-9]\d{0,3}")
_PROPER = re.compile(r'"(?:[^"]|"")*"')


@dataclass(frozen=True)
class _Form:
    """How the cells of a file are told apart."""

    delimiter: str
    quoted: bool

    def lines(self, path: str, text: Text) -> Iterator[tuple[int, list[str]]]:
        """(line where it starts, cells) of each row; a quoted cell may have several lines.

        Raises:
            UserError: quotation marks don't fit.
        """
        # At first it is 131,072. A quotation mark that nothing ends makes a cell of all the rest.
        csv.field_size_limit(max(_MOST_OF_A_CELL, len(text.start)))
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE
        reader = csv.reader(
            text.lines_for_csv(), delimiter=self.delimiter, quoting=quoting, strict=True
        )
        ended = 0
        try:
            for cells in reader:
                start, ended = ended + 1, reader.line_num
                if len(cells) > 1 or "".join(cells).strip():
                    yield start, cells
        except csv.Error as error:
            hint = 'If `"` is an ordinary character in this file, set data.quoting: none.'
            raise UserError.single(f"{path}:{ended + 1}", f"is not CSV: {error}.", hint) from None


def delimited_rows(
    path: str,
    text: Text,
    data: DataConfig,
    reader: RowReader[Any],
    findings: Findings,
    only_predicted: bool = False,
) -> Found:
    """Rows of a file; lists in cells are JSON, or words separated by spaces.

    Args:
        only_predicted: a column `text` does where others are needed, and all cells are kept as they
            are, for rows that are only predicted.

    Raises:
        UserError: columns can't be told apart, or aren't there.
    """
    numbers = [name for name in reader.needed if _NUMBER.fullmatch(name)]
    numbered = bool(numbers)
    if 0 < len(numbers) < len(reader.needed):
        others = ", ".join(f"`{name}`" for name in reader.needed if name not in numbers)
        what = f"is read with columns that are numbers and others that are names: {others}."
        raise UserError.single(path, what, "Number all columns of a file without a header line.")
    enough = [frozenset(reader.needed), *([frozenset(("text",))] if only_predicted else [])]
    form = _form(path, text.start, data, reader, numbered, enough, findings)
    lines = form.lines(path, text)
    first = next(lines, None)
    if first is None:
        return
    header = first[1]
    if numbered:
        header = _numbers(path, header, reader)
        lines = itertools.chain([first], lines)
    elif not any(own <= set(header) for own in enough):
        start = list(itertools.islice(lines, _LOOKED_AT))
        lines = itertools.chain(start, lines)
        if _has_objects([cells for _, cells in start], header, data, reader):
            yield from ((Place(path, number), _parsed(cells, header)) for number, cells in lines)
            return
    if only_predicted and any(own <= set(header) for own in enough):
        _check_once(path, header, [*reader.needed, *reader.optional, "text"])
        if twice := {name for name in header if name and header.count(name) > 1}:
            told = ", ".join(f"`{name}`" for name in sorted(twice))
            findings.note(f"{path} has several columns {told}: rows keep the last of each")
        yield from _whole_cells(path, lines, header, findings)
        return
    names = _wanted(path, header, reader, form)
    yield from _cells(path, lines, len(header), names, reader, findings)


def _has_objects(
    rows: Sequence[Sequence[str]], header: Sequence[str], data: DataConfig, reader: RowReader[Any]
) -> bool:
    """Whether cells hold JSON that has the columns inside, or makes rows of another layout."""
    if all(name.partition(".")[0] in header for name in reader.needed):
        return True
    names = {own: str(value) for own, value in reader.columns.model_dump().items()}
    parsed = [_parsed(cells, header) for cells in rows]
    return fitting(parsed, reader.shapes, data.format, names) is not None


def _parsed(cells: Sequence[str], header: Sequence[str]) -> dict[str, Any]:
    pairs = zip(header, cells)
    return {name: from_json(own) if own[:1] in ("[", "{") else own for name, own in pairs}


def _whole_cells(
    path: str, lines: Iterator[tuple[int, list[str]]], header: Sequence[str], findings: Findings
) -> Found:
    """All cells of rows, as they are."""
    missing = [""] * len(header)
    for number, cells in lines:
        if _fits(path, number, cells, len(header), findings):
            yield Place(path, number), dict(zip(header, (*cells, *missing[len(cells) :])))


def _fits(path: str, number: int, cells: Sequence[str], width: int, findings: Findings) -> bool:
    """Whether a row has no more cells than the header; else it is a mistake."""
    if len(cells) <= width or not any(cell.strip() for cell in cells[width:]):
        return True
    what = f"has {len(cells)} cells, the header has {width}."
    hint = "Cells with the delimiter in them stand between quotation marks."
    findings.mistake(f"{path}:{number}", what, hint)
    return False


def _cells(
    path: str,
    lines: Iterator[tuple[int, list[str]]],
    width: int,
    names: dict[str, int],
    reader: RowReader[Any],
    findings: Findings,
) -> Found:
    for number, cells in lines:
        if not _fits(path, number, cells, width, findings):
            continue
        row: dict[str, Any] = {
            name: cells[place] if place < len(cells) else "" for name, place in names.items()
        }
        for name in reader.optional:
            if not str(row.get(name, "")).strip():
                row.pop(name, None)  # an empty cell says nothing
        for name in reader.word_lists:
            row[name] = unpacked(row[name])
        yield Place(path, number), row


def _form(
    path: str,
    text: str,
    data: DataConfig,
    reader: RowReader[Any],
    numbered: bool,
    enough: Sequence[frozenset[str]],
    findings: Findings,
) -> _Form:
    """The delimiter and whether cells are quoted: as the config says, or as the file shows."""
    usual = "\t" if inner_name(path).lower().endswith((".tsv", ".tab", ".txt")) else ","
    delimiter = data.delimiter
    if delimiter is None:
        delimiter = _delimiter(text, usual, reader, numbered, enough)
        if delimiter != usual:
            findings.note(f"cells are separated by {_NAMES[delimiter]}")
    if data.quoting != "auto":
        return _Form(delimiter, quoted=data.quoting == "csv")
    quoted = delimiter != "\t" or _is_quoted(path, text, delimiter)
    return _Form(delimiter, quoted)


def _delimiter(
    text: str,
    usual: str,
    reader: RowReader[Any],
    numbered: bool,
    enough: Sequence[frozenset[str]],
) -> str:
    """That by which the first line has the columns that are needed."""
    first = text.lstrip("\n").split("\n", 1)[0].rstrip("\r")
    for delimiter in dict.fromkeys((usual, *_DELIMITERS)):
        cells = next(csv.reader([first], delimiter=delimiter), [])
        if numbered and len(cells) >= max(map(int, reader.needed)):
            return delimiter
        if not numbered and any(own <= set(cells) for own in enough):
            return delimiter
    return usual


def is_table(start: str, data: DataConfig, reader: RowReader[Any]) -> bool:
    """Whether the first line of a text is a header that has the columns that are needed, or
    `text`."""
    enough = [frozenset(reader.needed), frozenset(("text",))]
    usual = data.delimiter or ","
    delimiter = data.delimiter or _delimiter(start, usual, reader, False, enough)
    first = start.lstrip("\n").split("\n", 1)[0].rstrip("\r")
    cells = next(csv.reader([first], delimiter=delimiter), [])
    return any(own <= set(cells) for own in enough)


def _is_quoted(path: str, text: str, delimiter: str) -> bool:
    """Whether quotation marks of a tab-separated file enclose cells, or are characters of them."""
    if '"' not in text:
        return False
    rows = [line.rstrip("\r").split(delimiter) for line in text.split("\n") if line.strip()]
    cells = [cell for row in rows for cell in row if '"' in cell]
    if len({len(row) for row in rows}) == 1:
        proper = all(_PROPER.fullmatch(cell) for cell in cells)
        return proper and (any('""' in cell for cell in cells) or '"' in rows[0][0])
    try:
        widths = {len(own) for _, own in _Form(delimiter, True).lines(path, at_hand(text))}
    except UserError:
        return False
    return len(widths) == 1


def _numbers(path: str, first: Sequence[str], reader: RowReader[Any]) -> list[str]:
    """Names of the columns of a file without a header line: their numbers.

    Raises:
        UserError: the first line is a header.
    """
    own = {own.lower() for own in type(reader.columns).model_fields}
    wanted = [int(name) - 1 for name in (*reader.needed, *reader.optional) if name.isdecimal()]
    cells = [first[place].strip().lower() for place in wanted if place < len(first)]
    if found := [cell for cell in cells if cell in own]:
        what = f"has a header line, to judge by `{found[0]}`, but data.columns has numbers."
        hint = f"Name the columns by it: {shown(', '.join(first))}."
        raise UserError.single(f"{path}:1", what, hint)
    return [str(number) for number in range(1, len(first) + 1)]


def _wanted(
    path: str, header: Sequence[str], reader: RowReader[Any], form: _Form
) -> dict[str, int]:
    """Column that is read → its place.

    Raises:
        UserError: a column is missing, or there are two of its name.
    """
    names = {name: list(header).index(name) for name in header}
    missing = [name for name in reader.needed if name not in names]
    if missing:
        raise UserError([_no_column(path, missing, header, form)])
    wanted = [name for name in (*reader.needed, *reader.optional) if name in names]
    _check_once(path, header, wanted)
    return {name: names[name] for name in dict.fromkeys(wanted)}


def _check_once(path: str, header: Sequence[str], names: Sequence[str]) -> None:
    """Check that no column that is read is there twice.

    Raises:
        UserError: one is.
    """
    for name in names:
        if header.count(name) > 1:
            what = f"has {header.count(name)} columns `{name}`."
            raise UserError.single(path, what, "Give all but one of them another name.")


def _no_column(path: str, missing: Sequence[str], header: Sequence[str], form: _Form) -> Mistake:
    """Columns that aren't there, and why it may be so."""
    if missing[0].isdecimal():
        what = f"has {len(header)} columns, but data.columns names column {missing[-1]}."
        return Mistake(path, what, f"They are separated by {_NAMES.get(form.delimiter, 'others')}.")
    plain = no_column(path, "` and no column `".join(missing), header)
    hint = f"{plain.hint} If line 1 is no header, number them: data.columns.{missing[0]}=1."
    if len(header) == 1:
        hint += ' If another character separates cells, name it: data.delimiter=";".'
    return Mistake(path, plain.what, hint)


def unpacked(cell: Any) -> Any:
    """A list that stands in a cell."""
    if not isinstance(cell, str):
        return cell
    if not cell.lstrip().startswith(('["', "['", "[]")):
        return [word for word in cell.split(" ") if word]
    return from_json(cell)
