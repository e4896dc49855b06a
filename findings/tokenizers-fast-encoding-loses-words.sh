#!/usr/bin/env bash
# `Tokenizer.encode_batch_fast` promises less than `encode_batch` (no offsets), but loses more: of
# words split beforehand `word_ids` are all None and `tokens` empty texts, without an error.
# Seen with tokenizers 0.23.3.
# Why it matters: labels of words are found by word_ids; all of them are then silently left out.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet tokenizers==0.23.3 numpy==2.4.6
HOME=$folder HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import sys
import tokenizers
from tokenizers import Tokenizer, models, pre_tokenizers

print("tokenizers", tokenizers.__version__)
vocabulary = {"[UNK]": 0, "Ada": 1, "met": 2, "Bab": 3, "##bage": 4}
tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
words = ["Ada", "met", "Babbage"]
found = []
for encode in (tokenizer.encode_batch, tokenizer.encode_batch_fast):
    (encoding,) = encode([words], is_pretokenized=True)
    found.append((encoding.ids, encoding.word_ids, encoding.tokens))
    print(f"{encode.__name__}: ids {encoding.ids}, words {encoding.word_ids}, tokens {encoding.tokens}")
ids = [1, 2, 3, 4]
slow = (ids, [0, 1, 2, 2], ["Ada", "met", "Bab", "##bage"])
sys.exit(found != [slow, (ids, [None] * 4, [""] * 4)])
PYTHON
