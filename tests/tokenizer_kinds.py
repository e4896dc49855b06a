"""Small tokenizers of the structures that pretrained models have, trained on a few sentences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, trainers
from tokenizers import pre_tokenizers as pre

SENTENCES = [
    "The old mill, by the river, doesn't turn any more.",
    "Nadia's boat was sold for 1950 crowns; nobody knew why!",
    "They walk to the mill and to the river every day.",
    "磨坊在河邊，已經不轉動了。娜迪亞的船賣了一千九百五十克朗。",
    "โรงสีเก่าริมแม่น้ำไม่หมุนอีกแล้ว เรือของนาเดียถูกขายไป",
    "かわのほとりのふるいすいしゃはもううごかない。",
    "낡은 방앗간은 강가에 있고 배는 서울에서 팔렸다.",
] * 4
_SPECIAL = ["<pad>", "<unk>", "<s>", "</s>"]
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_level(pre_tokenizer: Any) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=_SPECIAL,
        initial_alphabet=pre.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(SENTENCES, trainer)
    return backend


def _unigram(pre_tokenizer: Any) -> Tokenizer:
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=_SPECIAL, unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(SENTENCES, trainer)
    return backend


def _spaces_replaced(border: Any, *before: Any) -> Tokenizer:
    """SentencePiece BPE as Gemma (nothing `before`) and Llama 2 have it; `border`: where merges end
    while training."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = border
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=_SPECIAL, show_progress=False)
    backend.train_from_iterator(SENTENCES, trainer)
    backend.pre_tokenizer = pre.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    return backend


def _wordpiece() -> Tokenizer:
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=400, special_tokens=_SPECIAL, show_progress=False
    )
    backend.train_from_iterator(SENTENCES, trainer)
    return backend


_WORDS = pre.Split(Regex("▁?[^▁]+"), "isolated")
_PAIRS = pre.Split(Regex("(▁?[^▁]+){2}"), "isolated")

KINDS: dict[str, Callable[[], Tokenizer]] = {
    "WordPiece (BERT)": _wordpiece,
    "byte-level (RoBERTa, ModernBERT)": lambda: _byte_level(pre.ByteLevel(add_prefix_space=False)),
    "byte-level with its own space": lambda: _byte_level(pre.ByteLevel(add_prefix_space=True)),
    "byte-level after a split (Llama 3, Qwen)": lambda: _byte_level(
        pre.Sequence(
            [pre.Split(Regex(_LLAMA_3), "isolated"), pre.ByteLevel(False, use_regex=False)]
        )
    ),
    "Metaspace always (XLM-R)": lambda: _unigram(
        pre.Sequence([pre.WhitespaceSplit(), pre.Metaspace()])
    ),
    "Metaspace first (Llama)": lambda: _unigram(pre.Metaspace(prepend_scheme="first")),
    "Metaspace never": lambda: _unigram(pre.Metaspace(prepend_scheme="never")),
    "spaces replaced (Gemma, mmBERT)": lambda: _spaces_replaced(_WORDS),
    "spaces replaced, one put before (Llama 2)": lambda: _spaces_replaced(
        _WORDS, normalizers.Prepend("▁")
    ),
    "tokens of two words": lambda: _spaces_replaced(_PAIRS),
}


def fast(backend: Tokenizer) -> Any:
    """As transformers has it when it knows no class of its own for it."""
    from transformers import PreTrainedTokenizerFast

    backend.add_special_tokens([AddedToken(token, normalized=False) for token in _SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
    )
