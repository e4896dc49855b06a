#!/usr/bin/env bash
# One short text switches a BigBird with block-sparse attention to full attention for good: what the
# same model object makes of a long text differs before and after, though its config says the same.
# Seen with transformers 5.23.0, torch 2.13.0 (a warning tells of the switch, not that it stays).
# Why it matters: results depend on which texts came before, and long texts need the memory of full
# attention. `model.set_attention_type("block_sparse")` before each batch mends it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3 numpy==2.4.6
HOME=$folder HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import sys
import torch, transformers
from transformers import BigBirdConfig, BigBirdModel

print("transformers", transformers.__version__, "torch", torch.__version__)
torch.manual_seed(0)
config = BigBirdConfig(
    vocab_size=100, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
    max_position_embeddings=128, attention_type="block_sparse", block_size=4, num_random_blocks=1,
    initializer_range=0.5,
)
model = BigBirdModel(config).eval()
long = torch.randint(3, 100, (1, 96))


@torch.no_grad()
def hidden(ids):
    return model(ids).last_hidden_state


first, again = hidden(long), hidden(long)
kinds = [model.attention_type]
hidden(long[:, :8])
kinds.append(model.attention_type)
after = hidden(long)
kept = model.config.attention_type
model.set_attention_type("block_sparse")
mended = hidden(long)
print("attention: {} before a text of 8 ids, {} after; config: {}".format(*kinds, kept))
print("largest difference in the hidden states of a text of 96 ids:")
differences = [(first - other).abs().max().item() for other in (again, after, mended)]
print("{:.4f} read twice, {:.4f} after the short text, {:.4f} set back".format(*differences))
found = kinds, kept, [difference > 0.01 for difference in differences]
sys.exit(found != (["block_sparse", "original_full"], "block_sparse", [False, True, False]))
PYTHON
