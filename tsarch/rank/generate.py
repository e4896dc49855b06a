"""Generates texts on all ranks: teachers and students in step, token by token.

The students choose. What they chose goes to all ranks in one small sum over the tied group, so
that every rank knows which texts go on; only the teachers' rows travel over the link.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tsarch.config import Mode
from tsarch.data.partition import balance
from tsarch.losses.objective import token_logits
from tsarch.parallel.groups import ProcessGroup
from tsarch.parallel.link import Link, Message
from tsarch.parallel.tied_embedding import TiedEmbedding
from tsarch.rank.executor import LocalStages
from tsarch.records import IntArray, Texts, TokenizedSplit
from tsarch.seeding import generator
from tsarch.stage.generation import Prompt, StudentGeneration, TeacherGeneration
from tsarch.tasks.decoding import Decoder, DecodingSpec
from tsarch.topology import STAGES, Stage, Topology

_DONE = -1
"""Stands for the next token of a text that has none."""
_NOTHING = Prompt(np.zeros(1, dtype=np.int64), 0)
"""Read beside the texts by every replica of a stage that has several: ZeRO 3 needs all of them to
call the model equally often, also those that have no text left."""


@dataclass(frozen=True)
class GenerationSpec:
    """What all texts of a run share."""

    decoding: DecodingSpec
    batch: int
    """Texts at a time, over all replicas."""
    use_cache: bool
    student_max_tokens: int
    teacher_width: int
    num_outputs: int
    is_seq2seq: bool
    seed: int


def chosen_contexts(split: TokenizedSplit, max_texts: int) -> list[int]:
    """At most so many contexts, evenly spread over a split."""
    places = np.linspace(0, split.num_contexts - 1, min(max_texts, split.num_contexts))
    return [int(place) for place in places.round()]


def prompts_of(split: TokenizedSplit, contexts: Sequence[int]) -> list[Prompt]:
    """What is known of each context before its target."""
    prompts = []
    for context in contexts:
        start, stop = split.context_offsets[context : context + 2]
        end = int(np.argmax(split.words[start:stop] >= 0)) + 1
        window = split.windows[split.window_offsets[context], 0]
        prompts.append(Prompt(split.token_ids[start : start + end], int(window - start)))
    return prompts


class _Batch:
    """Texts that are generated together, as every rank knows them."""

    def __init__(self, prompts: list[Prompt], topology: Topology, num_beams: int) -> None:
        self.prompts = prompts
        self.live = list(range(len(prompts)))
        """Texts that go on."""
        self.num_rows = 1
        """Hypotheses of each of them."""
        sizes = [len(prompt.token_ids) for prompt in prompts]
        self.owners = {
            stage: _owners(balance(self.live, sizes, topology.replicas(stage))) for stage in STAGES
        }
        self._num_beams = num_beams
        self._before = self.live, self.num_rows
        self._chosen = np.empty((0, num_beams, 2), dtype=np.int64)

    def own(self, stage: Stage, replica: int) -> list[int]:
        """Texts that go on at a replica."""
        return [text for text in self.live if self.owners[stage][text] == replica]

    def settle(self, chosen: IntArray) -> None:
        """Take (live, beams, 2) parent and token of every hypothesis, `_DONE` where a text ends."""
        goes_on = chosen[:, 0, 1] != _DONE
        self._before = self.live, self.num_rows
        self.live = [text for text, more in zip(self.live, goes_on, strict=True) if more]
        self.num_rows = self._num_beams
        self._chosen = chosen[goes_on]

    def continuation(self, stage: Stage, replica: int) -> tuple[IntArray, IntArray]:
        """(rows,) parents among a replica's rows before, and next tokens."""
        live, num_rows = self._before
        before = [text for text in live if self.owners[stage][text] == replica]
        firsts = {text: num_rows * place for place, text in enumerate(before)}
        pairs = [
            (firsts[text] + parent, token)
            for text, own in zip(self.live, self._chosen.tolist(), strict=True)
            if text in firsts
            for parent, token in own
        ]
        parents, tokens = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        return parents, tokens


def _owners(shares: list[list[int]]) -> dict[int, int]:
    return {text: replica for replica, own in enumerate(shares) for text in own}


class Generator:
    """One rank's part; all ranks call `run` with the same arguments.

    Args:
        mode: who predicts.
        joint_weight: weight of the teacher's probabilities in `joint`.
    """

    def __init__(
        self,
        stages: LocalStages,
        link: Link,
        tied: TiedEmbedding,
        tied_group: ProcessGroup | None,
        topology: Topology,
        spec: GenerationSpec,
        mode: Mode,
        joint_weight: float,
    ) -> None:
        self._stages = stages
        self._link = link
        self._tied = tied
        self._group = tied_group
        self._topology = topology
        self._spec = spec
        self._mode = mode
        self._joint_weight = joint_weight
        self._num_rounds = 0

    @torch.no_grad()
    def run(self, split: TokenizedSplit, contexts: Sequence[int]) -> Texts:
        """The texts of those `contexts` whose student is here."""
        texts: Texts = {}
        table = self._tied.table.values()
        for first in range(0, len(contexts), self._spec.batch):
            texts |= self._generate(split, contexts[first : first + self._spec.batch], table)
        self._link.flush()
        return texts

    def _generate(self, split: TokenizedSplit, contexts: Sequence[int], table: Tensor) -> Texts:
        num_beams = self._spec.decoding.num_beams
        batch = _Batch(prompts_of(split, contexts), self._topology, num_beams)
        teacher = _TeacherSide(self._stages, self._tied, self._topology, self._spec)
        student = _StudentSide(self._stages, self._tied, self._topology, self._spec, table)
        decoders = {
            text: Decoder(
                self._spec.decoding, generator(self._spec.seed, "decoding", contexts[text])
            )
            for text in student.own(batch)
        }
        is_first = True
        while batch.live:
            read = {}
            if self._mode != "student_alone":
                read = self._passed_on(batch, teacher.read(batch, is_first), is_first)
            chosen = np.zeros((len(batch.live), num_beams, 2), dtype=np.int64)
            own = student.own(batch)
            for text, scores in self._scores(batch, student, own, read, is_first).items():
                decoder = decoders[text]
                chosen[batch.live.index(text)] = decoder.choose(scores) or _DONE
            batch.settle(self._summed(chosen))
            is_first = False
        return {contexts[text]: decoder.best for text, decoder in decoders.items()}

    def _passed_on(
        self, batch: _Batch, read: dict[int, Tensor], is_first: bool
    ) -> dict[int, Tensor]:
        """What teachers have read of their texts, at the students of these: (rows, width +
        outputs) of a text, the rows of its prompt's window at first, then of its hypotheses."""
        self._num_rounds += 1
        messages = self._messages(batch, is_first)
        if self._stages.student is not None:
            for message, _ in messages[Stage.STUDENT]:
                self._link.expect(message)
        for message, texts in messages[Stage.TEACHER]:
            self._link.send(message, torch.cat([read[text] for text in texts]))
        arrived: dict[int, Tensor] = {}
        for message, texts in messages[Stage.STUDENT]:
            device = self._stages.get(Stage.STUDENT).engine.device
            dtype = self._stages.get(Stage.STUDENT).engine.compute_dtype
            rows = torch.empty(message.rows, message.width, dtype=dtype, device=device)
            self._link.receive(message, rows)
            sizes = [_num_rows(batch, text, is_first) for text in texts]
            arrived |= dict(zip(texts, torch.split(rows, sizes), strict=True))
        return arrived

    def _messages(
        self, batch: _Batch, is_first: bool
    ) -> dict[Stage, list[tuple[Message, list[int]]]]:
        """The messages of a round that leave here (teacher) or arrive here (student), and the
        texts in each."""
        found: dict[Stage, list[tuple[Message, list[int]]]] = {stage: [] for stage in STAGES}
        width = self._spec.teacher_width + self._spec.num_outputs
        for source in range(self._topology.replicas(Stage.TEACHER)):
            for target in range(self._topology.replicas(Stage.STUDENT)):
                students = batch.owners[Stage.STUDENT]
                own = [t for t in batch.own(Stage.TEACHER, source) if students[t] == target]
                if not own:
                    continue
                message = Message(
                    self._num_rounds,
                    0,
                    self._topology.rank(Stage.TEACHER, source),
                    self._topology.rank(Stage.STUDENT, target),
                    sum(_num_rows(batch, text, is_first) for text in own),
                    width,
                )
                here = {Stage.TEACHER: source, Stage.STUDENT: target}
                for stage in self._stages.names:
                    if self._stages.get(stage).replica == here[stage]:
                        found[stage].append((message, own))
        return found

    def _scores(
        self,
        batch: _Batch,
        student: _StudentSide,
        own: list[int],
        read: dict[int, Tensor],
        is_first: bool,
    ) -> dict[int, Tensor]:
        """(hypotheses, vocabulary) log-probabilities of the next token, of every own text."""
        if self._stages.student is None:
            return {}
        width = self._spec.teacher_width
        hidden = {text: rows[:, :width] for text, rows in read.items()}
        said: list[Tensor] = []
        if self._mode != "teacher":
            fed = hidden if self._mode != "student_alone" else None
            said.append(student.read(batch, fed, is_first))
        if self._mode in ("teacher", "joint") and own:
            last = [read[text][-batch.num_rows :, width:] for text in own]
            said.append(torch.cat(last))
        if not own:
            return {}
        table = student.table
        logs = [torch.log_softmax(token_logits(own, table), dim=-1) for own in said]
        scores = logs[0]
        if self._mode == "joint":
            scores = _mixed(logs[1], logs[0], self._joint_weight)
        return dict(zip(own, torch.split(scores, batch.num_rows), strict=True))

    def _summed(self, chosen: IntArray) -> IntArray:
        """The students' choices on all ranks: each has filled in its own texts'."""
        if self._group is None:
            return chosen
        device = self._stages.get(self._stages.names[0]).engine.device
        values = torch.from_numpy(chosen).to(device)
        self._group.allreduce(values).wait()
        return values.cpu().numpy()


def _num_rows(batch: _Batch, text: int, is_first: bool) -> int:
    if not is_first:
        return batch.num_rows
    prompt = batch.prompts[text]
    return len(prompt.token_ids) - prompt.window_start


def _mixed(teacher: Tensor, student: Tensor, weight: float) -> Tensor:
    """log(w·p_teacher + (1 − w)·p_student) from log-probabilities."""
    if weight in (0.0, 1.0):
        return teacher if weight else student
    return torch.logaddexp(teacher + math.log(weight), student + math.log1p(-weight))


class _Side:
    """A stage's texts on this rank; if the stage isn't here, it has none."""

    stage: Stage

    def __init__(self, stages: LocalStages, topology: Topology) -> None:
        self._is_here = self.stage in stages.names
        self._replica = stages.get(self.stage).replica if self._is_here else -1
        self._has_spare = topology.replicas(self.stage) > 1

    def own(self, batch: _Batch) -> list[int]:
        """Own texts that go on."""
        return batch.own(self.stage, self._replica)

    def prompts(self, batch: _Batch) -> list[Prompt]:
        """Prompts of the own texts, and of nothing."""
        own = [batch.prompts[text] for text in self.own(batch)]
        return [*own, _NOTHING] if self._has_spare else own

    def continuation(self, batch: _Batch) -> tuple[IntArray, IntArray]:
        """Parents and next tokens of the own texts, and of nothing."""
        parents, tokens = batch.continuation(self.stage, self._replica)
        if not self._has_spare:
            return parents, tokens
        spare = self._num_rows - 1
        return np.append(parents, spare), np.append(tokens, 0)

    _num_rows = 0


class _TeacherSide(_Side):
    stage = Stage.TEACHER

    def __init__(
        self, stages: LocalStages, tied: TiedEmbedding, topology: Topology, spec: GenerationSpec
    ) -> None:
        super().__init__(stages, topology)
        if self._is_here:
            engine = stages.get(self.stage).engine
            self._model = TeacherGeneration(engine, tied, spec.is_seq2seq, spec.use_cache)

    def read(self, batch: _Batch, is_first: bool) -> dict[int, Tensor]:
        """Hidden states and predictions of the newest tokens (at first: of the windows)."""
        if not self._is_here:
            return {}
        if is_first:
            prompts = self.prompts(batch)
            self._num_rows = len(prompts)
            return dict(zip(self.own(batch), self._model.start(prompts) if prompts else []))
        parents, tokens = self.continuation(batch)
        self._num_rows = len(parents)
        if not len(parents):
            return {}
        rows = self._model.step(parents, tokens)
        return dict(zip(self.own(batch), torch.split(rows, batch.num_rows)))


class _StudentSide(_Side):
    stage = Stage.STUDENT

    def __init__(
        self,
        stages: LocalStages,
        tied: TiedEmbedding,
        topology: Topology,
        spec: GenerationSpec,
        table: Tensor,
    ) -> None:
        super().__init__(stages, topology)
        self.table = table
        if self._is_here:
            self._width = spec.teacher_width
            self._model = StudentGeneration(
                stages.get(self.stage).engine,
                tied,
                spec.teacher_width,
                spec.student_max_tokens,
                spec.use_cache,
            )

    def read(self, batch: _Batch, hidden: dict[int, Tensor] | None, is_first: bool) -> Tensor:
        """(rows, outputs) predictions of the own texts' next tokens."""
        own = self.own(batch)
        fed = None if hidden is None else [hidden[text] for text in own]
        if fed is not None and self._has_spare:
            fed.append(self.table.new_zeros(1, self._width))
        if is_first:
            prompts = self.prompts(batch)
            self._num_rows = len(prompts)
            if not prompts:
                return self.table[:0]
            said = self._model.start(prompts, fed)
        else:
            parents, tokens = self.continuation(batch)
            self._num_rows = len(parents)
            if not len(parents):
                return self.table[:0]
            rows = None if fed is None else torch.cat([own.to(fed[0].dtype) for own in fed])
            said = self._model.step(parents, tokens, rows)
        return said[: len(own) * batch.num_rows]
