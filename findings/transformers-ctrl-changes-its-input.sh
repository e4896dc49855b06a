#!/usr/bin/env bash
# `CTRLModel` multiplies the `inputs_embeds` that it is given by the root of its width in place: a
# second forward with the same tensor reads another input and gives something else.
# Seen with transformers 5.23.0, torch 2.13.0.
# Why it matters: whoever computes embeddings once and reads them twice (two students, an
# adversarial step, a retry) gets wrong numbers, no error. Giving a `.clone()` mends it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3 numpy==2.4.6
HOME=$folder HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import sys
import torch, transformers
from transformers import CTRLConfig, CTRLModel

print("transformers", transformers.__version__, "torch", torch.__version__)
torch.manual_seed(0)
config = CTRLConfig(vocab_size=10, n_positions=8, n_embd=16, dff=16, n_layer=1, n_head=2)
model = CTRLModel(config).eval()
with torch.no_grad():
    embeddings = model.get_input_embeddings()(torch.tensor([[1, 2, 3]]))
    given = embeddings.clone()
    first = model(inputs_embeds=given, use_cache=False).last_hidden_state
    factor = round((given / embeddings).mean().item(), 3)
    second = model(inputs_embeds=given, use_cache=False).last_hidden_state
    cloned = model(inputs_embeds=embeddings.clone(), use_cache=False).last_hidden_state
differences = [round((first - other).abs().max().item(), 3) for other in (second, cloned)]
print(f"width 16: after one forward the tensor that was given is {factor} times what it was")
print("largest difference to a second forward: {} with the same tensor, {} with a clone".format(*differences))
found = factor, differences[0] > 0.1, differences[1] == 0
sys.exit(found != (4.0, True, True))
PYTHON
