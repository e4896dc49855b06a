"""Two Ray nodes on this machine that can be cut apart: hosts of their own in network namespaces; or
two nodes on loopback, where namespaces may not be made."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil

_RAY = str(Path(sys.executable).with_name("ray"))
_STORE_BYTES = 256 * 2**20
_PORT = 26379
_END_TIMEOUT_S = 10.0
_ANNOUNCE = """
import sys, time
import ray
from ray._raylet import GcsClient
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
address, folder, after_s = sys.argv[1:]
ray.init(address, log_to_driver=False, logging_level="ERROR")
(node,) = (n for n in ray.nodes() if n["Alive"] and n["RayletSocketName"].startswith(folder))
reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
end_ms = int((time.time() + float(after_s)) * 1e3)
GcsClient(address=address).drain_node(node["NodeID"], reason, "spot", end_ms)
"""


class Namespaces:
    """Two network namespaces with a cable between them; root only."""

    def __init__(self) -> None:
        """
        Raises:
            OSError: they can't be made here.
        """
        self.names = [f"tsarch{os.getpid()}{side}" for side in "ab"]
        self.addresses = ["10.231.7.1", "10.231.7.2"]
        self._cables = [f"ts{side}" for side in "ab"]
        (a, b), (cable_a, cable_b) = self.names, self._cables
        try:
            for name in self.names:
                _ip("netns", "add", name)
                _ip("-n", name, "link", "set", "lo", "up")
            _ip(*f"link add {cable_a} netns {a} type veth peer name {cable_b} netns {b}".split())
            for name, cable, address in zip(self.names, self._cables, self.addresses, strict=True):
                _ip("-n", name, "addr", "add", f"{address}/30", "dev", cable)
                _ip("-n", name, "link", "set", cable, "up")
        except (OSError, subprocess.CalledProcessError) as error:
            self.close()
            raise OSError(f"no network namespaces can be made here: {error}") from None

    def command(self, node: int, command: Sequence[str]) -> list[str]:
        """The command, on a node."""
        return ["ip", "netns", "exec", self.names[node], *command]

    def set_cable(self, up: bool) -> None:
        """Plug the second node in or out."""
        _ip("-n", self.names[1], "link", "set", self._cables[1], "up" if up else "down")

    def close(self) -> None:
        """Remove them."""
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


class Loopback:
    """Two nodes with one address: they can be killed, but not cut apart."""

    addresses = ("127.0.0.1", "127.0.0.1")

    def command(self, node: int, command: Sequence[str]) -> list[str]:
        """The command."""
        return list(command)

    def set_cable(self, up: bool) -> None:
        """There is no cable."""
        raise NotImplementedError("loopback has no cable")

    def close(self) -> None:
        """Nothing was made."""


class FaultCluster:
    """A head and a second Ray node, with token authentication."""

    def __init__(self, cpus: tuple[float, float]) -> None:
        """`cpus`: of the head and of the second node."""
        try:
            self.hosts: Namespaces | Loopback = Namespaces()
        except OSError as error:
            print(f"{error}: two Ray nodes on loopback instead, without unplugging")
            self.hosts = Loopback()
        self._cpus = cpus
        self._folder = Path(tempfile.mkdtemp(prefix="tsf"))
        self.environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(20),
            "RAY_worker_niceness": "0",
        }
        self._nodes: dict[int, set[psutil.Process]] = {}

    @property
    def can_unplug(self) -> bool:
        """Whether the second node can be cut off."""
        return isinstance(self.hosts, Namespaces)

    @property
    def address(self) -> str:
        """For `--address`."""
        return f"{self.hosts.addresses[0]}:{_PORT}"

    def __enter__(self) -> Self:
        try:
            self.start_node(0)
            self.start_node(1)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start_node(self, node: int) -> None:
        """`ray start` of the head (0), the second node (1) or another one on its host (2)."""
        own = (
            ["--head", "--port", str(_PORT), "--include-dashboard", "false"]
            if node == 0
            else ["--address", self.address]
        )
        host = min(node, 1)
        command = [_RAY, "start", *own, "--node-ip-address", self.hosts.addresses[host]]
        command += ["--num-cpus", str(self._cpus[host]), "--disable-usage-stats"]
        command += ["--object-store-memory", str(_STORE_BYTES)]
        if node == 0 or self.can_unplug:
            command += ["--temp-dir", str(self._folder / str(node))]
        before = self.processes()
        subprocess.run(
            self.hosts.command(host, command),
            env=self.environment,
            check=True,
            capture_output=True,
            timeout=60,
        )
        self._nodes[node] = self.processes() - before

    def announce_end(self, node: int, after_s: float) -> None:
        """Tell Ray that a node will be taken away, as clouds tell it of spot instances."""
        folder = f"{self._folder / str(node)}/"
        command = [sys.executable, "-c", _ANNOUNCE, self.address, folder, str(after_s)]
        subprocess.run(self.hosts.command(0, command), env=self.environment, check=True, timeout=60)

    def run(self, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Start a command on the head's host."""
        return subprocess.Popen(
            self.hosts.command(0, command), env=self.environment, text=True, **options
        )

    def processes(self) -> set[psutil.Process]:
        """Everything on this machine that was started here, or by what was: it has the token."""
        return {process for process in psutil.process_iter() if self._is_own(process)}

    def _is_own(self, process: psutil.Process) -> bool:
        try:
            token = process.environ().get("RAY_AUTH_TOKEN")
        except psutil.Error:
            return False
        return token == self.environment["RAY_AUTH_TOKEN"]

    def kill_raylet(self, node: int) -> None:
        """SIGKILL the raylet of a node."""
        self.kill(node, "raylet")

    def kill(self, node: int, name: str) -> None:
        """SIGKILL a process of Ray's on a node."""
        for process in self._nodes[node]:
            with suppress(psutil.NoSuchProcess):
                if process.name() == name:
                    process.send_signal(signal.SIGKILL)

    def end_node(self, node: int) -> None:
        """Kill all processes of a node, its ranks too."""
        for process in self._nodes.pop(node, set()):
            for own in [*_children(process), process]:
                _kill(own)

    def close(self) -> None:
        """End what was started, by process id, and remove namespaces and folders."""
        for process in self.processes():
            _kill(process)
        self.hosts.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _kill(process: psutil.Process) -> None:
    """SIGKILL a process that may be gone, and wait for its end."""
    with suppress(psutil.Error):
        process.kill()
        process.wait(timeout=_END_TIMEOUT_S)


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
