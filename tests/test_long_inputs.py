"""Inputs that are longer than what models have room for: read in parts that overlap, and where
nothing helps, said so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tsarch
from tests.generative_configs import generative_raw
from tests.test_pair import run_of
from tsarch.config_loading import parse_config
from tsarch.data.overlaps import parts_of
from tsarch.data.packing import Sentence, pack
from tsarch.data.plain_text import sentence_bounds
from tsarch.data.source_parts import source_parts
from tsarch.errors import UserError
from tsarch.inputs.rows import Gap, PartlyRead
from tsarch.launch.training import run_training
from tsarch.tasks.answers import GeneratedText, Label, Relation

LONG = ("Maria Rossi flew from Rome to Paris with Air France and then " * 20).split()


@given(st.lists(st.integers(1, 5), min_size=1, max_size=60), st.integers(5, 30), st.integers(1, 40))
def test_every_word_is_answered_where_it_stands_farthest_from_an_edge(sizes, limit, overlap):
    words = [
        n if first else -1
        for n, size in enumerate(sizes)
        for first in [True] + [False] * (size - 1)
    ]
    parts = parts_of(words, limit, overlap)
    assert parts[0].start == 0
    assert parts[-1].stop == len(words)
    assert [own.first for own in parts[1:]] == [own.end for own in parts[:-1]]
    assert (parts[0].first, parts[-1].end) == (0, len(words))
    begins = [place for place, word in enumerate(words) if word >= 0]
    for part in parts:
        assert part.start <= part.first <= part.end <= part.stop
        assert part.stop - part.start <= limit
        assert {part.start, part.first} <= {*begins, len(words)}
    for begin, size in zip(begins, sizes, strict=True):
        own = next(part for part in parts if part.first <= begin < part.end)
        others = [p for p in parts if p.start <= begin and begin + size <= p.stop]
        far = [_distance(p, begin, size, len(words)) for p in others]
        assert _distance(own, begin, size, len(words)) >= max(far) - size


def _distance(part, begin: int, size: int, length: int) -> float:
    """Tokens between a word and the nearest edge that is a cut."""
    left = begin - part.start if part.start else np.inf
    right = part.stop - begin - size if part.stop < length else np.inf
    return min(left, right)


def test_parts_share_no_more_than_was_asked_for():
    assert [(p.start, p.stop) for p in parts_of(range(100), 40, 10)] == [
        (0, 40),
        (30, 70),
        (60, 100),
    ]
    assert [(p.first, p.end) for p in parts_of(range(100), 40, 10)] == [
        (0, 35),
        (35, 65),
        (65, 100),
    ]
    assert [(p.start, p.stop) for p in parts_of(range(100), 40, 0)] == [
        (0, 34),
        (34, 68),
        (68, 100),
    ]


def test_sentences_that_fit_are_packed_as_without_an_overlap():
    sentences = [Sentence("a", list(range(n)), list(range(n))) for n in (12, 5, 12, 1)]
    labels = [[0] * len(own.token_ids) for own in sentences]
    plain, overlapping = (pack(sentences, labels, [1], [2], 40, 12, own) for own in (0, 4))
    for name in ("token_ids", "words", "context_offsets", "windows", "window_offsets"):
        assert np.array_equal(getattr(plain, name), getattr(overlapping, name))


@given(st.lists(st.sampled_from([3, 9, 12, 50, 80]), min_size=1, max_size=8))
def test_what_stands_beside_a_long_sentence_is_read_as_without_an_overlap(lengths):
    sentences = [Sentence("a", [10 * i] * n, list(range(n))) for i, n in enumerate(lengths)]
    labels = [[0] * n for n in lengths]
    plain, overlapping = (pack(sentences, labels, [1], [2], 40, 12, own) for own in (0, 8))
    starts = plain.sentence_offsets
    for number, length in enumerate(lengths):
        if length <= 12:
            contexts = [_context_of(own, int(starts[number])) for own in (plain, overlapping)]
            assert contexts[0] == contexts[1]


def _context_of(split, word: int) -> list[int]:
    place = int(np.flatnonzero(split.words == word)[0])
    context = int(np.searchsorted(split.context_offsets, place, side="right")) - 1
    return split.token_ids[slice(*split.context_offsets[context : context + 2])].tolist()


@given(st.lists(st.integers(1, 90), min_size=1, max_size=4), st.integers(1, 20))
def test_every_word_is_answered_once_by_contexts_and_by_windows(lengths, overlap):
    sentences = [Sentence("a", list(range(n)), list(range(n))) for n in lengths]
    labels = [[0] * n for n in lengths]
    split = pack(sentences, labels, [1], [2], 40, 12, overlap)
    everything = list(range(sum(lengths)))
    assert sorted(split.words[split.words >= 0].tolist()) == everything
    windows = [split.window_words(n) for n in range(len(split.windows))]
    words = np.concatenate(windows)
    assert sorted(words[words >= 0].tolist()) == everything
    assert all((own >= 0).any() for own in windows)


def test_long_sentences_are_read_whole_and_short_ones_as_ever(ner_run):
    whole, cut = (tsarch.load(ner_run, device="cpu", overlap=own) for own in (True, False))
    short = ["Maria", "Rossi", "flew", "from", "Rome", "."]
    for mode in whole.modes:
        long, own = whole.predict([LONG, short], mode)
        assert max(entity.stop for entity in long) > len(LONG) - 12
        assert long != cut.predict([LONG, short], mode)[0]
        assert whole.predict([short], mode) == cut.predict([short], mode)
        (alone,) = whole.predict([short], mode)
        assert [(e.type, e.first, e.stop) for e in own] == [
            (e.type, e.first, e.stop) for e in alone
        ]
        assert [e.score for e in own] == pytest.approx([e.score for e in alone], abs=1e-5)
    text = " ".join(LONG)
    context = whole.read(text)
    assert context.predict(mode="joint") == whole.predict([text], "joint")[0]
    middle = text.index("Paris", 600)
    assert all(e.end > middle - 9 for e in context.predict((middle - 9, middle + 5), "student"))


def test_what_is_not_read_is_told_or_marked(ner_run):
    pair = tsarch.load(ner_run, device="cpu")
    inputs = ["Rome", ["so", "zq" * 45, "far"], f"One . Two {'zq' * 45} three ."]
    with pytest.raises(UserError, match="input 2: can't be read whole: ends of words longer"):
        pair.predict(inputs)
    fine, words, text = pair.predict(inputs, on_unread="mark")
    assert not isinstance(fine, PartlyRead)
    assert isinstance(words, PartlyRead)
    assert isinstance(text, PartlyRead)
    what = "ends of words longer than a window (student.max_tokens)"
    assert words.unread == (Gap(what, 1, 2, "words"),)
    assert text.unread == (Gap(what, 10, 100, "text"),)
    assert isinstance(text.answer, tuple)
    with pytest.raises(UserError, match="It is error, mark or parts"):
        pair.predict(inputs, on_unread="skip")


@pytest.mark.slow
def test_a_student_alone_reads_the_whole_of_a_long_text(tmp_path):
    run_training(run_of(tmp_path, "classification"))
    pair = tsarch.load(tmp_path / "run", device="cpu")
    start = "A fine day . " * 80
    for mode in pair.modes:
        one, other = pair.predict([start + "Nothing happened .", start + "Rain again ?"], mode)
        assert isinstance(one, Label)
        assert mode == "student" or one.scores != other.scores, "the end counts"
    together = pair.predict(["A fine day .", start], "student_alone")[0]
    (alone,) = pair.predict(["A fine day ."], "student_alone")
    assert isinstance(together, Label)
    assert isinstance(alone, Label)
    assert together.scores == pytest.approx(alone.scores, abs=1e-5)


@pytest.mark.slow
def test_of_a_relation_what_is_far_from_both_entities_can_be_marked(tmp_path):
    run_training(run_of(tmp_path, "relation"))
    pair = tsarch.load(tmp_path / "run", device="cpu")
    words = ["far"] * 400
    row = {"tokens": ["Rome", *words, "Italy"], "head": [0, 1], "tail": [401, 402]}
    huge = {"tokens": words, "head": [0, 200], "tail": [200, 400]}
    fits = {"tokens": ["Rome", "in", "Italy"], "head": [0, 1], "tail": [2, 3]}
    with pytest.raises(UserError) as caught:
        pair.predict([row, huge, fits])
    assert [m.where for m in caught.value.mistakes] == ["input 1", "input 2"]
    assert "what is far from a relation's entities" in caught.value.mistakes[0].what
    for mode in pair.modes:
        answers, problems = pair.try_predict([row, huge, fits], mode, on_unread="mark")
        assert list(problems) == [1]
        marked = answers[0]
        assert isinstance(marked, PartlyRead)
        assert isinstance(marked.answer, Relation)
        (gap,) = marked.unread
        assert gap.of == "words"
        assert 1 < gap.start < gap.stop < 401
        assert isinstance(answers[2], Relation)


@pytest.mark.slow
def test_questions_and_sources_that_are_cut_say_which_characters(tmp_path):
    run_training(run_of(tmp_path, "qa"))
    pair = tsarch.load(tmp_path / "run", device="cpu")
    question = "Where did Ada live " * 30
    (marked,) = pair.predict([{"context": "Turin " * 300, "question": question}], on_unread="mark")
    assert isinstance(marked, PartlyRead)
    (gap,) = marked.unread
    assert gap.of == "question"
    assert 0 < gap.start < gap.stop == len(question.rstrip())
    folder = tmp_path / "texts"
    folder.mkdir()
    raw = generative_raw(folder, "translation", "llama")
    raw["run"]["folder"] = str(folder / "run")
    raw["schedule"] = {"max_steps": 1}
    raw["topology"] = {"runner": "local", "device": "cpu", "threads": 1}
    run_training(parse_config(raw, "tiny"))
    pair = tsarch.load(folder / "run", device="cpu")
    source = "a long way " * 200
    (marked,) = pair.predict([source], "teacher", on_unread="mark")
    assert isinstance(marked, PartlyRead)
    assert isinstance(marked.answer, GeneratedText)
    (gap,) = marked.unread
    assert gap.of == "source"
    assert source[gap.start : gap.stop].strip() == source[gap.start :].strip()
    assert gap.start > 0


@pytest.mark.slow
def test_a_long_source_is_read_in_parts_by_wish(tmp_path):
    raw = generative_raw(tmp_path, "summarization", "llama")
    raw["run"]["folder"] = str(tmp_path / "run")
    raw["schedule"] = {"max_steps": 1}
    raw["topology"] = {"runner": "local", "device": "cpu", "threads": 1}
    run_training(parse_config(raw, "tiny"))
    pair = tsarch.load(tmp_path / "run", device="cpu")
    source = "The old house is red. A small tree is green. " * 40
    inputs = ["A new bird.", source, "old " * 300]
    for mode in pair.modes:
        short, long, words = pair.predict(inputs, mode, on_unread="parts")
        assert [type(own) for own in (short, long, words)] == [GeneratedText] * 3
        assert replace(short, score=0) == replace(pair.predict(inputs[:1], mode)[0], score=0)
        assert short.parts == 1
        assert min(long.parts, words.parts) > 1
        sentences = sentence_bounds(source)
        assert long.parts <= len(sentences)
    with pytest.raises(UserError, match="input 2: can't be read whole"):
        pair.predict(inputs)
    prepared = pair.prepare([source])
    assert prepared.num_tokens > len(prepared.split.token_ids), "what parts will read is counted"


@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=12), min_size=1, max_size=12),
    st.integers(3, 30),
)
def test_parts_of_a_source_are_few_and_whole_sentences(sentences, most):
    """Words of so many letters, a token each letter."""
    text = " ".join(" ".join("a" * n for n in own).capitalize() + "." for own in sentences)
    tokens = [(place, place + 1) for place, own in enumerate(text) if own != " "]
    parts = source_parts(text, tokens, most)
    sizes = [len(text[start:stop].replace(" ", "")) for start, stop in parts]
    assert max(sizes) <= most
    assert "".join(text[a:b] for a, b in parts).replace(" ", "") == text.replace(" ", "")
    bounds = sentence_bounds(text)  # a single letter and a point is an initial, and ends none
    if all(len(text[start:stop].replace(" ", "")) <= most for start, stop in bounds):
        assert {start for start, _ in parts} <= {start for start, _ in bounds}
    assert len(parts) <= 1 + 2 * sum(sizes) // most, "two neighbours wouldn't fit into one"


def test_parts_are_about_equally_long():
    text = "Aaaa bbb. " * 10  # 8 tokens a sentence
    tokens = [(place, place + 1) for place, own in enumerate(text) if own != " "]
    sizes = [text[a:b].count(".") for a, b in source_parts(text, tokens, 8 * 9)]
    assert sizes == [5, 5]
