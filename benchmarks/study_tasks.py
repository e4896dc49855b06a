"""The tasks of the study: their configs, the subsets that keep it under two hours, and the whole
test splits of their data (NER's config has the whole split already)."""

from __future__ import annotations

from pathlib import Path

from benchmarks.study_plan import StudyTask

TASKS = (
    StudyTask("ner", Path("configs/quickstart.yaml"), epochs=8),
    StudyTask(
        "classification",
        Path("configs/classification.yaml"),
        epochs=3,
        overrides=("data.test=csabstruct/test-whole.jsonl",),
    ),
    StudyTask(
        "relation",
        Path("configs/relation.yaml"),
        num_train_rows=800,
        epochs=4,
        overrides=("data.test=semeval/test-whole.jsonl",),
    ),
)
