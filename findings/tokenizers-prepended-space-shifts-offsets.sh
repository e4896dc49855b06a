#!/usr/bin/env bash
# A space that a normalizer puts before a text (`Prepend`) and a ByteLevel post-processor that trims
# offsets: with add_prefix_space off, the first token's offsets lack the first letter of the text.
# Seen with tokenizers 0.23.3.
# Why it matters: spans of entities that are read from a model saved so begin a letter too late.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet tokenizers==0.23.3
venv/bin/python - <<'PYTHON'
import sys
from importlib.metadata import version

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

text = "Ann sang"
found = {}
for adds in (False, True):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([" Ann sang"] * 20, trainer)
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True, add_prefix_space=adds)
    encoding = tokenizer.encode(text)
    start, stop = encoding.offsets[0]
    found[adds] = text[start:stop]
    print(f"add_prefix_space={adds}: token {encoding.tokens[0]!r} at {start}:{stop}, {found[adds]!r}")
print("tokenizers", version("tokenizers"))
sys.exit(list(found.values()) != ["nn", "Ann"])
PYTHON
