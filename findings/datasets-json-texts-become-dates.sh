#!/usr/bin/env bash
# Texts in JSON Lines become datetimes in `datasets` if all of a column look like dates, words in
# lists of tokens too; one text that does not, and all stay texts.
# Seen with datasets 5.2.0, pyarrow 26.0.1 (whose JSON reader, with its default settings, does it).
# Why it matters: code that passes on most files breaks, or makes `2020-01-02 00:00:00` of a word, on
# a small or uniform one; the type that is guessed depends on rows that have nothing to do with it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet datasets==5.2.0 fsspec==2026.9.0 pyarrow==26.0.1 pandas==3.1.1
HOME=$folder HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1 venv/bin/python - <<'PYTHON'
import datetime, json, pathlib, sys
import datasets, pyarrow.json

print("datasets", datasets.__version__, "pyarrow", pyarrow.__version__)


def kinds(name, rows):
    """Types of the column `text` and of what is in the lists of `tokens`, once loaded."""
    path = pathlib.Path(name)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = datasets.load_dataset("json", data_files=name, split="train", cache_dir="cache")
    print(name, table.features, table[0])
    return type(table[0]["text"]), type(table[0]["tokens"][0])


dates = [{"text": "2020-01-02", "tokens": ["2020-01-02", "2021-05-06"]}]
word = [{"text": "May", "tokens": ["in", "May"]}]
found = kinds("dates.jsonl", dates), kinds("mixed.jsonl", dates + word)
by_arrow = str(pyarrow.json.read_json("dates.jsonl").schema.field("text").type)
print("pyarrow.json.read_json:", by_arrow)
sys.exit((*found, by_arrow) != ((datetime.datetime, datetime.datetime), (str, str), "timestamp[s]"))
PYTHON
