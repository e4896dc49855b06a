#!/usr/bin/env bash
# `import deepspeed` imports mlflow wherever that is installed, for its autotuner, which no training
# run uses: mlflow's client, its models and what they need in turn come along in every rank.
# Seen with deepspeed 0.19.8, mlflow-skinny 3.17.2, torch 2.13.0.
# Why it matters: every rank starts later and is larger, because of a tracker that the driver alone
# may use; whoever measures start-up sees it only where mlflow happens to be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 deepspeed==0.19.8 mlflow-skinny==3.17.2 numpy==2.4.6 setuptools==84.2.1
cat > count.py <<'PYTHON'
import logging, sys, time

import torch

started_s = time.process_time()
logging.disable(logging.WARNING)
if sys.argv[1] == "hidden":
    sys.modules["mlflow"] = None  # as if it weren't installed
import deepspeed

spent_s = time.process_time() - started_s
names = [name for name, module in sys.modules.items() if module is not None]
count = sum(name.partition(".")[0] == "mlflow" for name in names)
print(f"deepspeed {deepspeed.__version__}, mlflow {sys.argv[1]}: {count} modules of mlflow,",
      f"{len(names)} modules in all, {spent_s:.1f} s of CPU time")
sys.exit((count > 100) != (sys.argv[1] == "installed"))
PYTHON
for mlflow in installed hidden; do
  HOME=$folder DS_ACCELERATOR=cpu venv/bin/python -W ignore count.py $mlflow
done
