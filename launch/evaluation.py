"""`tsarch evaluate`: the final table of a run again, from its folder alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tsarch.config import Mode
from tsarch.errors import UserError
from tsarch.timings import TIMINGS

if TYPE_CHECKING:
    from tsarch.run.saved_run import SavedEvaluation
    from tsarch.telling.terminal import Reporter


def show_evaluation(
    run: Path,
    split: str,
    mode: Mode | None,
    overrides: Sequence[str] = (),
    data: str | None = None,
    output: Path | None = None,
    errors: Path | None = None,
    timings: bool = False,
    depth: int | None = None,
) -> None:
    """Print the metrics of a run on a split, of all modes or of one.

    Args:
        overrides: `key=value` of keys that a trained model leaves open.
        data: file in place of the run's own.
        output: JSON file to write too.
        errors: JSON Lines file to write the mistakes of these modes to.
        timings: say what the seconds went into.
        depth: layers of the student, one of `student.depths`. Default: all.

    Raises:
        UserError: the folder is not a complete run, or the data holds mistakes.
    """
    TIMINGS.begin()
    for option, file in (("--output", output), ("--errors", errors)):
        if file is not None:
            _check_output(option, file)
    with TIMINGS.during("importing"):
        from tsarch.launch.training import quieten
        from tsarch.models.lean_imports import import_models

        quieten()
        import_models()
        from tsarch.run.depths import at_depth
        from tsarch.run.saved_run import evaluate_run
        from tsarch.telling.terminal import Reporter
    run = at_depth(run, depth)
    reporter = Reporter()
    found = evaluate_run(run, split, mode, overrides, data, reporter.say, errors is not None)
    title = f"{split} split of {run}" if found.is_own else f"{found.source} · model of {run}"
    _show(found, title, mode, reporter)
    if output is not None:
        text = json.dumps({"run": str(run), **found.as_json(split, mode)}, indent=2)
        output.write_text(text + "\n", encoding="utf-8")
    if errors is not None:
        _write_errors(found, mode, split, errors, reporter)
    if timings:
        reporter.seconds(TIMINGS.phases())


def _show(found: SavedEvaluation, title: str, mode: Mode | None, reporter: Reporter) -> None:
    """The table, what the texts took, and the remarks."""
    from tsarch.run.texts import pass_lines
    from tsarch.tasks.registry import table_metrics

    chosen = {m: v for m, v in found.evaluation.metrics.items() if mode in (None, m)}
    reporter.table(title, {"": dict(chosen)}, table_metrics(found.blueprint.task.name))
    for line in pass_lines(found.passes):
        reporter.say(line)
    for note in found.notes:
        reporter.say(f"note: {note}")


def _write_errors(
    found: SavedEvaluation, mode: Mode | None, split: str, errors: Path, reporter: Reporter
) -> None:
    """The mistakes to a file; how many there are, and some rows, to the terminal.

    Raises:
        UserError: the task has no answers that could be marked.
    """
    from tsarch.marking.summary import error_summary
    from tsarch.run.evaluate import best_mode
    from tsarch.tasks.registry import make_task
    from tsarch.telling.predictions import show_sample
    from tsarch.telling.run_folder import write_atomically

    marked = found.marked
    if marked is None:
        what = f"can't be written: answers of {found.blueprint.task.name} can't be marked."
        raise UserError.single(f"--errors {errors}", what)
    modes = [own for own in marked.marks if mode in (None, own)]
    lines = list(marked.lines(modes))
    write_atomically(errors, "".join(f"{line}\n" for line in lines))
    shown = mode or best_mode(make_task(found.blueprint.task.name, ()), found.evaluation)
    show_sample(reporter.console, error_summary(marked, split, shown, len(marked.rows)))
    reporter.say(f"{len(lines):,} mistakes of {', '.join(modes)}: {errors}")


def _check_output(option: str, output: Path) -> None:
    """Whether a file can be written, before what takes long.

    Raises:
        UserError: it can't.
    """
    try:
        with output.open("a", encoding="utf-8"):
            pass
    except OSError as error:
        where = f"{option} {output}"
        raise UserError.single(where, f"can't be written: {error.strerror}.") from None
