"""The servers of a machine that has none: NATS, PostgreSQL, Valkey and S3 from pip wheels, as child processes.

Owns the data directory: `{nats,postgres,valkey,s3}/`, `logs/`, `servers.json` (their secrets), `run.json` and `lock`.
`servers.py` knows each server, `supervise.py` how a process is started, stopped and cleared away.
"""

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from parley.server_secrets import Secrets
from parley.servers import BUCKET, SERVERS, Home, Server
from parley.supervise import Child, PortTaken, RunFile, StartFailed, free_port, is_free

__all__ = ["ALL", "Addresses", "EmbeddedServers", "StartFailed"]

ALL = frozenset(SERVERS)
START_S = 60.0  # a cold disk; PostgreSQL may also have a crash to recover from
PROBE_S = 10.0  # PostgreSQL's makes a database
PORT_TRIES = 5
LINGER_S = 10.0


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the servers are. Empty for a server that was not asked for."""

    nats_url: str = ""
    database_url: str = field(default="", repr=False)
    redis_url: str = ""
    s3_endpoint_url: str = ""
    s3_access_key_id: str = field(default="", repr=False)
    s3_secret_access_key: str = field(default="", repr=False)
    s3_bucket: str = ""


class EmbeddedServers:
    """The servers of one data directory: started together, stopped in reverse. One launcher a data directory."""

    def __init__(
        self,
        data_dir: Path,
        *,
        only: frozenset[str] = ALL,
        durable: bool = True,
        ports: Mapping[str, int] | None = None,
        binaries: Mapping[str, Path] | None = None,
    ) -> None:
        """`durable=False` is for tests: PostgreSQL then survives a crash of its own, not one of the machine."""
        if unknown := only - ALL:
            raise ValueError(f"no such servers: {', '.join(sorted(unknown))}")
        self._data_dir = data_dir.absolute()
        self._names = [name for name in SERVERS if name in only]
        self._durable = durable
        self._fixed_ports = dict(ports or {})
        self._binaries = dict(binaries or {})
        self._run = RunFile(self._data_dir)
        self._children: dict[str, Child] = {}
        self._ports: dict[str, int] = {}
        self._servers: dict[str, Server] = {}
        self._running = False

    async def start(self) -> Addresses:
        if self._running:
            raise StartFailed(f"the servers in {self._data_dir} are started already: stop them first.")
        try:
            self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)  # conversations are nobody else's to read
            (self._data_dir / "logs").mkdir(exist_ok=True)
            self._run.take()
        except OSError as error:
            raise self._unusable(error) from None
        self._running = True
        try:
            await self._run.clear_leftovers()
            secrets = Secrets.load(self._data_dir / "servers.json")
            self._servers = {name: SERVERS[name](self._home(name, secrets)) for name in self._names}
            async with asyncio.TaskGroup() as group:
                for name in self._names:
                    group.create_task(self._start(name))
        except BaseException as error:
            await self.stop()
            failure: BaseException = error
            while isinstance(failure, BaseExceptionGroup):  # one clear line: the first that failed
                failure = failure.exceptions[0]
            if isinstance(failure, OSError):
                raise self._unusable(failure) from None
            if isinstance(failure, StartFailed):
                raise failure from None
            raise
        return self._addresses(secrets)

    async def stop(self) -> None:
        """Also after a failed start, and twice. Takes at most some ten seconds a server, whatever state it is in."""
        try:
            for name in reversed(self._names):
                if child := self._children.get(name):
                    await child.stop(SERVERS[name].stop_signal)
                    self._ended(name)
        finally:  # cancelled in between: the others are killed at once, nothing is left behind
            for name, child in list(self._children.items()):
                child.kill_now()
                self._ended(name)
            if self._running:
                self._run.remove_folders()
                self._run.release()
            self._running = False

    @property
    def run_file(self) -> RunFile:
        """Where the launcher notes its other processes, so that the next start clears them away with the servers."""
        return self._run

    def port(self, name: str) -> int:
        return self._ports[name]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._names)

    def pid(self, name: str) -> int:
        return self._children[name].pid

    async def exited(self) -> str:
        """Wait until a server ends by itself; its name. The launcher says so, and may `restart` it."""
        while True:
            for name, child in self._children.items():
                if not child.alive:
                    return name
            await asyncio.sleep(0.2)

    async def kill(self, name: str) -> None:
        """SIGKILL, as a crash would be."""
        if child := self._children.get(name):
            await child.kill()

    async def restart(self, name: str) -> None:
        """The same server on the same port and data. Stopped first, if it still runs."""
        if not self._running:
            raise StartFailed(f"{name} cannot be restarted: the servers in {self._data_dir} are not started.")
        if child := self._children.get(name):
            await child.stop(SERVERS[name].stop_signal)
            self._ended(name)
        await self._launch(name, self._ports[name])

    async def _start(self, name: str) -> None:
        await self._servers[name].prepare()
        for attempt in range(PORT_TRIES):
            port = self._choose_port(name, fresh=attempt > 0)
            try:
                return await self._launch(name, port)
            except PortTaken:  # between our look and its bind somebody else took it
                if name in self._fixed_ports or attempt == PORT_TRIES - 1:
                    raise
        return None

    def _home(self, name: str, secrets: Secrets) -> Home:
        return Home(
            data_dir=self._data_dir,
            name=name,
            binary=self._binaries.get(name),
            secrets=secrets,
            run=self._run,
            durable=self._durable,
        )

    def _choose_port(self, name: str, *, fresh: bool) -> int:
        """The one that was asked for, else last time's, else any; never one that another of the four has."""
        if name in self._fixed_ports:
            return self._fixed_ports[name]
        port, promised = self._run.port(name), frozenset(self._fixed_ports.values())
        if fresh or port is None or port in promised or not is_free(port):
            port = free_port(but=self._run.all_ports() | promised)
        return port

    async def _launch(self, name: str, port: int) -> None:
        """Try until it is ready, while what a crash left behind may still be going away."""
        deadline = asyncio.get_running_loop().time() + LINGER_S
        while True:
            try:
                return await self._launch_once(name, port)
            except StartFailed as error:
                # After kill -9 PostgreSQL's backends need a moment to see that their postmaster is gone.
                if "shared memory block" not in str(error) or asyncio.get_running_loop().time() > deadline:
                    raise
            await asyncio.sleep(0.05)

    async def _launch_once(self, name: str, port: int) -> None:
        """Raises PortTaken or StartFailed, and has then ended it."""
        server = self._servers[name]
        if not is_free(port):
            raise PortTaken(
                f"port {port} for {name} is taken by another program: end that program, or give {name} another port."
            )
        child = Child(server.command(port), self._data_dir / "logs" / f"{name}.log")
        self._children[name], self._ports[name] = child, port
        self._run.started(name, child.pid, server.stop_signal, port)
        try:
            await _ready(name, server, port, child)
        except StartFailed:
            await child.kill()
            self._ended(name)
            raise

    def _ended(self, name: str) -> None:
        self._children.pop(name, None)
        self._run.ended(name)

    def _addresses(self, secret: Secrets) -> Addresses:
        at = {name: f"127.0.0.1:{port}" for name, port in self._ports.items()}
        s3 = "s3" in at
        return Addresses(
            nats_url=f"nats://{at['nats']}" if "nats" in at else "",
            database_url=f"postgresql://parley:{secret.postgres_password}@{at['postgres']}/parley" if "postgres" in at else "",
            redis_url=f"redis://{at['valkey']}/0" if "valkey" in at else "",
            s3_endpoint_url=f"http://{at['s3']}" if s3 else "",
            s3_access_key_id=secret.s3_access_key_id if s3 else "",
            s3_secret_access_key=secret.s3_secret_access_key if s3 else "",
            s3_bucket=BUCKET if s3 else "",
        )

    def _unusable(self, error: OSError) -> StartFailed:
        return StartFailed(
            f"the data directory {self._data_dir} cannot be used: {error}. "
            "Make it a folder this user may write to, or choose another."
        )


async def _ready(name: str, server: Server, port: int, child: Child) -> None:
    """Probe, and watch the child meanwhile: another's server on its port may keep a probe waiting for ever."""
    deadline = asyncio.get_running_loop().time() + START_S
    probe = asyncio.create_task(_answers(server, port, child.pid))
    try:
        while not probe.done():
            if not child.alive:
                raise _failure(name, port, child)
            if asyncio.get_running_loop().time() > deadline:
                raise StartFailed(f"{name} was not ready within {START_S:.0f} s: {child.log} says what it is waiting for.")
            await asyncio.wait({probe}, timeout=0.05)
        probe.result()
    finally:
        probe.cancel()
        await asyncio.wait({probe})
    if not child.alive:
        raise _failure(name, port, child)


async def _answers(server: Server, port: int, pid: int) -> None:
    while True:
        # No listener yet, or half an answer: asked again.
        with contextlib.suppress(OSError, EOFError, ValueError, IndexError, TimeoutError):
            async with asyncio.timeout(PROBE_S):
                if await server.answers(port, pid):
                    return
        await asyncio.sleep(0.01)


def _failure(name: str, port: int, child: Child) -> StartFailed:
    reason = child.last_words()
    if "address already in use" in child.log.read_text(errors="replace").lower():
        return PortTaken(f"port {port} for {name} is taken by another program: end that program, or give {name} another port.")
    advice = f"The log is {child.log}."
    if "not compatible with this version" in reason:
        advice = "Move the data with pg_dump of that version, or move the folder away to begin anew."
    return StartFailed(f"{name} did not start: {reason} {advice}")
