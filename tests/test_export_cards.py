"""The code on a model card gives the run's answers, whatever the tokenizer and the script."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tsarch
from tests.helpers import tiny_raw, write_jsonl
from tests.test_export_tokenizers import MADE, TEXTS, WORDS, made, saved
from tests.tokenizer_kinds import SENTENCES
from tsarch.config_loading import parse_config
from tsarch.data.row_tokens import RowTokenizer
from tsarch.data.text_places import word_starts
from tsarch.export.card import Told
from tsarch.export.export import Wanted, export_run
from tsarch.export.usage import usage
from tsarch.launch.training import run_training
from tsarch.tasks.ner import entities


def card(tokenizer: Any, task: str) -> str:
    """The code on the card of a run that reads from left and right."""
    blueprint = SimpleNamespace(
        tokenizer=lambda: tokenizer,
        causal_stages=(),
        batches=SimpleNamespace(context_tokens=128),
        window_tokens=128,
    )
    task_file = SimpleNamespace(task=task)
    models: Any = SimpleNamespace(blueprint=blueprint, task_file=task_file, is_generative=False)
    return code_of(usage(models, ["student_alone/"]))


def code_of(text: str) -> str:
    """A card's code without tsarch."""
    return re.findall(r"```python\n(.*?)```", text.partition("Without tsarch, ")[2], re.S)[0]


def run_code(code: str, asked: dict[str, str], **known: Any) -> tuple[str, dict[str, Any]]:
    """What it prints and what its names are then; `asked`: values of its own in place of some."""
    for name, value in asked.items():
        pattern, own = rf"^{name} = .*", f"{name} = {value}"
        code, found = re.subn(pattern, own.replace("\\", r"\\"), code, count=1, flags=re.MULTILINE)
        assert found
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, known)
    return printed.getvalue().strip(), known


@pytest.mark.parametrize(("kind", "around"), MADE)
def test_the_card_takes_the_tag_of_each_words_first_token(tmp_path, kind, around):
    tokenizer = made(tmp_path / "run", kind, around)
    own = saved(tokenizer, tmp_path / "out", False, True)

    def number_tokens(text: str) -> list[dict[str, Any]]:
        places = own(text, return_offsets_mapping=True)["offset_mapping"]
        return [{"start": start, "entity": n} for n, (start, _) in enumerate(places)]

    _, starts = RowTokenizer(tokenizer, None, keep=False).words(WORDS)
    code = re.sub(r"\n(from transformers|tag =) .*", "", card(tokenizer, "ner"))
    for words, wanted in zip(WORDS, starts, strict=True):
        _, names = run_code(code, {"words": repr(words)}, tag=number_tokens)
        places = [n for n, word in enumerate(wanted) if word >= 0]
        assert [names["tags"].get(n) for n in range(len(words))] == places, words


@pytest.mark.parametrize(("kind", "around"), MADE)
def test_the_card_lets_the_same_words_vote(tmp_path, kind, around):
    tokenizer = made(tmp_path / "run", kind, around)
    saved(tokenizer, tmp_path / "out", False, False)
    code, _, _ = card(tokenizer, "classification").partition("size = ")
    code = re.sub(r"\nmodel = .*", "", code).replace("FOLDER/student_alone", str(tmp_path / "out"))
    for placed in RowTokenizer(tokenizer, None, keep=False).placed(TEXTS):
        _, names = run_code(code, {"text": repr(placed.text)})
        wanted = [n for n, word in enumerate(word_starts(placed)) if word >= 0]
        assert names["starts"] == wanted, placed.text


def rows_of(task: str) -> list[dict[str, Any]]:
    """Rows in several scripts."""
    sentences = SENTENCES[:7]
    if task == "classification":
        return [{"text": text, "label": "en" if text.isascii() else "other"} for text in sentences]
    rows = []
    for text in sentences:
        words = text.split() if text.isascii() else [text[n : n + 2] for n in range(0, 16, 2)]
        if task == "ner":
            tags = ["O", "B-x", "I-x", *["O"] * (len(words) - 3)]
            rows.append({"tokens": words, "tags": tags})
        else:
            name = "a" if text.isascii() else "b"
            for head, tail in (([0, 1], [3, 4]), ([2, 4], [1, 2]), ([1, 4], [2, 3])):
                rows.append({"tokens": words, "head": head, "tail": tail, "relation": name})
    return rows


def config_of(folder: Path, task: str, kind: str, model_type: str) -> Any:
    """A short run of a task with a tokenizer of a kind."""
    around = "RoBERTa's" if "RoBERTa" in kind else "template"
    tokenizer = made(folder / "tokenizer", kind, around)
    path = str(write_jsonl(folder / "rows.jsonl", rows_of(task) * 3))
    raw = tiny_raw(
        folder,
        data={"train": path, "validation": path, "test": path, "batch_tokens": 128}
        | {"tokenizer": str(folder / "tokenizer")},
        task={"name": task},
        topology={"runner": "local", "threads": 1},
        evaluation={"before": False},
        schedule={"max_steps": 20},
        loss={"label_weights": "balanced"},
        optimizer=dict.fromkeys(("teacher_learning_rate", "student_learning_rate"), 1e-2),
        student={"max_tokens": 96},
    )
    raw["teacher"]["config"] |= {"model_type": model_type, "vocab_size": len(tokenizer)}
    return parse_config(raw, "tiny")


def asked(task: str, row: dict[str, Any]) -> dict[str, str]:
    """What the card's code has of its own for a row."""
    if task == "classification":
        return {"text": repr(row["text"])}
    if task == "ner":
        return {"words": repr(row["tokens"])}
    ends = [(tuple(row["head"]), "@"), (tuple(row["tail"]), "#")]
    return {"words": repr(row["tokens"]), "spans": repr(ends)}


@pytest.mark.slow
@pytest.mark.parametrize("task", ["ner", "relation", "classification"])
@pytest.mark.parametrize(
    ("kind", "model_type"),
    [
        pytest.param("WordPiece (BERT)", "bert", marks=pytest.mark.thorough),
        ("byte-level (RoBERTa, ModernBERT)", "bert"),
        pytest.param(
            "byte-level after a split (Llama 3, Qwen)", "llama", marks=pytest.mark.thorough
        ),
        ("Metaspace always (XLM-R)", "bert"),
    ],
)
def test_the_cards_code_answers_as_the_run_does(tmp_path, kind, model_type, task):
    run_training(config_of(tmp_path, task, kind, model_type))
    out = tmp_path / "out"
    done = export_run(tmp_path / "run", out, Wanted(onnx=False), Told(), lambda _: None)
    assert not done.refused
    assert all("the run's in all" in said for said in done.checks)
    pair = tsarch.load(tmp_path / "run", device="cpu")
    code = code_of((out / "README.md").read_text()).replace("FOLDER", str(out))
    tagged = 0
    for row in rows_of(task):
        printed, names = run_code(code, asked(task, row))
        (own,) = pair.predict([row], "student_alone")
        if task == "ner":
            tags = [names["tags"][n] for n in range(len(row["tokens"]))]
            assert entities(tags) == [(e.type, e.first, e.stop) for e in own]  # type: ignore[union-attr]
            tagged += len(own)  # type: ignore[arg-type]
        else:
            name, score = printed.rsplit(" ", 1)
            assert name == own.name  # type: ignore[union-attr]
            assert float(score) == pytest.approx(own.score, abs=1e-6)  # type: ignore[union-attr]
    if task == "classification":
        run_code(code, {"text": repr("the mill " * 99)})  # more than the model has positions for
    assert tagged or task != "ner", "nothing was tagged"
