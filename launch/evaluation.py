"""`tsarch evaluate`: the final table of a run again, from its folder alone."""

from __future__ import annotations

from pathlib import Path

from tsarch.config import Mode


def show_evaluation(run: Path, split: str, mode: Mode | None) -> None:
    """Print the metrics of a run on a split, of all modes or of one.

    Raises:
        UserError: the folder is not a complete run.
    """
    from tsarch.launch.training import quieten
    from tsarch.run.saved_run import evaluate_run
    from tsarch.tasks.registry import table_metrics
    from tsarch.telling.terminal import Reporter

    quieten()
    blueprint, evaluation = evaluate_run(run, split, mode)
    chosen = {m: v for m, v in evaluation.metrics.items() if mode in (None, m)}
    Reporter().table(
        f"{split} split of {run}", {"": dict(chosen)}, table_metrics(blueprint.task.name)
    )
