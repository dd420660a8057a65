"""One transaction a message: committed at the boundary, announced afterwards, and whole again after PostgreSQL was away."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from sqlalchemy import text

from parley.embedded import EmbeddedServers
from parley_contracts.accounts import GetUser
from parley_contracts.activity import PresenceChanged
from parley_contracts.errors import ServiceUnavailable
from parley_runtime.clock import SystemClock
from parley_runtime.database import Database, Transaction
from parley_runtime.memory_bus import MemoryBus, MemoryHub


@pytest.fixture
def hub() -> MemoryHub:
    return MemoryHub()


@pytest_asyncio.fixture
async def database(database_url: str, hub: MemoryHub) -> AsyncIterator[Database]:
    database = Database(database_url, bus=MemoryBus(hub, service="auth"), pool_size=2)
    await database.open()
    async with database.transaction() as tx:
        await tx.session.execute(text("CREATE TABLE IF NOT EXISTS noted (what text)"))
        await tx.session.execute(text("DELETE FROM noted"))
    yield database
    await database.close()


async def noted(database: Database) -> list[str]:
    async with database.transaction() as tx:
        return [row[0] for row in await tx.session.execute(text("SELECT what FROM noted"))]


async def note(what: str, tx: Transaction) -> None:
    await tx.session.execute(text("INSERT INTO noted VALUES (:what)"), {"what": what})


async def test_what_a_handler_wrote_is_committed_when_it_returns_and_gone_when_it_raises(database: Database) -> None:
    async def handle(question: GetUser, tx: Transaction) -> int:
        await note(f"user {question.user_id}", tx)
        if question.user_id == 2:
            raise ValueError("no")
        return question.user_id

    assert await database.transact(handle)(GetUser(user_id=1)) == 1
    with pytest.raises(ValueError, match="no"):
        await database.transact(handle)(GetUser(user_id=2))
    assert await noted(database) == ["user 1"]


async def test_nothing_is_announced_of_what_was_rolled_back(database: Database, hub: MemoryHub) -> None:
    change = PresenceChanged(user_id=1, status="ACTIVE", changed_at=SystemClock().now())

    async def handle(question: GetUser, tx: Transaction) -> None:
        tx.announce(change)
        if question.user_id == 2:
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await database.transact(handle)(GetUser(user_id=2))
    assert hub.said == []
    await database.transact(handle)(GetUser(user_id=1))
    assert len(hub.said) == 1


async def test_a_database_that_is_away_is_unavailable_and_comes_back_by_itself(
    database: Database, servers: EmbeddedServers
) -> None:
    assert await noted(database) == []
    await servers.kill("postgres")
    with pytest.raises(ServiceUnavailable):
        await noted(database)
    await servers.restart("postgres")
    for _ in range(4):  # more than the pool holds: every connection of before is replaced
        assert await noted(database) == []
