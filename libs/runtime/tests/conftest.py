"""The buses under test: a nats-server of these tests' own (they kill it), and hubs that make buses on it or in memory."""

import asyncio
import socket
import subprocess
import sysconfig
import tempfile
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import nats
import pytest_asyncio
from nats.js.errors import NotFoundError

from parley_contracts.streams import STREAMS
from parley_runtime.bus import Bus
from parley_runtime.memory_bus import MemoryBus, MemoryHub
from parley_runtime.nats_bus import NatsBus, provision
from parley_runtime.testing import KEEP_ALIVE_S, TEST_CONSUMERS, extract, inject

PROGRAM = Path(sysconfig.get_path("scripts")) / "nats-server"


class NatsServer:
    """One server on one port and store; killed and started again at will."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="parley-bus-")
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        self.url = f"nats://127.0.0.1:{self.port}"
        self._conf = Path(self._folder.name) / "nats.conf"
        self._conf.write_text(f"""
listen: "127.0.0.1:{self.port}"
max_payload: 8MB
jetstream {{ store_dir: "{self._folder.name}/store", max_mem: 256MB, max_file: 8GB, sync_interval: "1s" }}
""")
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        self._process = subprocess.Popen([PROGRAM, "-c", self._conf], stderr=subprocess.DEVNULL)  # noqa: ASYNC220, S603 - starts at once; our own arguments
        for _ in range(500):
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                await asyncio.sleep(0.01)
            else:
                writer.close()
                await writer.wait_closed()
                return
        raise TimeoutError("nats-server did not start")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        self.kill()
        self._folder.cleanup()


class NatsHub:
    """A `TestHub` on NATS."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.buses: list[NatsBus] = []

    def bus(self, service: str, **options: Any) -> NatsBus:
        options = {"drain_s": 5.0, "keep_alive_s": KEEP_ALIVE_S, "inject": inject, "extract": extract, **options}
        bus = NatsBus(service, url=self.url, **options)
        self.buses.append(bus)
        return bus

    async def kill(self, bus: Bus) -> None:
        assert isinstance(bus, NatsBus)
        connection = bus._connection
        connection.is_closing = True
        await connection.client.close()
        await bus._tasks.finish(0.0)


class InMemory:
    """A `TestHub` in memory."""

    def __init__(self, **settings: Any) -> None:
        self.hub = MemoryHub(consumers=TEST_CONSUMERS, **settings)
        self.buses: list[MemoryBus] = []

    def bus(self, service: str, **options: Any) -> MemoryBus:
        options = {"drain_s": 5.0, "keep_alive_s": KEEP_ALIVE_S, "inject": inject, "extract": extract, **options}
        bus = MemoryBus(self.hub, service, **options)
        self.buses.append(bus)
        return bus

    async def kill(self, bus: Bus) -> None:
        assert isinstance(bus, MemoryBus)
        await bus.kill()


@pytest_asyncio.fixture(scope="session")
async def bus_server() -> AsyncIterator[NatsServer]:
    server = NatsServer()
    await server.start()
    yield server
    server.stop()


@pytest_asyncio.fixture
async def nats_hub(bus_server: NatsServer) -> AsyncIterator[NatsHub]:
    """Buses on NATS, with empty streams."""
    client = await nats.connect(bus_server.url)
    for spec in STREAMS:
        with suppress(NotFoundError):
            await client.jsm().delete_stream(spec.name)
    await client.close()
    await provision(bus_server.url, consumers=TEST_CONSUMERS)
    hub = NatsHub(bus_server.url)
    yield hub
    await asyncio.gather(*(bus.close() for bus in hub.buses))


@pytest_asyncio.fixture
async def memory_hub() -> AsyncIterator[InMemory]:
    hub = InMemory()
    yield hub
    await asyncio.gather(*(bus.close() for bus in hub.buses))
    hub.hub.close()
