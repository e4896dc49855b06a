"""A rank: the stages that live in one process, built from the config, and what a driver asks."""

from __future__ import annotations

import resource
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from tsarch.checkpoint.cut import Cut, Resume, Stall, Written
from tsarch.config import Config, Mode
from tsarch.feeds import batch_plan, evaluation_feed, num_training_steps, training_feed
from tsarch.model_folder import load_table, load_weights, save_table, save_weights
from tsarch.models.construction import WHOLE, Construction, num_elements
from tsarch.parallel.groups import ProcessGroup
from tsarch.parallel.link import GroupLink, Link, LoopbackLink
from tsarch.parallel.table import Table
from tsarch.parallel.tied_embedding import TiedEmbedding
from tsarch.prepare import Prepared
from tsarch.rank.activity import Activity
from tsarch.rank.executor import Executor, Ticks
from tsarch.rank.generate import GenerationSpec, Generator, chosen_contexts
from tsarch.rank.learning_rate import learning_rate_factor
from tsarch.rank.rank_checkpoint import RankCheckpoint
from tsarch.rank.rank_stats import RankStats
from tsarch.records import (
    Predictions,
    Survey,
    Texts,
    TickReports,
    TokenizedSplit,
    Windows,
)
from tsarch.schedule.plan import (
    Alternation,
    StepRange,
    forward_programs,
    resumed,
    training_programs,
)
from tsarch.seeding import torch_seed
from tsarch.stage.build import (
    build_student,
    build_teacher,
    embedding_spec,
    optimizer_spec,
    stage_configs,
    table_shape,
)
from tsarch.stage.engine import Engine, LocalEngine, OptimizerSpec, make_optimizer
from tsarch.stage.running import RunningStage
from tsarch.stage.student_stage import DistillationSpec, StudentStage
from tsarch.stage.teacher_stage import TeacherStage
from tsarch.tasks.collect import ContextOutputs
from tsarch.tasks.decoding import DecodingSpec
from tsarch.tasks.registry import make_task
from tsarch.topology import STAGES, Stage, Topology, stage_named


class EngineFactory(Protocol):
    """Makes the engine of a stage."""

    def __call__(self, stage: Stage, module: nn.Module, spec: OptimizerSpec) -> Engine:
        """Wrap a module; on many ranks every rank of the stage calls it."""


@dataclass(frozen=True)
class Wiring:
    """What differs between one process and many: engines, groups, and which stages are here."""

    topology: Topology
    stages: tuple[tuple[Stage, int], ...]
    """(stage, replica) of each stage in this process."""
    device: torch.device
    make_engine: EngineFactory
    link_group: ProcessGroup | None = None
    tied_group: ProcessGroup | None = None
    construction: Construction = WHOLE
    """What happens to parameters while a model is built."""
    activity: Activity = field(default_factory=Activity)
    """Told of every instruction."""


def local_wiring(config: Config) -> Wiring:
    """Both stages in this process, on one device, with a loopback link."""
    if config.topology.threads is not None:
        torch.set_num_threads(config.topology.threads)
    # accelerate keeps its first settings for the whole process; a process may have several runs.
    AcceleratorState._reset_state(reset_partial_state=True)
    mixed = "bf16" if config.precision == "bf16" else "no"
    accelerator = Accelerator(mixed_precision=mixed, cpu=config.topology.device == "cpu")

    def make_engine(stage: Stage, module: nn.Module, spec: OptimizerSpec) -> Engine:
        return LocalEngine(module, spec, accelerator)

    both = ((Stage.TEACHER, 0), (Stage.STUDENT, 0))
    return Wiring(Topology.pair(1, 1), both, accelerator.device, make_engine)


class Rank:
    """The stages of one process with their link and replica of the tied embedding."""

    def __init__(self, config: Config, prepared: Prepared, wiring: Wiring) -> None:
        self._config = config
        self._prepared = prepared
        self._wiring = wiring
        self._task = make_task(config.task.name, prepared.labels)
        self._num_outputs = self._task.objective.num_outputs(len(prepared.labels))
        self._hf_configs = stage_configs(config)
        self._teacher_width = int(self._hf_configs[Stage.TEACHER].hidden_size)
        self._parameters: dict[str, int] = {}
        self._engines: dict[Stage, Engine] = {}
        self._build(dict(wiring.stages))
        plan = batch_plan(config, prepared.splits["train"])
        self._training = training_feed(
            config,
            prepared.splits["train"],
            plan,
            wiring.topology,
            self._vocabulary,
        )
        self._num_steps = num_training_steps(config, plan)
        self._executor = Executor(self._stages, self._link, self.tied, self._rate, wiring.activity)
        self._tick = self._start = 0
        self._programs: Ticks = dict.fromkeys(STAGES, ())
        self._checkpoint = RankCheckpoint(
            self._stages, self.tied, self._link, self._training, wiring.topology
        )
        self._seed_dropout()

    def begin(self, start: int, stop: int, resume: Resume | None) -> int:
        """Take up the steps `start` … `stop` − 1, from their first tick on or from that of a
        checkpoint; returns the number of ticks. On `resume` all ranks call it together."""
        schedule = self._config.schedule
        alternation = Alternation(
            schedule.alternation.teacher_steps, schedule.alternation.student_steps
        )
        ticks = training_programs(
            schedule.name,
            StepRange(start, stop),
            schedule.micro_batches,
            alternation,
            train_embedding=not self._config.embedding.frozen,
            in_flight=schedule.in_flight,
        )
        for engine in self._engines.values():
            engine.train(True)
        self._programs, self._start, self._tick = ticks, start, start
        if resume is not None:
            self._tick = resume.tick
            ticks, in_flight = resumed(ticks, resume.tick - start)
            self._checkpoint.restore(resume.cut, in_flight, resume.same_ranks)
            if not resume.same_ranks:
                self._seed_dropout(resume.tick)
        trace = self._config.run.trace
        self._executor.load(ticks, self._training, first_tick=self._tick, trace=trace)
        return len(ticks[Stage.TEACHER])

    def take_checkpoint(self, cut: Cut) -> Stall:
        """Copy the state to host memory and start writing it (all ranks call it, after the same
        tick). The one before must have been written."""
        _, in_flight = resumed(self._programs, self._tick - self._start)
        return self._checkpoint.take(cut, in_flight)

    def checkpoint_written(self) -> Written:
        """Wait until the checkpoint under way is written; what was written."""
        written = self._checkpoint.written(wait=True)
        assert written is not None
        return written

    def checkpoint_so_far(self) -> Written | None:
        """`checkpoint_written` without waiting; None: not all yet."""
        return self._checkpoint.written(wait=False)

    def advance(self, num_ticks: int) -> TickReports:
        """Run the next ticks of what `begin` took up.

        Raises:
            ReplicaDriftError: replicas of the tied embedding differ (`embedding.check_every`).
        """
        reports = TickReports()
        every = self._config.embedding.check_every
        for _ in range(num_ticks):
            reports += self._executor.advance(1)
            self._tick += 1
            if every and self._tick % every == 0:
                self.tied.check_replicas(self._tick)
        return reports

    def survey(self, split: str) -> Survey | None:
        """Let the teacher read a whole split, before there are windows; the ranks with a teacher
        give its predictions of their words."""
        whole = self._prepared.splits[split]
        nothing = np.zeros((0, 2), dtype=np.int64)
        none = Windows(nothing, np.zeros(whole.num_contexts + 1, dtype=np.int64))
        teacher = self._stages.get(Stage.TEACHER)
        words, predictions = [], []

        def keep(own: ContextOutputs) -> None:
            is_word = own.words >= 0
            places = torch.from_numpy(is_word).to(own.teacher.device)
            words.append(own.words[is_word])
            predictions.append(own.teacher[places].float().cpu())

        if teacher is not None:
            assert isinstance(teacher, TeacherStage)
            teacher.on_output = keep
        self._run_forward(whole.with_windows(none))
        if teacher is None:
            return None
        teacher.on_output = None
        return Survey(np.concatenate(words), torch.cat(predictions).numpy())

    def evaluate(
        self, split: str, joint_weights: list[float], windows: Windows | None
    ) -> Predictions | None:
        """Predict a whole split; the ranks with a student give the predictions of their words.

        `windows`: what the student reads, in place of the split's own windows.
        """
        whole = self._prepared.splits[split]
        collector = self._task.collector(joint_weights)
        student = self._stages.get(Stage.STUDENT)
        if student is not None:
            assert isinstance(student, StudentStage)
            student.on_output = collector.add
        self._run_forward(whole if windows is None else whole.with_windows(windows))
        if student is None:
            return None
        student.on_output = None
        return collector.result()

    def _run_forward(self, split: TokenizedSplit) -> None:
        """Run both models over a split, without updates."""
        feed, num_batches = evaluation_feed(
            self._config, split, self._wiring.topology, self._vocabulary
        )
        for engine in self._engines.values():
            engine.train(False)
        self._executor.load(forward_programs(num_batches), feed)
        self._executor.advance(num_batches)

    def generate(self, split: str, mode: Mode, joint_weight: float) -> Texts:
        """Generate the targets of a split (at most `decoding.max_texts`) as `mode` predicts them;
        all ranks call it, those with a student give their texts."""
        for engine in self._engines.values():
            engine.train(False)
        generator = Generator(
            self._stages,
            self._link,
            self.tied,
            self._wiring.tied_group,
            self._wiring.topology,
            self._generation_spec(),
            mode,
            joint_weight,
        )
        own = self._prepared.splits[split]
        return generator.run(own, chosen_contexts(own, self._config.decoding.max_texts))

    def _generation_spec(self) -> GenerationSpec:
        config, decoding = self._config, self._config.decoding
        assert self._prepared.end_token is not None
        return GenerationSpec(
            DecodingSpec(
                num_beams=decoding.num_beams,
                length_penalty=decoding.length_penalty,
                sample=decoding.sample,
                temperature=decoding.temperature,
                top_k=decoding.top_k,
                top_p=decoding.top_p,
                no_repeat_ngram=decoding.no_repeat_ngram,
                max_tokens=config.task.max_target_tokens,
                end=self._prepared.end_token,
            ),
            decoding.batch,
            decoding.cache,
            config.student.max_tokens,
            self._teacher_width,
            self._num_predictions,
            config.run.seed,
        )

    def check_replicas(self, step: int) -> None:
        """Every replica of the tied embedding must be bitwise equal (all ranks call it)."""
        self.tied.check_replicas(step)

    def save(self, folder: Path) -> None:
        """Write the models as safetensors (all ranks call it; the first of a stage writes)."""
        for stage, engine in self._engines.items():
            state = engine.state_dict()
            if state is not None:
                save_weights(folder, stage, state)
        if self._is_first:
            save_table(folder, self.tied.table.values())

    def load(self, folder: Path) -> None:
        """Put saved models in for inference (all ranks call it)."""
        for stage, engine in self._engines.items():
            engine.load_state_dict(load_weights(folder, stage))
        self.tied.table.load(load_table(folder))

    def stats(self) -> RankStats:
        """Counts and peaks (all ranks call it)."""
        device = self._wiring.device
        if device.type == "cuda":
            peak = int(torch.cuda.max_memory_allocated(device))
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return RankStats(self._parameters, peak, self.tied.max_abs_diff())

    def set_threads(self, threads: int) -> None:
        """Compute with so many CPU threads from now on."""
        torch.set_num_threads(threads)

    def perturb_table(self, rank: int, amount: float) -> None:
        """Fault injection for tests: make the replica of one rank differ."""
        if rank == self._wiring.topology.rank(*self._wiring.stages[0]):
            self.tied.table.storage[0, 0] += amount

    def _seed_dropout(self, *tick: int) -> None:
        """Random numbers of this process's own, anew."""
        ranks = [self._wiring.topology.rank(*place) for place in self._wiring.stages]
        torch.manual_seed(torch_seed(self._config.run.seed, "dropout", *ranks, *tick))

    @property
    def _vocabulary(self) -> int | None:
        """Rows of the table, if every step touches them all."""
        return len(self.tied.table) if self._task.objective.uses_table else None

    @property
    def _num_predictions(self) -> int:
        """Numbers that a head puts out a position."""
        return self._num_outputs or int(self.tied.table.storage.shape[1])

    @property
    def _is_first(self) -> bool:
        return (Stage.TEACHER, 0) in self._wiring.stages

    def _rate(self, step: int) -> float:
        shape = self._config.learning_rate
        return learning_rate_factor(step, self._num_steps, shape.warmup, shape.decay)

    def _build(self, places: dict[Stage, int]) -> None:
        """Models, engines, the tied table and the link of this process."""
        build = {Stage.TEACHER: build_teacher, Stage.STUDENT: build_student}
        models = {
            stage: build[stage](
                self._config,
                self._num_outputs,
                self._hf_configs,
                self._wiring.construction,
                with_table=replica == 0,
            )
            for stage, replica in places.items()
        }
        table = next((m.table for m in models.values() if m.table is not None), None)
        self.tied = self._tie(table)
        for stage, model in models.items():
            self._parameters[stage.value] = num_elements(model.module)
            spec = optimizer_spec(self._config, stage)
            self._engines[stage] = self._wiring.make_engine(stage, model.module, spec)
        make = {"contexts": self._teacher, "windows": self._student}
        self._stages = {stage: make[stage.reads](stage, r) for stage, r in places.items()}
        self._link = self._make_link()

    def _make_link(self) -> Link:
        names = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
        name = self._config.link.dtype
        dtype = names[self._config.precision if name == "auto" else name]
        group, topology = self._wiring.link_group, self._wiring.topology
        if group is None:
            return LoopbackLink(dtype)
        # The teacher may be a whole step ahead of the student, and each step's messages go to
        # every replica of the other stage.
        micro_batches = self._config.schedule.micro_batches
        outstanding = 2 * micro_batches * max(topology.replicas(stage) for stage in STAGES)
        return GroupLink(group, self._wiring.device, dtype, outstanding)

    def _teacher(self, stage: Stage, replica: int) -> RunningStage:
        return TeacherStage(stage, self._engines[stage], self.tied, replica, self._task.objective)

    def _student(self, stage: Stage, replica: int) -> RunningStage:
        kd = self._config.distillation
        return StudentStage(
            stage,
            self._engines[stage],
            self.tied,
            replica,
            self._num_predictions,
            self._task.objective,
            DistillationSpec(kd.weight, kd.temperature, kd.passes),
        )

    def _tie(self, table: torch.Tensor | None) -> TiedEmbedding:
        """This process's replica of the table; it comes from the stage that has it."""
        wiring, config = self._wiring, self._config
        if table is None:
            table = torch.zeros(table_shape(config, self._hf_configs))
        spec = embedding_spec(config)

        def optimizer(rows: nn.Parameter) -> torch.optim.Optimizer:
            return make_optimizer([{"params": [rows], "weight_decay": 0.0}], spec)

        trained = None
        if not self._task.objective.uses_table:
            trained = np.unique(self._prepared.splits["train"].token_ids)
        tied = TiedEmbedding(
            Table(table.to(wiring.device), trained),
            None if config.embedding.frozen else optimizer,
            spec.learning_rate,
            spec.clip_norm,
            config.embedding.exchange,
            wiring.tied_group,
            wiring.topology,
            num_local_stages=len(wiring.stages),
            shard_optimizer=config.embedding.shard_optimizer,
        )
        tied.broadcast(wiring.topology.rank(stage_named(config.embedding.init), 0))
        self._parameters["embedding"] = table.numel()
        return tied
