"""Tiny generative configs for tests: a tokenizer of 300 tokens, rows that can be learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.helpers import write_jsonl
from tsarch.config import Config
from tsarch.config_loading import parse_config

WORDS = ("red", "green", "blue", "old", "new", "small", "large", "house", "river", "tree", "bird")
TEACHERS: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 3, "n_head": 2, "n_positions": 96},
    "llama": {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 96,
        "tie_word_embeddings": True,
    },
    "mistral": {
        "model_type": "mistral",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 96,
        "sliding_window": 5,
        "tie_word_embeddings": True,
    },
    "mamba": {
        "model_type": "mamba",
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "state_size": 4,
        "tie_word_embeddings": True,
    },
    "lfm2": {
        "model_type": "lfm2",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 96,
        "layer_types": ["conv", "full_attention", "conv"],
        "block_auto_adjust_ff_dim": False,
        "tie_word_embeddings": True,
    },
    "t5": {
        "model_type": "t5",
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": 4,
        "decoder_start_token_id": 0,
    },
    "bart": {
        "model_type": "bart",
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "max_position_embeddings": 96,
        "scale_embedding": True,
        "decoder_start_token_id": 0,
    },
}


def tokenizer_folder(folder: Path) -> Path:
    """A byte-level BPE tokenizer of 300 tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    fast.save_pretrained(folder / "tokenizer")
    return folder / "tokenizer"


def rows(task: str, num_rows: int) -> list[dict[str, Any]]:
    """Sources of one to four words; the target is the same words turned round."""
    made = []
    for number in range(num_rows):
        words = [WORDS[(number * 7 + 3 * place) % len(WORDS)] for place in range(1 + number % 4)]
        source, target = " ".join(words), " ".join(reversed(words))
        if task == "dialogue":
            made.append({"history": ["hello", source], "response": target})
        elif task == "code":
            made.append({"description": source, "start": "def f():", "code": f"return\n{target}"})
        elif task == "summarization":
            made.append({"document": source, "summary": target})
        else:
            made.append({"source": source, "target": target})
    return made


def generative_raw(
    folder: Path, task: str, model: str, **sections: dict[str, Any]
) -> dict[str, Any]:
    """A config of tiny random models, as a mapping."""
    file = str(write_jsonl(folder / "rows.jsonl", rows(task, 24)))
    teacher = {**TEACHERS[model], "vocab_size": 300}
    student: dict[str, Any] = {"layers": [0, 2]}
    if model in ("t5", "bart"):
        student = {"config": {**TEACHERS["gpt2"], "vocab_size": 300}}
    raw: dict[str, Any] = {
        "run": {"name": "tiny", "folder": str(folder / "run")},
        "task": {"name": task, "max_target_tokens": 24},
        "data": {
            **dict.fromkeys(("train", "validation", "test"), file),
            "tokenizer": str(tokenizer_folder(folder)),
            "batch_tokens": 256,
            "cache_folder": str(folder / "cache"),
        },
        "teacher": {"config": teacher, "max_tokens": 64, "dropout": 0.0},
        "student": {**student, "max_tokens": 12, "dropout": 0.0, "alone_weight": 0.5},
        "distillation": {"weight": 0.5},
        "schedule": {"epochs": 2},
        "decoding": {"max_texts": 8, "batch": 5},
        "optimizer": {
            "teacher_learning_rate": 3e-3,
            "student_learning_rate": 3e-3,
            "embedding_learning_rate": 3e-3,
        },
        "topology": {"device": "cpu", "cpus_per_rank": 0.5, "timeout_s": 60.0, "threads": 1},
    }
    for name, section in sections.items():
        raw[name] = {**raw.get(name, {}), **section}
    return raw


def generative_config(folder: Path, task: str, model: str, **sections: dict[str, Any]) -> Config:
    """`generative_raw`, validated."""
    return parse_config(generative_raw(folder, task, model, **sections), "tiny")
