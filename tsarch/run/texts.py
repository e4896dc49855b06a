"""Generated texts and their metrics, mode by mode."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tsarch.blueprint import Blueprint
from tsarch.config import Mode
from tsarch.prepare import Prepared
from tsarch.rank.crew import Crew
from tsarch.rank.generate import chosen_contexts
from tsarch.run.evaluate import Evaluation
from tsarch.tasks.base import GenerativeTask, Task
from tsarch.tasks.generative import spelled


@dataclass(frozen=True)
class Sample:
    """One source, its targets, and what each mode made of the source."""

    source: str
    references: tuple[str, ...]
    generated: dict[Mode, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, str]:
        """For files."""
        own = {str(mode): text for mode, text in self.generated.items()}
        return {"source": self.source, "reference": " | ".join(self.references), **own}


def with_texts(
    crew: Crew,
    blueprint: Blueprint,
    prepared: Prepared,
    task: Task,
    split: str,
    evaluation: Evaluation,
    modes: Iterable[Mode] | None = None,
) -> tuple[Evaluation, list[Sample]]:
    """The evaluation with metrics of texts that `modes` (None: all) generate, and the texts; of
    tasks that generate none, the evaluation as it is."""
    if not isinstance(task, GenerativeTask):
        return evaluation, []
    tokenizer = blueprint.tokenizer()
    own = prepared.splits[split]
    contexts = chosen_contexts(own, blueprint.decoding.max_texts)
    samples = [Sample(own.rows[c].source, own.rows[c].targets) for c in contexts]
    metrics = dict(evaluation.metrics)
    for mode in blueprint.modes if modes is None else modes:
        tokens = crew.generate(split, mode, evaluation.joint_weight)
        texts = spelled([tokens[context] for context in contexts], tokenizer)
        for sample, text in zip(samples, texts, strict=True):
            sample.generated[mode] = text
        references = [sample.references for sample in samples]
        scores = task.text_metrics([sample.generated[mode] for sample in samples], references)
        metrics[mode] = {**metrics[mode], **scores}
    return Evaluation(metrics, evaluation.joint_weight), samples
