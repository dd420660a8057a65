"""Service: how every part of Parley lives. Open what it owns, wire the bus, be ready; on SIGTERM drain, then close in reverse.

A service's constructor wires handlers and does no I/O. Its loops (sweepers, relays) are held here: one that returns
or raises is called again after a second, one that keeps its own time goes round by itself.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import structlog

from parley_runtime.bus import Bus
from parley_runtime.health import HealthServer, Readiness
from parley_runtime.settings import Settings
from parley_runtime.telemetry import bound

log = structlog.get_logger()

_LOOP_PAUSE_S = 1.0


class Resource(Protocol):
    """Something a service owns: opened in order, closed in reverse, asked for readiness."""

    name: str

    async def open(self) -> None: ...
    async def check(self) -> object: ...
    async def close(self) -> None: ...


Loop = Callable[[], Awaitable[None]]


class Service:
    """One running part of Parley. `owns` come up before the bus hears anything; `serves` after it, and drain before it."""

    def __init__(
        self,
        name: str,
        bus: Bus,
        settings: Settings,
        *,
        owns: Sequence[Resource] = (),
        serves: Sequence[Resource] = (),
        loops: Sequence[Loop] = (),
    ) -> None:
        self.name = name
        self.bus = bus
        self._owns = tuple(owns)
        self._serves = tuple(serves)
        self._loops = tuple(loops)
        self._tasks: list[asyncio.Task[None]] = []
        self._opened: list[Resource] = []
        checks = {resource.name: resource.check for resource in (*self._owns, *self._serves)}
        self.readiness = Readiness({"bus": bus.check, **checks})
        self.health = HealthServer(name, self.readiness, host=settings.health_host, port=settings.health_port)

    async def start(self) -> None:
        """Ready when this returns. Raises what kept it from starting; what was opened is closed again."""
        try:
            with bound(service=self.name):
                await self.health.open()
                for resource in self._owns:
                    await resource.open()
                    self._opened.append(resource)
                await self.bus.start()
                for loop in self._loops:
                    self._tasks.append(asyncio.create_task(self._keep(loop), name=f"{self.name}-{loop.__name__}"))
                for resource in self._serves:
                    await resource.open()
                    self._opened.append(resource)
                self.readiness.open()
                log.info("service_ready", health_port=self.health.port)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Take nothing new, let what runs end within its time, close everything in reverse. Never raises."""
        self.readiness.close("is stopping")
        with bound(service=self.name):
            await self._quietly("stop_taking", self.bus.stop_taking())
            for resource in reversed([r for r in self._opened if r in self._serves]):
                await self._quietly(resource.name, resource.close())
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._quietly("bus", self.bus.close())
            for resource in reversed([r for r in self._opened if r not in self._serves]):
                await self._quietly(resource.name, resource.close())
            self._opened.clear()
            await self._quietly("health", self.health.close())
            log.info("service_stopped")

    async def _keep(self, loop: Loop) -> None:
        while True:
            try:
                await loop()
            except Exception:
                log.exception("loop_failed", loop=loop.__name__)
            await asyncio.sleep(_LOOP_PAUSE_S)

    async def _quietly(self, what: str, closing: Awaitable[None]) -> None:
        try:
            await closing
        except Exception:
            log.exception("close_failed", what=what)


async def run(services: Sequence[Service], *, on_ready: Callable[[], None] = lambda: None) -> None:
    """Run services until SIGTERM or SIGINT, then stop them side by side. A second signal ends at once."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for kind in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(kind, _stop_or_exit, stopping)
    started: list[Service] = []
    try:
        for service in services:
            await service.start()
            started.append(service)
        on_ready()
        await stopping.wait()
    finally:
        await asyncio.gather(*(service.stop() for service in started))


def _stop_or_exit(stopping: asyncio.Event) -> None:
    if stopping.is_set():
        raise SystemExit(1)
    stopping.set()
