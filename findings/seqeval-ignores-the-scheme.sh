#!/usr/bin/env bash
# seqeval ignores `scheme=IOB2` unless `mode="strict"` is given too, without a word: an entity that
# begins with I- then counts as right.
# Seen with seqeval 1.2.2.
# Why it matters: a score that is called strict, since a scheme was given, is not; here it is 1.0
# where the strict one is 0.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet seqeval==1.2.2 scikit-learn==1.9.1 numpy==2.4.6
venv/bin/python - <<'PYTHON'
import sys
from importlib.metadata import version
from seqeval.metrics import f1_score
from seqeval.scheme import IOB2

print("seqeval", version("seqeval"))
gold, predicted = [["B-PER", "I-PER", "O"]], [["I-PER", "I-PER", "O"]]
found = [
    float(f1_score(gold, predicted, **settings))
    for settings in ({}, {"scheme": IOB2}, {"scheme": IOB2, "mode": "strict"})
]
print(f"gold {gold}, predicted {predicted}")
print("F1: {} by default; {} with scheme=IOB2; {} with mode=\"strict\" too".format(*found))
sys.exit(found != [1.0, 1.0, 0.0])
PYTHON
