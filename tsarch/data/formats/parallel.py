"""Two text files, line by line: sources and their targets."""

from __future__ import annotations

from collections.abc import Sequence

from tsarch.data.formats.findings import Findings, Found
from tsarch.data.formats.opening import decoded, read_content
from tsarch.data.rows import Place
from tsarch.errors import UserError


def parallel_rows(
    paths: Sequence[str], key: str, needed: Sequence[str], encoding: str | None, findings: Findings
) -> Found:
    """A row for each line; where both lines are empty there is none.

    Args:
        needed: columns of the source, and of the target where it is wanted.

    Raises:
        UserError: there aren't two files, or they aren't equally long.
    """
    if len(paths) != 2 or len(needed) != 2:
        what = f"names {len(paths)} files; two are a source and its target, line by line."
        raise UserError.single(key, what, "Other tasks, and rows to predict, take one file.")
    sides = []
    for path in paths:
        where = f"{key}: {path}"
        text = decoded(read_content(path, where), path, where, encoding, findings)
        lines = [line.rstrip("\r") for line in text.start.split("\n")]
        while lines and not lines[-1].strip():
            lines.pop()
        sides.append([line if n not in text.broken else "" for n, line in enumerate(lines, 1)])
    if len(sides[0]) != len(sides[1]):
        what = f"has {len(sides[0]):,} lines, but {paths[1]} has {len(sides[1]):,}."
        raise UserError.single(
            f"{key}: {paths[0]}", what, "Line n of the one is that of the other."
        )
    findings.note("read as two parallel files, a row for each line")
    for number, pair in enumerate(zip(*sides), 1):
        if any(line.strip() for line in pair):
            yield Place(paths[0], number), dict(zip(needed, pair))
