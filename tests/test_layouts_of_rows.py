"""Rows in other layouts: tag schemes, spans, nested questions, dialogues, pairs of entities."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import write_jsonl
from tests.test_formats import labelled, read, refused, tagged, written
from tsarch.config import DataConfig
from tsarch.data.corpus import read_splits
from tsarch.data.formats.findings import Findings
from tsarch.data.formats.shapes import Item
from tsarch.data.formats.span_text import Span, sentences
from tsarch.data.names import check_alike, cleaned
from tsarch.data.rows import Place
from tsarch.errors import UserError
from tsarch.tasks.ner import entities
from tsarch.tasks.registry import row_reader
from tsarch.tasks.tag_schemes import SCHEMES, first_broken, scheme_of, to_iob2

# ---- tag schemes

WORDS = ["Lena", "van", "Vogt", "mag", "Bern", "Ulm"]
IOB2 = ["B-PER", "I-PER", "I-PER", "O", "B-LOC", "B-LOC"]
TAGS = {
    "iob2": IOB2,
    "iob1": ["I-PER", "I-PER", "I-PER", "O", "I-LOC", "B-LOC"],
    "bioes": ["B-PER", "I-PER", "E-PER", "O", "S-LOC", "S-LOC"],
    "bilou": ["B-PER", "I-PER", "L-PER", "O", "U-LOC", "U-LOC"],
    "bmes": ["B-PER", "M-PER", "E-PER", "O", "S-LOC", "S-LOC"],
}


@pytest.mark.parametrize("scheme", TAGS)
def test_tag_schemes_are_told_by_the_tags(tmp_path, scheme):
    path = write_jsonl(tmp_path / "x.jsonl", [{"tokens": WORDS, "tags": TAGS[scheme]}] * 2)
    for wanted in ("auto", scheme):
        corpus = read("ner", path, tag_scheme=wanted)
        assert tagged(corpus) == [(WORDS, IOB2)] * 2
        assert corpus.labels == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
        said = f"tags are {scheme.upper()}, read as IOB2"
        assert any(said in note for note in corpus.notes) == (scheme != "iob2")


def test_types_without_a_letter_are_entities_where_they_stand_together(tmp_path):
    tags = ["person-other", "person-other", "person-other", "O", "place", "place"]
    path = write_jsonl(tmp_path / "x.jsonl", [{"tokens": WORDS, "tags": tags}])
    found = tagged(read("ner", path))[0][1]
    assert entities(found) == [("person-other", 0, 3), ("place", 4, 6)]
    speech = [{"tokens": ["Lena", "mag"], "tags": ["NE", "VV"]}] * 5
    path = write_jsonl(tmp_path / "pos.jsonl", speech)
    assert "tag 1 is `NE`, not O, B-TYPE or I-TYPE." in refused("ner", path)


def test_files_where_both_letters_begin_entities_are_read_once_it_is_said(tmp_path):
    rows = [
        ["B-PER", "I-PER", "O", "I-LOC", "O", "O"],
        ["B-LOC", *"OOOOO"],
        ["O", "B-LOC", *"OOOO"],
    ]
    path = write_jsonl(tmp_path / "x.jsonl", [{"tokens": WORDS, "tags": tags} for tags in rows])
    assert "tag 4 is `I-LOC` after `O`, which IOB2 doesn't allow." in refused("ner", path)
    found = tagged(read("ner", path, tag_scheme="iob1"))
    assert [entities(tags) for _, tags in found] == [
        [("PER", 0, 2), ("LOC", 3, 4)],
        [("LOC", 0, 1)],
        [("LOC", 1, 2)],
    ]


def test_a_mistake_in_a_scheme_has_its_line(tmp_path):
    good = {"tokens": WORDS, "tags": TAGS["bioes"]}
    bad = {"tokens": ["Lena", "mag"], "tags": ["B-PER", "O"]}
    path = write_jsonl(tmp_path / "x.jsonl", [good, bad, good])
    assert refused("ner", path).startswith(
        f"{path}:2: tag 1 is `B-PER` after `O` and before `O`, which BIOES doesn't allow."
    )


@given(st.lists(st.tuples(st.sampled_from(["", "X", "Y"]), st.integers(1, 3)), min_size=1))
def test_every_scheme_names_the_same_entities(found):
    """Entities as (type, number of words); the empty type is outside."""
    letters = {"bioes": "BIES", "bilou": "BILU", "bmes": "BMES"}
    iob2 = [
        "O" if not name else f"{'I' if word else 'B'}-{name}"
        for name, size in found
        for word in range(size)
    ]
    for scheme, (first, inside, last, single) in letters.items():
        tags: list[str] = []
        for name, size in found:
            own = [single] if size == 1 else [first, *[inside] * (size - 2), last]
            tags += [f"{letter}-{name}" for letter in own] if name else ["O"] * size
        assert first_broken(tags, scheme) is None
        assert to_iob2(tags, scheme) == iob2
        assert to_iob2(tags, scheme_of([tags])) == iob2
    assert scheme_of([iob2]) == SCHEMES[0]


# ---- spans of characters

TEXT = "Lena Vogt's café in New York-Mitte.\nDort 🙂 mag sie Bern."
SPANS = [(0, 9, "PER"), (20, 28, "LOC"), (51, 55, "LOC")]
FIRST = (
    ["Lena", "Vogt", "'", "s", "café", "in", "New", "York", "-", "Mitte", "."],
    ["B-PER", "I-PER", "O", "O", "O", "O", "B-LOC", "I-LOC", "O", "O", "O"],
)
SECOND = (["Dort", "🙂", "mag", "sie", "Bern", "."], ["O", "O", "O", "O", "B-LOC", "O"])


def utf16(place: int) -> int:
    return len(TEXT[:place].encode("utf-16-le")) // 2


def label_studio_task() -> dict[str, Any]:
    results = [
        {
            "type": "labels",
            "value": {
                "start": utf16(start),
                "end": utf16(stop),
                "text": TEXT[start:stop],
                "labels": [label],
            },
        }
        for start, stop, label in SPANS
    ]
    return {"id": 1, "data": {"text": TEXT}, "annotations": [{"result": results}]}


def span_rows(kind: str) -> list[dict[str, Any]]:
    objects = [{"start": start, "end": stop, "label": label} for start, stop, label in SPANS]
    if kind == "doccano":
        return [{"id": 1, "text": TEXT, "label": [list(span) for span in SPANS]}]
    if kind == "doccano-objects":
        named = [{"start_offset": s, "end_offset": e, "label": n, "id": 5} for s, e, n in SPANS]
        return [{"id": 1, "text": TEXT, "entities": named, "relations": []}]
    if kind == "prodigy":
        tokens = [{"text": "Lena", "start": 0, "end": 4, "id": 0}]
        row = {"text": TEXT, "tokens": tokens, "spans": objects, "answer": "accept"}
        return [row, {**row, "answer": "reject"}]
    if kind == "label-studio":
        other = {**label_studio_task(), "annotations": []}
        return [label_studio_task(), other]
    listed = [{"start": s, "end": e, "labels": [n]} for s, e, n in SPANS]
    return [{"text": TEXT, "id": 1, "ner": listed, "annotator": 3}]


@pytest.mark.parametrize("kind", ["doccano", "doccano-objects", "prodigy", "label-studio", "min"])
def test_spans_become_words_with_tags(tmp_path, kind):
    path = written(tmp_path / "x.json", json.dumps(span_rows(kind), indent=1))
    corpus = read("ner", path)
    assert tagged(corpus) == [FIRST, SECOND]
    rows = corpus.rows["train"]
    assert rows[0].origin.doc_id == rows[1].origin.doc_id
    assert any("read as " in note for note in corpus.notes)
    left_out = [note for note in corpus.notes if "left out" in note]
    assert len(left_out) == (3 if kind in ("prodigy", "label-studio") else 0)
    bare = read("ner", path, labelled=False)
    assert [row.words for row in bare.rows["test"]][-1] == SECOND[0]


def test_layouts_inside_of_cells(tmp_path):
    """As Label Studio's CSV has them, pandas' of hub sets, and JSON in a cell."""
    spans = [{"start": s, "end": e, "text": TEXT[s:e], "labels": [n]} for s, e, n in SPANS[:2]]
    table = [{"text": TEXT, "id": "1", "label": json.dumps(spans), "annotator": "1"}]
    corpus = read("ner", write_csv(tmp_path / "a.csv", table))
    assert tagged(corpus)[0] == FIRST
    answers = str({"text": ["Bern"], "answer_start": [19]})
    table = [{"id": "a", "context": PASSAGE, "question": "Where?", "answers": answers}]
    assert questions(read("qa", write_csv(tmp_path / "b.csv", table))) == [("a", ("Bern",))]
    table = [{"translation": json.dumps({"en": "A cat.", "sv": "En katt."})}]
    names = {"source": "translation.en", "target": "translation.sv"}
    corpus = read("translation", write_csv(tmp_path / "c.csv", table), columns=names)
    assert pairs(corpus) == [(("A cat.",), "En katt.")]
    lists = [{"tokens": str(WORDS), "tags": str(IOB2)}]
    assert tagged(read("ner", write_csv(tmp_path / "d.csv", lists))) == [(WORDS, IOB2)]


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_brat_s_folder(tmp_path):
    folder = tmp_path / "brat"
    folder.mkdir()
    lines = [
        f"T{n}\t{own[2]} {own[0]} {own[1]}\t{TEXT[own[0] : own[1]]}" for n, own in enumerate(SPANS)
    ]
    lines += ["R1\tlives Arg1:T1 Arg2:T2", "T9\tLOC 20 23;24 28\tNew York"]
    (folder / "a.txt").write_text(TEXT + "\n", encoding="utf-8")
    (folder / "a.ann").write_text("\n".join(lines) + "\n", encoding="utf-8")
    corpus = read("ner", folder)
    assert tagged(corpus) == [FIRST, SECOND]
    assert [str(row.origin.place) for row in corpus.rows["train"]] == [
        f"{folder / 'a.txt'}:{n}" for n in (1, 2)
    ]
    assert {row.origin.doc_id for row in corpus.rows["train"]} == {"a"}
    assert any("1 entities of several pieces are left out" in note for note in corpus.notes)
    assert tagged(read("ner", folder / "a.txt")) == [FIRST, SECOND]
    (folder / "b.txt").write_text("Bern", encoding="utf-8")
    assert "b.txt: has no b.ann beside it." in refused("ner", folder)
    (folder / "b.ann").write_bytes(b"T1\tLOC 0 4\tB\xe4rn")
    assert "b.ann: can't be read: " in refused("ner", folder)


def made(text: str, spans: list[Span]) -> tuple[list[dict[str, Any]], Findings]:
    findings = Findings()
    names = {name: name for name in ("tokens", "tags", "doc_id")}
    item = Item(Place("f", 1), {}, names, True, findings)
    return [row for _, row in sentences(item, text, spans)], findings


@given(st.text(st.sampled_from("ab .\n-é日本"), max_size=20), st.data())
def test_entities_are_kept_exactly(text, data):
    places = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    spans = [Span(a, b, "X") for a, b in zip(places[::2], places[1::2]) if text[a:b].strip()]
    rows, findings = made(text, spans)
    assert not findings.mistakes
    found = [
        "".join(row["tokens"][start:stop])
        for row in rows
        for _, start, stop in entities(row["tags"])
    ]
    assert found == ["".join(text[own.start : own.stop].split()) for own in spans]
    words = "".join(word for row in rows for word in row["tokens"])
    assert words == "".join(text.split()), "no character is lost"


def test_spans_that_overlap_or_stand_nowhere():
    rows, findings = made("New York City", [Span(0, 13, "A"), Span(0, 8, "B"), Span(4, 8, "B")])
    assert rows[0]["tags"] == ["B-A", "I-A", "I-A"]
    assert findings.notes == (
        "2 entities overlap longer ones and are left out, the first in f:1: a word has one tag",
    )
    for span, what in (
        (Span(5, 40, "A"), "outside the 13 characters"),
        (Span(3, 4, "A"), "has spaces only"),
        (Span(0, 3, "A", "Old"), "`New` stands there, not `Old`"),
    ):
        assert what in made("New York City", [span])[1].mistakes[0].what


WEBANNO = """#FORMAT=WebAnno TSV 3.3
#T_SP=de.tudarmstadt.ukp.dkpro.core.api.lexmorph.type.pos.POS|PosValue
#T_SP=de.tudarmstadt.ukp.dkpro.core.api.ner.type.NamedEntity|identifier|value


#Text=Lena Vogt mag Bern Ulm.
1-1\t0-4\tLena\tNE\t*[1]\tPER[1]\t
1-2\t5-9\tVogt\tNE\t*[1]\tPER[1]\t
1-3\t10-13\tmag\tVV\t_\t_\t
1-4\t14-18\tBern\tNE\t*[2]\tLOC[2]|X\\_Y[3]\t
1-5\t19-22\tUlm\tNE\t*[4]\tLOC[4]\t
1-5.1\t19-20\tU\t_\t*\tLOC\t

#Text=Nein.
2-1\t24-28\tNein\t_\t_\t_\t
"""


def test_webanno_s_tsv(tmp_path):
    path = written(tmp_path / "x.tsv", WEBANNO)
    corpus = read("ner", path)
    words = ["Lena", "Vogt", "mag", "Bern", "Ulm"]
    assert tagged(corpus) == [
        (words, ["B-PER", "I-PER", "O", "B-LOC", "B-LOC"]),
        (["Nein"], ["O"]),
    ]
    assert [str(row.origin.place) for row in corpus.rows["train"]] == [f"{path}:7", f"{path}:15"]
    assert sum("left out" in note or "of which the first" in note for note in corpus.notes) == 6
    other = written(tmp_path / "y.tsv", WEBANNO.replace("NamedEntity", "Animal"))
    assert "4 (POS|PosValue), 5 (Animal|identifier), 6 (Animal|value)" in refused("ner", other)
    assert tagged(read("ner", other, columns={"tags": 6}))[0][1][0] == "B-PER"


# ---- questions, labels, pairs, dialogues

PASSAGE = "Lena Vogt lives in Bern."
ANSWER = {"text": "Bern", "answer_start": 19}


def questions(corpus: Any) -> list[tuple[str, Any]]:
    return [(row.origin.doc_id, row.answers) for row in corpus.rows["train"]]


def test_squad_s_nested_file_and_answers_as_objects(tmp_path):
    asked = {"id": "a", "question": "Where?", "answers": [ANSWER, ANSWER], "is_impossible": False}
    # Some files have answers beside `is_impossible`.
    none = {"id": "b", "question": "When?", "answers": [ANSWER], "is_impossible": True}
    paragraph = {"context": PASSAGE, "qas": [asked, none]}
    nested = {"version": "v2.0", "data": [{"title": "x", "paragraphs": [paragraph]}]}
    expected = [("a", ("Bern", "Bern")), ("b", ())]
    for name, content in (
        ("a.json", json.dumps(nested)),
        ("b.json", json.dumps(nested, indent=2)),
        ("c.jsonl", json.dumps({"header": {"dataset": "x"}}) + "\n" + json.dumps(paragraph)),
    ):
        assert questions(read("qa", written(tmp_path / name, content))) == expected
    flat = {"id": "a", "context": PASSAGE, "question": "Where?"}
    other = {**flat, "id": "b", "answers": [ANSWER]}
    for answers, found in (([ANSWER], ("Bern",)), (ANSWER, ("Bern",)), ([], ())):
        path = write_jsonl(tmp_path / "d.jsonl", [{**flat, "answers": answers}, other])
        assert questions(read("qa", path))[0] == ("a", found)
    assert "data.format: squad" in refused("ner", path, format="squad")


def test_labels_that_are_numbers_or_true_or_false(tmp_path):
    for values, names in (
        ([0, 1], ["0", "1"]),
        ([True, False], ["true", "false"]),
        ([0.5, 1.0], ["0.5", "1.0"]),
        ([["x"], ["y"]], ["x", "y"]),
    ):
        rows = [{"text": "Good", "label": value} for value in values]
        path = write_jsonl(tmp_path / "x.jsonl", rows)
        assert [label for _, label in labelled(read("classification", path))] == names
    many = [{"text": "Good", "label": number / 7} for number in range(40)]
    path = write_jsonl(tmp_path / "many.jsonl", many)
    assert "has 40 different numbers as labels" in refused("classification", path)
    for value in (None, float("nan"), ["x", "y"], []):
        rows = [{"text": "Good", "label": value}, {"text": "Bad", "label": 1}]
        path = write_jsonl(tmp_path / "x.jsonl", rows)
        assert f"{path}:1: `label` is " in refused("classification", path)


def pairs(corpus: Any) -> list[tuple[tuple[str, ...], str]]:
    return [(row.parts, row.target) for row in corpus.rows["train"]]


def test_translation_objects_and_two_parallel_files(tmp_path):
    rows = [{"translation": {"en": "A cat.", "sv": "En katt."}}] * 3
    path = write_jsonl(tmp_path / "x.jsonl", rows)
    names = {"source": "translation.en", "target": "translation.sv"}
    assert pairs(read("translation", path, columns=names)) == [(("A cat.",), "En katt.")] * 3
    assert "Columns: translation.en, translation.sv." in str(
        refused("translation", write_jsonl(path, rows * 3))
    )
    from datasets import Dataset

    Dataset.from_list(rows).to_parquet(str(tmp_path / "x.parquet"))
    cache = {"cache_folder": str(tmp_path / "cache")}
    found = read("translation", tmp_path / "x.parquet", columns=names, **cache)
    assert pairs(found) == [(("A cat.",), "En katt.")] * 3


def test_parallel_files_go_together_line_by_line(tmp_path):
    english = written(tmp_path / "t.en", "A cat.\n\nIt rains.\n")
    swedish = written(tmp_path / "t.sv", "En katt.\r\n\r\nDet regnar.")
    both = [str(english), str(swedish)]
    corpus = read_parallel(both)
    assert pairs(corpus) == [(("A cat.",), "En katt."), (("It rains.",), "Det regnar.")]
    written(swedish, "En katt.\nDet regnar.\n")
    with pytest.raises(UserError, match=r"t.en: has 3 lines, but .*t.sv has 2\."):
        read_parallel(both)
    with pytest.raises(UserError, match="names 1 files; two are a source and its target"):
        read_parallel(both[:1])


def read_parallel(files: list[str]) -> Any:
    data = DataConfig(train=files, validation=files, test=files)
    return read_splits(data, row_reader("translation", data))


SAID = ["I need a table", "Where?", "In Ulm", "Done."]
TURNS = [((SAID[0],), SAID[1]), (tuple(SAID[:3]), SAID[3])]


def dialogue(kind: str) -> dict[str, Any]:
    if kind == "messages":
        who = ["user", "assistant"] * 2
        return {"messages": [{"role": r, "content": t} for r, t in zip(who, SAID)]}
    if kind == "sharegpt":
        who = ["human", "gpt"] * 2
        return {"id": "x", "conversations": [{"from": r, "value": t} for r, t in zip(who, SAID)]}
    if kind == "sgd":
        who = ["USER", "SYSTEM"] * 2
        turns = [{"speaker": r, "utterance": t, "frames": []} for r, t in zip(who, SAID)]
        return {"dialogue_id": "1_0", "services": ["Food_1"], "turns": turns}
    if kind == "columns":
        return {"turns": {"turn_id": list("0123"), "speaker": [0, 1, 0, 1], "utterance": SAID}}
    if kind == "multiwoz":
        return {"goal": {}, "log": [{"text": t, "metadata": {}} for t in SAID]}
    return {"dialog": SAID, "act": [1, 2, 1, 2]}


@pytest.mark.parametrize("kind", ["messages", "sharegpt", "sgd", "columns", "multiwoz", "dialog"])
def test_dialogues_become_a_row_for_each_answer(tmp_path, kind):
    rows: Any = [dialogue(kind)] * 2
    if kind == "multiwoz":
        rows = {"PMUL1.json": rows[0], "PMUL2.json": rows[1]}
    corpus = read("dialogue", written(tmp_path / "x.json", json.dumps(rows)))
    between = [(tuple(SAID[:2]), SAID[2])] if kind == "dialog" else []
    assert pairs(corpus) == [TURNS[0], *between, TURNS[1]] * 2
    assert len({row.origin.doc_id for row in corpus.rows["train"]}) == len(pairs(corpus))


def test_daily_dialog_s_text_and_turns_without_text(tmp_path):
    path = written(
        tmp_path / "x.txt", "Hi . __eou__ Hello . __eou__\nBye . __eou__ Bye . __eou__\n"
    )
    assert pairs(read("dialogue", path)) == [(("Hi .",), "Hello ."), (("Bye .",), "Bye .")]
    turns = dialogue("messages")["messages"]
    turns.insert(1, {"role": "assistant", "content": None, "tool_calls": [{}]})
    turns.insert(0, {"role": "system", "content": [{"type": "text", "text": "Be brief."}]})
    corpus = read("dialogue", write_jsonl(tmp_path / "y.jsonl", [{"messages": turns}]))
    assert pairs(corpus)[0] == (("Be brief.", SAID[0]), SAID[1])
    assert any("1 turns without a text" in note for note in corpus.notes)
    nobody = [{"messages": [{"role": "user", "content": "Hi"}]}]
    path = write_jsonl(tmp_path / "z.jsonl", nobody)
    assert "has no turn that answers. Who speaks: user." in refused("dialogue", path)
    asked = read("dialogue", path, labelled=False)
    assert [row.parts for row in asked.rows["test"]] == [("Hi",)]


TOKENS = ["Lena", "Vogt", "lives", "in", "Bern", "."]


def marked(corpus: Any) -> list[tuple[list[str], tuple[int, int], tuple[int, int], str]]:
    return [(row.tokens, row.head, row.tail, row.label) for row in corpus.rows["train"]]


def test_tacred_opennre_and_inclusive_ends(tmp_path):
    expected = [(TOKENS, (0, 2), (4, 5), own) for own in ("lives_in", "NA")]
    same = {"token": TOKENS, "relation": "lives_in"}
    tacred = {**same, "subj_start": 0, "subj_end": 1, "obj_start": 4, "obj_end": 4}
    opennre = {**same, "h": {"name": "Lena Vogt", "pos": [0, 2]}, "t": {"pos": [4, 5]}}
    for name, row in (("a", tacred), ("b", opennre)):
        path = written(tmp_path / f"{name}.json", json.dumps([row, {**row, "relation": "NA"}]))
        assert marked(read("relation", path)) == expected
    own = {"tokens": TOKENS, "head": [0, 1], "tail": [4, 4], "relation": "lives_in"}
    path = write_jsonl(tmp_path / "c.jsonl", [own, *[{**own, "relation": "NA"}] * 2])
    assert "data.span_ends: inclusive" in refused("relation", path)
    assert marked(read("relation", path, span_ends="inclusive"))[:2] == expected


@pytest.mark.parametrize(
    "text",
    [
        "<e1>Lena Vogt</e1> lives in <e2>Bern</e2>.",
        "[E1] Lena Vogt [/E1] lives in [E2] Bern [/E2].",
        "<< Lena Vogt >> lives in [[ Bern ]].",
    ],
)
def test_entities_that_are_marked_in_the_text(tmp_path, text):
    rows = [{"text": text, "label": "lives_in"}, {"text": text, "label": "NA"}]
    corpus = read("relation", write_jsonl(tmp_path / "x.jsonl", rows))
    assert marked(corpus)[0] == (TOKENS, (0, 2), (4, 5), "lives_in")
    path = write_jsonl(tmp_path / "y.jsonl", [*rows, {"text": "none", "label": "NA"}])
    assert f"{path}:3: has no text with one head and one tail marked" in refused("relation", path)


def test_docred_s_documents_are_a_row_a_pair(tmp_path):
    first, second = TOKENS, ["She", "likes", "Ulm", "."]
    lena_twice = [{"sent_id": 1, "pos": [0, 1]}, {"sent_id": 0, "pos": [0, 2]}]
    mentions = [lena_twice, [{"sent_id": 0, "pos": [4, 5]}], [{"sent_id": 1, "pos": [2, 3]}]]
    related = [(0, 1, "P551"), (0, 2, "P1"), (0, 2, "P2")]
    labels = [{"h": head, "t": tail, "r": own, "evidence": []} for head, tail, own in related]
    document = {"title": "x", "sents": [first, second], "vertexSet": mentions, "labels": labels}
    path = written(tmp_path / "x.json", json.dumps([document]))
    corpus = read("relation", path)
    words = [*first, *second]
    lena, bern, ulm = (0, 2), (4, 5), (8, 9)
    assert marked(corpus) == [
        (words, lena, bern, "P551"),
        (words, lena, ulm, "P1"),
        (words, lena, ulm, "P2"),
        (words, bern, lena, "NA"),
        (words, bern, ulm, "NA"),
        (words, ulm, lena, "NA"),
        (words, ulm, bern, "NA"),
    ]
    assert len({row.origin.doc_id for row in corpus.rows["train"]}) == 7
    assert any("1 pairs have several relations" in note for note in corpus.notes)
    columns = dict(zip(("head", "tail", "relation_id"), zip(*related)))
    path = written(tmp_path / "hub.json", json.dumps([{**document, "labels": columns}]))
    assert marked(read("relation", path)) == marked(corpus)
    path = written(tmp_path / "y.json", json.dumps([{**document, "labels": [{"h": 0}]}]))
    assert "isn't as DocRED has it" in refused("relation", path)


# ---- names that look the same


def test_labels_that_look_the_same_are_the_same(tmp_path):
    names = ["Ökonomie", "O\u0308konomie", " Ökonomie", "Ökonomie\u200b", "\ufeffÖkonomie\u00a0"]
    rows = [{"text": "a", "label": name} for name in [*names, "x"]]
    corpus = read("classification", write_jsonl(tmp_path / "x.jsonl", rows))
    assert corpus.labels == ("x", "Ökonomie")
    assert "4 rows have labels with spaces or invisible characters" in corpus.notes[0]
    tags = [{"tokens": ["a", "b"], "tags": ["B-O\u0308RT", "I-ÖRT "]}] * 2
    assert read("ner", write_jsonl(tmp_path / "y.jsonl", tags)).labels == ("O", "B-ÖRT", "I-ÖRT")
    assert cleaned("  a b\t") == "a b"


def test_names_that_only_look_the_same_are_shown_by_their_code_points(tmp_path):
    rows = [{"text": "a", "label": "new york"}, {"text": "a", "label": "new\u00a0york"}]
    path = write_jsonl(tmp_path / "x.jsonl", rows)
    assert refused("classification", path) == (
        f"{path}:2: label `new\u00a0york` looks like `new york` ({path}:1), but is another: U+00A0 "
        "NO-BREAK SPACE against U+0020 SPACE. Write both the same way."
    )
    for pair in (["good", "go\u200bod"], ["COO", "СОО"], ["a-b", "a–b"], ["Ａ1", "A1"]):
        assert len(check_alike(dict.fromkeys(pair, "f:1"))) == 1, pair
    for pair in (["good", "Good"], ["x2", "x²"], ["a", "α"], ["é", "e"], ["good", "goods"]):
        assert not check_alike(dict.fromkeys(pair, "f:1")), pair
