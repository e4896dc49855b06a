"""Text without labels as rows of a task, for training (`data.unlabelled`)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tsarch.config import DataConfig
from tsarch.data.corpus import by_document, checked, raise_mistakes
from tsarch.data.formats.findings import Findings, Found
from tsarch.data.row_reader import RowReader
from tsarch.data.rows import Place, Row
from tsarch.errors import UserError
from tsarch.inputs.files import NOT_UTF8, InputFile, input_files
from tsarch.inputs.reading import Reading
from tsarch.inputs.rows import as_rows

KEY = "data.unlabelled"
_ENCODED = "Write it as UTF-8, or name the encoding of all data files: data.encoding."
_PLACE = re.compile(
    r"^(?P<source>.*):(?P<unit>row |item )?(?P<number>\d+)(?P<part>(?:/\d+)*)$", re.DOTALL
)


@dataclass(frozen=True)
class UnlabelledRows:
    """What files without labels hold."""

    rows: tuple[Row, ...]
    """Of the task's own type, those of a document together."""
    notes: tuple[str, ...]
    """On how they were read."""


def read_unlabelled(
    patterns: str | Sequence[str], task: str, reader: RowReader[Any], data: DataConfig
) -> UnlabelledRows:
    """Read and check the rows of files, of plain text or of any format that is predicted.

    A plain text is what `tsarch predict` makes of it: for `ner` each line is a document, else a
    row. Documents of two files aren't one, whatever their names.

    Args:
        reader: of the task, made with `labelled=False`.
        data: names of columns, and the encoding; formats are told from the files.

    Raises:
        UserError: a pattern names no file, or the files hold mistakes; all of them are named.
    """
    named = [patterns] if isinstance(patterns, str) else list(patterns)
    own = DataConfig(columns=data.columns, encoding=data.encoding, span_ends=data.span_ends)
    reading = Reading(task, reader.columns.model_dump(), own)
    files = _files(named, "tags" in reading.names)
    findings = Findings(split="unlabelled")
    found = (each for path in files for each in _rows(path, task, reading, reader, findings))
    rows = checked(found, reader, f"{KEY}: {', '.join(named)}", findings)
    raise_mistakes(findings)
    return UnlabelledRows(tuple(by_document(rows)), tuple(findings.notes))


def _files(patterns: Sequence[str], is_tagged: bool) -> list[str]:
    try:
        return input_files(patterns, is_tagged)
    except UserError as error:
        (mistake,) = error.mistakes
        raise UserError.single(f"{KEY}: {mistake.where}", mistake.what, mistake.hint) from None


def _rows(
    path: str, task: str, reading: Reading, reader: RowReader[Any], findings: Findings
) -> Found:
    """Raw rows of a file; what is wrong with its inputs goes to the mistakes."""
    file = InputFile(path, reading)
    doc_id = reading.names.get("doc_id", "")
    own_id = reading.names["id"] if task == "qa" else None  # which nobody asks for
    for given in file:
        if given.value is None:
            hint = _ENCODED if given.problem == NOT_UTF8 else ""
            findings.mistake(given.place, given.problem, hint)
            continue
        inputs = as_rows([given.value], task, reader)
        for problem in inputs.problems.values():
            findings.mistake(given.place, problem)
        for part, row in enumerate(inputs.rows):
            if own_id is not None:
                row[own_id] = given.place
            place = _place(given.place, (part,) if len(inputs.rows) > 1 else ())
            if inputs.texts:
                row[doc_id] = given.place
            elif row.get(doc_id) not in (None, ""):
                row[doc_id] = f"{path}: {row[doc_id]}"
            yield place, row
    for note in file.findings.notes:
        findings.note(note)


def _place(text: str, part: tuple[int, ...]) -> Place:
    match = _PLACE.match(text)
    if match is None:
        return Place(text, 1, part=part)
    whole = tuple(map(int, match["part"].split("/")[1:]))
    return Place(match["source"], int(match["number"]), match["unit"] or "", part=whole + part)
