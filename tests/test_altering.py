"""Training rows that are altered as they are read: what changes, and that nothing else does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.equal_losses import check_equal_losses
from tests.helpers import QUICKSTART_MODEL, tiny_config, tiny_raw
from tests.test_resume import amid_an_epoch, check_resumption
from tsarch.blueprint import resolve
from tsarch.config import Config
from tsarch.config_loading import parse_config
from tsarch.data.altering import mentions_of, replaceable_of, word_places
from tsarch.data.near_words import NearWords, is_same
from tsarch.data.tokenizer import load_tokenizer
from tsarch.errors import UserError
from tsarch.feeds import batch_plan, training_feed
from tsarch.prepare import Prepared, prepare_data
from tsarch.records import TokenizedSplit

HERE = {"topology": {"runner": "local", "threads": 1}, "evaluation": {"before": False}}
LABELS = ("O", "B-PER", "I-PER")


def split_of(*contexts: list[tuple[list[int], int]]) -> TokenizedSplit:
    """Contexts of words, each its tokens and label, between the tokens 1 and 2; a row a context."""
    ids: list[int] = []
    words: list[int] = []
    labels: list[int] = []
    offsets, rows = [0], [0]
    for context in contexts:
        ids, words = [*ids, 1], [*words, -1]
        for tokens, label in context:
            ids, words = [*ids, *tokens], [*words, len(labels), *[-1] * (len(tokens) - 1)]
            labels.append(label)
        ids, words = [*ids, 2], [*words, -1]
        offsets.append(len(ids))
        rows.append(len(labels))
    none = np.zeros(0, dtype=np.int64)
    arrays = {"token_ids": ids, "words": words, "labels": labels}
    return TokenizedSplit(
        **{name: np.array(own, dtype=np.int64) for name, own in arrays.items()},
        context_offsets=np.array(offsets),
        windows=none.reshape(0, 2),
        window_offsets=none,
        sentence_offsets=np.array(rows),
    )


ANN, BOB, EVE, LEE = ([10, 11], 1), ([12, 13], 1), ([14], 1), ([20], 2)


def test_words_end_where_another_or_what_is_no_word_begins() -> None:
    split = split_of([ANN, LEE, ([30], 0)], [EVE])
    starts, stops = word_places(split, [1, 2])
    assert (starts.tolist(), stops.tolist()) == ([1, 3, 4, 7], [3, 4, 5, 8])


def test_entities_are_swapped_with_those_of_their_type_and_length() -> None:
    split = split_of([ANN, LEE, ([30], 0), BOB, LEE], [EVE, ([30], 0), ANN, LEE])
    found = mentions_of(split, LABELS, [1, 2])
    assert found.pools == (((10, 11, 20), (12, 13, 20)),), "the one of one word has no other"
    assert found.num_entities == 4
    assert found.starts.tolist() == [1, 5, 12]
    assert found.groups.tolist() == [0, 1, 2]
    assert found.own.tolist() == [0, 1, 0]


def test_what_comes_again_in_a_context_is_one_group() -> None:
    split = split_of([ANN, ([30], 0), ANN, ([30], 0), BOB], [ANN])
    assert mentions_of(split, LABELS, [1, 2]).groups.tolist() == [0, 0, 1, 2]


def test_near_words_are_no_forms_of_the_word() -> None:
    words = {0: "quick", 1: "fast", 2: "quickly", 3: "stone"}
    table = np.array([[1, 0], [0.9, 0.1], [1, 0.01], [0, 1]], dtype=np.float32)
    assert [[row for row, _ in own] for own in NearWords(table, words).near([0, 3])] == [[1], []]
    assert is_same("quick", "quickly")


def test_nearer_words_are_taken_oftener() -> None:
    ids = np.array([5, 6, 5, 7])
    near = {5: [(8, 0.75), (9, 0.25)], 6: [], 7: [(5, 1.0)]}
    found = replaceable_of(ids, np.arange(4), near)
    assert found.places.tolist() == [0, 2, 3]
    assert found.choices[found.kinds].tolist() == [[8, 9], [8, 9], [5, 5]]
    assert found.reach[found.kinds].tolist() == [[0.75, 1], [0.75, 1], [1, 1]]


def with_pretrained(folder: Path, **sections: Any) -> dict[str, Any]:
    """The tiny run, with a pretrained table."""
    raw = tiny_raw(folder, **sections)
    del raw["teacher"]["config"]
    raw["teacher"] |= {"model": QUICKSTART_MODEL}
    raw["student"] = {**raw["student"], "layers": [0, 2]}
    return raw


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: Any) -> tuple[Config, Prepared]:
    """A part of WikiGold whose words and entities change."""
    folder = tmp_path_factory.mktemp("altered")
    raw = with_pretrained(folder, data={"augmentation": {"swap": 0.5, "mask": 0.3}})
    config = parse_config(raw, "tiny")
    return config, prepare_data(resolve(config))


def test_an_epoch_has_its_own_tokens_at_the_same_places(prepared: tuple[Config, Prepared]) -> None:
    _, own = prepared
    train, alteration = own.splits["train"], own.alteration
    assert alteration is not None
    first, again, second = (alteration.of_epoch(epoch) for epoch in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)
    assert len(first) == len(train.token_ids)
    changed = first != train.token_ids
    starts, stops = word_places(train, load_tokenizer(QUICKSTART_MODEL).all_special_ids)
    inside = np.zeros(len(first), dtype=np.bool_)
    for start, stop, label in zip(starts, stops, train.labels, strict=True):
        if own.labels[label] != "O":
            inside[start:stop] = True
    mentions, replaceable = alteration.mentions, alteration.replaceable
    assert mentions is not None
    assert replaceable is not None
    assert not inside[replaceable.places].any(), "entities' words have no others near them"
    assert 0.2 < changed[replaceable.places].mean() < 0.4
    swapped = [bool(changed[start]) for start in mentions.starts]
    assert 0.3 < np.mean(swapped) < 0.7
    assert not changed[train.words == -1][: train.context_offsets[1]][0], "[CLS] stays"
    outside = changed & ~inside
    outside[replaceable.places] = False
    assert not outside.any()
    assert own.notes[-1] == alteration.note
    assert "entities can be swapped" in alteration.note


def test_batches_have_the_tokens_of_their_epoch(prepared: tuple[Config, Prepared]) -> None:
    config, own = prepared
    blueprint = resolve(config)
    plan = batch_plan(blueprint, own.training)
    plain = training_feed(blueprint, own.training, plan, blueprint.topology)
    feed = training_feed(
        blueprint, own.training, plan, blueprint.topology, alteration=own.alteration
    )
    assert own.alteration is not None
    for step in (0, plan.epoch_starts[1]):
        contexts = plan.contexts(step)
        offsets = own.training.context_offsets
        wanted = own.alteration.of_epoch(plan.position(step).epoch)
        tokens = np.concatenate([wanted[offsets[c] : offsets[c + 1]] for c in contexts])
        assert np.array_equal(feed.plan(step).token_ids, np.unique(tokens))
        assert not np.array_equal(feed.plan(step).token_ids, plain.plan(step).token_ids)
        assert feed.routes(step, 0) is not None


def altered(folder: Path, **sections: Any) -> Config:
    data = {"augmentation": {"swap": 0.5}, **sections.pop("data", {})}
    return tiny_config(folder, data=data, **sections)


@pytest.mark.slow
@pytest.mark.parametrize(
    "schedule",
    [
        pytest.param("sequential", marks=pytest.mark.thorough),
        "overlapped",
        pytest.param("joint", marks=pytest.mark.thorough),
    ],
)
def test_an_altered_run_goes_on_amid_an_epoch(tmp_path: Path, schedule: str) -> None:
    check_resumption(altered(tmp_path, **amid_an_epoch(schedule, tmp_path)), tmp_path)


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.replicas(2, 1)
def test_ranks_alter_the_same(tmp_path: Path, crews: Any) -> None:
    check_equal_losses(altered(tmp_path), (2, 1), crews)


@pytest.mark.parametrize(
    ("sections", "what"),
    [
        (
            {"task": {"name": "relation"}, "data": {"augmentation": {"mask": 0.1}}},
            r"augmentation\.mask with",
        ),
        (
            {"task": {"name": "qa"}, "data": {"augmentation": {"swap": 0.1}}},
            r"augmentation\.swap with",
        ),
        (
            {"data": {"augmentation": {"mask": 0.1}}},
            r"augmentation\.mask without a pretrained table",
        ),
    ],
)
def test_what_cannot_be_altered_is_refused(
    tmp_path: Path, sections: dict[str, Any], what: str
) -> None:
    with pytest.raises(UserError, match=what):
        tiny_config(tmp_path, **sections)


def test_a_split_without_entities_to_swap_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    row = '{"tokens": ["Ann", "sings"], "tags": ["B-PER", "O"]}\n'
    file.write_text(row * 3, encoding="utf-8")
    data = dict.fromkeys(("train", "validation", "test"), str(file))
    with pytest.raises(UserError, match=r"augmentation\.swap: finds no entity"):
        prepare_data(resolve(altered(tmp_path, data=data)))
