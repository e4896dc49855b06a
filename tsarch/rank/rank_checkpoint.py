"""A rank's part of a checkpoint: what it copies at a cut, its files, and putting them back.

    teacher-R.safetensors, student-R.safetensors   parameters and optimizer state, a share
    embedding-N.safetensors                        rows of the tied table, their optimizer state
    in-flight-N.safetensors                        hidden states on their way to the student
    random-N.safetensors                           random number generators

R is a replica, N a rank of both stages. Readers take all files of a kind, however many there are.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from tsarch.checkpoint.cut import Cut, Stall, Written
from tsarch.checkpoint.host_copies import HostCopies, KeptTensors, read_slot
from tsarch.checkpoint.saved_tensors import Joined, SavedTensors
from tsarch.checkpoint.store import Store
from tsarch.checkpoint.writer import BackgroundWriter
from tsarch.data.feed import Feed
from tsarch.errors import UserError, has_lost_peer, one_line
from tsarch.parallel.link import Link
from tsarch.parallel.tied_embedding import TiedEmbedding
from tsarch.rank.executor import LocalStages
from tsarch.schedule.instruction import SendHidden
from tsarch.stage.in_flight import keep_states, saved_messages
from tsarch.stage.teacher_stage import TeacherStage
from tsarch.topology import Topology


class RankCheckpoint:
    """Takes and restores the state of the stages of one process."""

    def __init__(
        self,
        stages: LocalStages,
        tied: TiedEmbedding,
        link: Link,
        feed: Feed,
        topology: Topology,
        copies: HostCopies,
    ) -> None:
        self._stages = stages
        self._tied = tied
        self._link = link
        self._feed = feed
        self._topology = topology
        self._copies = copies
        self._writer = BackgroundWriter()

    def take(self, cut: Cut, in_flight: Sequence[SendHidden]) -> Stall:
        """Copy the state to host memory and, if the cut has a place to be written to, start writing
        it. All ranks call it between the same two ticks; what was to be written before must have
        been."""
        started_s = time.perf_counter()
        self._copies.begin(cut.step, cut.kept)
        for stage, own in self._stages.items():
            own.engine.keep_state(self._copies.into(f"{stage}-{own.replica}.safetensors"))
        rank = self._rank
        self._tied.keep_state(self._copies.into(f"embedding-{rank}.safetensors"))
        for teacher in self._senders if in_flight else ():
            keep = self._copies.into(f"in-flight-{rank}.safetensors")
            keep_states(self._feed, rank, teacher.sent, in_flight, keep)
        keep = self._copies.into(f"random-{rank}.safetensors")
        for name, state in _generator_states().items():
            keep(name, state)
        files = self._copies.finish()
        if cut.url is not None:
            self._copies.hold()
            self._writer.start(cut.url, cut.step, files)
        nbytes = sum(t.nbytes for tensors in files.values() for t in tensors.values())
        return Stall(time.perf_counter() - started_s, nbytes)

    def help_taking(self) -> None:
        """Let the other ranks of this stage gather what they copy of a cut that won't be whole."""
        for own in self._stages.values():
            own.engine.keep_state(lambda name, tensor: None)

    def written(self, wait: bool) -> Written | None:
        """What has been written of the last cut; None: not all yet."""
        found = self._writer.result(wait)
        if found is not None:
            self._copies.release()
        return found

    def give_up_writing(self) -> None:
        """Write no more of the checkpoint under way."""
        self._writer.give_up()
        self._copies.release()

    def restore(self, cut: Cut, in_flight: Sequence[SendHidden], same_ranks: bool) -> None:
        """Put a checkpoint's state in, and send again what was in flight. All ranks call it.

        `same_ranks`: it was taken by ranks like these, so that each can go on with its own random
        numbers.

        Raises:
            UserError: the files, whole as they are, hold something else than this run's state.
        """
        try:
            self._restore(cut, in_flight, same_ranks)
        except (SafetensorError, LookupError, RuntimeError, ValueError, AssertionError) as error:
            if isinstance(error, UserError) or has_lost_peer(error) or cut.url is None:
                raise
            raise UserError.single(
                f"--resume: {cut.url.rstrip('/')}/step-{cut.step}",
                f"can't be put in: {one_line(error)}.",
                "Delete this checkpoint: the one before is taken then.",
            ) from None

    def _restore(self, cut: Cut, in_flight: Sequence[SendHidden], same_ranks: bool) -> None:
        with _opened(cut) as fetch:
            for stage, own in self._stages.items():
                own.engine.restore_state(Joined(fetch(f"{stage}-")))
            self._tied.restore_state(fetch("embedding-"))
            if self._senders and in_flight:
                self._resend(fetch("in-flight-"), in_flight)
            if same_ranks:
                _restore_generators(Joined(fetch(f"random-{self._rank}.")))
        self._copies.forget_after(cut.step)

    def _resend(
        self, saved: Sequence[Mapping[str, Tensor]], in_flight: Sequence[SendHidden]
    ) -> None:
        for teacher in self._senders:
            for send in in_flight:
                messages = saved_messages(self._feed, self._rank, saved, send)
                teacher.resend(self._link, send.step, send.micro_batch, send.peer, messages)
        self._link.bytes_sent = 0  # they were counted when they were sent first

    @property
    def _senders(self) -> list[TeacherStage]:
        """Stages here whose states may be in flight."""
        return [own for own in self._stages.values() if isinstance(own, TeacherStage)]

    @property
    def _rank(self) -> int:
        """Number of the first rank here."""
        stage, own = next(iter(self._stages.items()))
        return self._topology.rank(stage, own.replica)


@contextmanager
def _opened(cut: Cut) -> Iterator[Callable[[str], list[Mapping[str, Tensor]]]]:
    """Within, what gives the tensors of all files of a cut whose names begin so, file by file."""
    if cut.slots:
        files = {name: own for path in cut.slots for name, own in read_slot(path, cut.step).items()}

        def remember(prefix: str) -> list[Mapping[str, Tensor]]:
            return [
                KeptTensors(own) for name, own in sorted(files.items()) if name.startswith(prefix)
            ]

        yield remember
        return
    assert cut.url is not None, "the cut is nowhere"
    store = Store(cut.url)
    names = store.manifest(cut.step).files
    with tempfile.TemporaryDirectory(prefix="tsarch-") as folder:

        def fetch(prefix: str) -> list[Mapping[str, Tensor]]:
            own = sorted(name for name in names if name.startswith(prefix))
            paths = store.fetch(cut.step, own, Path(folder)).values()
            return [SavedTensors([path]) for path in paths]

        yield fetch


def _generator_states() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _restore_generators(saved: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(saved["cpu"])
    if torch.cuda.is_available() and "cuda" in saved:
        torch.cuda.set_rng_state(saved["cuda"])
