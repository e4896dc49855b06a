"""Jobs on a Ray cluster, through its job server: submit, follow, list, stop.

A job runs on the cluster whether anybody follows it or not. Following goes on where it was when
the connection comes back.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import requests
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from tsarch.cluster.authentication import be_ready_to_show_a_token, find_token
from tsarch.errors import UserError, one_line

STOP_WAIT_S = "RAY_JOB_STOP_WAIT_TIME_S"
"""Ray reads it from a job's environment: how long to wait after SIGTERM (by itself 3 s)."""
_EXCLUDES = "RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES"
_REQUEST_TIMEOUT_S = 30.0
_LOOK_S = 5.0
"""Between two looks at whether a silent job still runs, and whether its server still answers."""
_RETRY_S = 2.0
LOST = (OSError, RuntimeError, requests.exceptions.RequestException, aiohttp.ClientError)
"""What a lost connection raises (requests, aiohttp, Ray itself)."""

_NO_SUCH = "status code 404"

Write = Callable[[str], None]


class _Client(JobSubmissionClient):  # type: ignore[misc]
    """Ray's client, which would wait for an answer for ever."""

    def _do_request(self, *arguments: Any, **options: Any) -> requests.Response:
        options.setdefault("timeout", _REQUEST_TIMEOUT_S)
        answer: requests.Response = super()._do_request(*arguments, **options)
        return answer


@dataclass(frozen=True)
class JobEnd:
    """How a job has ended."""

    status: str
    """Ray's word: SUCCEEDED, FAILED or STOPPED."""
    exit_status: int
    """Of the command line that followed it."""
    message: str


class Jobs:
    """The job server of a cluster."""

    def __init__(self, address: str) -> None:
        """
        Args:
            address: `http://HOST:PORT` of its dashboard.

        Raises:
            UserError: none answers, or it asks for another token.
        """
        be_ready_to_show_a_token()  # not that of a Ray of this process's own
        # Ray would say for each folder that it reads an ignore file there, and for each job that it
        # leaves out `.venv`, unless that is set.
        logging.getLogger("ray").setLevel(logging.WARNING)
        os.environ.setdefault(_EXCLUDES, ",".join(get_runtime_env_default_excludes()))
        self.address = address
        with self._asked("no Ray's job server answers there"):
            self._client = _Client(address)

    def submit(
        self, name: str, command: str, folder: Path, metadata: dict[str, str], stop_wait_s: int
    ) -> str:
        """Send `folder` and start `command` in it; the job's name.

        Raises:
            UserError: the server doesn't take it.
        """
        runtime = {"working_dir": str(folder), "env_vars": {STOP_WAIT_S: str(stop_wait_s)}}
        with self._asked("the job was not taken"):
            return str(
                self._client.submit_job(
                    entrypoint=command, submission_id=name, runtime_env=runtime, metadata=metadata
                )
            )

    def all(self) -> Sequence[JobDetails]:
        """Those that were submitted, the newest first.

        Raises:
            UserError: the server doesn't say.
        """
        with self._asked("the jobs can't be listed"):
            found = [job for job in self._client.list_jobs() if job.submission_id]
        return sorted(found, key=lambda job: job.start_time or 0, reverse=True)

    @contextmanager
    def _asked(self, failure: str) -> Iterator[None]:
        """Within: what goes wrong with a question is told as the user's."""
        try:
            yield
        except AuthenticationError:
            raise _no_entrance(self.address) from None
        except LOST as error:
            where, what = f"--address {self.address}", one_line(error).rstrip(".")
            hint = "Give --cluster FILE, the file of `ray up`, for a cluster reached by ssh."
            raise UserError.single(where, f"{failure} ({what}).", hint) from None

    def find(self, name: str) -> JobDetails:
        """The job of that name, or of the only one that begins so.

        Raises:
            UserError: there is none, or more than one.
        """
        jobs = self.all()
        exact = [job for job in jobs if job.submission_id == name]
        found = exact or [job for job in jobs if str(job.submission_id).startswith(name)]
        if len(found) == 1:
            return found[0]
        what = "more than one job's name begins so." if found else "there is no such job."
        raise UserError.single(f"job {name}", what, "`tsarch jobs` lists them.")

    def stop(self, name: str) -> int:
        """Ask the job to end: SIGTERM, upon which a run saves a checkpoint. Returns how many
        characters its log has before.

        Raises:
            UserError: the server doesn't do so.
        """
        with self._asked("the job can't be stopped"):
            num_written = len(self._client.get_job_logs(name))
            self._client.stop_job(name)
        return num_written

    def follow(self, name: str, write: Write, say: Write, start: int = 0) -> JobEnd:
        """Write the job's log from character `start` on until it ends, over lost connections.

        Raises:
            UserError: the cluster doesn't know the job any more, or us.
        """
        tail = _Tail(self._client, name, write, start)
        lost_s: float | None = None
        while True:
            try:
                asyncio.run(tail.run())
                details = self._client.get_job_info(name)
                if lost_s is not None:
                    say(f"connected again after {time.monotonic() - lost_s:.0f} s")
                    lost_s = None
                if JobStatus(details.status).is_terminal():
                    tail.rest()
                    return _end_of(details)
            except AuthenticationError:
                raise _no_entrance(self.address) from None
            except LOST as error:
                if _NO_SUCH in str(error):
                    what = "the cluster doesn't know it any more: it was started anew."
                    raise UserError.single(f"job {name}", what) from None
                if lost_s is None:
                    lost_s = time.monotonic()
                    say(f"connection lost ({one_line(error)}); trying again, the job goes on")
            time.sleep(_RETRY_S)


class _Tail:
    """A job's log, of which the beginning has been written already."""

    def __init__(self, client: _Client, name: str, write: Write, start: int) -> None:
        self._client, self._name, self._write = client, name, write
        self._num_written = start

    async def run(self) -> None:
        """Write what comes until the job or the connection ends, which raises one of `LOST`."""
        following = asyncio.create_task(self._follow())
        try:
            while not (await asyncio.wait({following}, timeout=_LOOK_S))[0]:
                # A connection without a word may be dead, and nobody would say so.
                info = await asyncio.to_thread(self._client.get_job_status, self._name)
                if info.is_terminal():
                    return
            following.result()
        finally:
            following.cancel()
            with suppress(asyncio.CancelledError, *LOST):
                await following

    async def _follow(self) -> None:
        position = 0  # the server begins at the beginning
        async for text in self._client.tail_job_logs(self._name):
            self._from(position, text)
            position += len(text)

    def rest(self) -> None:
        """Write what is left of an ended job's log."""
        self._from(0, self._client.get_job_logs(self._name))

    def _from(self, position: int, text: str) -> None:
        new = text[max(0, self._num_written - position) :]
        if new:
            self._write(new)
            self._num_written = position + len(text)


def _end_of(job: JobDetails) -> JobEnd:
    status = JobStatus(job.status)
    if status == JobStatus.SUCCEEDED:
        return JobEnd(status.value, 0, "")
    if status == JobStatus.STOPPED:  # Ray doesn't tell the status of what it has ended
        return JobEnd(status.value, 128 + signal.SIGTERM, "")
    return JobEnd(status.value, job.driver_exit_code or 1, job.message or "")


def _no_entrance(address: str) -> UserError:
    token = find_token()
    have = "none is here" if token is None else f"it does not accept the one in {token.place}"
    return UserError.single(
        f"--address {address}",
        f"this Ray cluster asks for a token, and {have}.",
        "`ray get-auth-token` on the cluster's head prints it (a secret). Put it into "
        "~/.ray/auth_token here, readable for you alone (chmod 600).",
    )
