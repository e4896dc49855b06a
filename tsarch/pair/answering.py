"""A pair answers the rows of a split: contexts are read once, windows fed from them or alone, and
the scores of a mode are decoded to the task's answers. Labels are not needed."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from tsarch.config import Mode
from tsarch.data.loader import evaluation_batches
from tsarch.data.partition import context_tokens, context_windows
from tsarch.data.replica_arrays import WindowBatch
from tsarch.pair.states import Numbers, Reads, States, Window
from tsarch.records import FloatArray, IntArray, Predictions, TokenizedSplit
from tsarch.tasks.answers import Answer
from tsarch.tasks.base import AnsweringTask
from tsarch.tasks.collect import Collector, ContextOutputs, WindowOutputs

_KEPT_BYTES = 256 << 20
"""Of the teacher's states of contexts that are kept between two looks at them; what is beyond is
read again."""
_NONE: Any = None
"""Labels and table, which answers aren't made from."""


class StateStore(Protocol):
    """Keeps what the teacher makes of contexts, as long as it likes."""

    def get(self, context: bytes) -> States | None:
        """What was put there, if it is still kept."""

    def put(self, context: bytes, states: States) -> None:
        """Keep states of a context."""


class Answering:
    """Answers of a pair.

    Args:
        window_tokens: of a window at most, where the task chooses windows.
        num_windows: windows a row, where the task chooses windows.
        joint_weight: weight of the teacher in `joint`.
        batch_tokens: padded tokens of the contexts that are read at a time.
        halves: (`contexts`, `windows`) of the whole pair, where `pair` is one half of it and the
            teacher's states come from elsewhere; None: `pair` is whole.
        is_scored: whether the student's scores of the states choose the windows.
    """

    def __init__(
        self,
        pair: Reads,
        task: AnsweringTask,
        window_tokens: int,
        num_windows: int = 2,
        joint_weight: float = 0.5,
        batch_tokens: int = 4096,
        halves: Collection[str] | None = None,
        is_scored: bool = False,
    ) -> None:
        self._pair = pair
        self.is_scored = is_scored
        """See above."""
        self._has_teacher = pair.has_teacher if halves is None else "contexts" in halves
        self._has_student = pair.has_student if halves is None else "windows" in halves
        self._task = task
        self.window_tokens = window_tokens
        self._num_windows = num_windows
        self._joint_weight = joint_weight
        self._batch_tokens = batch_tokens
        self.store: StateStore | None = None
        """Where states of contexts are looked for before the teacher reads them, and put then."""

    def states(self, split: TokenizedSplit) -> list[States]:
        """What the teacher makes of every context, to be kept for `answers`."""
        found: dict[int, States] = {}
        for own, states in self._contexts(split, {}):
            found |= dict(zip(own, states, strict=True))
        return [found[context] for context in range(split.num_contexts)]

    def read_missing(
        self, split: TokenizedSplit, known: Container[bytes]
    ) -> Iterator[tuple[bytes, States]]:
        """Key (`context_key`) and states of every context that isn't `known`, each once; a batch is
        read when it is asked for."""
        keys = {context_key(split, context): context for context in range(split.num_contexts)}
        missing = {context: key for key, context in keys.items() if key not in known}
        for context, states in self.states_of(split, list(missing)):
            yield missing[context], states

    def states_of(
        self, split: TokenizedSplit, contexts: Sequence[int]
    ) -> Iterator[tuple[int, States]]:
        """What the teacher makes of some contexts, in some order; a batch is read when it is asked
        for."""
        numbers = np.array(contexts, dtype=np.int64)
        for batch in evaluation_batches(split.context_lengths[numbers], self._batch_tokens):
            own = numbers[batch].tolist()
            yield from zip(own, self._encode(split, own), strict=True)

    def answers(
        self, split: TokenizedSplit, mode: Mode, states: Sequence[States] | None = None
    ) -> list[tuple[Answer, ...]]:
        """Answers to every row of `split.rows` (see `AnsweringTask.answers`).

        Args:
            states: of the contexts, where the teacher has read them already.
        """
        return self._task.answers(split, self.scores(split, mode, states))

    def scores(
        self, split: TokenizedSplit, mode: Mode, states: Sequence[States] | None = None
    ) -> FloatArray:
        """(num_words, …) of a mode, as `AnsweringTask.score_collector` keeps them; 0 for words that
        are in no window."""
        has_states = self._pair.has_teacher or states is not None
        needed = (self.reads_contexts(mode), mode != "teacher")
        has = (has_states, self._pair.has_student)
        assert not any(n > h for n, h in zip(needed, has)), f"this pair has no mode {mode}"
        kept = {} if states is None else dict(enumerate(states))
        found = self._predictions(split, mode, kept)
        said = getattr(found, mode)
        assert said is not None
        own: FloatArray = said[0] if mode == "joint" else said
        scores = np.zeros((split.num_words, *own.shape[1:]), dtype=own.dtype)
        scores[found.words] = own
        return scores

    def reads_contexts(self, mode: Mode) -> bool:
        """Whether a mode needs the teacher's states: `student_alone` too, where the teacher finds
        the windows to read."""
        finds = self._teacher_finds or self.is_scored
        return mode != "student_alone" or (
            self._task.window_choice is not None and self._has_student and finds
        )

    @property
    def _teacher_finds(self) -> bool:
        """Whether the teacher reads what is asked, and so can find the windows."""
        return self._has_teacher and self._task.query == "both"

    def _predictions(
        self, split: TokenizedSplit, mode: Mode, kept: Mapping[int, States]
    ) -> Predictions:
        choice = self._task.window_choice
        collector = self._task.score_collector(self._joint_weight)
        if choice is None or not self._has_student:
            return self._read(split, collector, mode, kept)
        again = _Bounded(kept, _KEPT_BYTES if mode in ("student", "joint") else 0)
        if not self._teacher_finds:
            tiles = split.with_windows(choice.tiles(split, self.window_tokens))
            if not self.is_scored:
                return self._read(tiles, collector, mode, kept)
            scores = self._scores_of(tiles, again)
            windows = choice.likely(split, scores, self.window_tokens, self._num_windows)
            found = self._read(split.with_windows(windows), collector, mode, again.kept)
            return choice.inside(split.num_words, [found])
        for own, states in self._contexts(split, kept):
            self._collect_contexts(collector, split, own, states)
            again.keep(own, states)
        teacher = collector.result().teacher
        assert teacher is not None
        windows = choice.windows(split, teacher, self.window_tokens, self._num_windows)
        if mode == "teacher":
            return choice.complete(teacher, [], [self._joint_weight])
        collector = self._task.score_collector(self._joint_weight)
        chosen = self._read(split.with_windows(windows), collector, mode, again.kept)
        return choice.complete(teacher, [chosen], [self._joint_weight])

    def _scores_of(self, split: TokenizedSplit, states: _Bounded) -> FloatArray:
        """(num_words, 1) how likely an answer stands at each word of all windows, by states that
        are kept, or kept now."""
        scores = np.zeros((split.num_words, 1), dtype=np.float32)
        for own, read in self._contexts(split, states.kept):
            asked = _windows_of(split, own, read)
            said_of = self._pair.survey([window for window, _, _ in asked])
            for (_, words, _), said in zip(asked, said_of, strict=True):
                is_word = words >= 0
                scores[words[is_word], 0] = said[is_word]
            states.keep(own, read)
        return scores

    def _read(
        self,
        split: TokenizedSplit,
        collector: Collector,
        mode: Mode,
        kept: Mapping[int, States],
    ) -> Predictions:
        """What a mode reads: contexts, windows, or both."""
        if mode == "student_alone":
            for batch in evaluation_batches(split.context_lengths, self._batch_tokens):
                self._collect_windows(collector, split, batch.tolist(), None)
            return collector.result()
        for own, states in self._contexts(split, kept):
            if mode == "teacher":
                self._collect_contexts(collector, split, own, states)
            else:
                self._collect_windows(collector, split, own, states)
        return collector.result()

    def _contexts(
        self, split: TokenizedSplit, kept: Mapping[int, States]
    ) -> Iterator[tuple[list[int], list[States]]]:
        """Contexts, some at a time, with their states: those that were kept, or read now."""
        for batch in evaluation_batches(split.context_lengths, self._batch_tokens):
            own = batch.tolist()
            missing = [context for context in own if context not in kept]
            read = dict(zip(missing, self._states(split, missing), strict=True))
            yield own, [self._pair.own(read[c] if c in read else kept[c]) for c in own]

    def _states(self, split: TokenizedSplit, own: list[int]) -> list[States]:
        if not own:
            return []
        return self._encode(split, own) if self.store is None else self._kept(split, own)

    def _encode(self, split: TokenizedSplit, own: list[int]) -> list[States]:
        places = [context_tokens(split, context) for context in own]
        types = [split.types_at(at) for at in places]
        return self._pair.encode([split.token_ids[at] for at in places], types=types)

    def _kept(self, split: TokenizedSplit, own: list[int]) -> list[States]:
        """The states of some contexts, of which the store's needn't be read."""
        store = self.store
        assert store is not None
        keys = [context_key(split, context) for context in own]
        looked_up = {key: store.get(key) for key in dict.fromkeys(keys)}
        found = {key: states for key, states in looked_up.items() if states is not None}
        missing = {key: c for key, c in zip(keys, own, strict=True) if key not in found}
        read = self._encode(split, list(missing.values())) if missing else []
        for key, states in zip(missing, read, strict=True):
            found[key] = states.copied()
            store.put(key, found[key])
        return [found[key] for key in keys]

    def _collect_contexts(
        self, collector: Collector, split: TokenizedSplit, own: list[int], states: list[States]
    ) -> None:
        for context, read in zip(own, states, strict=True):
            words = split.words[context_tokens(split, context)]
            found = ContextOutputs(words[None], _NONE, read.predictions[None], _NONE)
            collector.add_contexts(found)

    def _collect_windows(
        self,
        collector: Collector,
        split: TokenizedSplit,
        own: list[int],
        states: list[States] | None,
    ) -> None:
        """Let the student read all windows of some contexts, alone and, with `states`, fed."""
        asked = _windows_of(split, own, states)
        if not asked:
            return
        found = self._pair.read([window for window, _, _ in asked])
        for (_, words, teacher), said in zip(asked, found, strict=True):
            collector.add(self._outputs(words, said, teacher, states is not None))

    def _outputs(
        self, words: IntArray, student: Numbers, teacher: Numbers | None, is_fed: bool
    ) -> WindowOutputs:
        """One window of (tokens,) words as a collector takes it."""
        rows = np.zeros((1, len(words)), dtype=np.int64)
        one = np.ones(1, dtype=np.int64)
        batch = WindowBatch(
            rows,
            rows + 1,
            words[None],
            rows,
            rows,
            one * int(is_fed),
            one * 0,
            one.astype("f4"),
            one.astype("f4"),
            one,
        )
        return WindowOutputs(
            batch, _NONE, student[None], None if teacher is None else teacher[None], _NONE
        )


class _Bounded:
    """States of contexts, as many as have room beside those that somebody else keeps."""

    def __init__(self, kept: Mapping[int, States], room_bytes: int) -> None:
        self.kept = dict(kept)
        self._room = room_bytes

    def keep(self, own: Sequence[int], states: Sequence[States]) -> None:
        """Keep them if they have room."""
        for context, read in zip(own, states, strict=True):
            if context not in self.kept and read.num_bytes <= self._room:
                self._room -= read.num_bytes
                self.kept[context] = read.copied()


def _windows_of(
    split: TokenizedSplit, own: Sequence[int], states: Sequence[States] | None
) -> list[tuple[Window, IntArray, Numbers | None]]:
    """All windows of some contexts, alone or, with `states`, fed; the words of each, and what the
    teacher says of them."""
    found = []
    for place, context in enumerate(own):
        first = int(split.context_offsets[context])
        for number in context_windows(split, context):
            at, sources = split.window_places(number), split.window_sources(number)
            fed = sources >= 0
            hidden, said = None, None
            if states is not None:
                hidden = states[place].hidden[sources[fed] - first]
                if split.queries is None:
                    said = states[place].predictions[sources - first]
            window = Window(split.token_ids[at], hidden, split.types_at(at), fed)
            found.append((window, split.window_words(number), said))
    return found


def context_key(split: TokenizedSplit, context: int) -> bytes:
    """What the teacher's states of a context follow from, short."""
    at = context_tokens(split, context)
    types = split.types_at(at)
    digest = hashlib.sha256(split.token_ids[at].tobytes())
    digest.update(b"" if types is None else types.tobytes())
    return digest.digest()
