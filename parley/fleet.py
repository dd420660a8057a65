"""The fleet: the replicas that `parley up` runs, and `services.json`, where whoever is curious finds them.

A `Replica` is where one is; `Children` runs replicas as processes and starts again what dies unasked.
"""

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from parley.supervise import Child, Command, RunFile, StartFailed, free_port

READY_S = 60.0
FIRST_PAUSE_S, LAST_PAUSE_S = 0.2, 5.0
MOST_MOVES = 3
STEADY_S = 10.0  # who lived this long did not die of its start
GRACE_S = 4.0

Say = Callable[[str], None]


class Replica(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One running part: a service's replica, the simulator, or an embedded server. As it stands in `services.json`."""

    pid: int = 0
    port: int | None = None
    health_port: int | None = None


class ServicesFile:
    """`services.json`: name → pid and ports. Written whole each time, so a reader never sees half of it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.replicas: dict[str, Replica] = {}
        self.is_open = False

    def forget(self) -> None:
        """What a killed launcher wrote is no longer so."""
        self.is_open = False
        self._path.unlink(missing_ok=True)

    def open(self) -> None:
        """Everything runs: from now on the file says so."""
        self.is_open = True
        self.write()

    def write(self) -> None:
        if self.is_open:
            new = self._path.with_suffix(".new")
            new.write_bytes(msgspec.json.format(msgspec.json.encode(self.replicas)) + b"\n")
            new.replace(self._path)


@dataclass(slots=True, kw_only=True)
class Plan:
    """How a child is run and how one sees that it is ready: a page that answers 200."""

    name: str
    arguments: tuple[str, ...]
    ready_path: str
    replica: Replica
    may_move: bool = False
    """Its public port was our choice, not somebody's wish."""

    @property
    def env(self) -> dict[str, str]:
        ports = {"PORT": self.replica.port, "HEALTH_PORT": self.replica.health_port}
        return {name: str(port) for name, port in ports.items() if port is not None}

    def move(self) -> None:
        """To other ports: between our look and its start, another program took one."""
        used = {self.replica.port or 0, self.replica.health_port or 0}
        if self.replica.health_port is not None:
            self.replica.health_port = free_port(but=frozenset(used))
        if self.may_move and self.replica.port is not None:
            self.replica.port = free_port(but=frozenset(used | {self.replica.health_port or 0}))

    @property
    def ready_port(self) -> int:
        return self.replica.health_port or self.replica.port or 0


class Children:
    """Replicas as child processes: `parley run …`, each with its log in `logs/`, each watched by a task of its own."""

    def __init__(self, logs: Path, run_file: RunFile, services: ServicesFile, env: Mapping[str, str], say: Say) -> None:
        self._logs = logs
        self._run_file = run_file
        self._services = services
        self.env = env
        self._say = say
        self._children: dict[str, Child] = {}
        self._watching: dict[str, asyncio.Task[None]] = {}

    async def start(self, plans: Sequence[Plan]) -> None:
        """All at once; ready when this returns. Raises StartFailed: the last words of one that ended."""
        for plan in plans:
            self._launch(plan)
        try:
            async with asyncio.TaskGroup() as group:
                for plan in plans:
                    group.create_task(self._until_ready(plan))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None  # one clear line: the first that failed
        for plan in plans:
            self._watching[plan.name] = asyncio.create_task(self._keep(plan), name=f"keep-{plan.name}")

    async def stop(self, names: Sequence[str], grace_s: float = GRACE_S) -> None:
        """Ask, wait, insist; side by side. Names that do not run are fine."""
        await self._stop_watching(names)
        running = [(name, child) for name in names if (child := self._children.get(name))]
        await asyncio.gather(*(child.stop(signal.SIGTERM, grace_s) for _, child in running))
        for name, _ in running:
            self._ended(name)

    async def _stop_watching(self, names: Sequence[str]) -> None:
        tasks = [task for name in names if (task := self._watching.pop(name, None))]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def kill_now(self) -> None:
        for task in self._watching.values():
            task.cancel()
        for name, child in list(self._children.items()):
            child.kill_now()
            self._ended(name)

    @property
    def names(self) -> list[str]:
        return list(self._children)

    def _launch(self, plan: Plan) -> None:
        argv = (sys.executable, "-m", "parley", "run", *plan.arguments, "--with-launcher")
        command = Command(argv, cwd=str(Path.cwd()), env={**self.env, **plan.env}, holds_stdin=True)
        child = Child(command, self._logs / f"{plan.name}.log")
        self._children[plan.name] = child
        self._run_file.started(plan.name, child.pid, signal.SIGTERM)
        plan.replica.pid = child.pid
        self._services.replicas[plan.name] = plan.replica
        self._services.write()

    def _ended(self, name: str) -> None:
        self._children.pop(name, None)
        self._run_file.ended(name)

    async def _until_ready(self, plan: Plan) -> None:
        child = self._children[plan.name]
        deadline = time.monotonic() + READY_S
        while not await answers(plan.ready_port, plan.ready_path):
            if not child.alive:
                raise StartFailed(
                    f"{plan.name} did not start: {child.last_words().removeprefix('parley: ')} (log: {child.log})"
                )
            if time.monotonic() > deadline:
                raise StartFailed(f"{plan.name} was not ready within {READY_S:.0f} s: {child.log} says what it waits for.")
            await asyncio.sleep(0.05)

    async def _keep(self, plan: Plan) -> None:
        """Start it again whenever it ends, at first at once, then with pauses."""
        pause_s = FIRST_PAUSE_S
        while True:
            child, since = self._children[plan.name], time.monotonic()
            while not await child.exited(within_s=3600):
                pass
            if time.monotonic() - since > STEADY_S:
                pause_s = FIRST_PAUSE_S
            self._say(f"{plan.name} {how_it_ended(child.status)}; it is started again. Its log: {child.log}.1")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LAST_PAUSE_S)
            with contextlib.suppress(StartFailed, OSError):  # no memory, no disk: tried again after a longer pause
                self._launch(plan)


def how_it_ended(status: int | None) -> str:
    if status is not None and status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with status {status}"


async def answers(port: int, path: str) -> bool:
    """Whether `GET path` there is answered with 200 by now."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(3.0):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
                return (await reader.readline()).split()[1:2] == [b"200"]
            finally:
                writer.close()
    return False
