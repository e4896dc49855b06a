"""Hosts made of namespaces of this machine, with a switch between them: each has processes, folders
for temporary files and homes, shared memory, a network address and an ssh server of its own.

Needs root, `unshare`, `nsenter`, `ip`, `sshd` and rsync. Nothing is left when the hosts have ended,
and they end with the process that made them.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import psutil

from tests.helpers import ROOT

ACCOUNT, UID = "ubuntu", 1717
HOME = Path("/home") / ACCOUNT
SHARED = Path("/mnt/shared")
"""Inside of all hosts: a folder that they share."""
_NEEDED = ("unshare", "nsenter", "ip", "sshd", "rsync", "setpriv")
_START_TIMEOUT_S = 30.0
_POLL_S = 0.05
_SHM = "4g"

# The first process of a host; its folder here is the first argument, its name the second.
_BOOT = """
set -e
hostname "$2"
mount -t proc proc /proc
mount -t tmpfs -o size={shm},mode=1777 shm /dev/shm
mount -t tmpfs run /run
mkdir -p /run/sshd
mount -t tmpfs mnt /mnt
mkdir {shared}
mount --bind "$1/../shared" {shared}
mount -t tmpfs home /home
mkdir {home}
mount --bind "$1/home" {home}
for file in passwd shadow group; do mount --bind "$1/etc/$file" "/etc/$file"; done
for name in {hidden}; do mount -t tmpfs hidden "$name"; done
# Root's home is closed to the account, and the Python of this machine may lie there.
mount -t tmpfs keep /run/sshd
number=0
for path in {kept}; do
  number=$((number + 1))
  mkdir /run/sshd/$number
  mount --bind "$path" /run/sshd/$number
done
mount -t tmpfs root /root
number=0
for path in {kept}; do
  number=$((number + 1))
  mkdir -p "$path"
  mount --move /run/sshd/$number "$path"
done
umount /run/sshd
cp "$1/etc/host_key" /run/host_key
chmod 600 /run/host_key
mount --bind "$1/tmp" /tmp
ip link set lo up
exec $(command -v sshd) -D -e -f /dev/null -o HostKey=/run/host_key -o UsePAM=no \
  -o PasswordAuthentication=no -o PidFile=none -o PrintMotd=no
"""


def missing() -> str | None:
    """What this machine lacks for hosts; None: nothing."""
    if os.geteuid() != 0:
        return "root"
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    lacking = [name for name in _NEEDED if shutil.which(name, path=path) is None]
    if lacking:
        return ", ".join(lacking) + " (Debian: apt install openssh-server rsync iproute2)"
    made = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount", "--uts", "--ipc", "--net", "true"],
        capture_output=True,
        check=False,
    )
    return None if made.returncode == 0 else f"namespaces: {made.stderr.decode().strip()}"


class Switch:
    """What the hosts' cables are plugged into."""

    def __init__(self) -> None:
        self._process = _unshared(["--net"], ["sleep", "infinity"])
        self._late: list[subprocess.Popen[str]] = []
        self.pid = _first_child(self._process)
        self._ip("link", "add", "br0", "type", "bridge")
        self._ip("link", "set", "br0", "up")

    def plug(self, host_pid: int, name: str, address: str, delay_s: float) -> None:
        """A cable to a host, which gets an address; with a delay in each direction."""
        if delay_s:
            self._plug_late(host_pid, name, delay_s)
        else:
            cable = f"ip link add {name} netns {self.pid} type veth peer name eth0 netns {host_pid}"
            _run(*cable.split())
        self._ip("link", "set", name, "master", "br0", "up")
        host = ["nsenter", f"--net=/proc/{host_pid}/ns/net"]
        _run(*host, "ip", "addr", "add", f"{address}/24", "dev", "eth0")
        _run(*host, "ip", "link", "set", "eth0", "up")

    def _plug_late(self, host_pid: int, name: str, delay_s: float) -> None:
        entering = ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net=/proc/{self.pid}/ns/net"]
        carrying = [sys.executable, "-m", "tests.suites.late_cable", name, str(host_pid)]
        process = subprocess.Popen(
            [*entering, *carrying, str(delay_s)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        self._late.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "plugged\n"

    def set_cable(self, name: str, up: bool) -> None:
        """Plug a cable out, or in again."""
        self._ip("link", "set", name, "up" if up else "down")

    def limit(self, host_pid: int, name: str, rate: str) -> None:
        """Let through so much to and from a host."""
        bucket = f"root tbf rate {rate} burst 128kb latency 50ms".split()
        for pid, device in ((self.pid, name), (host_pid, "eth0")):
            entering = ["nsenter", f"--net=/proc/{pid}/ns/net"]
            _run(*entering, "tc", "qdisc", "replace", "dev", device, *bucket)

    def close(self) -> None:
        """End it."""
        for process in self._late:
            process.kill()
            process.communicate()
        _end(self._process)

    def _ip(self, *arguments: str) -> None:
        _run("nsenter", f"--net=/proc/{self.pid}/ns/net", "ip", *arguments)


class Host:
    """One host. Its folder on this machine: `home`, `tmp` and `etc`."""

    def __init__(
        self, name: str, address: str, folder: Path, switch: Switch, delay_s: float = 0.0
    ) -> None:
        self._delay_s = delay_s
        self.name, self.address, self.folder = name, address, folder
        self.cable = f"to-{name}"[:15]
        self._switch = switch
        self._process: subprocess.Popen[bytes] | None = None
        for part in ("home", "tmp", "etc"):
            (folder / part).mkdir(parents=True)
        self._make_accounts()
        shutil.chown(folder / "home", UID, UID)
        (folder / "tmp").chmod(0o1777)

    @property
    def home(self) -> Path:
        """The account's home, as this machine sees it."""
        return self.folder / "home"

    @property
    def pid(self) -> int:
        """Its first process, by this machine's numbers."""
        assert self._process is not None, f"{self.name} is off"
        return _first_child(self._process)

    def start(self) -> None:
        """Boot, and wait until its ssh server listens."""
        hidden = _quoted(ROOT / n for n in ("tsarch", "cluster", "launch"))
        python = (Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve())
        kept = _quoted(path for path in python if path.is_relative_to("/root"))
        script = _BOOT.format(shm=_SHM, shared=SHARED, home=HOME, hidden=hidden, kept=kept)
        kinds = ["--pid", "--mount", "--uts", "--ipc", "--net", "--propagation", "private"]
        with (self.folder / "boot.log").open("ab") as log:
            self._process = _unshared(
                kinds, ["bash", "-c", script, "boot", str(self.folder), self.name], log
            )
        self._switch.plug(self.pid, self.cable, self.address, self._delay_s)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while b"Server listening" not in (self.folder / "boot.log").read_bytes():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise OSError(f"{self.name}: {(self.folder / 'boot.log').read_text()}")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """Cut the power: all its processes end, and so do its namespaces; its disk stays."""
        if self._process is not None:
            _end(self._process)
            self._process = None

    def reboot(self) -> None:
        """Off and on; as after a real one, /tmp is empty."""
        self.stop()
        for path in (self.folder / "tmp").iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        (self.folder / "boot.log").unlink()
        self.start()

    def command(self, command: str) -> list[str]:
        """A line for the account's login shell on the host."""
        entering = ["nsenter", "--target", str(self.pid), "--all"]
        account = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"]
        clean = ["env", "-i", f"HOME={HOME}", f"USER={ACCOUNT}", f"LOGNAME={ACCOUNT}"]
        clean += ["PATH=/usr/local/bin:/usr/bin:/bin", "TERM=dumb", "LANG=C.UTF-8"]
        line = f"cd {HOME}; {command}"
        return [*entering, "--", *account, *clean, "bash", "--login", "-c", line]

    def run(self, command: str, timeout_s: float, check: bool = True) -> str:
        """Output of a line, errors too.

        Raises:
            AssertionError: it failed, or took too long.
        """
        with self.start_command(command) as process:
            try:
                output, _ = process.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                _end_group(process)
                output, _ = process.communicate()
                raise AssertionError(f"not done in {timeout_s} s: {command}\n{output}") from None
        assert not check or process.returncode == 0, f"{process.returncode}: {command}\n{output}"
        return output

    def start_command(self, command: str) -> subprocess.Popen[str]:
        """Start a line; its output and errors come through one pipe."""
        return subprocess.Popen(
            self.command(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    @contextmanager
    def beside(self, command: str) -> Iterator[None]:
        """Within: a line runs on the host, which says nothing."""
        process = subprocess.Popen(
            self.command(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def own_home(self) -> None:
        """Make all of its home the account's."""
        give(self.home)

    def processes(self, word: str) -> list[psutil.Process]:
        """Its processes that have a word in their command; one that is ending has none."""
        return [p for p in self._all_processes() if word in _command(p)]

    def _all_processes(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children(recursive=True) if self._process else []

    def _make_accounts(self) -> None:
        own = {
            "passwd": f"{ACCOUNT}:x:{UID}:{UID}::{HOME}:/bin/bash",
            "shadow": f"{ACCOUNT}:*:19000:0:99999:7:::",
            "group": f"{ACCOUNT}:x:{UID}:",
        }
        for name, line in own.items():
            path = self.folder / "etc" / name
            path.write_text(Path("/etc", name).read_text().rstrip("\n") + f"\n{line}\n")
            path.chmod(0o640 if name == "shadow" else 0o644)
        key = str(self.folder / "etc" / "host_key")
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)


class Hosts:
    """Hosts on one switch, and the computer of whoever uses them."""

    def __init__(self, folder: Path, names: Sequence[str], delay_s: float = 0.0) -> None:
        """`delay_s`: of each host's cable, in each direction."""
        self.folder = folder
        (folder / "shared").mkdir(parents=True)
        (folder / "shared").chmod(0o1777)
        self.switch = Switch()
        self.computer = Host("computer", "10.231.8.100", folder / "computer", self.switch)
        self.all = [
            Host(name, f"10.231.8.{index + 1}", folder / name, self.switch, delay_s)
            for index, name in enumerate(names)
        ]

    def __enter__(self) -> Self:
        try:
            self._share_key()
            for host in (self.computer, *self.all):
                host.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cut everybody's power."""
        for host in (self.computer, *self.all):
            host.stop()
        self.switch.close()

    def _share_key(self) -> None:
        """Let the computer's account into all hosts."""
        ssh = self.computer.home / ".ssh"
        ssh.mkdir(mode=0o700)
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(ssh / "id_ed25519"))
        for host in self.all:
            own = host.home / ".ssh"
            own.mkdir(mode=0o700)
            shutil.copy(ssh / "id_ed25519.pub", own / "authorized_keys")
            give(own)
        give(ssh)


def give(path: Path) -> None:
    """Make all below a path the account's."""
    for own in [path, *path.rglob("*")]:
        os.chown(own, UID, UID, follow_symlinks=False)


def lend_environment(host: Host, project: str) -> None:
    """Make the environment of this machine that of `~/PROJECT` on a host, as an installation that
    is done already: its packages are those here, and its tsarch is that of the folder."""
    folder = host.home / project / ".venv"
    inside = HOME / project / ".venv"
    site = folder / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    site.mkdir(parents=True)
    (folder / "bin").mkdir()
    base = Path(sys.base_prefix) / "bin"
    (folder / "pyvenv.cfg").write_text(f"home = {base}\ninclude-system-site-packages = false\n")
    # In order of names: the folder goes before what the environment here was made from.
    (site / "a_project.pth").write_text(f"{HOME / project}\n")
    here = sysconfig.get_paths()["purelib"]
    (site / "b_packages.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    python = (base / "python3").resolve()
    for name in ("python", "python3", python.name):
        (folder / "bin" / name).symlink_to(python)
    for script in Path(sys.prefix, "bin").iterdir():
        if script.is_file() and not script.is_symlink():
            _copy_script(script, folder / "bin" / script.name, f"#!{inside}/bin/python\n")
    (folder / ".installed").touch()
    give(host.home / project)


def _copy_script(source: Path, target: Path, own: str) -> None:
    first, line_end, rest = source.read_bytes().partition(b"\n")
    if first.startswith(b"#!") and b"python" in first and line_end:
        target.write_bytes(own.encode() + rest)
        target.chmod(0o755)
    else:
        target.symlink_to(source.resolve())


def _quoted(paths: Iterable[Path]) -> str:
    return " ".join(shlex.quote(str(path)) for path in paths)


def _unshared(
    kinds: Sequence[str], command: Sequence[str], output: Any = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """Start a command in new namespaces; it ends when this process does."""
    return subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "unshare", *kinds, "--fork", "--kill-child", *command],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
    )


def _first_child(process: subprocess.Popen[bytes]) -> int:
    """The process that `unshare` has forked."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        for child in psutil.Process(process.pid).children():
            return int(child.pid)
        time.sleep(_POLL_S)
    raise OSError("unshare has started nothing")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End `unshare`; its child, and with it the namespaces, ends with it."""
    children = psutil.Process(process.pid).children() if process.poll() is None else []
    process.send_signal(signal.SIGKILL)
    process.wait()
    psutil.wait_procs(children, timeout=_START_TIMEOUT_S)


def _end_group(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
