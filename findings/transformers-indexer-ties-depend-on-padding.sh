#!/usr/bin/env bash
# Sparse attention with an indexer (DeepSeek V3.2, GLM MoE DSA): its scores pass a ReLU, so many are
# equal zeros, and which of equal ones torch.topk takes depends on the row's length. So a text has
# other hidden states beside a longer text than alone, though the mask hides the padding.
# Seen with transformers 5.23.0, torch 2.13.0, in fp32 on CPU, random weights.
# Why it matters: results depend on the batch as soon as a text has over `index_topk` tokens.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3 numpy==2.4.6
HOME=$folder HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import sys
import torch, transformers
from torch.nn.functional import pad
from transformers import DeepseekV32Config, DeepseekV32Model

print("transformers", transformers.__version__, "torch", torch.__version__)
torch.manual_seed(0)
sizes = dict(
    vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=2, q_lora_rank=16, kv_lora_rank=16,
    qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, index_n_heads=1, index_head_dim=16,
    mlp_layer_types=["dense", "dense"],
)
ids = torch.randint(1, 99, (1, 24))
mask = torch.ones_like(ids)


@torch.no_grad()
def apart(most):
    """Largest relative difference of the first 8 tokens' states, and of the rest's."""
    model = DeepseekV32Model(DeepseekV32Config(**sizes, index_topk=most)).eval()
    alone = model(ids, attention_mask=mask, use_cache=False).last_hidden_state
    padded = model(pad(ids, (0, 16)), attention_mask=pad(mask, (0, 16)), use_cache=False)
    difference = (padded.last_hidden_state[:, :24] - alone).abs() / alone.abs().max()
    return difference[:, :8].max().item(), difference[:, 8:].max().item()


few, all_of_them = apart(8), apart(40)
print("a text of 24 ids, alone and padded to 40; largest relative difference of hidden states")
print("index_topk 8:  {:.1g} in the first 8 tokens, {:.1g} in the rest".format(*few))
print("index_topk 40: {:.1g} in the first 8 tokens, {:.1g} in the rest".format(*all_of_them))
zeros = {size: sorted(torch.zeros(size).topk(8).indices.tolist()) for size in (24, 40)}
print("topk(8) of zeros:", "; ".join(f"{size} of them: {taken}" for size, taken in zeros.items()))
found = [few[0] < 1e-4, few[1] > 1e-3, max(all_of_them) < 1e-4, zeros[24] != zeros[40]]
sys.exit(found != [True] * 4)
PYTHON
