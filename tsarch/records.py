"""All that crosses a border between files: tokenised splits, parts of batches, step reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

from tsarch.errors import UserError

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]
Array = NDArray[Any]

IGNORED = -100
"""Label of positions without a word, and of words whose label isn't known."""
SPAN_START, SPAN_END = 1, 2
"""Bits of a word's label where answers are spans: the answer starts here, ends here."""


def int_array(values: Sequence[object]) -> IntArray:
    """Numbers, or sequences of as many numbers each, as an array."""
    return np.array(values, dtype=np.int64)


@dataclass(frozen=True)
class Windows:
    """Windows of a split, in place of those that it has."""

    slices: IntArray
    """(num_windows, 2) as `TokenizedSplit.windows`."""
    offsets: IntArray
    """(num_contexts + 1,) as `TokenizedSplit.window_offsets`."""
    answered: IntArray | None = None
    """(num_windows, 2) as `TokenizedSplit.answered`."""


@dataclass(frozen=True)
class Piece:
    """A passage that is read in several contexts, or the whole of it: the part in one context."""

    places: IntArray
    """(words + 1,) where each word starts in the split's `token_ids`, and where the last ends."""
    bounds: IntArray
    """(words, 2) characters [start, stop) of each word in the passage."""

    @property
    def num_words(self) -> int:
        """Words that are here."""
        return len(self.places) - 1


@dataclass(frozen=True)
class Queries:
    """What only windows have, where the student alone reads what is asked about a context: it
    stands behind the context's tokens, each query with a copy of what it is about."""

    context_stops: IntArray
    """(num_contexts,) where what the teacher reads of each context ends in `token_ids`; from there
    to the next context stand the tokens of its windows."""
    sources: IntArray
    """(num_tokens,) place of the context's token whose state feeds the student at each token; −1:
    none does."""
    context_labels: IntArray
    """(num_tokens,) what the teacher learns of each token, of its own; `IGNORED`: nothing."""


@dataclass(frozen=True)
class Cut:
    """What some rows of a split lose, for one reason."""

    what: str
    """What is left out, in words."""
    rows: tuple[int, ...]
    """Places in `TokenizedSplit.rows`."""
    num_tokens: int
    is_read: bool
    """Whether the teacher reads it, and only the student's windows lack it."""
    spans: tuple[tuple[tuple[int, int], ...], ...] = ()
    """Of each of the `rows` the parts [start, stop) that are left out."""
    of: str = "words"
    """What they count: the row's `words`, or characters of its `question`, `context` or `source`.
    """


@dataclass(frozen=True)
class TokenizedSplit:
    """A split as flat arrays: contexts made of tokens, windows as slices of contexts.

    Words are numbered 0 … num_words − 1 over the whole split, in the order of the rows.
    """

    token_ids: IntArray
    """(num_tokens,) tokens of all contexts, one context after the other."""
    words: IntArray
    """(num_tokens,) number of the word that starts at a token; −1: no word starts here; −2: the
    token is of a word that another context answers for."""
    context_offsets: IntArray
    """(num_contexts + 1,) where each context starts in `token_ids`, and the end."""
    windows: IntArray
    """(num_windows, 2) start and stop of each window in `token_ids`, in order of contexts."""
    window_offsets: IntArray
    """(num_contexts + 1,) where the windows of each context start in `windows`."""
    labels: IntArray
    """(num_words,) label id of every word, `IGNORED` where rows have none."""
    sentence_offsets: IntArray
    """(num_sentences + 1,) where each sentence (row) starts in `labels`. Of a row with one label
    the words are the places that vote on it."""
    cuts: tuple[Cut, ...] = ()
    """What was left out of rows."""
    leads: IntArray | None = None
    """(num_leads, 2) start and stop of what windows have before their own slice (of a question's
    passage: the question), in order: that of a window is the last one before it. None: nothing."""
    rows: tuple[Any, ...] = ()
    """The rows that the sentences are, of the task's own type."""
    pieces: tuple[tuple[Piece, ...], ...] = ()
    """Of rows with a passage: its parts, one a context that it is read in."""
    token_types: IntArray | None = None
    """(num_tokens,) type of each token, for models that tell two texts apart by it; None: all 0."""
    answered: IntArray | None = None
    """(num_windows, 2) start and stop in `token_ids` of what each window answers for, where windows
    overlap; None: all that they have."""
    queries: Queries | None = None
    """None: the teacher reads all that windows have."""

    def window_places(self, window: int) -> IntArray:
        """(num_tokens,) places in `token_ids` of a window's tokens, its lead first."""
        own = np.arange(*self.windows[window])
        if self.leads is None:
            return own
        return np.concatenate([np.arange(*self.lead_before(self.windows[window, 0])), own])

    def window_sources(self, window: int) -> IntArray:
        """(num_tokens,) places in contexts of the tokens whose states feed the `window_places`; −1:
        no state does."""
        places = self.window_places(window)
        return places if self.queries is None else self.queries.sources[places]

    def lead_before(self, place: int) -> IntArray:
        """(2,) start and stop of the lead of a window whose own slice starts at `place`."""
        assert self.leads is not None
        lead: IntArray = self.leads[np.searchsorted(self.leads[:, 0], place, side="right") - 1]
        return lead

    def window_words(self, window: int) -> IntArray:
        """(num_tokens,) words that start at the tokens of `window_places`; of those that the window
        doesn't answer for −1."""
        places = self.window_places(window)
        words = self.words[places]
        if self.answered is None:
            return words
        start, stop = self.answered[window]
        return np.where((places >= start) & (places < stop), words, -1)

    def window_length(self, window: int) -> int:
        """Tokens of a window, its lead among them."""
        start, stop = self.windows[window]
        if self.leads is None:
            return int(stop - start)
        lead_start, lead_stop = self.lead_before(start)
        return int(stop - start + lead_stop - lead_start)

    def context_of(self, window: int) -> int:
        """Context that a window is in."""
        return int(np.searchsorted(self.window_offsets, window, side="right")) - 1

    def with_windows(self, chosen: Windows) -> TokenizedSplit:
        """The same contexts with other windows."""
        return replace(
            self,
            windows=chosen.slices,
            window_offsets=chosen.offsets,
            answered=chosen.answered,
        )

    def labels_of(self, words: IntArray) -> IntArray:
        """(…) word numbers → (…) label ids, `IGNORED` where there is no word."""
        return np.where(words >= 0, self.labels[words], IGNORED)

    def check_labels(self, purpose: str) -> None:
        """Every word must have a label.

        Raises:
            UserError: some have none; `purpose` is what needs them.
        """
        if (self.labels == IGNORED).any():
            hint = "Read them with the columns of their labels."
            raise UserError.single(purpose, "needs labels, which these rows don't have.", hint)

    def labelled(self, contexts: IntArray) -> NDArray[np.bool_]:
        """(n,) which of some contexts have labels that are learned: all, but where text without
        labels is mixed in (`data/mixing.py`)."""
        return np.ones(len(contexts), dtype=np.bool_)

    def types_at(self, places: IntArray) -> IntArray | None:
        """Types of the tokens at places in `token_ids`; None: all 0."""
        return None if self.token_types is None else self.token_types[places]

    @cached_property
    def distinct_tokens(self) -> IntArray:
        """(tokens,) all that there are, sorted."""
        return np.unique(self.token_ids)

    def label_counts(self, num_labels: int) -> IntArray:
        """(num_labels,) how many words have each label."""
        return np.bincount(self.labels[self.labels != IGNORED], minlength=num_labels)

    def lengths_of(self, contexts: IntArray) -> IntArray:
        """(n,) tokens of some contexts."""
        return self.context_stops[contexts] - self.context_offsets[contexts]

    def release(self) -> None:
        """Let go of what has been read of files that it lies in, if it does."""

    @property
    def num_cut_tokens(self) -> int:
        """Tokens of the rows that are in no context."""
        return sum(cut.num_tokens for cut in self.cuts if not cut.is_read)

    @property
    def num_contexts(self) -> int:
        """Number of teacher contexts."""
        return len(self.context_offsets) - 1

    @property
    def num_words(self) -> int:
        """Number of labelled places: words, or the places that vote on a row's label, or the
        predicted tokens of targets."""
        return len(self.labels)

    @property
    def context_lengths(self) -> IntArray:
        """(num_contexts,) tokens of each context."""
        return self.context_stops - self.context_offsets[:-1]

    @property
    def context_stops(self) -> IntArray:
        """(num_contexts,) where the tokens of each context end in `token_ids`."""
        return self.context_offsets[1:] if self.queries is None else self.queries.context_stops


@dataclass(frozen=True)
class LossParts:
    """This rank's share of the global mean losses; adding all ranks' shares gives the means."""

    means: dict[str, float]

    def __add__(self, other: LossParts) -> LossParts:
        names = {**self.means, **other.means}
        return LossParts({n: self.means.get(n, 0.0) + other.means.get(n, 0.0) for n in names})


@dataclass(frozen=True)
class TraceEvent:
    """One instruction that a rank ran."""

    name: str
    """Name of the instruction."""
    kind: str
    """`compute`, `link`, `tied` or `step`."""
    step: int | None
    micro_batch: int | None
    start_s: float
    """Start on the run's clock (`clock.py`)."""
    end_s: float
    wait_s: float
    """Seconds of it in which the rank waited for others."""
    peers: tuple[int, ...] = ()
    """Ranks that a send goes to or a receive takes from."""


@dataclass
class TickReport:
    """What one rank did for one stage in one tick."""

    stage: str
    replica: int
    tick: int
    step: int | None
    """Step (batch) that the stage worked on; None: it only took part in an exchange."""
    losses: LossParts = field(default_factory=lambda: LossParts({}))
    num_tokens: int = 0
    """Real tokens of the step's *global* batch."""
    num_real: int = 0
    """Real tokens that the stage's model read on this rank."""
    num_positions: int = 0
    """Positions that it computed for them, padding included."""
    grad_norm: float | None = None
    """Global gradient norm of the stage before clipping; None: not updated."""
    skipped: bool = False
    """Whether the stage's update was left out, since its loss or gradient was not finite."""
    tied_skipped: bool = False
    """The same of the tied table's update."""
    learning_rate_factor: float = 0.0
    busy_s: float = 0.0
    """Seconds of work, waiting left out."""
    started_s: float = 0.0
    """Start of the first instruction, on the run's clock (`clock.py`)."""
    ended_s: float = 0.0
    """End of the last instruction, on the same clock."""
    link_bytes: int = 0
    tied_bytes: int = 0
    link_s: float = 0.0
    """Seconds of copying to and from the link, waiting left out."""
    link_wait_s: float = 0.0
    """Seconds of waiting for boundary messages."""
    tied_s: float = 0.0
    """Seconds of work on the tied exchange and the table's update, waiting left out."""
    tied_wait_s: float = 0.0
    """Seconds of waiting for the tied embedding's gradient."""
    events: list[TraceEvent] = field(default_factory=list)
    """Every instruction, if the run is traced."""


@dataclass(frozen=True)
class Predictions:
    """What one rank predicted for some words of a split: label ids, or what else a task's
    collector keeps. None: there is no stage that could."""

    words: IntArray
    """(n,) word numbers."""
    teacher: Array | None = None
    """(n, …) from the teacher."""
    student: Array | None = None
    """(n, …) from the student fed by the teacher."""
    student_alone: Array | None = None
    """(n, …) from the student without the teacher."""
    joint: Array | None = None
    """(weights, n, …) from both, for each weight of the teacher that was asked for."""


@dataclass(frozen=True)
class Survey:
    """What one rank said of some words of a split, before windows were chosen."""

    words: IntArray
    """(n,) word numbers."""
    predictions: FloatArray
    """(n, outputs) the teacher's numbers at these words, or (n, 1) scores of a `SliceScorer`."""


@dataclass(frozen=True)
class Message:
    """Name and size of a boundary message; both ends know it from the step's plan."""

    step: int
    micro_batch: int
    source: int
    """Rank (of both stages together) that sends."""
    target: int
    """Rank that receives."""
    num_states: int
    width: int
    """Numbers of each."""

    def nbytes(self, dtype: torch.dtype) -> int:
        """Bytes of the states."""
        return self.num_states * self.width * dtype.itemsize
