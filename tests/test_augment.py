"""`tsarch augment`: training rows of other text, or of rows that were altered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tsarch
from tests.generative_configs import generative_config
from tests.helpers import ROOT, write_jsonl
from tests.test_multiple_choice import tiny_choices
from tests.test_pair import run_of
from tests.test_predict_files import rows_of, run_that_finds_entities
from tsarch.augmentation.back_translation import BackTranslation
from tsarch.augmentation.labelled_rows import Labelled, RowFile
from tsarch.augmentation.methods import Settings, check_settings
from tsarch.augmentation.swapping import entity_pool, swapped
from tsarch.augmentation.word_choice import MaskedModel, drawn, in_case_of
from tsarch.config import DataConfig
from tsarch.data.corpus import read_file
from tsarch.data.near_words import is_same
from tsarch.data.tag_spans import entities
from tsarch.errors import UserError
from tsarch.launch.cli import main
from tsarch.launch.training import run_training
from tsarch.prediction import pieces
from tsarch.tasks.answers import GeneratedText
from tsarch.tasks.registry import row_reader

WIKIGOLD = ROOT / "configs" / "wikigold" / "train.jsonl"
OWN = {"made_by", "made_from", "score"}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return run_that_finds_entities(tmp_path_factory.mktemp("ner"))


@pytest.fixture(scope="module")
def classifying(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("classification")
    run_training(run_of(folder, "classification"))
    return folder / "run"


@pytest.fixture
def tagged(tmp_path) -> Path:
    lines = WIKIGOLD.read_text(encoding="utf-8").splitlines()[60:100]
    return write_jsonl(tmp_path / "tagged.jsonl", [json.loads(line) for line in lines])


def augment(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["augment", *map(str, arguments)])
    return int(caught.value.code or 0)


def as_training_rows(path: Path, task: str) -> tuple[Any, ...]:
    data = DataConfig()
    return read_file(str(path), data, row_reader(task, data))


def test_texts_get_the_labels_that_predictions_have(run, tmp_path):
    source = tmp_path / "in.txt"
    source.write_text("Maria met Ada in Rome. They spoke.\n\nBonn is old.\n", encoding="utf-8")
    output = tmp_path / "out.jsonl"
    assert augment(run, "--input", source, "--output", output) == 0
    rows = rows_of(output)
    assert [row["tokens"][0] for row in rows] == ["Maria", "They", "Bonn"]
    assert [row["made_from"] for row in rows] == [f"{source}:1", f"{source}:1", f"{source}:3"]
    assert rows[0]["doc_id"] == rows[1]["doc_id"] != rows[2]["doc_id"]
    pair = tsarch.load(run, device="cpu")
    said = pair.predict(["Maria met Ada in Rome. They spoke."], "teacher")[0]
    found = [own for row in rows[:2] for own in entities(row["tags"])]
    assert len(found) == len(said)
    assert {own.type for own in said} == {kind for kind, _, _ in found}
    assert len(as_training_rows(output, "ner")) == 3
    assert all(0 < row["score"] <= 1 for row in rows)


def test_texts_that_stand_on_one_line_become_documents_of_their_own(run, tmp_path):
    source = tmp_path / "list.json"
    source.write_text(json.dumps([{"text": "Ada sleeps."}, {"text": "Bonn is old. It is."}]))
    output = tmp_path / "out.jsonl"
    assert augment(run, "--input", source, "--output", output) == 0
    assert [row["doc_id"] for row in rows_of(output)] == [f"{source}:1", *[f"{source}:1/2"] * 2]
    assert len(as_training_rows(output, "ner")) == 3


def test_a_row_that_cannot_be_read_whole_gets_no_labels(run, tmp_path, capsys):
    long = "-".join("abcdefghijklmnopqrstuvwxyz" * 3)
    source = write_jsonl(tmp_path / "in.jsonl", [{"tokens": ["Ada", long]}, {"tokens": ["Ada"]}])
    output = tmp_path / "out.jsonl"
    assert augment(run, "--input", source, "--output", output) == 2
    told = capsys.readouterr().err
    assert f"{source}:1: can't be read whole" in told
    assert "--skip-bad" in told
    assert augment(run, "--input", source, "--output", output, "--skip-bad") == 0
    assert [row["made_from"] for row in rows_of(output)] == [f"{source}:2"]
    # Its own labels are known, so it may be altered.
    rows = [{"tokens": ["Ada", "met", long], "tags": ["B-PER", "O", "O"]}]
    rows += [{"tokens": ["Eve", "slept"], "tags": ["B-PER", "O"]}]
    tagged = write_jsonl(tmp_path / "tagged.jsonl", rows)
    assert augment(run, "--input", tagged, "--output", output, "--method", "swap") == 0
    assert len(rows_of(output)) == 2


def test_rows_that_the_teacher_is_not_sure_of_are_left_out(run, tagged, tmp_path):
    every, some = tmp_path / "every.jsonl", tmp_path / "some.jsonl"
    assert augment(run, "--input", tagged, "--output", every) == 0
    scores = sorted(row["score"] for row in rows_of(every))
    bound = scores[len(scores) // 2]
    assert augment(run, "--input", tagged, "--output", some, "--keep-above", bound) == 0
    assert rows_of(some) == [row for row in rows_of(every) if row["score"] >= bound]
    assert 0 < len(rows_of(some)) < 40
    # The tags that were there are not looked at.
    assert [row["tokens"] for row in rows_of(every)] == [row["tokens"] for row in rows_of(tagged)]


def test_entities_are_swapped_within_their_types(run, tagged, tmp_path):
    output = tmp_path / "out.jsonl"
    options = ("--method", "swap", "--copies", 2, "--seed", 1)
    assert augment(run, "--input", tagged, "--output", output, *options) == 0
    before, after = rows_of(tagged), rows_of(output)
    pool: dict[str, set[tuple[str, ...]]] = {}
    for row in before:
        for kind, start, stop in entities(row["tags"]):
            pool.setdefault(kind, set()).add(tuple(row["tokens"][start:stop]))
    changed = 0
    originals = {f"{tagged}:{number}": row for number, row in enumerate(before, 1)}
    for row in after:
        old = originals[row["made_from"]]
        kinds = [kind for kind, _, _ in entities(row["tags"])]
        assert kinds == [kind for kind, _, _ in entities(old["tags"])]
        for kind, start, stop in entities(row["tags"]):
            assert tuple(row["tokens"][start:stop]) in pool[kind]
        rest = [w for w, tag in zip(row["tokens"], row["tags"], strict=True) if tag == "O"]
        assert rest == [w for w, tag in zip(old["tokens"], old["tags"], strict=True) if tag == "O"]
        changed += row["tokens"] != old["tokens"]
        assert row["doc_id"].startswith(f"{old['doc_id']} (swap-")
    assert changed > 20
    assert len(as_training_rows(output, "ner")) == len(after)
    again = tmp_path / "again.jsonl"
    assert augment(run, "--input", tagged, "--output", again, *options) == 0
    assert rows_of(again) == after


def labelled(words: str, tags: str, doc_id: str = "d", place: str = "f:1") -> Labelled:
    reader = row_reader("ner", DataConfig())
    from tsarch.data.rows import Place

    row, mistakes = reader.read(Place("f", 1), {"tokens": words.split(), "tags": tags.split()})
    assert not mistakes
    return Labelled(0, place, row, doc_id)


@pytest.mark.parametrize("method", ["swap", "mask"])
def test_labelled_rows_may_have_a_word_a_line(run, tagged, tmp_path, method):
    rows = rows_of(tagged)
    blocks = ["\n".join(f"{w} {t}" for w, t in zip(r["tokens"], r["tags"])) for r in rows]
    source, output = tmp_path / "rows.conll", tmp_path / "out.jsonl"
    source.write_text("\n\n".join(blocks) + "\n")
    assert augment(run, "--input", source, "--output", output, "--method", method) == 0
    starts = np.cumsum([1, *(len(row["tokens"]) + 1 for row in rows)]).tolist()
    originals = {f"{source}:{start}": row for start, row in zip(starts, rows)}
    found = rows_of(output)
    assert len(found) > 10
    for row in found:
        old = originals[row["made_from"]]
        kinds = [[kind for kind, _, _ in entities(own["tags"])] for own in (row, old)]
        assert kinds[0] == kinds[1]
        assert row["tokens"] != old["tokens"]


def test_an_entity_of_a_document_becomes_the_same_one_everywhere():
    rows = [
        labelled("Ada saw Bonn", "B-PER O B-LOC", "d"),
        labelled("Then Ada slept", "O B-PER O", "d"),
        labelled("Eve de Wit , Max and Ann", "B-PER I-PER I-PER O B-PER O B-PER", "e"),
    ]
    pool = entity_pool(rows)
    assert pool["PER"] == (("Ada",), ("Ann",), ("Eve", "de", "Wit"), ("Max",))
    for copy in range(8):
        one, other = (swapped(own, pool, 0, copy) for own in rows[:2])
        first = next(entities(one.row.tags))
        start, stop = next(entities(other.row.tags))[1:]
        name = one.row.words[first[1] : first[2]]
        assert name != ["Ada"]
        assert other.row.words[start:stop] == name
        assert len(one.row.words) == len(one.row.tags)
        assert one.row.words[-1] == "Bonn"  # there is no other place
    with pytest.raises(UserError, match="no two different entities"):
        entity_pool(rows[:1])


def test_words_beside_entities_are_replaced_by_near_ones(run, tagged, tmp_path):
    output = tmp_path / "out.jsonl"
    assert augment(run, "--input", tagged, "--output", output, "--method", "mask") == 0
    originals = {f"{tagged}:{n}": row for n, row in enumerate(rows_of(tagged), 1)}
    rows = rows_of(output)
    assert any(row["tokens"] != originals[row["made_from"]]["tokens"] for row in rows)
    for row in rows:
        old = originals[row["made_from"]]
        assert row["tags"] == old["tags"]
        for new, word, tag in zip(row["tokens"], old["tokens"], old["tags"], strict=True):
            assert new == word or (tag == "O" and new[:1].isupper() == word[:1].isupper())


def test_a_masked_language_model_chooses_words(classifying, tmp_path):
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

    folder = tmp_path / "masked"
    tokenizer = AutoTokenizer.from_pretrained(classifying / "model" / "tokenizer")
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=64,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)
    rows = [{"text": "We propose a method, which Works well!", "label": "method"}]
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    output = tmp_path / "out.jsonl"
    options = ("--method", "mask", "--model", folder, "--share", 0.4)
    assert augment(classifying, "--input", source, "--output", output, *options) == 0
    (row,) = rows_of(output)
    assert row["label"] == "method"
    assert row["text"] != rows[0]["text"]
    assert ", " in row["text"]
    assert row["text"].endswith("!")


def test_models_that_fill_no_masks_are_refused(classifying, tmp_path):
    """What a file lacks transformers makes up: words would be drawn at random."""
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertModel

    tokenizer = AutoTokenizer.from_pretrained(classifying / "model" / "tokenizer")
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=64,
    )  # fmt: skip
    for folder in (tmp_path / "encoder", tmp_path / "pickled"):
        tokenizer.save_pretrained(folder)
    BertModel(config).save_pretrained(tmp_path / "encoder")
    with pytest.raises(UserError, match="was not trained to fill masks: it has no weights for cls"):
        MaskedModel(str(tmp_path / "encoder"))
    config.save_pretrained(tmp_path / "pickled")
    torch.save(BertForMaskedLM(config).state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(UserError, match="can't be loaded as a masked language model"):
        MaskedModel(str(tmp_path / "pickled"))


class Translator:
    """Writes words in capitals, or back."""

    task = "translation"
    revision = "r"

    def __init__(self, there: bool) -> None:
        self._there = there

    def try_predict(self, texts, on_unread):
        made = [own.upper() if self._there else own.title() for own in texts]
        return {n: GeneratedText(own, -0.1) for n, own in enumerate(made) if own != "LOST"}, {}


def test_texts_come_back_from_another_language():
    reader = row_reader("classification", DataConfig())
    from tsarch.data.rows import Place

    rows = []
    for number, text in enumerate(["a new text", "lost", "Same"]):
        row, _ = reader.read(Place("f", number), {"text": text, "label": "x"})
        rows.append(Labelled(number, f"f:{number}", row))
    made = BackTranslation(Translator(True), Translator(False)).rows(rows)
    assert made[0].row.text == "A New Text"
    assert made[1:] == [None, None]
    assert made[0].row.label == "x"


def test_a_writing_run_writes_targets(tmp_path, capsys):
    config = generative_config(
        tmp_path,
        "summarization",
        "llama",
        run={"folder": str(tmp_path / "run")},
        topology={"runner": "local", "threads": 1},
        evaluation={"before": False},
        decoding={"max_texts": 1},
        schedule={"max_steps": 2},
    )
    run_training(config)
    source = write_jsonl(tmp_path / "in.jsonl", [{"document": "A new way to see far."}] * 3)
    output = tmp_path / "out.jsonl"
    assert augment(tmp_path / "run", "--input", source, "--output", output) == 0
    pair = tsarch.load(tmp_path / "run", device="cpu")
    (said,) = pair.predict(["A new way to see far."], "teacher")
    long = write_jsonl(tmp_path / "long.jsonl", [{"document": "A way " * 90}])
    assert augment(tmp_path / "run", "--input", long, "--output", tmp_path / "no.jsonl") == 2
    assert "or leave it out: --skip-bad." in capsys.readouterr().err.replace("\n", " ")
    for row in rows_of(output):
        assert row["summary"] == said.text
        assert row["document"] == "A new way to see far."
        assert row["score"] == pytest.approx(np.exp(said.score), abs=1e-5)


def test_a_call_goes_on_where_it_was(run, tagged, tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "INPUTS", 8)
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    options = ("--method", "swap", "--copies", 2)
    assert augment(run, "--input", tagged, "--output", whole, *options) == 0
    from tsarch.augmentation import making

    made, calls = making.altered, []

    def ended(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise UserError.single("disk", "is full.")
        return made(*arguments)

    monkeypatch.setattr(making, "altered", ended)
    assert augment(run, "--input", tagged, "--output", output, *options) == 2
    assert not output.exists()
    other = ("--method", "swap", "--copies", 3)
    assert augment(run, "--input", tagged, "--output", output, *other) == 2  # another job
    monkeypatch.setattr(making, "altered", made)
    assert augment(run, "--input", tagged, "--output", output, *options) == 0
    assert rows_of(output) == rows_of(whole)
    assert {path.name for path in tmp_path.glob("out*")} == {"out.jsonl"}


@pytest.mark.parametrize(
    ("settings", "task", "message"),
    [
        (Settings("swap"), "qa", "is for ner, not for qa"),
        (Settings("translate", there="a", back="b"), "ner", "is for classification"),
        (Settings("translate", there="a"), "classification", "--back: is missing"),
        (Settings("label", model="m"), "ner", "--model: is nothing for"),
        (Settings("label", copies=3), "ner", "--copies: is nothing for"),
        (Settings("swap", share=0.5), "ner", "--share: is nothing for"),
    ],
)
def test_what_makes_no_sense_is_said_first(settings, task, message):
    with pytest.raises(UserError, match=message):
        check_settings(settings, task)


def test_runs_that_do_not_translate_are_refused_before_they_are_loaded(run):
    settings = Settings("translate", there=str(run), back=str(run))
    with pytest.raises(UserError, match=r"--there .*: is a run of ner, not of translation"):
        check_settings(settings, "classification")


def test_rows_without_labels_can_not_be_altered(run, tmp_path):
    pair = tsarch.load(run, device="cpu")
    inputs = next(iter(pieces.pieces([_file(tmp_path, pair)], pieces.Limits(9)))).inputs
    rows, problems = RowFile(pair).read(inputs)
    assert [own.row.words for own in rows] == [["Ada", "sleeps"]]
    assert "no column `tags`" in problems[1]


def test_what_is_wrong_with_all_rows_is_told_of_each(classifying, tmp_path):
    pair = tsarch.load(classifying, device="cpu")
    marks = [{"text": f"text {n}", "label": f"{n}.5"} for n in range(30)]
    from tsarch.inputs.files import InputFile

    file = InputFile(str(write_jsonl(tmp_path / "marks.jsonl", marks)), pair.reading)
    rows, problems = RowFile(pair).read(next(iter(pieces.pieces([file], pieces.Limits(40)))).inputs)
    assert not rows
    assert sorted(problems) == list(range(30))
    assert "30 different numbers as labels" in problems[29]


def test_rows_of_which_none_can_be_swapped_say_why(run, tmp_path, capsys):
    texts = tmp_path / "texts.txt"
    texts.write_text("Ada sleeps.\nBob doesn't.\n", encoding="utf-8")
    done = augment(run, "--input", texts, "--output", tmp_path / "o.jsonl", "--method", "swap")
    assert done == 2
    assert "texts.txt:1: is a text: this needs rows with tokens, tags" in capsys.readouterr().err


@pytest.mark.slow
def test_a_choice_is_as_sure_as_it_is_beside_the_others(tmp_path):
    """Also where a question is too long, so that its start is left out."""
    one = {"runner": "local", "threads": 1}
    own = {"run": {"folder": str(tmp_path / "run")}, "topology": one, "schedule": {"max_steps": 3}}
    run_training(tiny_choices(tmp_path, **own))
    pair = tsarch.load(tmp_path / "run", device="cpu")
    choices = ["in the old house by the river", "a car", "the end of it"]
    rows = [{"question": own, "choices": choices} for own in ("Where?", "So where is it ? " * 9)]
    given = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert augment(tmp_path / "run", "--input", given, "--output", tmp_path / "o.jsonl") == 0
    made = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    answers = pair.predict(rows, "teacher")
    assert [own["score"] for own in made] == pytest.approx([own.score for own in answers])
    assert [own["answer"] for own in made] in (
        [choices.index(own.name) for own in answers],
        [own.name for own in answers],
    )


@pytest.mark.slow
def test_answers_of_several_files_get_names_of_their_own(tmp_path):
    run_training(run_of(tmp_path, "qa"))
    rows = [{"context": "Ada met Bob in Rome.", "question": f"Where is {n}?"} for n in range(3)]
    files = [write_jsonl(tmp_path / f"{name}.jsonl", rows) for name in "ab"]
    given = [word for file in files for word in ("--input", file)]
    assert augment(tmp_path / "run", *given, "--output", tmp_path / "o.jsonl") == 0
    made = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [row["id"] for row in made] == [row["made_from"] for row in made]
    assert len(as_training_rows(tmp_path / "o.jsonl", "qa")) == 6


def _file(folder: Path, pair: Any) -> Any:
    from tsarch.inputs.files import InputFile

    rows = [{"tokens": ["Ada", "sleeps"], "tags": ["B-PER", "O"]}, {"tokens": ["x", "y"]}]
    return InputFile(str(write_jsonl(folder / "two.jsonl", rows)), pair.reading)


def test_words_are_chosen_in_the_case_of_those_they_replace():
    assert in_case_of("river", "Lake") == "River"
    assert in_case_of("river", "LAKE") == "RIVER"
    assert in_case_of("river", "lake") == "river"
    assert is_same("plays", "play")
    assert is_same("Played", "play")
    assert not is_same("river", "rival")
    rng = np.random.default_rng(0)
    found = [drawn([("a", 0.9), ("b", 0.1)], rng) for _ in range(50)]
    assert found.count("a") > found.count("b") > 0
