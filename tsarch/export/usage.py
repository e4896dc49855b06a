"""How an exported folder is used, as its card says it: code to be copied."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from tsarch.data.passages import pair_specials
from tsarch.data.text_places import UNSPACED
from tsarch.data.tokenizer import label_token, special_tokens, word_lead
from tsarch.tasks.relation import HEAD_MARK, TAIL_MARK

if TYPE_CHECKING:
    from tsarch.export.models import TrainedModels

_INPUTS = {
    "ner": '["Ada Lovelace met Charles Babbage in London."]',
    "classification": '["The ship left on Monday."]',
    "relation": '[{"tokens": ["The", "engine", "drives", "a", "pump"], "head": [1, 2], '
    '"tail": [4, 5]}]',
    "ranking": '[{"query": "When was it opened?", "passage": "The bridge was opened in 1937."}]',
    "multiple_choice": '[{"question": "a wheel is a part of", "choices": ["a car", "a song"]}]',
    "qa": '[{"context": "The bridge was opened in 1937.", "question": "When was it opened?"}]',
    "translation": '["Good morning."]',
    "summarization": '["A long text …"]',
    "dialogue": '[{"history": ["Hello!"]}]',
    "code": '[{"description": "Return the larger number.", "start": "def larger(a, b):"}]',
}


def usage(models: TrainedModels, parts: Collection[str]) -> str:
    """Python, command line, HTTP; and without tsarch what can be used so."""
    task = models.task_file.task
    text = [
        "```python\nimport tsarch\n\n"
        f'pair = tsarch.load("FOLDER")\nprint(pair.predict({_INPUTS[task]}))\n```',
        "`FOLDER` is this folder; `tsarch.load` takes its name on the hub too. On the command "
        "line, and over HTTP:",
        f"```console\n$ tsarch predict FOLDER --input {_file(task)} --output answers.jsonl\n"
        "$ tsarch serve FOLDER\n```",
    ]
    if any(part.startswith("onnx") for part in parts):
        text.append(
            "Without torch, by onnxruntime:\n\n```python\n"
            'pair = tsarch.load("FOLDER", backend="onnx")\n```'
        )
    plain = [part for part in ("teacher/", "student_alone/") if part in parts]
    if plain:
        best = plain[0] if models.is_generative else plain[-1]
        text.append("Without tsarch, " + _plain(models, best.rstrip("/")))
    return "\n\n".join(text)


def _file(task: str) -> str:
    """Texts where they can be inputs, else rows."""
    return "texts.txt" if _INPUTS[task].startswith('["') else "rows.jsonl"


def _plain(models: TrainedModels, part: str) -> str:
    task = models.task_file.task
    if models.is_generative:
        return _writing(models, part)
    if task == "multiple_choice":
        return _CHOICE.format(part=part)
    if task == "ner":
        return _NER.format(part=part)
    if task == "qa":
        return _QA.format(part=part)
    return _labelling(models, part)


def _labelling(models: TrainedModels, part: str) -> str:
    """How a row's label is read, with the run's own tokens around it."""
    tokenizer, is_last = models.blueprint.tokenizer(), bool(models.blueprint.causal_stages)
    label = label_token(tokenizer)
    before, after = special_tokens(tokenizer) if part == "teacher" else ([], [])
    known = {
        "part": part,
        "token": tokenizer.convert_ids_to_tokens(label),
        "label": label,
        "before": before,
        "after": after,
    }
    if models.task_file.task == "ranking":
        between = pair_specials(tokenizer)[0].between
        ids = f"[{label}] + query + {between} + passage"
        order, place = f"`{known['token']}` stands before query and passage", len(before)
        if is_last:
            ids = f"passage + {between} + query + [{label}]"
            order, place = f"`{known['token']}` stands after passage and query", -1 - len(after)
        is_asked = models.blueprint.task.query == "student"
        votes = "" if is_asked else ", and so do up to four words, whose mean tsarch takes"
        return _RANKING.format(**known, ids=ids, order=order, place=place, votes=votes)
    if models.task_file.task == "classification":
        batches, around = models.blueprint.batches, len(before) + len(after)
        room = batches.context_tokens if part == "teacher" else models.blueprint.window_tokens
        letters = UNSPACED.pattern[1:-1].encode("unicode_escape").decode()
        template = _LAST if is_last else _VOTES
        return template.format(**known, most=room - around - 1, unspaced=letters)
    return _RELATION.format(
        **known,
        head=HEAD_MARK,
        tail=TAIL_MARK,
        where="behind the last of them" if is_last else "before the first of them",
        place="max(stop for (_, stop), _ in spans) + 4"
        if is_last
        else "min(start for (start, _), _ in spans)",
    )


def _writing(models: TrainedModels, part: str) -> str:
    """How the teacher is asked, with the run's own tokens around a source."""
    from tsarch.export.language import target_frame

    frame = target_frame(models)
    if part != "teacher" and models.teacher is not None:
        return _WINDOWS.format(part=part)
    assert models.teacher is not None or models.student is not None
    is_seq2seq = models.teacher is not None and models.teacher.is_seq2seq
    after = list(frame.suffix) if is_seq2seq else [*frame.suffix, frame.start]
    return _TEXTS.format(
        part=part,
        kind="AutoModelForSeq2SeqLM" if is_seq2seq else "AutoModelForCausalLM",
        before=list(frame.prefix),
        after=after,
        lead=word_lead(models.blueprint.tokenizer()),
        skip="[1:]" if is_seq2seq else "[len(ids):]",
    )


_NER = """as an ordinary model of transformers. A word's tag is that of its first token:

```python
from bisect import bisect
from itertools import accumulate

from transformers import pipeline

tag = pipeline("token-classification", model="FOLDER/{part}", ignore_labels=[])
words = ["Ada", "Lovelace", "met", "Charles", "Babbage", "in", "London", "."]
stops = [stop - 1 for stop in accumulate(len(word) + 1 for word in words)]
tokens = reversed(tag(" ".join(words)))
tags = {{bisect(stops, token["start"]): token["entity"] for token in tokens}}
print([(word, tags.get(number)) for number, word in enumerate(words)])  # None: was cut off
```

`aggregation_strategy="first"` with `is_split_into_words=True` gives whole entities by nearly the
same rule; an I- tag that no entity of its type stands before begins one there, and none here.
The student reads a sentence at a time, without special tokens, which its tokenizer adds none of.
"""
_RELATION = """as an ordinary model of transformers for tokens. Marks stand around both entities,
and the label is read at the token `{token}`, which stands {where}:

```python
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER/{part}")
model = AutoModelForTokenClassification.from_pretrained("FOLDER/{part}")
words = ["The", "engine", "drives", "a", "large", "pump", "."]
spans = [((1, 2), "{head}"), ((5, 6), "{tail}")]  # head, tail
marked = []
for number in range(len(words) + 1):
    marked += [mark for (_, stop), mark in spans if stop == number]
    marked += [mark for (start, _), mark in spans if start == number]
    marked += words[number : number + 1]
place = {place}


def tokens(words):
    return tokenizer(" ".join(words), add_special_tokens=False).input_ids if words else []


before = {before} + tokens(marked[:place])
ids = before + [{label}] + tokens(marked[place:]) + {after}
said = model(torch.tensor([ids])).logits.detach()[0, len(before)].softmax(-1)
print(model.config.id2label[int(said.argmax())], float(said.max()))
```
"""
_LAST = """as an ordinary model of transformers for tokens: the label is read at the token `{token}`
behind the text. Of a text that is longer than the model reads, this reads the end, and
`tsarch.load` all:

```python
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER/{part}")
model = AutoModelForTokenClassification.from_pretrained("FOLDER/{part}")
text = "The ship left on Monday."
before = {before} + tokenizer(text, add_special_tokens=False).input_ids[-{most}:]
ids = before + [{label}] + {after}
said = model(torch.tensor([ids])).logits.detach()[0, len(before)].softmax(-1)
print(model.config.id2label[int(said.argmax())], float(said.max()))
```
"""
_VOTES = """as an ordinary model of transformers for tokens: `{token}` stands before the text, and
it and up to four of the text's words, at even distances, vote on the label, a word at its first
token. Of a text that is longer than the model reads, this reads the start, and `tsarch.load` all:

```python
import re
from bisect import bisect

import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER/{part}")
model = AutoModelForTokenClassification.from_pretrained("FOLDER/{part}")
text = "The ship left on Monday."
encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
ids, spans = encoded.input_ids[:{most}], encoded.offset_mapping[:{most}]
unspaced = r"{unspaced}"  # scripts without spaces: words are tokens
words = [own.start() for own in re.finditer(rf"\\s*([{{unspaced}}]|[^\\s{{unspaced}}]+)", text)]
starts, last = [], -1  # tokens at which words start; the word of the last character so far
for number, (start, stop) in enumerate(spans):
    if bisect(words, start) > last:
        starts.append(number)
    stop = start + len(text[start:stop].rstrip())
    last = max(last, bisect(words, max(start, stop - 1)))
size = min(len(starts), 4)
places = [0] + [starts[n * len(starts) // size] + 1 for n in range(size)]
ids = {before} + [{label}] + ids + {after}
said = model(torch.tensor([ids])).logits.detach()[0, len({before}) :].softmax(-1)[places]
votes = said.argmax(-1).tolist()
label = max(votes, key=votes.count)
print(model.config.id2label[label], float(said[:, label].mean()))
```
"""
_RANKING = """as an ordinary model of transformers for tokens: {order}. There it says the
grade{votes}:

```python
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER/{part}")
model = AutoModelForTokenClassification.from_pretrained("FOLDER/{part}")
texts = "When was it opened?", "The bridge was opened in 1937."
query, passage = (tokenizer(own, add_special_tokens=False).input_ids for own in texts)
ids = {before} + {ids} + {after}
said = model(torch.tensor([ids])).logits.detach()[0, {place}].softmax(-1).tolist()
print(sum(int(model.config.id2label[n]) * own for n, own in enumerate(said)))
```
"""
_CHOICE = """as an ordinary model of transformers for tokens, in `FOLDER/{part}`: it reads the
question and then each choice behind a `*`, and a choice is as likely as `right` is at its first
token.
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
_TEXTS = """as an ordinary language model of transformers; the numbers are the tokens that stand
around a source (a dialogue's turns have the first of those behind it between them):

```python
import torch
from transformers import {kind}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER/{part}")
model = {kind}.from_pretrained("FOLDER/{part}")
source = "{lead}" + "Good morning."
ids = {before} + tokenizer(source, add_special_tokens=False).input_ids + {after}
(found,) = model.generate(torch.tensor([ids]), do_sample=False)
print(tokenizer.decode(found{skip}, skip_special_tokens=True))
```
"""
_WINDOWS = """as an ordinary language model of transformers, which reads targets alone, in blocks
of the student's window:

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("FOLDER/{part}")
```
"""
