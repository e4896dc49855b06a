#!/usr/bin/env bash
# `datasets.load_dataset` takes a file's name for a pattern even where a file of just that name
# exists: asked for `part[1].csv` it reads `part1.csv`, if there is one, and says nothing.
# Seen with datasets 5.2.0, fsspec 2026.9.0.
# Why it matters: names with brackets are what browsers give to second downloads; the data of
# another file are trained on. `glob.escape` of the name helps.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet datasets==5.2.0 fsspec==2026.9.0 pyarrow==26.0.1 pandas==3.1.1
HOME=$folder HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1 venv/bin/python - <<'PYTHON'
import glob, pathlib, sys
import datasets, fsspec

print("datasets", datasets.__version__, "fsspec", fsspec.__version__)
pathlib.Path("part[1].csv").write_text("column\nasked for\n")
pathlib.Path("part1.csv").write_text("column\nanother file\n")


def load(name):
    table = datasets.load_dataset("csv", data_files=name, split="train", cache_dir="cache")
    return table["column"][0]


found = load("part[1].csv"), load(glob.escape("part[1].csv"))
print(f"part[1].csv: {found[0]!r}; by glob.escape: {found[1]!r}")
sys.exit(found != ("another file", "asked for"))
PYTHON
