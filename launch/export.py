"""`tsarch export`: a finished run for others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tsarch.clock import now_s

if TYPE_CHECKING:
    from tsarch.export.export import Exported


def export_to(
    run: Path,
    target: Path,
    onnx: bool,
    int8: bool,
    rows: int,
    name: str,
    licence: str,
    language: Sequence[str],
) -> None:
    """Export a run and say what was written.

    Raises:
        UserError: the run can't be read, the folder can't be written, or an exported model doesn't
            say what the run says.
    """
    from tsarch.launch.training import quieten

    quieten()
    from transformers.utils.logging import disable_progress_bar

    from tsarch.export.card import Told
    from tsarch.export.export import Wanted, export_run
    from tsarch.telling.terminal import Reporter

    disable_progress_bar()  # of each file that is written
    started = now_s()
    reporter = Reporter()
    wanted = Wanted(onnx=onnx, int8=int8, rows=rows)
    done = export_run(run, target, wanted, Told(name, licence, tuple(language)), reporter.say)
    _tell(reporter.say, target, done, now_s() - started)


def _tell(say: object, target: Path, done: Exported, seconds: float) -> None:
    assert callable(say)
    for part, what in done.parts.items():
        say(f"{target}/{part} ({_megabytes(target / part)}): {what}")
    for part, why in done.refused.items():
        say(f"note: no {part}: {why}")
    for check in done.checks:
        say(f"checked: {check}")
    say(f"{target}: {_megabytes(target)} in {seconds:.0f} s; README.md is its model card")


def _megabytes(path: Path) -> str:
    files = [path] if path.is_file() else [own for own in path.rglob("*") if own.is_file()]
    return f"{sum(own.stat().st_size for own in files) / 1e6:,.1f} MB"
