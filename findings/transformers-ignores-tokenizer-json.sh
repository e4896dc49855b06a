#!/usr/bin/env bash
# `AutoTokenizer` throws away what tokenizer.json says of normalising and splitting, if the config
# names a class such as BertTokenizer (or `model_type: bert` does): only the vocabulary is kept.
# Seen with transformers 5.23.0, tokenizers 0.23.3.
# Why it matters: a tokenizer that keeps case and splits at spaces lower-cases and splits at hyphens
# once it is loaded, so a model reads other ids than it was trained on; no error, no warning.
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
special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]",
           "sep_token": "[SEP]", "mask_token": "[MASK]"}
words = [*special.values(), "Hello", "hello", "well-known", "well", "-", "known"]
own = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
own.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
own.save("tokenizer.json")


def tokens(tokenizer_config, config):
    """What a folder's tokenizer makes of a text, with these lines in its two JSON files."""
    pathlib.Path("tokenizer_config.json").write_text(json.dumps(special | tokenizer_config))
    pathlib.Path("config.json").write_text(json.dumps(config))
    return transformers.AutoTokenizer.from_pretrained(".").tokenize("Hello well-known")


found = [
    own.encode("Hello well-known").tokens,
    tokens({"tokenizer_class": "PreTrainedTokenizerFast"}, {}),
    tokens({"tokenizer_class": "BertTokenizer"}, {}),
    tokens({}, {"model_type": "bert"}),
]
cases = "tokenizer.json itself", "no class of its own", "BertTokenizer", "model_type bert"
for case, tokens_ in zip(cases, found):
    print(f"{case}: {tokens_}")
as_written, as_bert = ["Hello", "well-known"], ["hello", "well", "-", "known"]
sys.exit(found != [as_written, as_written, as_bert, as_bert])
PYTHON
