#!/usr/bin/env bash
# `pipeline("token-classification")` with `aggregation_strategy="first"` takes punctuation into the
# entity, `Rome,` for `Rome`, where the tokenizer is not WordPiece (SentencePiece: XLM-R, DeBERTa,
# …), and loses an entity in brackets altogether; "simple" with the same model does not.
# Seen with transformers 5.23.0, tokenizers 0.23.3, torch 2.13.0.
# Why it matters: "first" is what is advised for word-level labels; exact matches then count as wrong.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3 numpy==2.4.6
HOME=$folder HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON' 2>errors.txt || { status=$?; cat errors.txt >&2; exit $status; }
import sys
import tokenizers, torch, transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast, pipeline

print("transformers", transformers.__version__, "tokenizers", tokenizers.__version__)
TEXTS = ("I saw Rome, not Oslo.", "I saw (Oslo).")
PIECES = {
    "WordPiece": ["[UNK]", "[PAD]", "I", "saw", "not", "Ro", "##me", "Oslo", "(", ")", ",", "."],
    "Unigram": ["[UNK]", "[PAD]", "▁I", "▁saw", "▁not", "▁Ro", "me", "▁Oslo", "Oslo", "▁(", ")",
                ",", "."],
}


def make_tokenizer(kind):
    if kind == "WordPiece":
        vocabulary = {piece: i for i, piece in enumerate(PIECES[kind])}
        own = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        own.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    else:
        own = Tokenizer(models.Unigram([(piece, -1.0) for piece in PIECES[kind]], unk_id=0))
        own.pre_tokenizer = pre_tokenizers.Metaspace()
        own.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=own, unk_token="[UNK]", pad_token="[PAD]")


def make_model(pieces):
    """Labels every piece of Rome and Oslo PLACE and every other one O, by a table."""
    config = BertConfig(vocab_size=len(pieces), hidden_size=len(pieces), num_hidden_layers=0,
                        num_attention_heads=1, id2label={0: "O", 1: "PLACE"})
    model = BertForTokenClassification(config).eval()
    table = model.bert.embeddings
    with torch.no_grad():
        table.word_embeddings.weight.copy_(10 * torch.eye(len(pieces)))
        table.position_embeddings.weight.zero_()
        table.token_type_embeddings.weight.zero_()
        model.classifier.weight.zero_()
        for i, piece in enumerate(pieces):
            is_place = piece.strip("▁#") in ("Ro", "me", "Oslo")
            model.classifier.weight[int(is_place), i] = 3.0
    return model


def places(kind, strategy):
    pipe = pipeline("token-classification", model=make_model(PIECES[kind]),
                    tokenizer=make_tokenizer(kind), aggregation_strategy=strategy)
    found = [[t[e["start"]:e["end"]].strip() for e in pipe(t)] for t in TEXTS]
    print(f"{kind}, {strategy}: {found}")
    return found


right = [["Rome", "Oslo"], ["Oslo"]]
expected = {"WordPiece": (right, right), "Unigram": (right, [["Rome,", "Oslo."], []])}
found = {kind: (places(kind, "simple"), places(kind, "first")) for kind in PIECES}
sys.exit(found != expected)
PYTHON
