"""Tasks that generate a target from a source: reading, contexts and windows, metrics, runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu

from tests.equal_losses import check_equal_losses
from tests.generative_configs import generative_config, generative_raw, rows
from tests.helpers import local_crew, read_task, write_jsonl
from tsarch.blueprint import resolve
from tsarch.config import MODES, DataConfig
from tsarch.config_loading import parse_config
from tsarch.data.source_target import SourceTargetTokens, TargetFrame, pack_targets
from tsarch.errors import UserError
from tsarch.launch.training import run_training
from tsarch.planning.preflight import check_run
from tsarch.rank.api import RankApi
from tsarch.run.saved_run import evaluate_run
from tsarch.run.texts import pass_lines
from tsarch.tasks.generative import OBEDIENCE
from tsarch.tasks.registry import make_task
from tsarch.tasks.text_metrics import bleu, bleu_signature, bleu_tokenizer, distinct, rouge, written

GOOD = {
    "translation": {"source": "a b", "target": "c"},
    "summarization": {"document": "a b", "summary": "c"},
    "dialogue": {"history": ["a", "b"], "response": "c"},
    "code": {"description": "a", "start": "b", "code": "c"},
}
FRAME = TargetFrame(
    prefix=(1,),
    separator=2,
    suffix=(3,),
    start=4,
    end=5,
    teacher_max_tokens=14,
    student_max_tokens=4,
    max_target_tokens=6,
    keep_last=False,
    student_reads_source=True,
)


def packed(row: SourceTargetTokens, **changes: Any) -> Any:
    return pack_targets([row], TargetFrame(**{**vars(FRAME), **changes}))


def windows(split: Any) -> list[list[int]]:
    return [split.token_ids[start:stop].tolist() for start, stop in split.windows]


def test_the_target_follows_the_source_and_every_token_predicts_the_next():
    split = packed(SourceTargetTokens([[10, 11], [12]], [20, 21, 22]))
    assert split.token_ids.tolist() == [1, 10, 11, 2, 12, 3, 4, 20, 21, 22]
    assert split.words.tolist() == [-1] * 6 + [0, 1, 2, 3]
    assert split.labels.tolist() == [20, 21, 22, 5]
    assert windows(split) == [[4, 20, 21, 22]]
    assert split.num_cut_tokens == 0


def test_long_targets_make_several_windows_and_are_cut_and_counted():
    split = packed(SourceTargetTokens([[10]], [20, 21, 22, 23, 24, 25, 26]))
    assert split.labels.tolist() == [20, 21, 22, 23, 24, 25]
    assert windows(split) == [[4, 20, 21, 22], [23, 24]]
    assert split.num_cut_tokens == 2, "the last token and the end"


@pytest.mark.parametrize(("keep_last", "kept"), [(False, [10, 11, 12]), (True, [13, 14, 15])])
def test_long_sources_lose_their_end_or_their_start(keep_last, kept):
    split = packed(
        SourceTargetTokens([list(range(10, 16))], [20]), keep_last=keep_last, teacher_max_tokens=11
    )
    assert split.token_ids.tolist() == [1, *kept, 3, 4, 20]
    assert split.num_cut_tokens == 3


def test_the_student_reads_the_last_turn_if_that_leaves_half_a_window():
    short, long = (
        SourceTargetTokens([[10], [11]], [20, 21], True),
        SourceTargetTokens([[10], [11, 12]], [20], True),
    )
    assert windows(packed(short)) == [[11, 3, 4, 20], [21]]
    assert windows(packed(long)) == [[4, 20]]
    assert windows(packed(short, student_reads_source=False)) == [[4, 20, 21]]


@pytest.mark.parametrize(
    ("task", "change", "what"),
    [
        ("translation", {"target": " "}, "`target` is empty."),
        ("translation", {"source": None}, "`source` is None, not a string."),
        ("summarization", {"document": ""}, "`document` is empty."),
        ("summarization", {"references": "d"}, "`references` is 'd', not a list of strings."),
        ("dialogue", {"history": []}, "`history` has no turn, or an empty one."),
        ("dialogue", {"history": ["a", " "]}, "`history` has no turn, or an empty one."),
        ("dialogue", {"history": "a"}, "`history` is 'a', not a list of strings."),
        ("dialogue", {"response": 3}, "`response` is 3, not a string."),
        ("code", {"description": 3}, "`description` is 3, not a string."),
        ("code", {"start": " "}, "`start` is empty."),
        ("code", {"code": ""}, "`code` is empty."),
        ("dialogue", {"response": "\ud800"}, "has half a surrogate pair (\\ud800 … \\udfff)."),
    ],
)
def test_mistakes_name_their_line(tmp_path, task, change, what):
    path = str(write_jsonl(tmp_path / "rows.jsonl", [GOOD[task], GOOD[task] | change]))
    with pytest.raises(UserError) as caught:
        read_task(task, DataConfig(train=path, validation=path, test=path))
    texts = [str(own) for own in caught.value.mistakes]
    assert texts == [f"{path}:2: {what}"]


def test_perplexity_is_of_all_target_tokens():
    split = packed(SourceTargetTokens([[10]], [20, 21]))
    logs = np.log(np.array([0.5, 0.25, 0.125], dtype=np.float32))
    found = make_task("translation", ()).metrics(split, logs)
    assert found["perplexity"] == pytest.approx(4.0, rel=1e-7)


def golden() -> dict[str, Any]:
    path = Path(__file__).parent / "golden" / "text_metrics.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("case", golden(), ids=lambda case: case["name"])
def test_metrics_are_the_libraries_to_the_last_digit(case):
    hypotheses = case["hypotheses"]
    references = [own if isinstance(own, list) else [own] for own in case["references"]]
    for task, expected in case["metrics"].items():
        assert make_task(task, ()).text_metrics(hypotheses, references) == expected
    assert bleu_signature(hypotheses, references) == case["bleu_signature"]
    tokenizer = bleu_tokenizer(written(references))
    own = sacrebleu.corpus_bleu(hypotheses, case["streams"], tokenize=tokenizer)
    assert bleu(hypotheses, references) == own.score


def test_chinese_is_measured_by_characters():
    assert rouge(["我爱猫"], [["我爱狗"]])["rouge1"] == pytest.approx(2 / 3)
    assert distinct(["我我我", "猫"], 1) == 2 / 4
    assert distinct(["a b a b"], 2) == 2 / 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "model", "student"),
    [
        ("translation", "llama", {}),
        ("summarization", "t5", {"shortcut": True}),
        ("dialogue", "llama", {"shortcut": True, "bridge_scale": 0.0, "fed_weight": 0.3}),
    ],
)
def test_a_run_learns_and_shows_texts(tmp_path, task, model, student):
    sections = {"student": student, "schedule": {"epochs": 6}, "topology": {"runner": "local"}}
    sections["decoding"] = {"speculative": {"tokens": 4}}
    config = generative_config(tmp_path, task, model, **sections)
    summary = run_training(config)
    names = [own for own in make_task(task, ()).table_metrics if own != OBEDIENCE]
    for mode in MODES:
        before, after = summary["before"][mode], summary["after"][mode]
        assert set(names) == set(before) == set(after)
        assert after["perplexity"] < 0.7 * before["perplexity"]
    assert summary["samples"][0]["reference"] == rows("translation", 1)[0]["target"]
    texts = [json.loads(line) for line in (tmp_path / "run" / "texts.jsonl").open()]
    assert [row["when"] for row in texts] == ["before"] * 8 + ["after"] * 8
    assert "Texts of the test split" in (tmp_path / "run" / "report.html").read_text()
    assert "How texts were written" in (tmp_path / "run" / "report.html").read_text()
    assert all(summary["generation"][mode]["tokens"] >= 8 for mode in MODES)
    for overrides in ((), ("decoding.speculative=null",)):
        again = evaluate_run(tmp_path / "run", "test", overrides=overrides)
        for mode in MODES:
            metrics = again.evaluation.metrics[mode]
            assert metrics == pytest.approx(summary["after"][mode], abs=1e-9)
        assert [line.split(":")[0] for line in pass_lines(again.passes)] == list(MODES)


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "model", "replicas"),
    [
        pytest.param("translation", "llama", (2, 1), marks=pytest.mark.replicas(2, 1)),
        pytest.param("summarization", "t5", (1, 1), marks=pytest.mark.replicas(1, 1)),
        pytest.param("dialogue", "gpt2", (1, 1), marks=pytest.mark.replicas(1, 1)),
    ],
)
def test_ranks_give_the_losses_of_one_process(tmp_path, crews, task, model, replicas):
    check_equal_losses(generative_config(tmp_path, task, model), replicas, crews, num_steps=4)


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.replicas(2, 1)
@pytest.mark.parametrize(("model", "num_beams"), [("bart", 2), ("llama", 1)])
def test_ranks_generate_what_one_process_generates(tmp_path, crews, model, num_beams):
    decoding = {"num_beams": num_beams}
    sections = {"decoding": decoding, "topology": {"teacher": SHARDED, "runner": "local"}}
    config = generative_config(tmp_path, "translation", model, **sections)
    run_training(config)
    topology = config.topology.model_copy(update={"runner": "processes"})
    one = local_crew(config)
    ranks = crews.get(config.model_copy(update={"topology": topology}))
    for crew in (one, ranks):
        crew.ask(RankApi.load, tmp_path / "run" / "model")
    for mode in MODES:
        assert ranks.generate("test", mode, 0.5) == one.generate("test", mode, 0.5)


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.replicas(3, 2)
@pytest.mark.usefixtures("lent_ranks")
def test_the_texts_of_a_run_on_ranks_are_those_of_one_process(tmp_path):
    topology = {"runner": "processes", "teacher": THREE, "student": TWO, "cpus_per_rank": 0.25}
    sections = {"decoding": {"num_beams": 2}, "topology": topology}
    summary = run_training(generative_config(tmp_path, "translation", "gpt2", **sections))
    again = evaluate_run(tmp_path / "run", "test").evaluation
    for mode in MODES:
        for name, value in summary["after"][mode].items():
            assert math.isclose(again.metrics[mode][name], value, rel_tol=1e-5), (mode, name)


SHARDED, THREE = {"replicas": 2, "zero_stage": 3}, {"replicas": 3, "zero_stage": 3}
TWO = {"replicas": 2}
BERT = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 300,
}


@pytest.mark.parametrize(
    ("model", "sections", "what"),
    [
        ("llama", {"teacher": {"config": BERT}, "student": {"layers": [0]}}, "in both directions"),
        ("t5", {"student": {"config": None, "layers": [0]}}, "or layers of one"),
        ("t5", {"teacher": {"freeze": "all_but_top_k", "top_k": 1}}, "doesn't say which layers"),
        ("t5", {"task": {"target_prefix": "in short"}}, "starts with its own token"),
        ("gpt2", {"task": {"max_target_tokens": 60}}, "it takes 68 or more"),
        ("t5", {"task": {"name": "ner"}}, "takes no sequence-to-sequence model"),
    ],
)
def test_models_that_cannot_generate_are_refused(tmp_path, model, sections, what):
    raw = generative_raw(tmp_path, "translation", model)
    for name, section in sections.items():
        raw[name] |= section
    with pytest.raises(UserError, match=what):
        check_run(resolve(parse_config(raw, "tiny")), own_ray=True)


@pytest.mark.parametrize("model", ["gpt2", "llama", "t5", "bart"])
def test_models_that_can_generate_are_taken(tmp_path, model):
    check_run(resolve(generative_config(tmp_path, "translation", model)), own_ray=True)
    bert = {"teacher": {"config": {**BERT, "is_decoder": True}}, "student": {"layers": [0, 1]}}
    check_run(resolve(generative_config(tmp_path, "translation", "gpt2", **bert)), own_ray=True)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_further_references_are_read_from_every_format(tmp_path, kind):
    path = tmp_path / f"rows.{kind}"
    made = [{"source": "a", "target": "b", "more": ["b", "c"]}, {"source": "d", "target": "e"}]
    if kind == "jsonl":
        write_jsonl(path, made)
    elif kind == "csv":
        path.write_text('source,target,more\na,b,"[""b"", ""c""]"\nd,e,\n')
    else:
        from datasets import Dataset

        Dataset.from_list(made).to_parquet(str(path))
    files = dict.fromkeys(("train", "validation", "test"), str(path))
    cache = str(tmp_path / "cache")
    data = DataConfig(**files, cache_folder=cache, columns={"references": "more"})
    assert [row.targets for row in read_task("translation", data).rows["test"]] == [
        ("b", "c"),
        ("e",),
    ]
    data = DataConfig(**files, cache_folder=cache, columns={"references": "nowhere"})
    with pytest.raises(UserError, match=r"no column `nowhere`, which data.columns.references"):
        read_task("translation", data)
