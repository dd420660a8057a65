"""Activity on a real PostgreSQL, with a clock that tests hold and a bus that writes down what is said."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio
from sqlalchemy import text

from parley_activity.handlers import Handlers
from parley_activity.presence import Connected
from parley_activity.speaker import Speaker
from parley_activity.store import ActivityStore
from parley_contracts.activity import ConnectionsCounted, Presence, PresenceChanged
from parley_contracts.ids import derived_id
from parley_contracts.message import Durable, Event
from parley_runtime.database import Database, migrate


@dataclass
class HeldClock:
    """Stands still until it is told to go on."""

    instant: datetime = field(default_factory=lambda: datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))

    def now(self) -> datetime:
        return self.instant

    def monotonic(self) -> float:
        return self.instant.timestamp()

    async def sleep(self, seconds: float) -> None:
        raise AssertionError(f"nothing here waits {seconds} s")

    def advance(self, seconds: float) -> None:
        self.instant += timedelta(seconds=seconds)


@dataclass
class WrittenDown:
    """What the world was told, in order: (user, status)."""

    said: list[tuple[int, str]] = field(default_factory=list)

    async def publish(self, message: Event | Durable) -> None:
        assert isinstance(message, PresenceChanged)
        self.said.append((message.user_id, message.status))


@dataclass
class Replica:
    """One activity replica, as its service wires it; its loops are turned by hand."""

    handlers: Handlers
    speaker: Speaker
    connected: Connected
    clock: HeldClock
    database: Database

    async def hears(self, gateway: str, users: dict[int, int], *, is_complete: bool = False) -> None:
        event = ConnectionsCounted(gateway_id=derived_id(gateway), users=users, is_complete=is_complete)
        await self.handlers.count_connections(event)

    async def ticks(self) -> None:
        """One round of both loops."""
        self.speaker.see(self.connected.expire(self.clock.monotonic()))
        await self.speaker.tell_once()

    async def presence(self, user_id: int) -> Presence:
        async with self.database.transaction() as tx:
            return await ActivityStore(tx).get_presence(user_id)

    async def online(self) -> set[int]:
        async with self.database.transaction() as tx:
            return {presence.user_id for presence in await ActivityStore(tx).list_online()}


@pytest.fixture
def clock() -> HeldClock:
    return HeldClock()


@pytest.fixture
def world() -> WrittenDown:
    return WrittenDown()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def migrated_url(database_url: str) -> str:
    await migrate(database_url, "parley_activity", "activity")
    return database_url


@pytest_asyncio.fixture
async def database(migrated_url: str, world: WrittenDown) -> AsyncIterator[Database]:
    """Empty tables."""
    opened = Database(migrated_url, bus=world, pool_size=5)  # type: ignore[arg-type]  # all it does with it is publish
    await opened.open()
    async with opened.transaction() as tx:
        await tx.session.execute(text("TRUNCATE activity.presence, activity.speaker"))
    yield opened
    await opened.close()


@pytest.fixture
def start_replica(database: Database, clock: HeldClock) -> Callable[[], Replica]:
    def start() -> Replica:
        connected = Connected()
        speaker = Speaker(connected, database, clock)
        handlers = Handlers(connected=connected, speaker=speaker, clock=clock)
        return Replica(handlers=handlers, speaker=speaker, connected=connected, clock=clock, database=database)

    return start


@pytest.fixture
def replica(start_replica: Callable[[], Replica]) -> Replica:
    return start_replica()
