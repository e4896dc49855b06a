"""Generated texts and their metrics, mode by mode."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tsarch.blueprint import Blueprint
from tsarch.config import Mode
from tsarch.data.source_target import SourceTarget
from tsarch.prepare import Prepared
from tsarch.rank.crew import Crew
from tsarch.rank.generate import chosen_contexts
from tsarch.run.evaluate import Evaluation
from tsarch.tasks.base import Task, is_writing
from tsarch.written import Passes


@dataclass(frozen=True)
class Sample:
    """A row, and what each mode made of its source."""

    row: SourceTarget
    generated: dict[Mode, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, str]:
        """For files."""
        control = {} if self.row.control is None else {"control": self.row.control}
        own = {str(mode): text for mode, text in self.generated.items()}
        reference = " | ".join(self.row.targets)
        return {**control, "source": self.row.source, "reference": reference, **own}


def with_texts(
    crew: Crew,
    blueprint: Blueprint,
    prepared: Prepared,
    task: Task,
    split: str,
    evaluation: Evaluation,
    modes: Iterable[Mode] | None = None,
) -> tuple[Evaluation, list[Sample], dict[Mode, Passes]]:
    """The evaluation with metrics of texts that `modes` (None: all) generate, the texts, and what
    each mode took; of tasks that generate none, the evaluation as it is."""
    if not is_writing(task):
        return evaluation, [], {}
    tokenizer = blueprint.tokenizer()
    own = prepared.splits[split]
    contexts = chosen_contexts(own, blueprint.decoding.max_texts)
    samples = [Sample(own.rows[context]) for context in contexts]
    metrics = dict(evaluation.metrics)
    wanted = list(blueprint.modes if modes is None else modes)
    found = crew.write(split, wanted, evaluation.joint_weight) if wanted else {}
    for mode, written in found.items():
        texts = task.spelled([written.texts[context] for context in contexts], tokenizer)
        for sample, text in zip(samples, texts, strict=True):
            sample.generated[mode] = text
        scores = task.measured(texts, [sample.row for sample in samples])
        metrics[mode] = {**metrics[mode], **scores}
    passes = {mode: own.passes for mode, own in found.items()}
    return Evaluation(metrics, evaluation.joint_weight), samples, passes


def pass_lines(passes: Mapping[Mode, Passes]) -> list[str]:
    """Mode by mode, how its texts were written; nothing of those that were by several ranks."""
    return [f"{mode}: {_line(own)}" for mode, own in passes.items() if own.num_texts]


def pass_figures(passes: Mapping[Mode, Passes]) -> dict[Mode, dict[str, float]]:
    """Mode → how its texts were written, in figures: `tokens_a_pass` of a text, `speed` against
    one token at a time, seconds, and shares of proposing, checking and the rest."""
    return {mode: _figures(own) for mode, own in passes.items() if own.num_texts}


def _figures(own: Passes) -> dict[str, float]:
    total_s = max(own.proposing_s + own.checking_s + own.choosing_s, 1e-9)
    return {
        "tokens": own.num_tokens,
        "tokens_a_pass": round(own.tokens_a_pass, 3),
        "speed": round(own.speed, 3),
        "seconds": round(own.prompt_s + total_s, 3),
        "prompt_seconds": round(own.prompt_s, 3),
        "proposing": round(own.proposing_s / total_s, 3),
        "checking": round(own.checking_s / total_s, 3),
        "rest": round(own.choosing_s / total_s, 3),
        "declined": round(own.num_declined / max(own.num_passes, 1), 3),
    }


def _line(own: Passes) -> str:
    found = _figures(own)
    told = (
        f"{own.num_tokens:,} tokens in {found['seconds']:,.1f} s, {found['prompt_seconds']:,.1f} s "
        "of it for the prompts"
    )
    if own.num_proposed or own.num_declined:
        told += (
            f"; {own.tokens_a_pass:.2f} tokens a pass, {own.speed:.2f} × the speed of one token a "
            f"pass (proposing {found['proposing']:.0%}, checking {found['checking']:.0%}, the rest "
            f"{found['rest']:.0%})"
        )
    if own.num_declined > own.num_passes / 2:
        told += (
            f"; nothing was proposed in {found['declined']:.0%} of the passes, where checking "
            "didn't pay (a smaller `decoding.batch` may)"
        )
    return told
