#!/usr/bin/env bash
# `import seqeval` imports hundreds of modules of scikit-learn and scipy, for one class of warnings:
# all else of it is plain Python and numpy, and scores the same where that class comes from elsewhere.
# Seen with seqeval 1.2.2, scikit-learn 1.9.0.
# Why it matters: a command that scores a few hundred sentences waits longer for the import than for
# the scores; with the class in `sys.modules` it doesn't.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet seqeval==1.2.2 scikit-learn==1.9.0 numpy==2.4.6 setuptools==84.2.1
cat > score.py <<'PYTHON'
import json, sys, time, types
import numpy

if sys.argv[1:] == ["alone"]:
    module = types.ModuleType("sklearn.exceptions")
    module.UndefinedMetricWarning = type("UndefinedMetricWarning", (UserWarning,), {})
    sys.modules |= {"sklearn": types.ModuleType("sklearn"), "sklearn.exceptions": module}
before, started_s = set(sys.modules), time.perf_counter()
from seqeval.metrics import f1_score
from seqeval.metrics.v1 import precision_recall_fscore_support
from seqeval.scheme import IOB2

took_s = time.perf_counter() - started_s
gold = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-ORG"]]
said = [["B-PER", "I-PER", "O", "O"], ["B-ORG", "B-ORG"]]
strict = precision_recall_fscore_support(gold, said, average="micro", scheme=IOB2)[:3]
scores = [round(float(own), 6) for own in (f1_score(gold, said), *strict)]
print(json.dumps([len(set(sys.modules) - before), round(took_s * 1000), scores]))
PYTHON
venv/bin/python - <<'PYTHON'
import json, subprocess, sys
from importlib.metadata import version

print("seqeval", version("seqeval"), "scikit-learn", version("scikit-learn"))
found = {}
for case in ("", "alone"):
    call = [sys.executable, "score.py", *filter(None, [case])]
    subprocess.run(call, check=True, capture_output=True)  # the first one writes byte code
    found[case] = json.loads(subprocess.run(call, check=True, capture_output=True).stdout)
for case, (modules, took_ms, scores) in found.items():
    name = "with the class of warnings alone" if case else "as installed"
    print(f"{name}: {modules} modules, {took_ms} ms, scores {scores}")
usual, alone = found[""], found["alone"]
seen = [usual[0] > 300, alone[0] < 60, usual[2] == alone[2]]
sys.exit(seen != [True] * 3)
PYTHON
