#!/usr/bin/env bash
# Python's collector of cycles takes a fifth of the time of importing torch and a model class of
# transformers, and most of that of leaving Python: it goes through what stays again and again.
# Seen with torch 2.13.0 and transformers 5.14.1.
# Why it matters: each process of a job and each short command pays. `gc.set_threshold(100_000, 10, 10)`
# before the imports and `gc.freeze()` at the end save most of it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.14.1 numpy==2.4.6
cat > imports.py <<'PYTHON'
import gc, json, sys, time

if sys.argv[1] == "seldom":
    gc.set_threshold(100_000, 10, 10)
rounds, spent_s, since_s = 0, 0.0, 0.0


def watch(phase, _):
    global rounds, spent_s, since_s
    if phase == "start":
        since_s = time.perf_counter()
    else:
        rounds, spent_s = rounds + 1, spent_s + time.perf_counter() - since_s


gc.callbacks.append(watch)
started_s = time.perf_counter()
import torch
from transformers import BertModel

took_s = time.perf_counter() - started_s
print(json.dumps([rounds, spent_s, took_s, len(gc.get_objects())]), flush=True)
if sys.argv[1] == "seldom":
    gc.freeze()
print(time.time(), flush=True)
PYTHON
HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import json, statistics, subprocess, sys, time
from importlib.metadata import version

print("torch", version("torch"), "transformers", version("transformers"), "Python", sys.version.split()[0])
found = {"as usual": [], "seldom": []}
for turn in range(4):
    for case in found:
        done = subprocess.run([sys.executable, "imports.py", case], check=True, capture_output=True, text=True)
        ended_s = time.time()
        first, left = done.stdout.splitlines()[-2:]
        if turn:  # the first one writes byte code
            found[case].append([*json.loads(first), ended_s - float(left)])
medians = {case: [statistics.median(own) for own in zip(*rows)] for case, rows in found.items()}
for case, (rounds, spent_s, took_s, objects, leaving_s) in medians.items():
    print(
        f"{case}: {rounds:.0f} rounds of the collector take {spent_s:.2f} s of {took_s:.2f} s of imports, "
        f"which leave {objects:,.0f} objects; leaving Python takes {leaving_s:.2f} s"
    )
usual, seldom = medians["as usual"], medians["seldom"]
seen = [usual[1] > 0.1 * usual[2], seldom[1] < 0.5 * usual[1]]
sys.exit(seen != [True] * 2)
PYTHON
