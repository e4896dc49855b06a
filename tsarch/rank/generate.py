"""Generates texts on all ranks: teachers and students in step, token by token.

The last stage chooses. What it chose goes to all ranks in one small sum over the tied group, so
that every rank knows which texts go on; only the teachers' states travel over the link.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tsarch.config import Mode
from tsarch.data.routes import Route
from tsarch.models.heads import token_logits
from tsarch.pair.generation import Keeping, Prompt, StudentGeneration, TeacherGeneration, prompts_of
from tsarch.pair.halves import TableLookup
from tsarch.pair.reading import Halves, mixed
from tsarch.pair.writing import Writing
from tsarch.parallel.groups import ProcessGroup
from tsarch.parallel.link import Link
from tsarch.parallel.tied_embedding import TiedEmbedding
from tsarch.rank.executor import LocalStages
from tsarch.rank.generation_spec import GenerationSpec
from tsarch.rank.text_batch import DONE, TextBatch
from tsarch.records import IntArray, TokenizedSplit
from tsarch.seeding import generator
from tsarch.stage.student_stage import StudentStage
from tsarch.stage.teacher_stage import TeacherStage
from tsarch.tasks.decoding import Decoder
from tsarch.topology import Stage, Topology
from tsarch.written import Generated, Passes, Texts

_NOTHING = Prompt(np.zeros(1, dtype=np.int64), 0)
"""Read beside the texts by every replica of a stage that has several: ZeRO 3 needs all of them to
call the model equally often, also those that have no text left."""


def chosen_contexts(split: TokenizedSplit, max_texts: int) -> list[int]:
    """At most so many contexts, evenly spread over a split."""
    places = np.linspace(0, split.num_contexts - 1, min(max_texts, split.num_contexts))
    return [int(place) for place in places.round()]


class Generator:
    """One rank's part; all ranks call `run` with the same arguments.

    Args:
        modes: who predicts, one after another.
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
        modes: Sequence[Mode],
        joint_weight: float,
    ) -> None:
        self._link = link
        self._tied = tied
        self._group = tied_group
        self._topology = topology
        self._spec = spec
        self._modes = modes
        self._mode: Mode = "teacher"
        """The one whose texts are written now."""
        self._joint_weight = joint_weight
        self._num_rounds = 0
        self._stages = stages
        graph = topology.graph
        self._teacher = next(iter(graph.reading("contexts")), None)
        self._student = next(iter(graph.reading("windows")), None)
        self._chooser = graph.stages[-1]

    @torch.no_grad()
    def run(self, split: TokenizedSplit, contexts: Sequence[int]) -> dict[Mode, Generated]:
        """The texts of those `contexts` whose student is here, of each mode."""
        if self._is_alone:
            return self._written(split, contexts)
        found = {}
        for mode in self._modes:
            self._mode = mode
            found[mode] = Generated(self._written_together(split, contexts), Passes())
        return found

    def _written_together(self, split: TokenizedSplit, contexts: Sequence[int]) -> Texts:
        """Of a mode, by all ranks in step."""
        texts: Texts = {}
        lookup = TableLookup(self._tied.table)
        teacher = _TeacherSide(self._teacher, self._stages, self._topology, lookup, self._spec)
        student = _StudentSide(self._student, self._stages, self._topology, lookup, self._spec)
        for first in range(0, len(contexts), self._spec.writing.batch):
            own = contexts[first : first + self._spec.writing.batch]
            texts |= self._generate(split, own, teacher, student, lookup)
        self._link.flush()
        return texts

    @property
    def _is_alone(self) -> bool:
        """Whether all stages are here, and nobody else has one."""
        return all(
            stage in self._stages and self._topology.replicas(stage) == 1
            for stage in self._topology.stages
        )

    def _written(self, split: TokenizedSplit, contexts: Sequence[int]) -> dict[Mode, Generated]:
        """Where nothing must be sent: as pairs write texts that answer by themselves."""
        teacher, student = (
            None if stage is None else self._stages[stage]
            for stage in (self._teacher, self._student)
        )
        assert teacher is None or isinstance(teacher, TeacherStage)
        assert student is None or isinstance(student, StudentStage)
        halves = Halves(
            None if teacher is None else teacher.half,
            None if student is None else student.half,
            TableLookup(self._tied.table),
            self._spec.student_max_tokens,
        )
        writing = Writing(halves, self._spec.writing, self._joint_weight)
        written = writing.write_modes(prompts_of(split, contexts), self._modes, contexts)
        return {
            mode: Generated(
                {context: text.tokens for context, text in zip(contexts, own.texts, strict=True)},
                own.passes,
            )
            for mode, own in written.items()
        }

    def _generate(
        self,
        split: TokenizedSplit,
        contexts: Sequence[int],
        teacher: _TeacherSide,
        student: _StudentSide,
        lookup: TableLookup,
    ) -> Texts:
        spec = self._spec.writing
        num_beams = spec.decoding.num_beams
        batch = TextBatch(prompts_of(split, contexts), self._topology, num_beams)
        chooser = student if self._chooser is self._student else teacher
        decoders = {
            text: Decoder(spec.decoding, generator(spec.seed, "decoding", contexts[text]))
            for text in chooser.own(batch)
        }
        is_first = True
        while batch.live:
            states = {}
            if self._mode != "student_alone":
                states = teacher.read(batch, is_first)
                if self._student is not None:
                    states = self._passed_on(batch, states, is_first)
            chosen = np.zeros((len(batch.live), num_beams, 2), dtype=np.int64)
            own = chooser.own(batch)
            for text, scores in self._scores(batch, student, own, states, lookup, is_first).items():
                decoder = decoders[text]
                chosen[batch.live.index(text)] = decoder.choose(scores) or DONE
            batch.settle(self._summed(chosen))
            is_first = False
        return {contexts[text]: decoder.best for text, decoder in decoders.items()}

    def _passed_on(
        self, batch: TextBatch, read: dict[int, Tensor], is_first: bool
    ) -> dict[int, Tensor]:
        """What teachers have read of their texts, at the students of these: (states, width +
        outputs) of a text, the states of its prompt's window at first, then of its hypotheses."""
        self._num_rounds += 1
        assert self._student is not None
        student = self._stages.get(self._student)
        routes = self._routes(batch, is_first)
        width = self._width
        incoming = []
        if student is not None:
            own = self._topology.rank(self._student, student.replica)
            incoming = [route for route in routes if route.target == own]
        for route in incoming:
            self._link.expect(route.message(self._num_rounds, 0, width))
        for route in routes:
            if self._is_here(route.source):
                texts = dict.fromkeys(route.places.tolist())
                states = torch.cat([read[text] for text in texts])
                self._link.send(route.message(self._num_rounds, 0, width), states)
        arrived: dict[int, Tensor] = {}
        for route in incoming:
            assert student is not None
            message = route.message(self._num_rounds, 0, width)
            dtype, device = student.engine.compute_dtype, student.engine.device
            states = torch.empty(message.num_states, message.width, dtype=dtype, device=device)
            self._link.receive(message, states)
            texts = dict.fromkeys(route.places.tolist())
            sizes = [batch.num_states(text, is_first) for text in texts]
            arrived |= dict(zip(texts, torch.split(states, sizes), strict=True))
        return arrived

    def _routes(self, batch: TextBatch, is_first: bool) -> list[Route]:
        """Routes of a round, from the teachers of texts to their students."""
        assert self._teacher is not None
        assert self._student is not None
        texts: dict[tuple[int, int], list[int]] = {}
        for text in batch.live:
            source = self._topology.rank(self._teacher, batch.owners[self._teacher][text])
            target = self._topology.rank(self._student, batch.owners[self._student][text])
            texts.setdefault((source, target), []).append(text)
        return [
            Route(*ranks, np.repeat(own, [batch.num_states(t, is_first) for t in own]))
            for ranks, own in sorted(texts.items())
        ]

    def _is_here(self, rank: int) -> bool:
        stage, replica = self._topology.place(rank)
        return stage in self._stages and self._stages[stage].replica == replica

    @property
    def _width(self) -> int:
        """Numbers that travel for a state: it and the teacher's prediction."""
        assert self._teacher is not None
        return self._spec.teacher_width + self._spec.predictions[self._teacher].width

    def _scores(
        self,
        batch: TextBatch,
        student: _StudentSide,
        own: list[int],
        read: dict[int, Tensor],
        lookup: TableLookup,
        is_first: bool,
    ) -> dict[int, Tensor]:
        """(hypotheses, vocabulary) log-probabilities of the next token, of every own text."""
        if self._chooser not in self._stages:
            return {}
        width = self._spec.teacher_width
        hidden = {text: states[:, :width] for text, states in read.items()}
        said: list[tuple[Stage, Tensor]] = []
        if self._mode != "teacher" and self._student is not None:
            fed = hidden if self._mode != "student_alone" else None
            said.append((self._student, student.read(batch, fed, is_first)))
        if self._mode in ("teacher", "joint") and own:
            assert self._teacher is not None
            last = [read[text][-batch.num_rows :, width:] for text in own]
            said.append((self._teacher, torch.cat(last)))
        if not own:
            return {}
        logs = [torch.log_softmax(self._logits(*each, lookup), dim=-1) for each in said]
        scores = logs[0]
        if self._mode == "joint":
            scores = mixed(logs[1], logs[0], self._joint_weight)
        return dict(zip(own, torch.split(scores, batch.num_rows), strict=True))

    def _logits(self, stage: Stage, predictions: Tensor, lookup: TableLookup) -> Tensor:
        """(texts, outputs) predictions of a stage → (texts, vocabulary) fp32."""
        if self._spec.predictions[stage].are_logits:
            return predictions.float()
        return token_logits(predictions, lookup.rows_in(predictions.dtype))

    def _summed(self, chosen: IntArray) -> IntArray:
        """The students' choices on all ranks: each has filled in its own texts'."""
        if self._group is None:
            return chosen
        device = next(iter(self._stages.values())).engine.device
        values = torch.from_numpy(chosen).to(device)
        self._group.allreduce(values).wait()
        return values.cpu().numpy()


class _Side:
    """A stage's texts on this rank; if the stage isn't here, it has none."""

    def __init__(
        self, stage: Stage | None, stages: LocalStages, topology: Topology, spec: GenerationSpec
    ) -> None:
        self.stage = stage
        self.spec = spec
        self.here = None if stage is None else stages.get(stage)
        self._has_spare = stage is not None and topology.replicas(stage) > 1
        self._num_rows = 0
        self._keeping = Keeping(spec.writing.use_cache, spec.writing.decoding.max_tokens + 1)

    def own(self, batch: TextBatch) -> list[int]:
        """Own texts that go on."""
        if self.stage is None or self.here is None:
            return []
        return batch.own(self.stage, self.here.replica)

    def prompts(self, batch: TextBatch) -> list[Prompt]:
        """Prompts of the own texts, and of nothing."""
        own = [batch.prompts[text] for text in self.own(batch)]
        return [*own, _NOTHING] if self._has_spare else own

    def continuation(self, batch: TextBatch) -> tuple[IntArray, IntArray]:
        """Parents and next tokens of the own texts, and of nothing."""
        assert self.stage is not None
        assert self.here is not None
        parents, tokens = batch.continuation(self.stage, self.here.replica)
        if not self._has_spare:
            return parents, tokens
        spare = self._num_rows - 1
        return np.append(parents, spare), np.append(tokens, 0)


class _TeacherSide(_Side):
    def __init__(
        self,
        stage: Stage | None,
        stages: LocalStages,
        topology: Topology,
        lookup: TableLookup,
        spec: GenerationSpec,
    ) -> None:
        super().__init__(stage, stages, topology, spec)
        if self.here is not None:
            assert isinstance(self.here, TeacherStage)
            self._model = TeacherGeneration(self.here.half, lookup, self._keeping)

    def read(self, batch: TextBatch, is_first: bool) -> dict[int, Tensor]:
        """Hidden states and predictions of the newest tokens (at first: of the windows)."""
        if self.here is None:
            return {}
        if is_first:
            prompts = self.prompts(batch)
            self._num_rows = len(prompts)
            return dict(zip(self.own(batch), self._model.start(prompts) if prompts else []))
        parents, tokens = self.continuation(batch)
        self._num_rows = len(parents)
        if not len(parents):
            return {}
        states = self._model.step(parents, tokens)
        return dict(zip(self.own(batch), torch.split(states, batch.num_rows)))


class _StudentSide(_Side):
    def __init__(
        self,
        stage: Stage | None,
        stages: LocalStages,
        topology: Topology,
        lookup: TableLookup,
        spec: GenerationSpec,
    ) -> None:
        super().__init__(stage, stages, topology, spec)
        if self.here is not None:
            assert isinstance(self.here, StudentStage)
            self._width = self.here.half.teacher_width
            self._model = StudentGeneration(
                self.here.half, lookup, spec.student_max_tokens, self._keeping
            )

    def read(self, batch: TextBatch, hidden: dict[int, Tensor] | None, is_first: bool) -> Tensor:
        """(texts, outputs) predictions of the own texts' next tokens."""
        assert self.here is not None
        own = self.own(batch)
        assert self.stage is not None
        num_outputs = self.spec.predictions[self.stage].width
        nothing = torch.zeros(0, num_outputs, device=self.here.engine.device)
        fed = None if hidden is None else [hidden[text] for text in own]
        if fed is not None and self._has_spare:
            fed.append(torch.zeros(1, self._width, device=self.here.engine.device))
        if is_first:
            prompts = self.prompts(batch)
            self._num_rows = len(prompts)
            if not prompts:
                return nothing
            said = self._model.start(prompts, fed)
        else:
            parents, tokens = self.continuation(batch)
            self._num_rows = len(parents)
            if not len(parents):
                return nothing
            states = None if fed is None else torch.cat([own.to(fed[0].dtype) for own in fed])
            said = self._model.step(parents, tokens, states)
        return said[: len(own) * batch.num_rows]
