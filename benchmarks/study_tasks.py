"""The tasks of the study: their configs, the subsets that keep it under two hours, and the whole
test splits of their data (NER's config has the whole split already)."""

from __future__ import annotations

from pathlib import Path

from benchmarks.study_plan import StudyTask

_BOTH_DISTILLED = ("student.fed_weight=0.1", "distillation.passes=all")
"""Ours as in NER; the configs' own settings are for fewer steps (`results/study-variants.md`)."""

TASKS = (
    StudyTask("ner", Path("configs/quickstart.yaml"), epochs=8),
    StudyTask(
        "classification",
        Path("configs/classification.yaml"),
        num_train_rows=1127,  # the first 150 abstracts
        epochs=6,
        overrides=("data.test=csabstruct/test-whole.jsonl", *_BOTH_DISTILLED),
    ),
    StudyTask(
        "relation",
        Path("configs/relation.yaml"),
        num_train_rows=800,
        epochs=8,
        overrides=("data.test=semeval/test-whole.jsonl", *_BOTH_DISTILLED),
    ),
)
