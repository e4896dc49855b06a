"""Reads labelled sentences from files or a hub data set, through `datasets`, and checks them.

Whatever the source, a split becomes a `Dataset` with the columns doc_id, tokens and tags, the
sentences of a document together and in order. All mistakes are collected before one is shown.
JSON Lines and CoNLL are parsed here, because a mistake in them has to be shown with its line.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import reprlib
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsarch.config import ColumnsConfig, DataConfig
from tsarch.data.conll import read_conll
from tsarch.errors import Mistake, UserError

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = ("train", "validation", "test")
_HUB_NAMES = {"train": ("train",), "validation": ("validation", "dev", "valid"), "test": ("test",)}
_FORMATS = {
    **dict.fromkeys((".jsonl", ".json", ".ndjson"), "jsonl"),
    **dict.fromkeys((".conll", ".iob", ".iob2", ".bio", ".txt"), "conll"),
    ".csv": "csv",
    ".parquet": "parquet",
}
_MAX_SHOWN = 50


@dataclass(frozen=True)
class Corpus:
    """The three splits and their labels."""

    splits: dict[str, Dataset]
    """Split → `datasets.Dataset` with doc_id (str), tokens (list[str]), tags (list[str])."""
    labels: tuple[str, ...]
    """`O`, then B- and I- of every entity type of the training split."""
    notes: tuple[str, ...]
    """Remarks for the user."""


@dataclass(frozen=True)
class Place:
    """Where a sentence stands: `FILE:LINE`, or `FILE:row N` where rows aren't lines."""

    source: str
    number: int
    unit: str = ""
    line_per_word: bool = False

    def __str__(self) -> str:
        return self.of_word(0)

    def of_word(self, word: int) -> str:
        """Place of a word of the sentence."""
        return f"{self.source}:{self.unit}{self.number + word * self.line_per_word}"


@dataclass(frozen=True)
class Row:
    """One sentence and where it came from."""

    place: Place
    doc_id: str
    sent_id: Any
    tokens: list[str]
    tags: list[str]


Found = Iterator[tuple[Place, dict[str, Any]]]
"""Raw rows, column → value, as a source holds them."""


def cache_root(folder: str | None) -> Path:
    """Folder of everything that is cached: `data.cache_folder`, or `~/.cache/tsarch`."""
    return Path(folder or "~/.cache/tsarch").expanduser()


def read_splits(data: DataConfig) -> Corpus:
    """Read, check and order the three splits.

    Raises:
        UserError: names every mistake with file and line, at most 50 of them.
    """
    mistakes: list[Mistake] = []
    sets = {} if data.hub is None else _load_hub(data)
    rows: dict[str, list[Row]] = {}
    for split in SPLITS:
        if data.hub is not None:
            source, found = f"data.hub: {data.hub} ({split})", _hub_rows(data, split, sets)
        else:
            source = f"data.{split}: {getattr(data, split)}"
            found = _file_rows(data, split, mistakes)
        rows[split] = _checked(found, data, source, mistakes)
        if split == "train":
            sound = not mistakes
    # Labels that only broken rows of the training split have would seem to be missing.
    notes = _check_types(rows, mistakes) if sound else ()
    if mistakes:
        raise UserError(_shortened(mistakes))
    types = sorted(_types(rows["train"]))
    labels = ("O", *(f"{prefix}-{name}" for name in types for prefix in "BI"))
    return Corpus({split: _dataset(_in_order(rows[split])) for split in SPLITS}, labels, notes)


def iob1_to_iob2(tags: Sequence[str]) -> list[str]:
    """IOB1 (B- only between touching entities of a type) to IOB2 (B- at every start)."""
    result = []
    previous = "O"
    for tag in tags:
        if tag.startswith("I-") and previous[1:] != tag[1:]:
            result.append("B" + tag[1:])
        else:
            result.append(tag)
        previous = tag
    return result


def _file_rows(data: DataConfig, split: str, mistakes: list[Mistake]) -> Found:
    """Rows of a split's file; broken lines go to `mistakes`.

    Raises:
        UserError: the file as a whole can't be read.
    """
    path = getattr(data, split)
    if path is None:
        raise UserError.single(f"data.{split}", "is missing.")
    kind = data.format if data.format != "auto" else _FORMATS.get(Path(path).suffix.lower())
    if kind is None:
        hint = "Set data.format to jsonl, conll, csv or parquet."
        raise UserError.single(path, "has an ending that names no known format.", hint)
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        where = f"data.{split}: {path}"
        raise UserError.single(where, f"can't be read: {error.strerror}.") from None
    if not content.strip():
        raise UserError.single(f"data.{split}: {path}", "is empty.")
    if kind == "parquet":
        yield from _table_rows(_load_table(kind, path, data), path, data.columns)
    elif kind == "csv":
        yield from _csv_rows(path, _decoded(path, content), data)
    elif kind == "conll":
        yield from _conll_rows(path, _decoded(path, content), data.columns)
    else:
        yield from _jsonl_rows(path, _decoded(path, content), mistakes)


def _decoded(path: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError.single(f"{path}:{line}", "is not UTF-8 text.") from None


def _jsonl_rows(path: str, text: str, mistakes: list[Mistake]) -> Found:
    for number, line in enumerate(text.split("\n"), 1):
        if not line or line.isspace():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            mistakes.append(Mistake(f"{path}:{number}", f"is not JSON: {error}."))
            continue
        if isinstance(row, dict):
            yield Place(path, number), row
        else:
            hint = "JSON Lines has one object {…} a line."
            mistakes.append(Mistake(f"{path}:{number}", "is not a JSON object.", hint))


def _conll_rows(path: str, text: str, columns: ColumnsConfig) -> Found:
    for sentence in read_conll(text):
        row: dict[str, Any] = {columns.tokens: sentence.tokens, columns.tags: sentence.tags}
        if sentence.document is not None:
            row[columns.doc_id] = sentence.document
        yield Place(path, sentence.line, line_per_word=True), row


def _csv_rows(path: str, text: str, data: DataConfig) -> Found:
    """Rows of a CSV file; lists in cells are JSON, or words separated by spaces."""
    header, lines = _csv_lines(path, text)
    names = _wanted(data.columns, header, path)
    if not lines:
        return
    from datasets import Features, Value

    table = _load_table(
        "csv",
        path,
        data,
        # All text: pandas would read the word `1896` as a number, and `NA` as nothing.
        features=Features({name: Value("string") for name in names}),
        usecols=names,
        keep_default_na=False,
        encoding="utf-8-sig",
    )
    for place, row in _table_rows(table, path, data.columns):
        if len(lines) == len(table):
            place = Place(path, lines[place.number - 1])
        for name in (data.columns.tokens, data.columns.tags):
            row[name] = _unpacked(row[name])
        yield place, row


def _csv_lines(path: str, text: str) -> tuple[list[str], list[int]]:
    """Column names, and the line where each row starts (a quoted cell may have several lines)."""
    reader = csv.reader(io.StringIO(text, newline=""))
    header: list[str] = []
    lines: list[int] = []
    mistakes = []
    ended = 0
    try:
        for cells in reader:
            start, ended = ended + 1, reader.line_num
            if len(cells) <= 1 and not "".join(cells).strip():
                continue
            if header:
                lines.append(start)
            header = header or cells
            if len(cells) > len(header):
                what = f"has {len(cells)} cells, the header has {len(header)}."
                mistakes.append(Mistake(f"{path}:{start}", what))
    except csv.Error as error:
        mistakes.append(Mistake(f"{path}:{reader.line_num}", f"is not CSV: {error}."))
    if mistakes:
        raise UserError(mistakes)
    return header, lines


def _unpacked(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    if not cell.lstrip().startswith(('["', "['", "[]")):
        return [word for word in cell.split(" ") if word]
    try:
        return json.loads(cell)
    except ValueError:
        return cell


def _load_table(kind: str, path: str, data: DataConfig, **options: Any) -> Dataset:
    from datasets import load_dataset

    cache = str(cache_root(data.cache_folder))
    try:
        return load_dataset(kind, data_files=path, split="train", cache_dir=cache, **options)
    except Exception as error:  # whatever pandas or Arrow raise, as it is or wrapped
        reason = _one_line(error.__cause__ or error)
        raise UserError.single(path, f"can't be read as {kind}: {reason}") from None


def _load_hub(data: DataConfig) -> dict[str, Dataset]:
    """All splits of the hub data set, or of a local folder in its place."""
    from datasets import load_dataset

    assert data.hub is not None
    folder = Path(data.hub).expanduser()
    name = str(folder) if folder.is_dir() else data.hub
    cache = str(cache_root(data.cache_folder))
    try:
        sets: dict[str, Dataset] = load_dataset(name, data.hub_config, cache_dir=cache)
    except Exception as error:  # the hub client, the builders and Arrow raise what they like
        reason = _one_line(error.__cause__ or error)
        raise UserError.single(f"data.hub: {data.hub}", f"can't be loaded: {reason}") from None
    return sets


def _hub_rows(data: DataConfig, split: str, sets: dict[str, Dataset]) -> Found:
    name = next((name for name in _HUB_NAMES[split] if name in sets), None)
    if name is None:
        hint = f"Its splits: {', '.join(sets)}."
        raise UserError.single(f"data.hub: {data.hub}", f"has no split `{split}`.", hint)
    yield from _table_rows(sets[name], f"{data.hub} ({name})", data.columns)


def _table_rows(table: Dataset, source: str, columns: ColumnsConfig) -> Found:
    """Rows of a table; class numbers become the names that the table has for them.

    Raises:
        UserError: a column is missing.
    """
    from datasets import ClassLabel

    values = table.select_columns(_wanted(columns, table.column_names, source)).to_dict()
    item = getattr(table.features[columns.tags], "feature", None)
    if isinstance(item, ClassLabel):
        names = dict(enumerate(item.names))
        values[columns.tags] = [
            tags and [names.get(tag, tag) for tag in tags] for tags in values[columns.tags]
        ]
    for number, row in enumerate(zip(*values.values()), 1):
        yield Place(source, number, unit="row "), dict(zip(values, row))


def _wanted(columns: ColumnsConfig, names: Sequence[str], source: str) -> list[str]:
    """The columns of a table that are read.

    Raises:
        UserError: a column is missing.
    """
    needed = (columns.tokens, columns.tags)
    missing = [name for name in needed if name not in names]
    if missing:
        raise UserError(_no_column(source, name, names) for name in missing)
    optional = [name for name in (columns.doc_id, columns.sent_id) if name in names]
    return list(dict.fromkeys((*needed, *optional)))


def _checked(found: Found, data: DataConfig, source: str, mistakes: list[Mistake]) -> list[Row]:
    """The sound rows of a split; what is wrong with the others goes to `mistakes`, in order."""
    num_before = len(mistakes)
    rows: list[Row] = []
    names: set[str] = set()
    seen: dict[tuple[str, str], Place] = {}
    try:
        for place, raw in found:
            names.update(raw)
            row, wrong = _row(place, raw, data)
            if row is not None:
                wrong += _check_tags(row) + _check_twice(row, seen)
                rows.append(row)
            mistakes += wrong
    except UserError as error:
        mistakes += error.mistakes
        return rows
    if not rows and len(mistakes) == num_before:
        mistakes.append(Mistake(source, "has no sentences."))
    elif rows:
        mistakes += _check_renamed(data.columns, names, source)
    return rows


def _row(place: Place, raw: dict[str, Any], data: DataConfig) -> tuple[Row | None, list[Mistake]]:
    columns = data.columns
    wrong = [_check_list(place, raw, name) for name in (columns.tokens, columns.tags)]
    mistakes = [mistake for mistake in wrong if mistake is not None]
    if mistakes:
        return None, mistakes
    tokens, tags = raw[columns.tokens], raw[columns.tags]
    doc_id = raw.get(columns.doc_id)
    doc_id = str(place if doc_id is None else doc_id)
    try:
        "".join((doc_id, *tokens, *tags)).encode()
    except UnicodeEncodeError:
        return None, [Mistake(str(place), "has half a surrogate pair (\\ud800 … \\udfff).")]
    if len(tokens) != len(tags):
        what = f"has {len(tokens)} tokens but {len(tags)} tags."
        return None, [Mistake(str(place), what)]
    if not tokens:
        return None, [Mistake(str(place), "has no tokens.")]
    tags = iob1_to_iob2(tags) if data.tag_scheme == "iob1" else tags
    return Row(place, doc_id, raw.get(columns.sent_id), tokens, tags), []


def _check_list(place: Place, raw: dict[str, Any], name: str) -> Mistake | None:
    if name not in raw:
        return _no_column(str(place), name, raw)
    values = raw[name]
    if not isinstance(values, list):
        return Mistake(str(place), f"`{name}` is {reprlib.repr(values)}, not a list of strings.")
    for word, value in enumerate(values):
        if not isinstance(value, str):
            what = f"`{name}` has {reprlib.repr(value)} as item {word + 1}, not a string."
            return Mistake(place.of_word(word), what)
    return None


def _no_column(where: str, name: str, columns: Iterable[str]) -> Mistake:
    hint = f"Columns: {', '.join(columns)}. Set data.columns if names differ."
    return Mistake(where, f"has no column `{name}`.", hint)


def _check_renamed(columns: ColumnsConfig, names: set[str], source: str) -> list[Mistake]:
    """A column that may be absent has to be there once the config gives it a name."""
    given = ((columns.doc_id, "doc_id"), (columns.sent_id, "sent_id"))
    return [
        Mistake(source, f"has no column `{name}`, which data.columns.{own} names.")
        for name, own in given
        if name != own and name not in names
    ]


def _check_tags(row: Row) -> list[Mistake]:
    previous = "O"
    for word, tag in enumerate(row.tags):
        if tag != "O" and (tag[:2] not in ("B-", "I-") or len(tag) < 3):
            what = f"tag {word + 1} is `{tag}`, not O, B-TYPE or I-TYPE."
            return [Mistake(row.place.of_word(word), what)]
        if tag.startswith("I-") and previous[1:] != tag[1:]:
            what = f"tag {word + 1} is `{tag}` after `{previous}`, which IOB2 doesn't allow."
            hint = "If the file is IOB1, set `data.tag_scheme: iob1`."
            return [Mistake(row.place.of_word(word), what, hint)]
        previous = tag
    return []


def _check_twice(row: Row, seen: dict[tuple[str, str], Place]) -> list[Mistake]:
    if row.sent_id is None:
        return []
    first = seen.setdefault((row.doc_id, str(row.sent_id)), row.place)
    if first is row.place:
        return []
    what = f"sentence {row.sent_id} of document {row.doc_id} was at {first} already."
    return [Mistake(str(row.place), what)]


def _types(rows: Iterable[Row]) -> dict[str, str]:
    """Entity type → where it is first."""
    found: dict[str, str] = {}
    for row in rows:
        for word, tag in enumerate(row.tags):
            if tag != "O" and tag[2:] not in found:
                found[tag[2:]] = row.place.of_word(word)
    return found


def _check_types(rows: dict[str, list[Row]], mistakes: list[Mistake]) -> tuple[str, ...]:
    """Add labels that can't be learned to `mistakes`; return notes on those not measured."""
    found = {split: _types(rows[split]) for split in SPLITS}
    known = found["train"]
    evaluated = ("validation", "test")
    for name in dict.fromkeys(itertools.chain(*(found[split] for split in evaluated))):
        if name not in known:
            where = [split for split in evaluated if name in found[split]]
            what = f"label `{name}` is in {' and '.join(where)} but not in train"
            hint = f"(labels of train: {', '.join(sorted(known)) or 'none'})."
            mistakes.append(Mistake(found[where[0]][name], what, hint))
    return tuple(
        f"label {name} is not in the {split} split"
        for split in evaluated
        for name in known
        if name not in found[split]
    )


def _in_order(rows: Sequence[Row]) -> list[Row]:
    """Documents in order of appearance, their sentences by sent_id."""
    documents: dict[str, list[Row]] = {}
    for row in rows:
        documents.setdefault(row.doc_id, []).append(row)
    ordered: list[Row] = []
    for own in documents.values():
        numbers = [n for row in own if (n := _number(row.sent_id)) is not None]
        if len(numbers) == len(own):
            own = [row for _, _, row in sorted(zip(numbers, itertools.count(), own))]
        ordered += own
    return ordered


def _number(sent_id: Any) -> float | None:
    """A sent_id that is a number, or its text; None for others, which have no order."""
    if isinstance(sent_id, str) and sent_id.strip().isdecimal():
        return int(sent_id)
    return sent_id if isinstance(sent_id, (int, float)) else None


def _dataset(rows: Sequence[Row]) -> Dataset:
    from datasets import Dataset, Features, List, Value

    words = List(Value("string"))
    return Dataset.from_dict(
        {
            "doc_id": [row.doc_id for row in rows],
            "tokens": [row.tokens for row in rows],
            "tags": [row.tags for row in rows],
        },
        features=Features({"doc_id": Value("string"), "tokens": words, "tags": words}),
    )


def _one_line(error: BaseException) -> str:
    return textwrap.shorten(str(error) or repr(error), width=300, placeholder=" …")


def _shortened(mistakes: list[Mistake]) -> list[Mistake]:
    if len(mistakes) <= _MAX_SHOWN:
        return mistakes
    more = Mistake("…", f"and {len(mistakes) - _MAX_SHOWN} more mistakes.")
    return [*mistakes[:_MAX_SHOWN], more]
