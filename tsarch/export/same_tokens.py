"""Whether an exported tokenizer gives rows the run's tokens, and the run's places in the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tsarch.data.row_tokens import RowTokenizer
from tsarch.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TEXTS = "text", "query", "question", "passage"
"""What rows that aren't given as words have of texts."""
Place = tuple[int, int]


def compare_tokens(
    rows: Sequence[Any], tokens: RowTokenizer, exported: PreTrainedTokenizerBase, source: str
) -> str:
    """In how many rows they are the same, in words.

    Args:
        rows: of a task with labels or spans.
        tokens: the run's tokenizer.
        exported: gets a row's text as a model's user has it, words with a space between them.
        source: where the rows come from, in words.

    Raises:
        UserError: in most they aren't.
    """
    same = sum(all(_is_same(own, tokens, exported) for own in _read(row)) for row in rows)
    if same * 2 < len(rows):
        what = f"gives other tokens than the run's to {len(rows) - same} of {len(rows)} {source}."
        raise UserError.single("its tokenizer", what)
    many = "all" if same == len(rows) else f"{same} of"
    return f"tokens and their places are the run's in {many} {len(rows)} {source}"


def _read(row: Any) -> list[str | Sequence[str]]:
    """A row's words, or its texts."""
    if hasattr(row, "words"):
        return [row.words]
    return [getattr(row, name) for name in _TEXTS if hasattr(row, name)]


def _is_same(
    read: str | Sequence[str], tokens: RowTokenizer, exported: PreTrainedTokenizerBase
) -> bool:
    if isinstance(read, str):
        (placed,) = tokens.placed([read])
        text, ids = read, placed.token_ids
        places: list[Place] = list(zip(placed.starts, placed.stops, strict=True))
    else:
        text = " ".join(read)
        (ids,), _ = tokens.words([read])
        (places,) = tokens.text_spans([text])
    found = exported(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    if found["input_ids"] != ids or len(places) != len(ids):
        return False
    own = zip(places, found["offset_mapping"], strict=True)
    return all(_stand_together(text, a, b) for a, b in own)


def _stand_together(text: str, own: Place, other: Place) -> bool:
    """Whether two tokens start at the same character and have the same ones, spaces left out.

    The first token may be a space that was put before the text, which is none of its characters:
    the run's has none then, the other one the first of the text.
    """
    (start, letters), (other_start, other_letters) = (_bare(text, *each) for each in (own, other))
    return start == other_start and letters in ("", other_letters)


def _bare(text: str, start: int, stop: int) -> tuple[int, str]:
    letters = text[start:stop].lstrip()
    return stop - len(letters), letters.rstrip()
