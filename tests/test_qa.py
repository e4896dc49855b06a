"""Question answering: rows, contexts and windows, losses, scores, evaluation, whole runs."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.equal_losses import check_equal_losses
from tests.helpers import (
    QUICKSTART_MODEL,
    ROOT,
    local_crew,
    packing_spec,
    read_task,
    tiny_config,
    write_jsonl,
)
from tests.suites.crews import Crews
from tests.suites.equivalence import Case, comparable
from tests.tokenizer_kinds import KINDS, fast
from tsarch.blueprint import resolve
from tsarch.config import Config, DataConfig
from tsarch.data.corpus import Corpus
from tsarch.data.feed import Feed
from tsarch.data.layouts import QuestionLayout
from tsarch.data.passage_packer import pack_passages
from tsarch.data.passages import (
    Limits,
    PairTypes,
    PassageTokens,
    Question,
    Specials,
    WordSpan,
    pair_specials,
    strides,
)
from tsarch.data.row_tokens import RowTokenizer
from tsarch.data.text_places import parts_of
from tsarch.data.tokenizer import load_tokenizer
from tsarch.data.window_passes import evaluation_passes
from tsarch.errors import UserError
from tsarch.launch.training import run_training
from tsarch.losses.spans import SpanObjective
from tsarch.models.backbone import cut_out_table
from tsarch.models.measures import measure
from tsarch.models.student_model import StudentModel
from tsarch.models.teacher_model import TeacherModel
from tsarch.pair.pair import Pair
from tsarch.pair.states import Window
from tsarch.prepare import prepare_data
from tsarch.rank.crew import Crew
from tsarch.records import IGNORED, SPAN_END, SPAN_START, Predictions, TokenizedSplit
from tsarch.run.evaluate import JOINT_WEIGHTS, choose_and_evaluate, predict
from tsarch.run.saved_run import evaluate_run
from tsarch.tasks.answers import NoAnswer, SpanAnswer
from tsarch.tasks.chinese import is_chinese
from tsarch.tasks.qa import QaTask
from tsarch.tasks.registry import make_task
from tsarch.tasks.scripts import Writing
from tsarch.tasks.span_search import MAX_ANSWER_WORDS, SpanWindows, best_spans, question_logits
from tsarch.tasks.squad import normalized, score_answer
from tsarch.topology import Stage, Topology

CONTEXT = "Ann Lee, born in 1950, sings in Rome."
GOOD = {
    "id": "a",
    "context": CONTEXT,
    "question": "Where does she sing?",
    "answers": {"text": ["Rome", "in Rome"], "answer_start": [32, 29]},
}
OBJECTIVE = SpanObjective()
NO_TABLE = torch.zeros(1, 1)


def read(folder: Path, rows: list[dict[str, object]]) -> Corpus[Question]:
    """All three splits have these rows."""
    path = str(write_jsonl(folder / "rows.jsonl", rows))
    return read_task("qa", DataConfig(train=path, validation=path, test=path))


def test_answers_are_characters_of_the_passage(tmp_path):
    corpus = read(tmp_path, [GOOD])
    question = corpus.rows["train"][0]
    assert question.spans == ((32, 36), (29, 36))
    assert (question.question, question.passage) == (GOOD["question"], CONTEXT)
    assert corpus.labels == ("answer",)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"context": " "}, "`context` is empty."),
        ({"question": ""}, "`question` is empty."),
        ({"question": ["x"]}, "`question` is ['x'], not a string."),
        ({"id": None}, "`id` is None, not a string or a number."),
        (
            {"answers": {"text": ["Rome"], "answer_start": [31]}},
            "answer 'Rome' is not at answer_start 31 of the passage. It stands at 32.",
        ),
        (
            {"answers": {"text": ["Paris"], "answer_start": [900]}},
            "answer 'Paris' is not at answer_start 900 of the passage. "
            "It stands nowhere in the passage.",
        ),
        ({"answers": {"text": [" "], "answer_start": [3]}}, "has an empty answer."),
        (
            {"answers": {"text": ["Rome"], "answer_start": ["32"]}},
            "answer 1 is 'Rome' at '32', not a string and a whole number.",
        ),
        (
            {"answers": {"text": ["Rome"], "answer_start": []}},
            "`answers` is {'answer_start': [], 'text': ['Rome']}, "
            "not {text: [...], answer_start: [...]} with equally long lists.",
        ),
    ],
)
def test_mistakes_name_their_line(tmp_path, change, what):
    with pytest.raises(UserError) as caught:
        read(tmp_path, [GOOD, GOOD | {"id": "b"} | change])
    texts = [str(own) for own in caught.value.mistakes]
    assert texts == [f"{tmp_path / 'rows.jsonl'}:2: {what}"]


def test_all_mistakes_come_at_once_and_an_id_only_once(tmp_path):
    wrong = {"text": ["x y"], "answer_start": [0]}
    with pytest.raises(UserError) as caught:
        read(tmp_path, [GOOD, GOOD, GOOD | {"id": "c", "answers": wrong, "question": "?"}])
    texts = [str(own) for own in caught.value.mistakes][:2]
    assert texts[0].endswith(f":2: id a was at {tmp_path / 'rows.jsonl'}:1 already.")
    assert ":3: answer 'x y' is not at answer_start 0" in texts[1]


def test_questions_without_an_answer_must_be_in_train_too(tmp_path):
    none = GOOD | {"id": "n", "answers": {"text": [], "answer_start": []}}
    assert read(tmp_path, [GOOD, none]).labels == ("answer", "no_answer")
    train = str(write_jsonl(tmp_path / "train.jsonl", [GOOD]))
    test = str(write_jsonl(tmp_path / "test.jsonl", [none]))
    with pytest.raises(UserError, match="`no_answer` is in test but not in train"):
        read_task("qa", DataConfig(train=train, validation=train, test=test))


def test_csv_holds_answers_as_json(tmp_path):
    path = tmp_path / "rows.csv"
    answers = json.dumps(GOOD["answers"]).replace('"', '""')
    path.write_text(f'id,context,question,answers\n7,"{CONTEXT}",Where?,"{answers}"\n')
    data = DataConfig(
        train=str(path), validation=str(path), test=str(path), cache_folder=str(tmp_path)
    )
    assert read_task("qa", data).rows["test"][0].answers == ("Rome", "in Rome")


@given(st.lists(st.integers(1, 5), min_size=1, max_size=60), st.integers(8, 30), st.integers(0, 40))
def test_strides_cover_every_word_and_overlap(sizes, room, overlap):
    parts = strides(sizes, room, overlap)
    assert parts[0][0] == 0
    assert parts[-1][1] == len(sizes)
    for first, stop in parts:
        assert 0 < sum(sizes[first:stop]) <= room
    for (a, b), (c, d) in itertools.pairwise(parts):
        assert a < c <= b < d
        assert sum(sizes[c:b]) <= overlap


def passage_tokens(question: list[int], words: list[list[int]]) -> PassageTokens:
    """A passage whose word n is the character n."""
    places = np.arange(len(words))
    return PassageTokens(question, words, np.stack([places, places + 1], axis=1))


@st.composite
def packed(draw) -> tuple[TokenizedSplit, list[tuple[PassageTokens, list[WordSpan]]], Limits]:
    """A few random questions, packed; their tokens and answers."""
    limits = Limits(draw(st.integers(20, 60)), draw(st.integers(16, 40)), draw(st.integers(0, 20)))
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=60))
        seed = draw(st.integers(0, 10**6))
        rng = np.random.default_rng(seed)
        words = [rng.integers(5, 90, size=n).tolist() for n in sizes]
        question = rng.integers(5, 90, size=draw(st.integers(1, 12))).tolist()
        spans = []
        for _ in range(draw(st.integers(0, 2))):
            first = int(rng.integers(len(words)))
            spans.append((first, min(first + int(rng.integers(4)), len(words) - 1)))
        rows.append((passage_tokens(question, words), spans))
    tokens, answers = zip(*rows, strict=True)
    types = PairTypes([0], 0, [0], 1, [1])
    return pack_passages(tokens, answers, Specials([1], [2], [3]), limits, 0, types), rows, limits


@given(packed())
def test_contexts_and_windows_fit_and_hold_what_they_should(made):
    split, rows, limits = made
    assert split.context_lengths.max() <= limits.context
    context = 0
    for (row, answers), pieces in zip(rows, split.pieces, strict=True):
        seen = set()
        for piece in pieces:
            start, stop = split.context_offsets[context : context + 2]
            lead_start, lead_stop = split.leads[context]
            assert lead_start == start
            assert split.token_ids[start] == 1
            assert split.token_ids[lead_stop - 1] == 2
            assert split.token_ids[stop - 1] == 3
            assert piece.places[0] == lead_stop
            assert split.types_at(np.arange(start, stop)).tolist() == [
                int(place >= lead_stop) for place in range(start, stop)
            ]
            assert piece.places[-1] == stop - 1
            assert (split.words[piece.places[:-1]] >= 0).all()
            assert (split.words[start:stop] >= 0).sum() == piece.num_words
            assert len(piece.bounds) == piece.num_words
            here = range(piece.bounds[0, 0], piece.bounds[-1, 1])
            assert len(here) == piece.num_words
            seen |= set(here)
            windows = range(*split.window_offsets[context : context + 2])
            assert len(windows) <= 2
            for window in windows:
                places = split.window_places(window)
                assert len(places) == split.window_length(window) <= limits.window
                assert {*split.windows[window]} <= {*piece.places}
                assert split.context_of(window) == context
                words = split.words[places]
                codes = split.labels[words[words >= 0]]
                learned = bool((codes & SPAN_START).any() and (codes & SPAN_END).any())
                first = int(np.searchsorted(piece.places, split.windows[window, 0])) + here.start
                last = int(np.searchsorted(piece.places, split.windows[window, 1])) + here.start
                touched = any(a < last and b >= first for a, b in answers)
                assert learned or not touched, "a window shows its answer whole, or none at all"
            context += 1
        assert seen == set(range(len(row.words)))
    assert context == split.num_contexts
    assert split.sentence_offsets[-1] == split.num_words


def test_the_hard_negative_shares_the_questions_rare_words():
    words = [[token] for token in [*range(10, 40), 77, *range(41, 60)]]
    common = [passage_tokens([5], [[10]])] * 8
    row = passage_tokens([10, 77], words)
    split = pack_passages(
        [row, *common],
        [[(45, 45)], *[[]] * 8],
        Specials([1], [2], [3]),
        Limits(100, 16, 0),
        0,
    )
    first, second = (split.token_ids[start:stop].tolist() for start, stop in split.windows[:2])
    assert 77 in first
    assert 10 not in first
    assert words[45][0] in second


@pytest.mark.parametrize(("tokens", "number"), [(48, 1), (47, 2)])
def test_of_a_passage_that_a_window_holds_whole_no_part_is_learned(tokens, number):
    row = passage_tokens([5], [[token] for token in range(10, 55)])
    answered = pack_passages([row], [[(0, 0)]], Specials([1], [2], [3]), Limits(100, tokens, 0), 0)
    assert len(answered.windows) == number
    unanswered = pack_passages([row], [[]], Specials([1], [2], [3]), Limits(100, 48, 0), 0)
    assert unanswered.windows.tolist() == [[3, 48]]


def test_what_is_cut_is_counted():
    row = passage_tokens(list(range(30)), [[5] * 40, [6]])
    split = pack_passages([row], [[]], Specials([1], [2], [3]), Limits(23, 40, 0), 0)
    assert split.num_cut_tokens == (30 - 10) + (40 - 10)
    with pytest.raises(UserError, match="leave 7 tokens"):
        pack_passages([row], [[]], Specials([1], [2], [3]), Limits(10, 40, 0), 0)


def test_special_tokens_of_a_pair():
    tokenizer = load_tokenizer(QUICKSTART_MODEL)
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    types = PairTypes([0], 0, [0], 1, [1])
    assert pair_specials(tokenizer) == (Specials([cls], [sep], [sep]), types)


PASSAGES = {
    "They don't walk to the mill (1950); nobody knew why!": ["don't", "mill", "195", "why", "n't"],
    "磨坊在河邊，已經不轉動了。娜迪亞的船賣了。": ["河", "娜迪亞", "已經不轉動了"],
    "낡은 방앗간은 강가에 있고 배는 서울에서 팔렸다.": ["서울", "방앗간", "강가에 있고"],
    "เรือของนาเดียถูกขายไป": ["นาเดีย"],
    "The caf\u00e9 \U0001f6a4 is\n\n  open\t here\u200b .": ["caf\u00e9", "\U0001f6a4", "open"],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("passage", "wanted"), PASSAGES.items())
def test_a_passage_has_the_tokens_that_its_tokenizer_gives_it(tmp_path, kind, passage, wanted):
    """With every answer the fewest tokens that have it, and each context the text's own tokens."""
    tokenizer = fast(KINDS[kind]())
    answers = {"text": wanted, "answer_start": [passage.index(own) for own in wanted]}
    row = GOOD | {"context": passage, "answers": answers, "question": "Who walks, and why?"}
    layout = QuestionLayout(packing_spec(RowTokenizer(tokenizer, None, keep=False), 300, 280))
    split = layout.pack(read(tmp_path, [row]).rows["test"])
    (start, stop), (piece,) = split.leads[0], split.pieces[0]
    tokens = tokenizer(passage, return_offsets_mapping=True, add_special_tokens=False)
    assert split.token_ids[stop : piece.places[-1]].tolist() == tokens["input_ids"]
    question = tokenizer(row["question"], add_special_tokens=False)["input_ids"]
    assert split.token_ids[start:stop].tolist()[-len(question) :] == question
    for own in wanted:
        first = passage.index(own)
        last = first + len(own)
        touched = [(a, b) for a, b in tokens["offset_mapping"] if a < last and b > first]
        spelt = passage[min(a for a, _ in touched) : max(b for _, b in touched)].strip()
        part = parts_of(next(iter(RowTokenizer(tokenizer, None, keep=False).placed([passage]))))
        a, b = part.covering(first, last)
        logits = np.full((split.num_words, 2), -5, dtype=np.float32)
        logits[a, 0] = logits[b, 1] = 4
        ((answer,),) = QaTask(["answer"]).answers(split, logits)
        assert answer.text == spelt == passage[answer.start : answer.stop]
        assert own in answer.text


def test_an_answer_that_no_token_stands_for_is_told(tmp_path):
    passage = "\u200b the mill"
    row = GOOD | {"context": passage, "answers": {"text": ["\u200b"], "answer_start": [0]}}
    with pytest.raises(UserError, match=r"rows.jsonl:1.*no token for the answer"):
        small_split(tmp_path, [row])


@given(packed(), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(1, 3))
def test_rows_arrive_at_the_tokens_of_question_and_window(made, groups, students, m, slices):
    """Send each token's place as its 'hidden state' and look where it ends up."""
    split, _, _ = made
    teachers = groups * slices
    contexts = np.arange(split.num_contexts)
    feed = Feed(
        split,
        Topology.pair(teachers, students, slices),
        m,
        lambda _: contexts,
        lambda _, c: evaluation_passes(split, c),
        True,
    )
    ids = feed.plan(0).token_ids
    for micro_batch in range(m):
        sent = {}
        for t in range(teachers):
            part = feed.context_batch(0, micro_batch, Stage.TEACHER, t)
            assert part.types.shape == part.rows.shape
            assert set(part.types[part.mask == 0].tolist()) <= {0}
            for rank, places in part.outgoing.items():
                sent[t, rank] = ids[part.rows].flatten()[places]
        for s in range(students):
            rank = teachers + s
            routes = feed.routes_to(0, micro_batch, rank, Stage.TEACHER)
            assert [len(route.places) for route in routes] == [
                len(sent[route.source, rank]) for route in routes
            ]
            arrived = [sent[route.source, rank] for route in routes]
            tokens = np.concatenate([np.zeros(0, int), *arrived])
            for batch in feed.window_batches(0, micro_batch, Stage.STUDENT, s):
                came = batch.arrived >= 0
                assert np.array_equal(tokens[batch.arrived[came]], ids[batch.rows[came]])
                assert came.sum() == batch.mask[batch.weight > 0].sum()
                # The separator 2 ends the question, so all after its last one is the passage.
                for tokens_of, mask, types in zip(ids[batch.rows], batch.mask, batch.types):
                    own = tokens_of[mask == 1].tolist()
                    lead = own.index(2) + 1 if 2 in own else len(own)
                    assert types[mask == 1].tolist() == [0] * lead + [1] * (len(own) - lead)


@pytest.mark.parametrize("model_type", ["bert", "electra", "roberta"])
def test_both_models_are_told_which_text_a_token_is_of(tmp_path, model_type):
    """A teacher's context is what transformers reads for the pair of texts, types included, where
    the model has types; so is a student's window, which has no end."""
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.for_model(
        model_type,
        vocab_size=30522,
        hidden_size=16,
        embedding_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        type_vocab_size=1 if model_type == "roberta" else 2,
    )
    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval()
    tokenizer = load_tokenizer(QUICKSTART_MODEL)
    split = small_split(tmp_path, [GOOD])
    given = tokenizer(GOOD["question"], CONTEXT, return_tensors="pt")
    assert split.token_ids.tolist() == given["input_ids"][0].tolist()
    if model_type == "roberta":
        given["token_type_ids"].zero_()
    with torch.no_grad():
        expected = model(**given).last_hidden_state[0]
        shorter = {name: values[:, :-1] for name, values in given.items()}
        window = model(**shorter).last_hidden_state[0]
    backbone = cut_out_table(model, measure(config))
    table = backbone.table.clone()
    teacher = TeacherModel(backbone, 16, 2, 0.0)
    student = StudentModel(backbone, 16, 0, 2, 0.0)
    pair = Pair(table, teacher, student)
    (states,) = pair.encode([split.token_ids], types=[split.token_types])
    torch.testing.assert_close(states.hidden, expected, rtol=0, atol=1e-6)
    ids, types = split.token_ids[:-1], split.token_types[:-1]
    (said,) = pair.read([Window(ids, None, types)])
    torch.testing.assert_close(said, student.head(window), rtol=0, atol=1e-6)
    (without,) = pair.read([Window(ids)])
    assert torch.equal(said, without) == (model_type == "roberta")


def random_scores(labels: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return 3 * torch.randn(*labels.shape, 2, generator=generator)


def test_the_loss_is_cross_entropy_with_a_class_for_no_answer():
    labels = torch.tensor(
        [[IGNORED, 0, SPAN_START, 0, SPAN_END], [IGNORED, 0, SPAN_START, IGNORED, IGNORED]]
    )
    scores = random_scores(labels)
    losses = OBJECTIVE.losses(scores, labels, NO_TABLE)
    assert losses.shape == labels.shape
    assert losses.dtype == torch.float32
    assert not losses[:, 1:].any()
    zero = torch.zeros(1)
    start = F.cross_entropy(torch.cat([zero, scores[0, 1:, 0]])[None], torch.tensor([2]))
    end = F.cross_entropy(torch.cat([zero, scores[0, 1:, 1]])[None], torch.tensor([4]))
    assert float(losses[0, 0]) == pytest.approx(float(start + end) / 2, rel=1e-6)
    none = [
        F.cross_entropy(torch.cat([zero, scores[1, 1:3, side]])[None], torch.tensor([0]))
        for side in (0, 1)
    ]
    assert float(losses[1, 0]) == pytest.approx(float(sum(none)) / 2, rel=1e-6), "half an answer"
    nothing = OBJECTIVE.losses(scores, torch.full_like(labels, IGNORED), NO_TABLE)
    assert not nothing.any()


def test_distillation_takes_what_is_outside_the_window_as_not_here():
    labels = torch.tensor([[IGNORED, 0, 0, 0, 0]])
    teacher, temperature = random_scores(labels), 2.0
    sent = OBJECTIVE.sent(teacher, labels)
    odds = torch.cat([torch.zeros(1, 1, 2), teacher[:, 1:]], 1).double()
    whole = torch.softmax(odds, 1)
    torch.testing.assert_close(sent[:, 1:].double().exp(), whole[:, 1:])
    window = slice(1, 4)
    student = random_scores(labels)[:, window].flip(1)
    found = OBJECTIVE.divergences(
        student, sent[:, window], labels[:, window], temperature, NO_TABLE
    )
    inside = whole[:, 1:4]
    target = torch.cat([1 - inside.sum(1, keepdim=True), inside], 1) ** (1 / temperature)
    target = target / target.sum(1, keepdim=True)
    own = torch.cat([torch.zeros(1, 1, 2), student], 1).double() / temperature
    kl = (target * (target.log() - torch.log_softmax(own, 1))).sum(1)
    assert float(found[0, 0]) == pytest.approx(float(kl.mean()) * temperature**2, rel=1e-5)
    assert not found[:, 1:].any()


def test_gradients_are_finite_and_leave_padding_alone():
    labels = torch.tensor([[IGNORED, SPAN_START | SPAN_END, IGNORED], [IGNORED, IGNORED, IGNORED]])
    student = random_scores(labels).requires_grad_()
    sent = OBJECTIVE.sent(50 * random_scores(labels), labels)
    total = OBJECTIVE.losses(student, labels, NO_TABLE).sum()
    total = total + OBJECTIVE.divergences(student, sent, labels, 2.0, NO_TABLE).sum()
    (grad,) = torch.autograd.grad(total, student)
    assert torch.isfinite(grad).all()
    assert grad[0, 1].abs().min() > 0
    assert not grad[labels == IGNORED].any()


GOLDEN = json.loads((ROOT / "tests" / "golden" / "qa_scores.json").read_text("utf-8"))


@pytest.mark.parametrize(("script", "chinese"), [("squad", False), ("cmrc", True)])
def test_scores_are_those_of_the_reference_scripts(script, chinese):
    """The golden values are what the scripts gave: `evaluate-v2.0.py`, `cmrc2018_evaluate.py`."""
    scores = []
    for case in GOLDEN[script]:
        score = score_answer(
            case["predicted"], case["answers"], Writing.CHINESE if chinese else Writing.ASCII
        )
        assert (score.exact, score.f1) == (case["exact"], case["f1"]), case
        scores.append(score)
    total = GOLDEN[f"{script}_total"]
    assert 100.0 * sum(score.exact for score in scores) / len(scores) == total["exact"]
    assert 100.0 * sum(score.f1 for score in scores) / len(scores) == total["f1"]


def test_which_script_scores_a_passage():
    assert is_chinese("儒略日是在儒略週期內以連續的日數計算時間的計時法 (Julian day)")
    assert not is_chinese("The name 儒略 is Chinese for Julian")
    assert not is_chinese("…")
    assert normalized("The  Broncos, a team!") == "broncos team"


def small_split(
    folder: Path, rows: list[dict[str, object]], teacher=64, student=24
) -> TokenizedSplit:
    tokens = RowTokenizer(load_tokenizer(QUICKSTART_MODEL), str(folder / "cache"))
    layout = QuestionLayout(packing_spec(tokens, teacher, student))
    return layout.pack(read(folder, rows).rows["test"])


def test_best_spans_are_those_of_a_search_through_all(tmp_path):
    long = " ".join(f"w{i}" for i in range(70))
    none = GOOD | {"id": "none", "context": long, "answers": {"text": [], "answer_start": []}}
    split = small_split(tmp_path, [none, GOOD])
    pieces, _ = split.pieces
    assert len(pieces) > 1
    logits = np.random.default_rng(0).normal(size=(split.num_words, 2)).astype(np.float32)
    logits[5] = -np.inf
    found = best_spans(pieces, logits, 3)
    start, expected = 0, []
    for number, piece in enumerate(pieces):
        pairs = [
            (float(logits[start + a, 0]) + float(logits[start + b, 1]), number, a, b)
            for a in range(piece.num_words)
            for b in range(a, min(a + MAX_ANSWER_WORDS, piece.num_words))
        ]
        expected += sorted(pairs, key=lambda own: -own[0])[:3]
        start += piece.num_words
    expected = sorted(expected, key=lambda own: -own[0])
    assert [tuple(span)[1:] for span in found] == [own[1:] for own in expected]
    np.testing.assert_allclose([span.score for span in found], [own[0] for own in expected], 1e-6)


@given(st.integers(0, 10**6), packed(), st.integers(1, 4))
def test_windows_hold_the_best_span_and_no_word_twice(seed, made, count):
    split, _, limits = made
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(split.num_words, 2)).astype(np.float32)
    chosen = split.with_windows(SpanWindows().windows(split, logits, limits.window, count))
    assert chosen.window_offsets[-1] == len(chosen.windows)
    read_words: list[int] = []
    for window in range(len(chosen.windows)):
        places = chosen.window_places(window)
        assert len(places) <= limits.window
        read_words += chosen.words[places][chosen.words[places] >= 0].tolist()
    assert len(set(read_words)) == len(read_words)
    context, first_word = 0, 0
    for pieces, own in zip(split.pieces, question_logits(split, logits), strict=True):
        contexts = range(context, context + len(pieces))
        num = chosen.window_offsets[contexts.stop] - chosen.window_offsets[contexts.start]
        assert 1 <= num <= count
        best = best_spans(pieces, own, 1)[0]
        before = sum(piece.num_words for piece in pieces[: best.piece])
        places = pieces[best.piece].places
        lead = int(np.diff(split.leads[context + best.piece])[0])
        if places[best.last + 1] - places[best.first] <= limits.window - lead:
            span = range(first_word + before + best.first, first_word + before + best.last + 1)
            assert set(span) <= set(read_words)
        context, first_word = contexts.stop, first_word + len(own)


def test_joint_is_the_mean_of_log_odds_where_the_student_has_read():
    teacher = np.array([[1, 2], [3, 4], [5, 6]], dtype=np.float32)
    student = np.array([[3, 0], [1, 1]], dtype=np.float32)
    share = Predictions(np.array([2, 0]), student, student, student + 1, student[None])
    whole = SpanWindows().complete(teacher, [share], [0.0, 0.25])
    inf = -np.inf
    assert whole.student.tolist() == [[1, 1], [inf, inf], [3, 0]]
    assert whole.student_alone.tolist() == [[2, 2], [inf, inf], [4, 1]]
    assert whole.joint[0].tolist() == whole.student.tolist()
    assert whole.joint[1].tolist() == [[1, 1.25], [inf, inf], [3.5, 1.5]]


def test_answers_are_pieces_of_the_passage_or_none(tmp_path):
    none = GOOD | {"id": "n", "answers": {"text": [], "answer_start": []}}
    split = small_split(tmp_path, [GOOD, none])
    logits = np.full((split.num_words, 2), -5, dtype=np.float32)
    half = split.num_words // 2
    logits[8, 0] = logits[9, 1] = logits[half + 3, 0] = logits[half + 5, 1] = 4
    logits[half + 5, 1] = -4.5
    always, may_be_none = QaTask(["answer"]), QaTask(["answer", "no_answer"])
    rome, born = SpanAnswer(29, 36, "in Rome", 8.0), SpanAnswer(9, 21, "born in 1950", -0.5)
    assert always.answers(split, logits) == [(rome,), (born,)]
    assert may_be_none.answers(split, logits) == [(rome,), (NoAnswer(-0.5),)]
    assert may_be_none.answers(split, np.full_like(logits, -np.inf)) == [(NoAnswer(-np.inf),)] * 2
    assert may_be_none.metrics(split, logits) == {
        "exact_match": 1.0,
        "f1": 1.0,
        "has_answer_exact_match": 1.0,
        "has_answer_f1": 1.0,
        "no_answer_exact_match": 1.0,
        "no_answer_f1": 1.0,
        "no_answer_share": 0.5,
    }
    assert always.metrics(split, logits)["exact_match"] == 0.5


def tiny_qa(folder: Path, source: str = "squadshifts", **sections: dict[str, object]) -> Config:
    """A tiny job on the first rows of the task's own data, some of them without an answer."""
    data: dict[str, object] = {"overlap_tokens": 16}
    (folder / "rows").mkdir()
    for split in ("train", "validation", "test"):
        lines = (ROOT / "configs" / source / f"{split}.jsonl").read_text("utf-8").splitlines()
        rows = [json.loads(line) for line in lines[:24]]
        for row in rows[::6]:
            row["answers"] = {"text": [], "answer_start": []}
        data[split] = str(write_jsonl(folder / "rows" / f"{split}.jsonl", rows))
    return tiny_config(folder, **{"data": data, "task": {"name": "qa"}, **sections})


def measured(config: Config, crew: Crew):
    """Metrics of all modes on validation."""
    blueprint = resolve(config)
    prepared = prepare_data(blueprint)
    task = make_task(blueprint.task.name, prepared.labels, blueprint.task)
    split = prepared.splits["validation"]
    predictions = predict(blueprint, task, crew, "validation", split, JOINT_WEIGHTS)
    return choose_and_evaluate(task, split, predictions), predictions


def check_equal_evaluation(config: Config, crews: Crews):
    """3 + 2 ranks measure what one process does; the predictions of both."""
    local, predictions = measured(config, local_crew(config))
    wanted = comparable(config, Case("overlapped", "sgd", (3, 2), (0, 3)), 1)
    found, of_ranks = measured(wanted, crews.get(wanted))
    assert found == local
    return predictions, of_ranks


def test_training_improves_the_loss_and_all_modes_are_measured(tmp_path):
    config = tiny_qa(tmp_path, schedule={"epochs": 4})
    crew = local_crew(config)
    reports = [report for own in crew.train(0, 24) for report in own]
    for stage in ("teacher", "student"):
        losses = [r.losses.means[stage] for r in reports if stage in r.losses.means]
        assert np.mean(losses[-4:]) < np.mean(losses[:4])
    found, _ = measured(config, crew)
    assert all(0 <= value <= 1 for own in found.metrics.values() for value in own.values())
    assert {"no_answer_share", "has_answer_f1"} <= set(found.metrics["student_alone"])


@pytest.mark.slow
def test_a_run_evaluates_again_from_its_folder(tmp_path):
    config = tiny_qa(
        tmp_path,
        run={"folder": str(tmp_path / "run")},
        topology={"runner": "local"},
        schedule={"max_steps": 3},
    )
    summary = run_training(config)
    again = evaluate_run(tmp_path / "run", "test").evaluation
    assert again.metrics == summary["after"]
    assert set(summary["num_cut_tokens"]) == {"train", "validation", "test"}


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.replicas(1, 2)
def test_ranks_give_the_losses_of_one_process(tmp_path, crews):
    check_equal_losses(tiny_qa(tmp_path), (1, 2), crews)


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.replicas(3, 2)
def test_evaluation_is_the_same_at_any_replica_count(tmp_path, crews):
    (one,), (other,) = check_equal_evaluation(tiny_qa(tmp_path), crews)
    for name in ("teacher", "student", "student_alone", "joint"):
        a, b = getattr(one, name), getattr(other, name)
        assert np.array_equal(np.isfinite(a), np.isfinite(b))
        np.testing.assert_allclose(a[np.isfinite(a)], b[np.isfinite(b)], atol=1e-5)
    assert math.isfinite(float(one.teacher.sum()))
