"""What the user sees of `topology: auto`: the measured times, the proposal, and what it gains."""

from __future__ import annotations

from rich.table import Table

from tsarch.planning.balance import Prediction, Proposal
from tsarch.topology import STAGES, Stage


def proposal_table(proposal: Proposal) -> Table:
    """A row per stage and measured number of threads."""
    title = "topology: auto · measured on one rank of each stage, and the proposal"
    table = Table(title=title, title_justify="left")
    table.add_column("stage", no_wrap=True)
    for column in ("threads", "compute\ns/step", "step + exchange\ns/step"):
        table.add_column(column, justify="right", no_wrap=True)
    for column in (f"proposed\n{proposal.unit}", "predicted\nbusy"):
        table.add_column(column, justify="right", no_wrap=True)
    for stage in STAGES:
        for place, (threads, times) in enumerate(proposal.measured.items()):
            own = times[stage]
            counts = _proposed(proposal, stage) if place == 0 else ("", "")
            table.add_row(
                stage.value if place == 0 else "",
                str(threads or "–"),
                f"{own.compute_s:.4f}",
                f"{own.step_s + own.exchange_s:.4f}",
                *counts,
            )
    return table


def _proposed(proposal: Proposal, stage: Stage) -> tuple[str, str]:
    chosen = proposal.chosen
    return str(chosen.counts[stage]), f"{chosen.busy_share[stage]:.0%}"


def proposal_line(proposal: Proposal, one_process: bool) -> str:
    """The predicted step and idle share, against what they are without a proposal."""
    if one_process:
        return "topology: auto: both stages share this process, so there is nothing to choose"
    chosen, plain = proposal.chosen, proposal.plain
    words = f"predicted: {_prediction(chosen)}"
    if chosen.counts == plain.counts:
        return f"{words}, as without auto: nothing better in {_supply(proposal)}"
    return f"{words}; without auto: {_prediction(plain)}, {_counts(plain)} {proposal.unit}"


def outcome_line(proposal: Proposal, step_s: float, idle_share: float) -> str:
    """What came of the prediction."""
    return (
        f"topology: auto: {step_s:.3f} s a step, {idle_share:.0%} idle "
        f"(predicted: {_prediction(proposal.chosen)})"
    )


def _prediction(prediction: Prediction) -> str:
    return f"{prediction.step_s:.3f} s a step, {prediction.idle_share:.0%} idle"


def _counts(prediction: Prediction) -> str:
    return ":".join(str(prediction.counts[stage]) for stage in STAGES)


def _supply(proposal: Proposal) -> str:
    supply = proposal.supply
    if proposal.unit == "threads":
        return f"{supply.num_cores} cores"
    return f"{supply.num_devices} devices"
