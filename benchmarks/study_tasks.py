"""The tasks of the study: their configs, and the subsets that keep it under two hours."""

from __future__ import annotations

from pathlib import Path

from benchmarks.study_plan import StudyTask

TASKS = (
    StudyTask("ner", Path("configs/quickstart.yaml"), epochs=4),
    StudyTask("classification", Path("configs/classification.yaml"), epochs=3),
    StudyTask("relation", Path("configs/relation.yaml"), num_train_rows=800, epochs=4),
)
