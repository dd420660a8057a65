"""A service's life: it opens in order, says truly whether it is ready, and closes in reverse."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from parley_runtime.memory_bus import MemoryBus, MemoryHub
from parley_runtime.service import Service
from parley_runtime.settings import Settings


class Thing:
    """A resource that tells what was done to it, and can be broken."""

    def __init__(self, name: str, diary: list[str]) -> None:
        self.name = name
        self.diary = diary
        self.broken: Exception | None = None
        self.hangs = False

    async def open(self) -> None:
        self.diary.append(f"open {self.name}")
        if self.broken:
            raise self.broken

    async def check(self) -> None:
        if self.hangs:
            await asyncio.sleep(60)
        if self.broken:
            raise self.broken

    async def close(self) -> None:
        self.diary.append(f"close {self.name}")


def service_of(*things: Thing, serves: tuple[Thing, ...] = (), **more: object) -> Service:
    bus = MemoryBus(MemoryHub(), service="auth")
    return Service("auth", bus, Settings(), owns=things, serves=serves, **more)  # type: ignore[arg-type]


@pytest.fixture
def diary() -> list[str]:
    return []


@pytest_asyncio.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False) as client:
        yield client


async def test_what_is_owned_opens_in_order_and_closes_in_reverse(diary: list[str]) -> None:
    service = service_of(Thing("database", diary), Thing("cache", diary), serves=(Thing("http", diary),))
    await service.start()
    await service.stop()
    assert diary == ["open database", "open cache", "open http", "close http", "close cache", "close database"]


async def test_a_service_that_cannot_start_closes_what_it_opened_and_says_why(diary: list[str]) -> None:
    second = Thing("cache", diary)
    second.broken = ConnectionError("cache is away")
    with pytest.raises(ConnectionError, match="cache is away"):
        await service_of(Thing("database", diary), second).start()
    assert diary == ["open database", "open cache", "close database"]


async def test_health_pages_answer_on_the_services_own_port(diary: list[str], client: httpx.AsyncClient) -> None:
    service = service_of(Thing("database", diary))
    await service.start()
    base = f"http://127.0.0.1:{service.health.port}"
    assert (await client.get(f"{base}/healthz")).json() == {"service": "auth", "status": "alive"}
    ready = await client.get(f"{base}/readyz")
    assert (ready.status_code, ready.json()["problems"]) == (200, {})
    assert "process_resident_memory_bytes" in (await client.get(f"{base}/metrics")).text
    assert (await client.get(f"{base}/else")).status_code == 404
    await service.stop()


async def test_readiness_names_what_does_not_answer(diary: list[str], client: httpx.AsyncClient) -> None:
    broken, silent = Thing("database", diary), Thing("cache", diary)
    service = service_of(broken, silent)
    await service.start()
    broken.broken, silent.hangs = ConnectionError("refused"), True
    ready = await client.get(f"http://127.0.0.1:{service.health.port}/readyz")
    assert ready.status_code == 503
    assert ready.json()["problems"] == {"database": "ConnectionError: refused", "cache": "no answer in 2 s"}
    await service.stop()


async def test_a_loop_that_raises_begins_again_and_ends_with_its_service(diary: list[str]) -> None:
    rounds: list[int] = []
    twice = asyncio.Event()

    async def sweep() -> None:
        rounds.append(len(rounds))
        if len(rounds) == 2:
            twice.set()
        raise ValueError("once more")

    service = service_of(Thing("database", diary), loops=(sweep,))
    await service.start()
    async with asyncio.timeout(5):
        await twice.wait()
    await service.stop()
    seen = len(rounds)
    await asyncio.sleep(1.2)
    assert len(rounds) == seen
