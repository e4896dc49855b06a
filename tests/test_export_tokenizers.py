"""Exported tokenizers give the run's tokens, at the run's places, whatever their kind."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import processors
from transformers import AutoTokenizer

from tests.tokenizer_kinds import KINDS, SENTENCES, fast
from tsarch.config import DataConfig
from tsarch.data.corpus import read_rows
from tsarch.data.row_tokens import RowTokenizer
from tsarch.data.tokenizer import load_tokenizer
from tsarch.errors import UserError
from tsarch.export.export import WORD_TASKS
from tsarch.export.same_tokens import compare_tokens
from tsarch.export.tokenizers import save_tokenizer
from tsarch.inputs.rows import as_rows
from tsarch.serving.examples import examples_of
from tsarch.task_names import TASKS
from tsarch.tasks.registry import is_generative, row_reader

AROUND: dict[str, Any] = {
    "nothing": None,
    "template": processors.TemplateProcessing(
        "<s> $A </s>", "<s> $A </s> $B </s>", [("<s>", 2), ("</s>", 3)]
    ),
    "RoBERTa's": processors.RobertaProcessing(("</s>", 3), ("<s>", 2), True, False),
    "byte-level": processors.Sequence(
        [
            processors.ByteLevel(add_prefix_space=False, trim_offsets=True),
            processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 2)]),
        ]
    ),
}
"""What tokenizers put around a text, and how they take spaces out of offsets."""
MADE = [
    pytest.param(kind, around, id=f"{kind}, {around}")
    for kind in KINDS
    for around in AROUND
    if kind != "tokens of two words"
    and (around in ("nothing", "template") or kind.startswith("byte-level"))
    and not (around != "nothing" and "its own" in kind)
]
TEXTS = [
    *SENTENCES[:7],
    "Nadia went  to the 磨坊 by boat,\nand why?\n\nNobody knew ",
    "  the mill",
    "在河邊 the mill在 the河 ก โรงสี9",
    "mill",
]
WORDS = [*(text.split() for text in TEXTS), list("磨坊在河邊"), ["Nadia's", "a b", "mill", "的"]]


class Model:
    """What is asked of a model whose tokenizer is saved."""

    def forward(self, input_ids: Any, attention_mask: Any) -> None:
        """Takes no types."""


def made(folder: Path, kind: str, around: str = "template") -> Any:
    """A tokenizer as a run has it."""
    backend = KINDS[kind]()
    if AROUND[around] is not None:
        backend.post_processor = AROUND[around]
    fast(backend).save_pretrained(str(folder))
    return load_tokenizer(str(folder))


def saved(tokenizer: Any, folder: Path, special: bool, leads: bool) -> Any:
    """It, as an export writes it."""
    model: Any = Model()
    folder.mkdir()
    save_tokenizer(tokenizer, folder, model, 64, special, leads)
    return AutoTokenizer.from_pretrained(str(folder))


@pytest.mark.parametrize(("kind", "around"), MADE)
def test_exported_tokenizers_give_the_tokens_and_places_of_the_run(tmp_path, kind, around):
    tokenizer = made(tmp_path / "run", kind, around)
    tokens = RowTokenizer(tokenizer, None, keep=False)
    for special in (True, False):
        for leads, rows in (
            (True, [SimpleNamespace(words=words) for words in WORDS]),
            (False, [SimpleNamespace(text=text) for text in TEXTS]),
        ):
            own = saved(tokenizer, tmp_path / f"{special}{leads}", special, leads)
            said = compare_tokens(rows, tokens, own, "rows")
            assert said == f"tokens and their places are the run's in all {len(rows)} rows"


def test_a_first_word_without_its_first_letter_or_its_own_tokens_is_noticed(tmp_path):
    tokenizer = made(tmp_path / "run", "byte-level (RoBERTa, ModernBERT)", "RoBERTa's")
    tokens = RowTokenizer(tokenizer, None, keep=False)
    rows = [SimpleNamespace(words=text.split()) for text in SENTENCES[:3]]
    cut = saved(tokenizer, tmp_path / "cut", True, True)
    cut.backend_tokenizer.post_processor = AROUND["RoBERTa's"]
    assert cut("mill", return_offsets_mapping=True)["offset_mapping"][1][0] == 1
    for other in (cut, tokenizer):
        with pytest.raises(UserError, match="other tokens than the run's to 3 of 3 rows"):
            compare_tokens(rows, tokens, other, "rows")
    some = [SimpleNamespace(text=text) for text in ("the mill", "", "a mill")]
    said = compare_tokens(some, tokens, tokenizer, "rows")
    assert said == "tokens and their places are the run's in 2 of 3 rows"


@pytest.mark.parametrize("task", [task for task in TASKS if not is_generative(task)])
def test_words_stand_after_a_space_in_every_task_that_has_rows_of_words(task):
    reader = row_reader(task, DataConfig(train="x", validation="x", test="x"), labelled=False)
    examples = examples_of(task, reader.columns.model_dump())
    rows = read_rows(as_rows(examples, task, reader).rows, reader)
    assert {hasattr(row, "words") for row in rows} == {task in WORD_TASKS}
