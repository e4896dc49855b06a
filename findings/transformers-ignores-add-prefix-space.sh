#!/usr/bin/env bash
# `AutoTokenizer.from_pretrained(…, add_prefix_space=True)` is obeyed where the folder's class is
# GPT2Tokenizer or RobertaTokenizer, and ignored in silence where it is PreTrainedTokenizerFast or
# TokenizersBackend (as ModernBERT's): the attribute says True all the same.
# Seen with transformers 5.23.0, tokenizers 0.23.3.
# Why it matters: words split beforehand (NER) get other ids than the text that they make.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet transformers==5.23.0 tokenizers==0.23.3
HOME=$folder HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import json, pathlib, sys
import tokenizers, transformers
from tokenizers import Tokenizer, models, pre_tokenizers

print("transformers", transformers.__version__, "tokenizers", tokenizers.__version__)
pieces = ["<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "in", "Ġin"]
own = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [("i", "n"), ("Ġ", "in")]))
own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
own.save("tokenizer.json")
pathlib.Path("config.json").write_text("{}")


def tokens(name):
    """(attribute, tokens of two words, tokens of their text) with this class in the config."""
    settings = {"tokenizer_class": name, "unk_token": "<unk>"}
    pathlib.Path("tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = transformers.AutoTokenizer.from_pretrained(".", add_prefix_space=True)
    words = tokenizer(["in", "in"], is_split_into_words=True, add_special_tokens=False)
    text = tokenizer("in in", add_special_tokens=False)
    return tokenizer.add_prefix_space, words.tokens(), text.tokens()


names = "GPT2Tokenizer", "RobertaTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend"
found = {name: tokens(name) for name in names}
for name, (attribute, words, text) in found.items():
    print(f"{name}: add_prefix_space {attribute}; words {words}, text {text}")
spaced = ["Ġin", "Ġin"]
expected = {name: (True, spaced, spaced) for name in names[:2]}
expected |= {name: (True, ["in", "in"], ["in", "Ġin"]) for name in names[2:]}
sys.exit(found != expected)
PYTHON
