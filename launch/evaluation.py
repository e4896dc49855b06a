"""`tsarch evaluate`: the final table of a run again, from its folder alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tsarch.config import Mode
from tsarch.errors import UserError


def show_evaluation(
    run: Path,
    split: str,
    mode: Mode | None,
    overrides: Sequence[str] = (),
    data: str | None = None,
    output: Path | None = None,
) -> None:
    """Print the metrics of a run on a split, of all modes or of one.

    Args:
        overrides: `key=value` of keys that a trained model leaves open.
        data: file in place of the run's own.
        output: JSON file to write too.

    Raises:
        UserError: the folder is not a complete run, or the data holds mistakes.
    """
    from tsarch.launch.training import quieten
    from tsarch.run.saved_run import evaluate_run
    from tsarch.tasks.registry import table_metrics
    from tsarch.telling.terminal import Reporter

    quieten()
    if output is not None:
        _check_output(output)
    reporter = Reporter()
    found = evaluate_run(run, split, mode, overrides, data, reporter.say)
    chosen = {m: v for m, v in found.evaluation.metrics.items() if mode in (None, m)}
    title = f"{split} split of {run}" if found.is_own else f"{found.source} · model of {run}"
    reporter.table(title, {"": dict(chosen)}, table_metrics(found.blueprint.task.name))
    for note in found.notes:
        reporter.say(f"note: {note}")
    if output is not None:
        text = json.dumps({"run": str(run), **found.as_json(split, mode)}, indent=2)
        output.write_text(text + "\n", encoding="utf-8")


def _check_output(output: Path) -> None:
    """Whether a file can be written, before what takes long.

    Raises:
        UserError: it can't.
    """
    try:
        with output.open("a", encoding="utf-8"):
            pass
    except OSError as error:
        where = f"--output {output}"
        raise UserError.single(where, f"can't be written: {error.strerror}.") from None
