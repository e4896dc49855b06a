"""Columns of a Parquet input have their types in a Parquet output, and no value is lost for it."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers import write_jsonl
from tsarch.data.formats.tables import parquet_stream
from tsarch.prediction.batch import as_line
from tsarch.prediction.outputs import write_table

MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678901)
KEPT: dict[str, pa.Array] = {
    "int8": pa.array([-128, None, 127], pa.int8()),
    "int64": pa.array([2**63 - 1, None, -(2**63)], pa.int64()),
    "uint64": pa.array([2**64 - 1, None, 0], pa.uint64()),
    "float32": pa.array([0.1, None, 3e38], pa.float32()),
    "float64": pa.array([0.1, None, 1.0], pa.float64()),
    "bool": pa.array([True, None, False]),
    "text": pa.array(["1", None, "null"]),
    "large": pa.array(["a\u2028", None, ""], pa.large_string()),
    "day": pa.array([date(2026, 1, 2), None, date(1, 1, 1)]),
    "moment": pa.array([MOMENT, None, MOMENT.replace(microsecond=0)], pa.timestamp("us")),
    "zoned": pa.array([MOMENT.replace(tzinfo=UTC), None, None], pa.timestamp("us", "UTC")),
    "there": pa.array([MOMENT.replace(tzinfo=UTC), None, None], pa.timestamp("us", "Asia/Tokyo")),
    "whole": pa.array([MOMENT.replace(microsecond=0), None, None], pa.timestamp("ms")),
    "fine": pa.array([MOMENT, None, None], pa.timestamp("ns")),
    "hour": pa.array([time(1, 2, 3), None, time(0)], pa.time32("ms")),
    "time": pa.array([time(1, 2, 3, 4), None, time(0)], pa.time64("us")),
    "price": pa.array([Decimal("1.10"), None, Decimal("-0.05")], pa.decimal128(10, 2)),
}
TEXTS: dict[str, pa.Array] = {
    "list": pa.array([[1, 2], None, []], pa.list_(pa.int64())),
    "record": pa.array([{"a": 1}, None, {"a": 2}]),
    "bytes": pa.array([b"a", None, b"\xff"]),
    "while": pa.array([timedelta(seconds=1), None, None]),
    "nothing": pa.array([None, None, None]),
}


def answered(table: pa.Table, *inputs: Path, output: Path, **more: Any) -> pa.Table:
    """What becomes of the rows of a table that is in files, each with an answer."""
    lines = output.with_suffix(".part")
    with lines.open("wb") as file:
        for path in inputs:
            with path.open("rb") as binary:
                for _, row, _ in parquet_stream(binary, str(path)):
                    file.write(as_line({**row, **more, "prediction": {"kind": "x"}}))
    names = list(dict.fromkeys([*table.column_names, *more, "prediction"]))
    write_table(lines, output, names, [str(path) for path in inputs])
    return pq.read_table(output)


def written(folder: Path, name: str, columns: dict[str, pa.Array]) -> Path:
    pq.write_table(pa.table(columns), folder / name)
    return folder / name


@pytest.mark.parametrize("name", KEPT)
def test_columns_keep_types_and_values(tmp_path, name):
    path = written(tmp_path, "in.parquet", {name: KEPT[name]})
    table = pq.read_table(path)
    found = answered(table, path, path, output=tmp_path / "out.parquet")
    assert found.schema.field("prediction").type == pa.string()
    assert found.schema.field(name).type == table.schema.field(name).type
    assert found.column(name).to_pylist() == 2 * table.column(name).to_pylist()


@pytest.mark.parametrize("name", TEXTS)
def test_what_has_several_values_or_no_form_in_json_is_a_text(tmp_path, name):
    path = written(tmp_path, "in.parquet", {name: TEXTS[name]})
    found = answered(pq.read_table(path), path, output=tmp_path / "out.parquet")
    assert found.schema.field(name).type == pa.string()
    assert found.column(name).null_count == TEXTS[name].null_count


def test_texts_that_are_told_apart_by_a_table_are_texts(tmp_path):
    own = pa.array(["a", "b", "a"]).dictionary_encode()
    path = written(tmp_path, "in.parquet", {"kind": own})
    found = answered(pq.read_table(path), path, output=tmp_path / "out.parquet")
    assert found.column("kind").to_pylist() == ["a", "b", "a"]


def test_a_type_that_does_not_hold_a_value_as_it_is_gives_way(tmp_path):
    path = written(tmp_path, "in.parquet", {"id": KEPT["int64"], "n": KEPT["int8"]})
    output = tmp_path / "out.parquet"
    for value in ("7-copy", "7", 1.0, True, 2**70, [1]):
        found = answered(pq.read_table(path), path, output=output, id=value)
        assert found.schema.field("id").type == pa.string()
        assert found.schema.field("n").type == pa.int8()
    late = written(tmp_path, "late.parquet", {"x": pa.array([*range(3000)])})
    lines = tmp_path / "lines"
    lines.write_bytes(b"".join(as_line({"x": n if n < 2999 else "end"}) for n in range(3000)))
    write_table(lines, output, ["x"], [str(late)])
    texts = pq.read_table(output).column("x").to_pylist()
    assert texts == [*map(str, range(2999)), "end"]


def test_files_of_one_schema_give_types_and_others_texts(tmp_path):
    one = written(tmp_path, "a.parquet", {"id": KEPT["int64"], "n": TEXTS["nothing"]})
    other = written(tmp_path, "b.parquet", {"id": KEPT["int8"], "n": KEPT["int8"]})
    found = answered(pq.read_table(one), one, other, output=tmp_path / "out.parquet")
    types = {field.name: field.type for field in found.schema}
    assert types == {"id": pa.string(), "n": pa.int8(), "prediction": pa.string()}
    lines = write_jsonl(tmp_path / "c.jsonl", [{"id": 5}])
    write_table(lines, tmp_path / "out.parquet", ["id"], [str(one), str(lines)])
    assert pq.read_table(tmp_path / "out.parquet").column("id").to_pylist() == ["5"]


def test_answers_are_texts_whatever_the_input_called_so(tmp_path):
    numbers = {"prediction": KEPT["int64"], "problem": KEPT["float64"]}
    path = written(tmp_path, "in.parquet", numbers)
    write_jsonl(tmp_path / "lines", [{"prediction": 5, "problem": 0.5}])
    write_table(tmp_path / "lines", tmp_path / "o.parquet", [*numbers], [str(path)])
    assert pq.read_table(tmp_path / "o.parquet").to_pylist() == [
        {"prediction": "5", "problem": "0.5"}
    ]
