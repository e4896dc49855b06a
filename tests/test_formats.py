"""Files as people have them: read as their owners mean them, or refused with what to do."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import write_jsonl
from tsarch.config import DataConfig
from tsarch.config_loading import columns_of
from tsarch.data.corpus import Corpus, read_splits
from tsarch.errors import UserError
from tsarch.inputs.files import InputFile
from tsarch.inputs.reading import Reading
from tsarch.tasks.registry import row_reader


def read(task: str, path: str | Path, labelled: bool = True, **fields: Any) -> Corpus[Any]:
    """The file as every split."""
    data = DataConfig(train=str(path), validation=str(path), test=str(path), **fields)
    columns = columns_of(task)(**data.columns).model_dump()
    data = data.model_copy(update={"columns": columns})
    return read_splits(data, row_reader(task, data, labelled))


def refused(task: str, path: str | Path, **fields: Any) -> str:
    """The one message that the file is refused with."""
    with pytest.raises(UserError) as caught:
        read(task, path, **fields)
    (only,) = caught.value.mistakes
    return str(only)


def written(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def tagged(corpus: Corpus[Any]) -> list[tuple[list[str], list[str]]]:
    return [(row.words, row.tags) for row in corpus.rows["train"]]


def labelled(corpus: Corpus[Any]) -> list[tuple[str, str]]:
    return [(row.text, row.label) for row in corpus.rows["train"]]


SEEN = (["Lena", "Vogt", "reist"], ["B-PER", "I-PER", "O"])
CITY = (["Nach", "Bern"], ["O", "B-LOC"])


# ---- CoNLL: which column is what


@pytest.mark.parametrize(
    "lines",
    [
        ["1\tLena\tB-PER\t-\tkim", "2\tVogt\tI-PER\t-\tkim", "3\treist\tO", "", "1\tNach\tO",
         "2\tBern\tB-LOC\t-\tkim"],
        ["0 Lena B-PER", "1 Vogt I-PER", "2 reist O", "", "0 Nach O", "1 Bern B-LOC"],
        ["# text = 1", "1\tLena\t_\tB-PER", "2\tVogt\t_\tI-PER", "3-4\tx\t_\t_", "3\treist\t_\tO",
         "", "1\tNach\t_\tO", "2\tBern\t_\tB-LOC"],
        ["Lena\tNNP\tB-NP\tB-PER", "Vogt\tNNP\tI-NP\tI-PER", "reist\tVB\tB-VP\tO", "",
         "Nach\tIN\tB-PP\tO", "Bern\tNNP\tB-NP\tB-LOC"],
        ["Lena\tB-PER\t", "Vogt\tI-PER\t", "reist\tO\t", "", "Nach\tO\t", "Bern\tB-LOC\t"],
        ["Lena\tB-PER\tann", "Vogt\tI-PER\tann", "reist\tO\tbob", "", "Nach\tO\tann",
         "Bern\tB-LOC\tann"],
        ["Lena,B-PER", "Vogt,I-PER", "reist,O", "", "Nach,O", "Bern,B-LOC"],
    ],
    ids=["annotator", "from-0", "conllu", "chunks", "empty-last", "annotator-last", "commas"],
)  # fmt: skip
def test_words_and_tags_are_found_wherever_they_stand(tmp_path, lines):
    path = written(tmp_path / "x.conll", "\r\n".join(lines))
    fields = {"delimiter": ","} if "," in lines[0] else {}
    corpus = read("ner", path, **fields)
    assert tagged(corpus) == [SEEN, CITY]
    indexed = lines[-1].startswith(("1", "2"))
    assert indexed == any("counts the words" in note for note in corpus.notes)


NESTED = (
    "#\thttp://example.org/a [2020-01-01]\n1\tLena\tB-PER\tO\n2\tVogt\tI-PER\tB-LOC\n"
    "3\treist\tO\tO\n\n#\thttp://example.org/b\n1\tNach\tO\tO\n2\tBern\tB-LOC\tO\n"
)


def test_two_columns_of_tags_are_asked_about(tmp_path):
    path = written(tmp_path / "x.tsv", NESTED)
    text = refused("ner", path, format="conll")
    assert text.startswith(f"{path}: has tags in columns 3 (B-PER, I-PER, B-LOC) and 4 (B-LOC).")
    assert text.endswith("data.columns.tags=3.")
    assert tagged(read("ner", path, format="conll", columns={"tags": 3})) == [SEEN, CITY]
    inner = tagged(read("ner", path, format="conll", columns={"tags": 4, "tokens": 2}))
    assert inner == [(SEEN[0], ["O", "B-LOC", "O"]), (CITY[0], ["O", "O"])]
    text = refused("ner", path, format="conll", columns={"tags": 7})
    assert "has 4 columns, but data.columns.tags is 7" in text


@pytest.mark.parametrize("text", ["Nach\tIN\tO\n\tNN\tO\nBern\tNNP\tB-LOC", "Nach\tO\n\tO\n"])
def test_an_empty_word_shifts_nothing(tmp_path, text):
    path = written(tmp_path / "x.conll", f"Nach\tIN\tO\n\n{text}" if "IN" in text else text)
    assert refused("ner", path).startswith(f"{path}:{4 if 'IN' in text else 2}: has an empty word")


def test_label_studio_s_conll_has_a_task_a_document_and_labels_of_several_words(tmp_path):
    text = "-DOCSTART- -X- O O\nLena -X- _ B-Job Title\nVogt -X- _ I-Job Title\n\nBern -X- _ O\n"
    corpus = read("ner", written(tmp_path / "x.conll", text))
    assert tagged(corpus) == [(["Lena", "Vogt"], ["B-Job Title", "I-Job Title"]), (["Bern"], ["O"])]
    assert len({row.origin.doc_id for row in corpus.rows["train"]}) == 2
    plain = text.replace(" -X- _ ", " NN ").replace("Job Title", "Job")
    corpus = read("ner", written(tmp_path / "y.conll", plain))
    assert len({row.origin.doc_id for row in corpus.rows["train"]}) == 1
    assert any("one document mark" in note for note in corpus.notes)


def test_documents_of_several_conll_files_are_others(tmp_path):
    for name in ("a", "b"):
        written(
            tmp_path / f"{name}.conll", "-DOCSTART- O\n\nLena\tB-PER\nreist\tO\n\nNach\tO\nBern\tO"
        )
    rows = read("ner", tmp_path / "*.conll").rows["train"]
    assert len({row.origin.doc_id for row in rows}) == 2
    assert len(rows) == 4


def test_words_that_are_hardly_words_are_asked_about(tmp_path):
    counted = written(tmp_path / "c.conll", "1\tO\n2\tB-LOC\n\n1\tO\n2\tO\n")
    assert "has numbers only for words, such as `1 2`" in refused("ner", counted)
    numbers = written(tmp_path / "n.conll", "17\tO\n18\tB-LOC\n\n19\tO\n20,5\tO\n")
    text = refused("ner", numbers)
    assert "has numbers only for words, such as `17 18`" in text
    assert "data.odd_words: keep" in text
    assert "data.columns.tokens" in text
    single = written(tmp_path / "s.conll", "Lena\tB-PER\n\nreist\tO\n\n")
    assert "has one word in each of its 2 sentences" in refused("ner", single)
    for path in (numbers, single):
        assert len(read("ner", path, odd_words="keep").rows["train"]) == 2
    assert len(read("ner", single, labelled=False).rows["train"]) == 2, "to be predicted"


@pytest.mark.parametrize("name", ["train.tsv", "x.train", "x.csv"])
def test_words_with_tags_are_found_under_other_names(tmp_path, name):
    path = written(tmp_path / name, "Lena\tB-PER\nVogt\tI-PER\nreist\tO\n\nNach\tO\nBern\tB-LOC\n")
    corpus = read("ner", path)
    assert tagged(corpus) == [SEEN, CITY]
    assert any("read as CoNLL" in note for note in corpus.notes)
    bare = written(tmp_path / name, "Lena\tPER\n\nreist\tVB\n\nBern\tLOC\n")
    assert "set data.format: conll" in refused("ner", bare, format="csv")


@pytest.mark.parametrize("name", ["train.txt", "x.dev"])
def test_json_is_found_under_other_names(tmp_path, name):
    text = "\n".join(map(json.dumps, DOCUMENT))
    assert labelled(read("classification", written(tmp_path / name, text)))[0] == ("Good", "yes")


# ---- tables: delimiters, quotation marks, headers

NUMBERS = {"label": 1, "text": 3}


@pytest.mark.parametrize(
    ("name", "text", "fields"),
    [
        ("x.tsv", "text\tlabel\nGood, really\tyes\nBad\tno\n", {}),
        ("x.csv", "text;label\nGood, really;yes\nBad;no\n", {}),
        ("x.csv", "text\tlabel\nGood, really\tyes\nBad\tno\n", {}),
        ("x.csv", "id|label|text\n1|yes|Good, really\n2|no|Bad\n", {}),
        ("x.csv", "text:label\nGood, really:yes\nBad:no\n", {"delimiter": ":"}),
        ("x.csv", "text\tlabel\nGood, really\tyes\nBad\tno\n", {"delimiter": "\\t"}),
        ("x.csv", 'text,label\r\n"Good, really",yes\r\n\r\nBad,no,\r\n', {}),
        ("x.csv", '"yes","t","Good, really"\n"no","t","Bad"\n', {"columns": NUMBERS}),
        ("x.tsv", "yes\t*\tGood, really\nno\t\tBad\n", {"columns": NUMBERS}),
        ("x.dat", "text,label\n'Good, really',yes\nBad,no\n".replace("'", '"'), {"format": "csv"}),
    ],
)  # fmt: skip
def test_tables_in_all_their_forms(tmp_path, name, text, fields):
    path = written(tmp_path / name, text)
    corpus = read("classification", path, **fields)
    assert labelled(corpus) == [("Good, really", "yes"), ("Bad", "no")]


def test_quotation_marks_of_tab_separated_files(tmp_path):
    loose = 'text\tlabel\n"So be it\tyes\nHe said "no"\tno\n5" wide\tno\n'
    corpus = read("classification", written(tmp_path / "a.tsv", loose))
    assert [text for text, _ in labelled(corpus)] == ['"So be it', 'He said "no"', '5" wide']
    proper = 'text\tlabel\n"He said ""no"""\tno\nBad\tno\n"two\nlines"\tyes\n'
    path = written(tmp_path / "b.tsv", proper)
    assert labelled(read("classification", path))[0] == ('He said "no"', "no")
    assert labelled(read("classification", path))[2] == ("two\nlines", "yes")
    comma = written(tmp_path / "c.csv", 'text,label\n"So be it,yes\nBad,no\n')
    assert "data.quoting: none" in refused("classification", comma)
    assert labelled(read("classification", comma, quoting="none"))[0] == ('"So be it', "yes")


def test_a_table_whose_columns_are_not_found(tmp_path):
    path = written(tmp_path / "a.csv", "3,Wall Street falls\n1,Rain\n")
    text = refused("classification", path, columns={"label": "1", "text": "sentence"})
    assert "columns that are numbers and others that are names: `sentence`" in text
    text = refused("classification", path)
    assert "has no column `text` and no column `label`. Columns: 3, Wall Street falls." in text
    assert "If line 1 is no header, number them: data.columns.text=1" in text
    head = written(tmp_path / "b.csv", "label,text\nyes,Good\n")
    text = refused("classification", head, columns={"label": 1, "text": 2})
    assert "b.csv:1: has a header line, to judge by `text`" in text
    text = refused("classification", path, columns={"label": 1, "text": 5})
    assert "has 2 columns, but data.columns names column 5" in text
    twice = written(tmp_path / "c.csv", "label,text,text\nyes,Good,Bad\n")
    assert "has 2 columns `text`" in refused("classification", twice)


def test_columns_that_are_there_twice_are_told_of_files_to_be_answered(tmp_path):
    columns = {"text": "text", "label": "label", "doc_id": "doc_id", "sent_id": "sent_id"}
    reading = Reading("classification", columns)
    twice = written(tmp_path / "twice.csv", "text,text\nGood,Bad\n")
    (own,) = InputFile(str(twice), reading)
    assert own.value is None
    assert "has 2 columns `text`" in own.problem
    path = written(tmp_path / "other.csv", "note,text,note,,\na,Good,b,,\n")
    other = InputFile(str(path), reading)
    assert [own.row for own in other] == [{"note": "b", "text": "Good", "": ""}]
    assert any("several columns `note`" in note for note in other.findings.notes)


def test_an_empty_cell_of_an_optional_column_says_nothing(tmp_path):
    text = "doc_id,sent_id,tokens,tags\n,,Lena reist,B-PER O\n,,In Bern,O B-LOC\n"
    text += "d,1,Lena geht,B-PER O\n"
    rows = read("ner", written(tmp_path / "x.csv", text)).rows["train"]
    assert len({row.origin.doc_id for row in rows}) == 3
    assert [row.origin.sent_id for row in rows] == [None, None, "1"]


def test_a_word_a_row_with_the_sentence_beside_it(tmp_path):
    once = "Sentence #,Word,POS,Tag\nSentence: 1,Lena,NNP,B-PER\n,Vogt,NNP,I-PER\n,reist,VB,O\n"
    once += "Sentence: 2,Nach,IN,O\n,Bern,NNP,B-LOC\n"
    names = {"tokens": "Word", "tags": "Tag", "sent_id": "Sentence #"}
    corpus = read("ner", written(tmp_path / "a.csv", once), columns=names)
    assert tagged(corpus) == [SEEN, CITY]
    assert any("a word a row" in note for note in corpus.notes)
    every = "sent_id\ttokens\ttags\n0\tLena\tB-PER\n0\tVogt\tI-PER\n0\treist\tO\n"
    every += "1\tNach\tO\n1\tBern\tB-LOC\n"
    assert tagged(read("ner", written(tmp_path / "b.tsv", every))) == [SEEN, CITY]
    lines = [line.split("\t") for line in every.splitlines()]
    rows = [dict(zip(lines[0], line)) for line in lines[1:]]
    assert tagged(read("ner", write_jsonl(tmp_path / "c.jsonl", rows))) == [SEEN, CITY]
    bad = written(tmp_path / "d.tsv", every.replace("1\tBern\tB-LOC", "1\tBern\tLOC"))
    assert f"{bad}:6: tag 2 is `LOC`" in refused("ner", bad)
    alone = written(tmp_path / "e.csv", "tokens,tags\nLena,B-PER\nreist,O\nnach,O\nBern,B-LOC\n")
    assert "data.columns.sent_id" in refused("ner", alone)


# ---- encodings, compression, JSON documents


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_are_believed(tmp_path, encoding):
    path = written(tmp_path / "x.csv", "text,label\nÅ så,ja\nnej,no\n", encoding)
    assert labelled(read("classification", path))[0] == ("Å så", "ja")


@pytest.mark.parametrize("encoding", ["latin-1", "cp1250", "utf-16-le", "gb18030"])
def test_encodings_that_are_named(tmp_path, encoding):
    text = "text,label\nGrüße,ja\nnein,no\n"
    path = written(tmp_path / "x.csv", text, encoding)
    assert "data.encoding: " in refused("classification", path)
    assert labelled(read("classification", path, encoding=encoding))[0] == ("Grüße", "ja")
    wrong = written(tmp_path / "y.csv", text)
    assert "can't be read as ascii (data.encoding)" in refused(
        "classification", wrong, encoding="ascii"
    )


def test_unknown_encodings_are_refused_by_the_config():
    with pytest.raises(ValueError, match="`latin-99` is no encoding"):
        DataConfig(encoding="latin-99")


def test_compressed_files_are_unpacked(tmp_path):
    content = b'{"text": "Good", "label": "yes"}\n{"text": "Bad", "label": "no"}\n'
    files = {"a.jsonl.gz": gzip.compress(content), "b.jsonl.bz2": bz2.compress(content)}
    files |= {"c.jsonl.xz": lzma.compress(content), "d.jsonl": gzip.compress(content)}
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    files["e.jsonl.zst"] = sink.getvalue().to_pybytes()
    for name, packed in files.items():
        (tmp_path / name).write_bytes(packed)
    with zipfile.ZipFile(tmp_path / "f.jsonl.zip", "w") as archive:
        archive.writestr("rows.jsonl", content)
    for name in [*files, "f.jsonl.zip"]:
        assert labelled(read("classification", tmp_path / name)) == [("Good", "yes"), ("Bad", "no")]
    with zipfile.ZipFile(tmp_path / "f.jsonl.zip", "a") as archive:
        archive.writestr("more.jsonl", content)
    assert "is a ZIP archive of 2 files" in refused("classification", tmp_path / "f.jsonl.zip")
    (tmp_path / "a.jsonl.gz").write_bytes(files["a.jsonl.gz"][:-12])
    assert "it is damaged" in refused("classification", tmp_path / "a.jsonl.gz")


DOCUMENT = [{"text": "Good", "label": "yes"}, {"text": "Bad", "label": "no"}]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(DOCUMENT),
        json.dumps(DOCUMENT, indent=2),
        json.dumps({"version": 1, "data": DOCUMENT}),
        json.dumps({"version": 1, "rows": DOCUMENT}, indent=1),
        json.dumps({"x": DOCUMENT[0], "y": DOCUMENT[1]}),
        json.dumps({"text": {"0": "Good", "1": "Bad"}, "label": {"0": "yes", "1": "no"}}),
        "\n".join(map(json.dumps, DOCUMENT)),
    ],
    ids=["line", "indented", "in-data", "in-rows", "by-name", "by-column", "lines"],
)
def test_json_documents(tmp_path, text):
    path = written(tmp_path / "x.json", text)
    assert labelled(read("classification", path)) == [("Good", "yes"), ("Bad", "no")]


def test_a_pattern_names_several_files(tmp_path):
    for number, row in enumerate(DOCUMENT):
        written(tmp_path / f"part-{number}.json", json.dumps([row]))
    corpus = read("classification", tmp_path / "part-*.json")
    assert labelled(corpus) == [("Good", "yes"), ("Bad", "no")]
    assert any("the 2 files that the pattern names" in note for note in corpus.notes)
    assert "FOLDER/*.json" in refused("classification", tmp_path)
    written(tmp_path / "part-*.json", json.dumps(DOCUMENT[::-1]))
    corpus = read("classification", tmp_path / "part-*.json")
    assert labelled(corpus) == [("Bad", "no"), ("Good", "yes")], "a file of this very name"


def test_mistakes_in_json_documents_have_lines(tmp_path):
    text = json.dumps([*DOCUMENT, {"text": 5, "label": "no"}], indent=1)
    path = written(tmp_path / "x.json", text)
    assert refused("classification", path).startswith(f"{path}:10: `text` is 5, not a string.")
    cut = written(tmp_path / "y.json", text[:-20])
    assert refused("classification", cut).startswith(f"{cut}:10: is not JSON: ")
    other = written(tmp_path / "z.json", '{"a": 1,\n "b": [1]}')
    assert "is an object that holds no rows (keys: a, b)" in refused("classification", other)
    forced = written(tmp_path / "w.txt", json.dumps(DOCUMENT))
    assert labelled(read("classification", forced, format="json"))[0] == ("Good", "yes")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.jsonl", b"PAR1\x00\x00", "can't be read as parquet"),
        ("x.csv", b"PK\x03\x04\x00[Content_Types].xml", "it is an Excel workbook"),
        ("x.csv", b"\xd0\xcf\x11\xe0\x00\x00", "it is an old Excel or Word file"),
        ("x.jsonl", b"version https://git-lfs.github.com/spec/v1\noid 5\nsize 2\n", "git lfs pull"),
        ("x.jsonl", b"text,label\na,b\nc,d\ne,f\n", "It looks like CSV: set data.format: csv."),
        ("x.jsonl", b'{\n "text": "a",\n "label": "b"\n}\n' * 2, "jq -s . FILE > NEW.json"),
        ("x.jsonl", b"<!DOCTYPE html>\n<p>\n</p>\n<p>\n", "It looks like XML or HTML"),
        ("x.csv", b'{"text": "a b", "label": "c"}\n' * 3, "JSON Lines: set data.format: jsonl."),
        ("x.csv", b'[{"text": "a b",\n "label": "c"}]', "JSON document: set data.format: json."),
    ],
)  # fmt: skip
def test_what_a_file_is_that_is_something_else(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    assert said in refused("classification", path)


def test_parquet_of_another_name_is_read(tmp_path):
    from datasets import Dataset

    Dataset.from_list(DOCUMENT).to_parquet(str(tmp_path / "x.jsonl"))
    corpus = read("classification", tmp_path / "x.jsonl", cache_folder=str(tmp_path / "cache"))
    assert labelled(corpus) == [("Good", "yes"), ("Bad", "no")]
    assert any("read as Parquet" in note for note in corpus.notes)
