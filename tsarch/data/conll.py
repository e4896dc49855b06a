"""CoNLL files: a word and its tag a line, blank lines between sentences."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

_SEPARATOR = "-DOCSTART-"


def read_conll(path: str) -> Iterator[dict[str, Any]]:
    """Rows `doc_id, sent_id, tokens, tags, line` of a CoNLL file.

    The first column is the word, the last its tag. `-DOCSTART-` or `# newdoc` starts a document;
    a file with neither is one document a sentence.
    """
    document, sentence = 0, 0
    marked = False
    words: list[tuple[str, str]] = []
    start = 1
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate([*lines, ""], 1):
        columns = line.split()
        new_document = line.startswith((_SEPARATOR, "# newdoc"))
        if columns and not new_document and not (line.startswith("#") and len(columns) != 2):
            if not words:
                start = number
            words.append((columns[0], columns[-1]))
            continue
        if words:
            doc_id = str(document) if marked else f"{document}-{sentence}"
            tokens, tags = zip(*words)
            yield {
                "doc_id": doc_id,
                "sent_id": sentence,
                "tokens": list(tokens),
                "tags": list(tags),
                "line": start,
            }
            sentence, words = sentence + 1, []
        if new_document:
            document, sentence, marked = document + 1, 0, True
