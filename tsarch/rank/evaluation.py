"""A rank's part in measuring a split: both models run over it, and its share of what they say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tsarch.blueprint import Blueprint
from tsarch.data.replica_arrays import WindowBatch
from tsarch.feeds import evaluation_feed
from tsarch.host_memory import give_back_freed_memory
from tsarch.losses.predictions import dense
from tsarch.prepare import Prepared
from tsarch.rank.building import Parts
from tsarch.rank.executor import Executor
from tsarch.records import Predictions, Survey, TokenizedSplit, Windows
from tsarch.schedule.plan import forward_programs
from tsarch.stage.student_stage import StudentStage
from tsarch.stage.teacher_stage import TeacherStage
from tsarch.tasks.base import is_answering
from tsarch.tasks.collect import Collector, ContextOutputs
from tsarch.topology import Topology


class Evaluation:
    """Runs forward only. All ranks call each method together."""

    def __init__(
        self,
        blueprint: Blueprint,
        prepared: Prepared,
        topology: Topology,
        parts: Parts,
        executor: Executor,
    ) -> None:
        self._blueprint = blueprint
        self._splits = prepared.splits
        self._topology = topology
        self._parts = parts
        self._executor = executor

    def survey(self, split: str, windows: Windows | None = None) -> Survey | None:
        """Let the teacher read a whole split, before there are windows; the ranks with a teacher
        give its predictions of their words.

        Args:
            windows: let the student score the words of these, by the teacher's states; the ranks
                with a student give the scores.
        """
        if windows is not None:
            return self._scored(self._splits[split].with_windows(windows))
        whole = self._splits[split]
        nothing = np.zeros((0, 2), dtype=np.int64)
        none = Windows(nothing, np.zeros(whole.num_contexts + 1, dtype=np.int64))
        (reader,) = self._topology.graph.reading("contexts")
        teacher = self._parts.stages.get(reader)
        words, predictions = [], []

        def keep(own: ContextOutputs) -> None:
            is_word = own.words >= 0
            said = dense(own.teacher)
            places = torch.from_numpy(is_word).to(said.device)
            words.append(own.words[is_word])
            predictions.append(said[places].float().cpu())

        if teacher is not None:
            assert isinstance(teacher, TeacherStage)
            teacher.on_output = keep
        self._run_forward(whole.with_windows(none))
        if teacher is None:
            return None
        teacher.on_output = None
        return Survey(np.concatenate(words), torch.cat(predictions).numpy())

    def _scored(self, split: TokenizedSplit) -> Survey | None:
        """See `survey`."""
        last = self._parts.stages.get(self._topology.stages[-1])
        words = [np.zeros(0, dtype=np.int64)]
        scores = [np.zeros(0, dtype=np.float32)]

        def keep(batches: Sequence[WindowBatch], found: Sequence[Tensor]) -> None:
            for batch, own in zip(batches, found, strict=True):
                is_word = (batch.words >= 0) & (batch.boundary >= 0)
                words.append(batch.words[is_word])
                scores.append(own.cpu().numpy()[is_word])

        if isinstance(last, StudentStage):
            last.on_survey = keep
        self._run_forward(split)
        if not isinstance(last, StudentStage):
            return None
        last.on_survey = None
        return Survey(np.concatenate(words), np.concatenate(scores)[:, None])

    def evaluate(
        self,
        split: str,
        joint_weights: list[float],
        windows: Windows | None,
        undecided: bool = False,
    ) -> Predictions | None:
        """Predict a whole split; the ranks of the last stage give the predictions of their words.

        Args:
            windows: what the student reads, in place of the split's own windows.
            undecided: give what `AnsweringTask.answers` reads; for one joint weight at most.
        """
        whole = self._splits[split]
        collector = self._collector(joint_weights, undecided)
        last = self._parts.stages.get(self._topology.stages[-1])
        if isinstance(last, StudentStage):
            last.on_output = collector.add
        elif isinstance(last, TeacherStage):
            last.on_output = collector.add_contexts
        self._run_forward(whole if windows is None else whole.with_windows(windows))
        if not isinstance(last, StudentStage | TeacherStage):
            return None
        last.on_output = None
        return collector.result()

    def _collector(self, joint_weights: list[float], undecided: bool) -> Collector:
        task = self._parts.task
        if not undecided:
            return task.collector(joint_weights)
        assert is_answering(task)
        assert len(joint_weights) <= 1
        return task.score_collector(*(joint_weights or [0.5]))

    def _run_forward(self, split: TokenizedSplit) -> None:
        """Run both models over a split, without updates."""
        feed, num_batches = evaluation_feed(
            self._blueprint, split, self._topology, self._parts.vocabulary
        )
        self._parts.train(False)
        give_back_freed_memory()  # batches of evaluation are larger than those of training
        self._executor.load(forward_programs(num_batches, self._topology.graph), feed)
        self._executor.advance(num_batches)
        give_back_freed_memory()
