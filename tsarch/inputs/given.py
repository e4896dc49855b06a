"""Inputs as people have them: rows of tables, arrays and strings of libraries, as plain values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tsarch.errors import UserError


def inputs_of(given: Any) -> Iterable[Any]:
    """The inputs, one by one; of a table (pandas) its rows.

    Raises:
        UserError: it is one input by itself, or none.
    """
    if isinstance(given, str | bytes | Mapping):
        raise UserError.single("inputs", "is one input.", "Give a list: predict([text]).")
    if hasattr(given, "columns") and hasattr(given, "to_dict"):
        rows: list[Any] = given.to_dict("records")
        return rows
    if not isinstance(given, Iterable):
        what = f"is of the type {type(given).__name__}."
        raise UserError.single("inputs", what, "Give a list: predict([text]).")
    return given


def plain(value: Any) -> Any:
    """A value without the types of numpy and pandas."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return {key: plain(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [plain(own) for own in value]
    if hasattr(value, "to_dict"):  # a row of a table
        return plain(value.to_dict())
    return value.tolist() if hasattr(value, "tolist") else value
