"""What the world is told of presence: each change once, by one replica, whoever dies, restarts or lags."""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from parley_contracts.activity import GetPresence, ListPresence, Presence
from parley_contracts.errors import ServiceUnavailable
from parley_runtime.database import Database


async def test_a_change_is_told_once_and_stored(replica: Any, world: Any, clock: Any) -> None:
    await replica.hears("a", {7: 1})
    await replica.ticks()
    await replica.hears("a", {7: 2})
    await replica.ticks()
    assert world.said == [(7, "ACTIVE")]
    assert await replica.presence(7) == Presence(user_id=7, status="ACTIVE", last_active_at=clock.now())
    clock.advance(5)
    await replica.hears("a", {7: 0})
    await replica.ticks()
    assert world.said == [(7, "ACTIVE"), (7, "OFFLINE")]
    assert await replica.presence(7) == Presence(user_id=7, status="OFFLINE", last_active_at=clock.now())


async def test_the_handlers_answer_what_is_stored(replica: Any, database: Database) -> None:
    await replica.hears("a", {7: 1, 8: 1})
    await replica.ticks()
    async with database.transaction() as tx:
        assert {p.user_id for p in await replica.handlers.list_presence(ListPresence(), tx)} == {7, 8}
        assert (await replica.handlers.get_presence(GetPresence(user_id=8), tx)).status == "ACTIVE"


@pytest.mark.parametrize("user_id", [1, 0, -1, 2**31, 2**80])
async def test_a_user_never_seen_is_offline(replica: Any, user_id: int) -> None:
    assert await replica.presence(user_id) == Presence(user_id=user_id, status="OFFLINE", last_active_at=None)


async def test_a_silent_gateways_users_are_told_offline_after_45_seconds(replica: Any, world: Any, clock: Any) -> None:
    await replica.hears("a", {7: 1}, is_complete=True)
    await replica.ticks()
    clock.advance(45)
    await replica.ticks()
    assert world.said == [(7, "ACTIVE")]
    clock.advance(1)
    await replica.ticks()
    assert world.said == [(7, "ACTIVE"), (7, "OFFLINE")]


async def test_of_three_replicas_one_tells(start_replica: Callable[[], Any], world: Any) -> None:
    replicas = [start_replica() for _ in range(3)]
    for count in (1, 0, 1):
        for replica in replicas:
            await replica.hears("a", {7: count})
        await asyncio.gather(*(replica.ticks() for replica in replicas))
    assert world.said == [(7, "ACTIVE"), (7, "OFFLINE"), (7, "ACTIVE")]


async def test_a_lagging_replica_takes_nothing_back(start_replica: Callable[[], Any], world: Any) -> None:
    prompt, lagging = start_replica(), start_replica()
    for count in (1, 0):
        await prompt.hears("a", {7: count})
        await prompt.ticks()
    await lagging.hears("a", {7: 1})
    await lagging.ticks()
    assert world.said == [(7, "ACTIVE"), (7, "OFFLINE")]


async def test_when_the_speaker_dies_another_tells_what_it_left_unsaid(
    start_replica: Callable[[], Any], world: Any, clock: Any
) -> None:
    dying, other = start_replica(), start_replica()
    for replica in (dying, other):
        await replica.hears("a", {1: 1, 2: 1}, is_complete=True)
        await replica.ticks()
    await other.hears("a", {2: 0, 3: 1})
    await other.ticks()
    assert sorted(world.said) == [(1, "ACTIVE"), (2, "ACTIVE")]
    clock.advance(10)
    await other.hears("a", {1: 1, 3: 1}, is_complete=True)
    clock.advance(36)  # longer than it takes to have heard everybody
    await other.ticks()
    assert sorted(world.said[2:]) == [(2, "OFFLINE"), (3, "ACTIVE")]
    assert await other.online() == {1, 3}


async def test_a_speaker_that_stops_hands_over_at_once(start_replica: Callable[[], Any], world: Any) -> None:
    first, second = start_replica(), start_replica()
    await first.hears("a", {7: 1})
    await first.ticks()
    await first.speaker.close()
    await second.hears("a", {7: 1, 8: 1}, is_complete=True)
    await second.ticks()
    assert world.said == [(7, "ACTIVE"), (8, "ACTIVE")]


async def test_a_restart_tells_nothing_twice_and_puts_nobody_offline_unheard(
    start_replica: Callable[[], Any], world: Any, clock: Any
) -> None:
    before = start_replica()
    await before.hears("a", {1: 1, 2: 1}, is_complete=True)
    await before.ticks()
    await before.speaker.close()
    world.said.clear()

    after = start_replica()
    await after.ticks()
    assert await after.online() == {1, 2}
    clock.advance(15)
    await after.hears("a", {1: 1}, is_complete=True)
    await after.ticks()
    assert world.said == []
    clock.advance(31)
    await after.hears("a", {1: 1}, is_complete=True)
    await after.ticks()
    assert world.said == [(2, "OFFLINE")]


async def test_a_ghost_of_an_earlier_run_keeps_the_time_it_was_last_seen(start_replica: Callable[[], Any], clock: Any) -> None:
    before = start_replica()
    await before.hears("a", {7: 1})
    await before.ticks()
    seen: datetime = clock.now()
    clock.advance(86_400)
    after = start_replica()
    await after.ticks()
    clock.advance(46)
    await after.ticks()
    assert await after.presence(7) == Presence(user_id=7, status="OFFLINE", last_active_at=seen)


async def test_whoever_a_new_replica_sees_leaving_is_offline_at_once(replica: Any, world: Any) -> None:
    await replica.hears("a", {7: 1})
    await replica.ticks()
    await replica.hears("a", {7: 0})
    await replica.ticks()
    assert world.said == [(7, "ACTIVE"), (7, "OFFLINE")]


async def test_a_visit_shorter_than_a_write_is_noted_and_not_told(replica: Any, world: Any, clock: Any) -> None:
    await replica.hears("a", {7: 1})
    await replica.hears("a", {7: 0})
    await replica.ticks()
    assert world.said == []
    assert await replica.presence(7) == Presence(user_id=7, status="OFFLINE", last_active_at=clock.now())


async def test_last_seen_is_written_every_30_seconds_and_not_at_every_count(replica: Any, clock: Any) -> None:
    start = clock.now()
    for _ in range(13):
        await replica.hears("a", {7: 1}, is_complete=True)
        await replica.ticks()
        clock.advance(5)
        noted = (await replica.presence(7)).last_active_at
        assert timedelta() <= clock.now() - noted <= timedelta(seconds=35)
        assert (noted - start).total_seconds() % 30 == 0


async def test_what_was_not_stored_is_told_when_the_database_is_back(
    replica: Any, world: Any, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await replica.hears("a", {7: 1})
    engine = database.engine
    monkeypatch.setattr(database, "_engine", None)
    with pytest.raises(ServiceUnavailable):
        await replica.ticks()
    monkeypatch.setattr(database, "_engine", engine)
    await replica.ticks()
    assert world.said == [(7, "ACTIVE")]


async def test_ten_thousand_users_are_told_in_one_transaction(replica: Any, world: Any, database: Database) -> None:
    everybody = dict.fromkeys(range(1, 10_001), 1)
    await replica.hears("a", everybody, is_complete=True)
    async with asyncio.timeout(10):
        await replica.ticks()
    assert len(world.said) == 10_000
    async with database.transaction() as tx:
        stored = await tx.session.execute(text("SELECT count(*), count(DISTINCT xmin::text) FROM activity.presence"))
        assert stored.one() == (10_000, 1)
