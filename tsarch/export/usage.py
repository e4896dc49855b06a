"""How an exported folder is used, as its card says it: code to be copied."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from tsarch.data.tokenizer import label_token

if TYPE_CHECKING:
    from tsarch.export.models import TrainedModels

_INPUTS = {
    "ner": '["Ada Lovelace met Charles Babbage in London."]',
    "classification": '["The ship left on Monday."]',
    "relation": '[{"tokens": ["The", "engine", "drives", "a", "pump"], "head": [1, 2], '
    '"tail": [4, 5]}]',
    "qa": '[{"context": "The bridge was opened in 1937.", "question": "When was it opened?"}]',
    "translation": '["Good morning."]',
    "summarization": '["A long text …"]',
    "dialogue": '[{"history": ["Hello!"]}]',
}


def usage(models: TrainedModels, parts: Collection[str]) -> str:
    """Python, command line, HTTP; and without tsarch what can be used so."""
    task = models.task_file.task
    text = [
        "```python\nimport tsarch\n\n"
        f'pair = tsarch.load("FOLDER")\nprint(pair.predict({_INPUTS[task]}))\n```',
        "`FOLDER` is this folder, or its name on the hub. On the command line, and over HTTP:",
        "```console\n$ tsarch predict FOLDER --input texts.txt --output answers.jsonl\n"
        "$ tsarch serve FOLDER\n```",
    ]
    if any(part.startswith("onnx") for part in parts):
        text.append(
            "Without torch, by onnxruntime:\n\n```python\n"
            'pair = tsarch.load("FOLDER", backend="onnx")\n```'
        )
    plain = [part for part in ("teacher/", "student_alone/") if part in parts]
    if plain:
        text.append("Without tsarch, " + _plain(models, plain[-1].rstrip("/")))
    return "\n\n".join(text)


def _plain(models: TrainedModels, part: str) -> str:
    task = models.task_file.task
    if models.is_generative:
        return _GENERATIVE.format(part=part)
    if task == "ner":
        return _NER.format(part=part)
    if task == "qa":
        return _QA.format(part=part)
    token = models.blueprint.tokenizer().convert_ids_to_tokens(
        label_token(models.blueprint.tokenizer())
    )
    if task == "classification" and not models.blueprint.causal_stages:
        return _VOTES.format(part=part, token=token)
    return _LABEL.format(part=part, token=token)


_NER = """as an ordinary model of transformers. A word's tag is that of its first token:

```python
from transformers import pipeline

tag = pipeline("token-classification", model="FOLDER/{part}", ignore_labels=[])
words = ["Ada", "Lovelace", "met", "Charles", "Babbage", "in", "London", "."]
starts = [sum(len(word) + 1 for word in words[:n]) for n in range(len(words))]
found = {{token["start"]: token["entity"] for token in reversed(tag(" ".join(words)))}}
print([(word, found[start]) for word, start in zip(words, starts)])
```

`aggregation_strategy="first"` with `is_split_into_words=True` gives whole entities by nearly the
same rule; an I- tag that no entity of its type stands before begins one there, and none here.
The student reads a sentence at a time, without special tokens, which its tokenizer adds none of.
"""
_LABEL = """as an ordinary model of transformers for tokens: the label is read at the token
`{token}` that stands for it (`tsarch.data.packing.pack_rows` says where).

```python
from transformers import AutoModelForTokenClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER/{part}")
model = AutoModelForTokenClassification.from_pretrained("FOLDER/{part}")
```
"""
_VOTES = """as an ordinary model of transformers for tokens: `{token}` stands before the text, and
it and up to four of the text's words, at even distances, vote on the label, a word at its first
token:

```python
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER/{part}")
model = AutoModelForTokenClassification.from_pretrained("FOLDER/{part}")
text = "The ship left on Monday."
encoded = tokenizer("{token}" + text, return_tensors="pt", return_offsets_mapping=True)
offsets = encoded.pop("offset_mapping")[0].tolist()
said = model(**encoded).logits[0].argmax(-1).tolist()
```
"""
_QA = """as an ordinary model of transformers. The answer is the span of the passage with the
highest `start_logits[i] + end_logits[j]`, i ≤ j < i + 30; below 0, none is likelier:

```python
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER/{part}")
model = AutoModelForQuestionAnswering.from_pretrained("FOLDER/{part}")
said = model(**tokenizer("When was it opened?", "It was opened in 1937.", return_tensors="pt"))
```
"""
_GENERATIVE = """as an ordinary language model of transformers:

```python
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER/{part}")
```
"""
