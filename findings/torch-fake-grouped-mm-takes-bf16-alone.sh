#!/usr/bin/env bash
# On a CPU torch multiplies groups of rows in fp32, with gradients, but its rule for fake tensors
# refuses any type but bf16: so a mixture of experts that trains can't be traced or planned.
# Seen with torch 2.13.0 and transformers 5.23.0.
# Why it matters: tools that run models without values (memory, FLOPs, export) fail on such models.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.23.0
HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import sys
from importlib.metadata import version

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import MixtralConfig, MixtralModel

print("torch", version("torch"), "transformers", version("transformers"))
config = MixtralConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
    num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
)
ids = torch.arange(16)[None]
model = MixtralModel(config)
hidden = model(ids).last_hidden_state
hidden.sum().backward()
print("with values:", hidden.dtype, tuple(hidden.shape), "and gradients")
said = "nothing"
try:
    with FakeTensorMode(allow_non_fake_inputs=True):
        MixtralModel(config)(torch.arange(16)[None])
except RuntimeError as error:
    said = str(error).splitlines()[0]
print("on fake tensors:", said)
sys.exit(("BF16" in said, hidden.dtype) != (True, torch.float32))
PYTHON
