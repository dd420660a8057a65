"""The servers that tests meet: real NATS, PostgreSQL and Valkey, started once a session, when the first test asks."""

import contextlib
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from parley.embedded import Addresses, EmbeddedServers, StartFailed

PREFIX = "parley-tests-"


async def _clear_abandoned_runs() -> None:
    """A test session that was killed leaves its servers; the next one clears them. One that still runs is refused."""
    for run_file in _run_files():
        with contextlib.suppress(StartFailed):
            leftovers = EmbeddedServers(run_file.parent, only=frozenset())
            await leftovers.start()
            await leftovers.stop()
            shutil.rmtree(run_file.parent, ignore_errors=True)


def _run_files() -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob(f"{PREFIX}*/run.json"))


@pytest.fixture(scope="session")
def servers_dir() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    yield folder
    shutil.rmtree(folder)


@pytest_asyncio.fixture(scope="session")
async def _started(servers_dir: Path) -> AsyncIterator[tuple[EmbeddedServers, Addresses]]:
    await _clear_abandoned_runs()
    embedded = EmbeddedServers(servers_dir, only=frozenset({"nats", "postgres", "valkey"}), durable=False)
    addresses = await embedded.start()
    yield embedded, addresses
    await embedded.stop()


@pytest.fixture(scope="session")
def servers(_started: tuple[EmbeddedServers, Addresses]) -> EmbeddedServers:
    """NATS, PostgreSQL and Valkey, running; `kill` and `restart` them as you like, but leave them running."""
    return _started[0]


@pytest.fixture(scope="session")
def addresses(_started: tuple[EmbeddedServers, Addresses]) -> Addresses:
    return _started[1]


@pytest.fixture(scope="session")
def nats_url(addresses: Addresses) -> str:
    """Shared by the session: what a test creates in JetStream is there for the next."""
    return addresses.nats_url


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def database_url(addresses: Addresses) -> AsyncIterator[str]:
    """An empty database for each test module."""
    name = f"test_{secrets.token_hex(4)}"
    connection = await asyncpg.connect(addresses.database_url)
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()
    yield addresses.database_url.rpartition("/")[0] + f"/{name}"
    connection = await asyncpg.connect(addresses.database_url)
    await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")  # also when a test left a connection open
    await connection.close()


@pytest_asyncio.fixture
async def redis_url(addresses: Addresses) -> str:
    """Valkey, emptied for each test."""
    async with Redis.from_url(addresses.redis_url) as redis:
        await redis.flushall()
    return addresses.redis_url
