"""All services in this process: `parley up` without `--split`. Each has a bus and settings of its own, as if it were alone."""

import asyncio
import os
from collections.abc import Sequence

from parley.fleet import Replica, Say, ServicesFile
from parley.run import build, bus_of, read, taken
from parley.services import SERVICES
from parley.settings import value_of
from parley.supervise import is_free
from parley_runtime.service import Service

DRAIN_S = 2.0
PAUSE_S = 1.0


class Inside:
    """Started one after the other, the gateway last; stopped gateway first, the others side by side."""

    def __init__(self, services: ServicesFile, say: Say) -> None:
        self._services = services
        self._say = say
        self._running: dict[str, tuple[str, Service]] = {}
        self._restarting: set[asyncio.Task[None]] = set()
        self._is_stopping = False

    async def start(self, replicas: Sequence[tuple[str, str, Replica]]) -> None:
        for name, service, replica in replicas:
            await self._start(name, service, replica)

    async def stop(self) -> None:
        self._is_stopping = True
        for task in self._restarting:
            task.cancel()
        gateways = [running for service, running in self._running.values() if service == "gateway"]
        others = [running for service, running in self._running.values() if service != "gateway"]
        for group in (gateways, others):
            await asyncio.gather(*(running.stop() for running in group))
        self._running.clear()

    async def _start(self, name: str, service: str, replica: Replica) -> None:
        part = SERVICES[service]
        if replica.health_port and not is_free(replica.health_port):  # taken since it was chosen
            replica.health_port = 0
        chosen: dict[str, object] = {"health_port": replica.health_port}
        if replica.port is not None:
            chosen["port"] = replica.port
        if "drain_s" in part.settings_class.model_fields and not value_of("DRAIN_S"):
            chosen["drain_s"] = DRAIN_S  # whoever pressed Ctrl-C waits; in production a supervisor does
        settings = read(part.settings_class, **chosen)

        def start_again() -> None:
            task = asyncio.get_running_loop().create_task(self._start_again(name, service, replica))
            self._restarting.add(task)
            task.add_done_callback(self._restarting.discard)

        running = build(service, settings, bus_of(service, settings, on_closed=start_again, drain_s=DRAIN_S))
        try:
            await running.start()
        except OSError as error:
            raise taken(running, settings, error) from error
        replica.pid, replica.health_port = os.getpid(), running.health.port
        self._running[name] = (service, running)
        self._services.replicas[name] = replica
        self._services.write()

    async def _start_again(self, name: str, service: str, replica: Replica) -> None:
        """NATS closed its connection for good. Elsewhere the process would end and be started again; here the service is."""
        while not self._is_stopping:
            self._say(f"{name} lost NATS for good; it is started again.")
            if running := self._running.pop(name, None):
                await running[1].stop()
            await asyncio.sleep(PAUSE_S)
            try:
                await self._start(name, service, replica)
            except Exception as error:  # noqa: BLE001 - whatever it is, one service must not take the others along
                self._say(f"{name} did not start: {error}")
            else:
                return
