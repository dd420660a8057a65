"""Child processes of the launcher: started, probed, stopped, and cleared away when a killed launcher left them behind.

Owns `run.json` and `lock` in the data directory. The lock says that a launcher lives (the kernel gives it back even
after kill -9, and no reused pid can fake it); the run file says which processes and ports are its own.
Knows nothing about NATS, PostgreSQL, Valkey or S3: those are in `embedded.py`.
"""

import asyncio
import contextlib
import fcntl
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import msgspec

POLL_S = 0.01
GRACE_S = 5.0
KILL_S = 5.0
# Below Linux's range for outgoing connections (32768-60999): there, a client that reconnects to a stopped server can
# be given the server's own port, connect to itself, and keep the server from coming back.
FIRST_PORT, LAST_PORT = 20000, 32000


_TELLING = re.compile(r"FATAL:|PANIC:|error:|\[FTL\]")
_LOG_PREFIX = re.compile(r"^[\[\d].*?(\b(FATAL|PANIC|ERROR|DETAIL|NOTICE|CRITICAL):|\[FTL\]| #)\s*")  # time, pid, level


class StartFailed(Exception):
    """A server could not be started. The message is one line: what, why, what to do."""


class PortTaken(StartFailed):
    """Somebody else listens on the port. With a port of our own choosing, another one is tried."""


@dataclass(frozen=True, slots=True)
class Command:
    """What to run, and as whom: `user` is (uid, gid), unset for the launcher's own."""

    argv: tuple[str, ...]
    cwd: str = "/"
    env: Mapping[str, str] = field(default_factory=dict)
    user: tuple[int, int] | None = None
    holds_stdin: bool = False
    """Its standard input is a pipe of ours: it reads the end when this process dies, however that happens."""


class Child:
    """One running child. `subprocess.Popen`, not asyncio's: uvloop cannot change the user of a child."""

    def __init__(self, command: Command, log: Path) -> None:
        self.log = log
        with contextlib.suppress(FileNotFoundError):
            log.replace(log.with_suffix(".log.1"))  # each start begins a new log, which is then searched for the reason
        with log.open("wb") as output:
            try:
                self._process = _spawn(command, output)
            except OSError as error:
                raise StartFailed(
                    f"{command.argv[0]} cannot be run: {error.strerror}. Install Parley's packages again, on a disk that may "
                    "hold programs."
                ) from None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def status(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    @property
    def alive(self) -> bool:
        return self.status is None

    async def exited(self, within_s: float) -> bool:
        deadline = time.monotonic() + within_s
        while self.alive:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(POLL_S)
        return True

    async def stop(self, stop_signal: int, grace_s: float = GRACE_S) -> None:
        """Ask, wait, insist; never longer than grace_s + KILL_S."""
        try:
            if self.alive:
                self._process.send_signal(stop_signal)
            if await self.exited(grace_s):
                return
        finally:  # also when our own wait is cancelled: nobody else would end it
            if self.alive:
                self._process.kill()
        await self.exited(KILL_S)

    async def kill(self) -> None:
        await self.stop(signal.SIGKILL)

    def kill_now(self) -> None:
        """SIGKILL without yielding to the loop, for a stop that is itself being cancelled."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(KILL_S)

    def last_words(self) -> str:
        """The line of the log that says why it ended: the last that calls itself fatal, else the last."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        if not lines:
            return f"it said nothing and ended with status {self.status}"
        last = max((at for at, line in enumerate(lines) if _TELLING.search(line)), default=len(lines) - 1)
        detail = [line for line in lines[last + 1 : last + 2] if "DETAIL: " in line]  # PostgreSQL's second line
        return " ".join(_LOG_PREFIX.sub("", line) for line in (lines[last], *detail))[:400]


def _spawn(command: Command, output: IO[bytes]) -> subprocess.Popen[bytes]:
    uid, gid = command.user or (None, None)
    return subprocess.Popen(  # noqa: S603 - our own binary, no shell
        command.argv,
        cwd=command.cwd,
        # A clean environment: PG* or RCLONE_* variables of the operator's shell would change the servers.
        env={"PATH": os.defpath, "LANG": "C", "TZ": "UTC", **command.env},
        stdin=subprocess.PIPE if command.holds_stdin else subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C goes to the launcher alone, which stops the servers in order
        user=uid,
        group=gid,
        extra_groups=None if command.user is None else [],
    )


class Started(msgspec.Struct, frozen=True):
    """A process of ours: its start time tells it from a later process with the same pid."""

    pid: int
    started_at: str
    stop_signal: int


class Run(msgspec.Struct, kw_only=True):
    """The contents of `run.json`. Ports stay after a stop, so that addresses stay the same the next time."""

    launcher: int = 0
    ports: dict[str, int] = {}
    processes: dict[str, Started] = {}
    folders: list[str] = []


class RunFile:
    """The one launcher of a data directory, and what it has running. `take` before use, `release` at the end."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._path = data_dir / "run.json"
        self._lock: int | None = None
        self._run = Run()

    def take(self) -> None:
        # A bare descriptor: a launcher that loses sight of this object still holds its data directory.
        lock = os.open(self._data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise StartFailed(
                f"{self._data_dir} is in use by another running Parley (pid {self._read().launcher}): stop that one, "
                "or choose another data directory."
            ) from None
        self._lock = lock
        self._run = self._read()
        self._run.launcher = os.getpid()
        self._write()

    def release(self) -> None:
        if self._lock is not None:
            self._run.launcher = 0
            self._write_if_possible()
            os.close(self._lock)
            self._lock = None

    async def clear_leftovers(self) -> None:
        """End what a killed launcher left running. Called with the lock held, so that launcher is gone."""
        left = {name: process for name, process in self._run.processes.items() if is_running(process)}
        for stop_it, wait_s in ((True, GRACE_S), (False, KILL_S)):
            for process in left.values():
                _signal(process, process.stop_signal if stop_it else signal.SIGKILL)
            deadline = time.monotonic() + wait_s
            while left and time.monotonic() < deadline:
                await asyncio.sleep(POLL_S)
                left = {name: process for name, process in left.items() if is_running(process)}
        if left:
            pids = ", ".join(f"{name} (pid {process.pid})" for name, process in left.items())
            raise StartFailed(f"{pids} of an earlier Parley on {self._data_dir} cannot be ended: end it by hand.")
        self._run.processes = {}
        self.remove_folders()

    def port(self, name: str) -> int | None:
        """The port used last time."""
        return self._run.ports.get(name)

    def all_ports(self) -> frozenset[int]:
        return frozenset(self._run.ports.values())

    def started(self, name: str, pid: int, stop_signal: int, port: int | None = None) -> None:
        self._run.processes[name] = Started(pid=pid, started_at=started_at(pid) or "", stop_signal=stop_signal)
        if port is not None:
            self._run.ports[name] = port
        self._write()

    def ended(self, name: str) -> None:
        if self._run.processes.pop(name, None) is not None:
            self._write_if_possible()

    def made_folder(self, folder: Path) -> None:
        """A folder outside the data directory, to be removed with the leftovers."""
        self._run.folders.append(str(folder))
        self._write()

    def remove_folders(self) -> None:
        for folder in self._run.folders:
            shutil.rmtree(folder, ignore_errors=True)
        self._run.folders = []
        self._write_if_possible()

    def _read(self) -> Run:
        return _read(self._path)

    def _write_if_possible(self) -> None:
        """For the way down: a deleted data directory or a full disk must not keep a server from being stopped."""
        with contextlib.suppress(OSError):
            self._write()

    def _write(self) -> None:
        new = self._path.with_suffix(".new")
        new.write_bytes(msgspec.json.encode(self._run))
        new.replace(self._path)


def running_port(data_dir: Path, name: str) -> int | None:
    """Where another launcher's child listens, if it runs."""
    run = _read(data_dir / "run.json")
    process = run.processes.get(name)
    return run.ports.get(name) if process is not None and is_running(process) else None


def _read(path: Path) -> Run:
    # A file that cannot be read was cut off by a power failure: the processes it named are gone too.
    with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
        return msgspec.json.decode(path.read_bytes(), type=Run)
    return Run()


def started_at(pid: int) -> str | None:
    """When the process began, in a form that no later process shares; None if it does not run."""
    stat = Path(f"/proc/{pid}/stat")
    if not Path("/proc/self/stat").exists():  # macOS
        ps = subprocess.run(["/bin/ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)  # noqa: S603
        return ps.stdout.strip() or None
    try:
        state, *fields = stat.read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    if state in "ZX":  # an orphan nobody reaps, as in a container whose first process is no init: it has ended
        return None
    # Ticks since boot alone would be shared by a process of the next boot.
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{fields[18]}"


def is_running(process: Started) -> bool:
    return bool(process.started_at) and started_at(process.pid) == process.started_at


def _signal(process: Started, number: int) -> None:
    try:
        if is_running(process):
            os.kill(process.pid, number)
    except ProcessLookupError:
        pass
    except PermissionError:
        raise StartFailed(
            f"process {process.pid} of an earlier Parley belongs to another user: start Parley as that user, or end it by hand."
        ) from None


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a closed connection's TIME_WAIT is no listener
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port(*, but: frozenset[int]) -> int:
    for _ in range(1000):
        port = FIRST_PORT + secrets.randbelow(LAST_PORT - FIRST_PORT)
        if port not in but and is_free(port):
            return port
    raise StartFailed(f"no port is free between {FIRST_PORT} and {LAST_PORT}: end some of the programs that listen there.")
