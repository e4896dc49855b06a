#!/usr/bin/env bash
# `generate` counts the positions of RoBERTa-like decoders from 0, the model's own forward (so also
# training) from padding_idx + 1: greedy generation is not what forwards over the same ids predict.
# Seen with transformers 5.23.0, torch 2.13.0.
# Why it matters: every token is generated two positions away from where it was learned, no warning.
# `position_ids=` counted from padding_idx + 1, given to `generate`, mend it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3 numpy==2.4.6
HOME=$folder HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import sys
import torch, transformers
from transformers import RobertaConfig, RobertaForCausalLM

print("transformers", transformers.__version__, "torch", torch.__version__)
torch.manual_seed(0)
config = RobertaConfig(
    vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
    max_position_embeddings=64, is_decoder=True, bos_token_id=0, pad_token_id=1, eos_token_id=None,
    sep_token_id=None, initializer_range=0.5,
)
model = RobertaForCausalLM(config).eval()
prompt = torch.tensor([[0, 7, 8, 9]])
read = []
model.roberta.embeddings.position_embeddings.register_forward_pre_hook(
    lambda module, inputs: read.extend(inputs[0][0].tolist())
)


def generated(**settings):
    """Six ids that `generate` adds greedily."""
    mask = torch.ones_like(prompt)
    ids = model.generate(prompt, attention_mask=mask, max_new_tokens=6, do_sample=False, **settings)
    return ids[0, prompt.shape[1] :].tolist()


@torch.no_grad()
def predicted():
    """Six ids, each the likeliest after a plain forward over all before it."""
    ids = prompt
    for _ in range(6):
        ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return ids[0, prompt.shape[1] :].tolist()


with torch.no_grad():
    model(prompt)
by_forward, read[:] = read[:], []
by_generate = generated()
positions = by_forward, read[:4]
mended = generated(position_ids=torch.tensor([by_forward]))
by_steps = predicted()
print("positions of the prompt: {} in forward, {} in generate".format(*positions))
print(f"six ids: {by_steps} by forwards, {by_generate} by generate, {mended} with position_ids")
found = positions, by_generate == by_steps, mended == by_steps
sys.exit(found != (([2, 3, 4, 5], [0, 1, 2, 3]), False, True))
PYTHON
