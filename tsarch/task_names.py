"""The tasks, by name: here a new one is registered. No torch: configs are checked against it."""

from __future__ import annotations

TASKS = {
    "ner": "tsarch.tasks.ner",
    "classification": "tsarch.tasks.classification",
    "relation": "tsarch.tasks.relation",
    "ranking": "tsarch.tasks.ranking",
    "multiple_choice": "tsarch.tasks.multiple_choice",
    "qa": "tsarch.tasks.qa",
    "translation": "tsarch.tasks.translation",
    "summarization": "tsarch.tasks.summarization",
    "dialogue": "tsarch.tasks.dialogue",
    "code": "tsarch.tasks.code",
}
"""Name → module with `COLUMNS`, a `Columns`, `READER`, a `RowReader`, and `TASK`, a `Task`, as
classes."""
WRITING_TASKS = ("translation", "summarization", "dialogue", "code")
"""Tasks whose targets are texts."""
QUERY_TASKS = ("qa", "relation", "ranking")
"""Tasks whose query the student alone may read (`task.query`)."""
