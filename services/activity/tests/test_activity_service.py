"""Activity as a whole, through a bus and with its own loops."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest_asyncio
from pydantic import SecretStr
from sqlalchemy import text

from parley_activity.service import ActivityService
from parley_contracts.accounts import UserDeleted
from parley_contracts.activity import ConnectionsCounted, GetPresence, ListPresence, PresenceChanged
from parley_contracts.ids import new_id
from parley_runtime.database import Database
from parley_runtime.memory_bus import MemoryBus, MemoryHub
from parley_runtime.settings import Settings


class Gateway:
    """A bus on which activity listens, and what was heard there of presence."""

    def __init__(self, bus: MemoryBus) -> None:
        self.bus = bus
        self.heard: asyncio.Queue[PresenceChanged] = asyncio.Queue()
        bus.on(PresenceChanged, self.heard.put)

    async def next_change(self) -> tuple[int, str]:
        async with asyncio.timeout(5):
            change = await self.heard.get()
        return change.user_id, change.status


StartActivity = Callable[[], ActivityService]


@pytest_asyncio.fixture
async def hub() -> MemoryHub:
    return MemoryHub()


@pytest_asyncio.fixture
async def gateway(hub: MemoryHub) -> AsyncIterator[Gateway]:
    made = Gateway(MemoryBus(hub, "gateway"))
    await made.bus.start()
    yield made
    await made.bus.close()


@pytest_asyncio.fixture
async def new_activity(hub: MemoryHub, migrated_url: str, database: Database) -> StartActivity:
    assert database  # emptied
    settings = Settings(_env_file=None, node_env="test", database_url=SecretStr(migrated_url))
    return lambda: ActivityService(settings, MemoryBus(hub, "activity"))


async def test_a_connection_is_heard_told_stored_and_answered(gateway: Gateway, new_activity: StartActivity) -> None:
    activity = new_activity()
    await activity.start()
    assert await activity.readiness.problems() == {}
    here = new_id()
    await gateway.bus.publish(ConnectionsCounted(gateway_id=here, users={7: 1}, is_complete=False))
    assert await gateway.next_change() == (7, "ACTIVE")
    assert (await gateway.bus.ask(GetPresence(user_id=7))).status == "ACTIVE"
    assert [presence.user_id for presence in await gateway.bus.ask(ListPresence())] == [7]
    await gateway.bus.publish(ConnectionsCounted(gateway_id=here, users={7: 0}, is_complete=False))
    assert await gateway.next_change() == (7, "OFFLINE")
    gone = await gateway.bus.ask(GetPresence(user_id=7))
    assert (gone.status, gone.last_active_at is None) == ("OFFLINE", False)
    assert await gateway.bus.ask(ListPresence()) == ()
    await activity.stop()


async def test_two_replicas_tell_once_and_the_second_goes_on_when_the_first_stops(
    gateway: Gateway, new_activity: StartActivity
) -> None:
    first, second = new_activity(), new_activity()
    await first.start()
    await second.start()
    here = new_id()
    for count, status in ((1, "ACTIVE"), (0, "OFFLINE"), (1, "ACTIVE")):
        await gateway.bus.publish(ConnectionsCounted(gateway_id=here, users={7: count}, is_complete=False))
        assert await gateway.next_change() == (7, status)
    await first.stop()
    await gateway.bus.publish(ConnectionsCounted(gateway_id=here, users={8: 1}, is_complete=False))
    assert await gateway.next_change() == (8, "ACTIVE")
    await second.stop()
    assert gateway.heard.empty()


async def test_a_deleted_user_is_told_offline_once_and_has_no_presence_any_more(
    gateway: Gateway, new_activity: StartActivity, database: Database
) -> None:
    activity = new_activity()
    await activity.start()
    await gateway.bus.publish(ConnectionsCounted(gateway_id=new_id(), users={7: 1, 8: 1}, is_complete=False))
    assert {await gateway.next_change(), await gateway.next_change()} == {(7, "ACTIVE"), (8, "ACTIVE")}
    for user_id in (7, 7, 8):
        await gateway.bus.publish(UserDeleted(user_id=user_id))
    assert {await gateway.next_change(), await gateway.next_change()} == {(7, "OFFLINE"), (8, "OFFLINE")}
    async with database.transaction() as tx:
        assert (await tx.session.execute(text("SELECT user_id FROM activity.presence"))).all() == []
    assert (await gateway.bus.ask(GetPresence(user_id=7))).last_active_at is None
    await activity.stop()
    assert gateway.heard.empty()
