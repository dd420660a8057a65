"""Sweeper: what becomes of holds whose result did not come."""

import asyncio
from decimal import Decimal
from typing import Any

from prometheus_client import REGISTRY

from parley_runtime.database import Database
from parley_usage.store import UsageStore
from parley_usage.sweeper import EVERY_S, Sweeper


def _unbilled() -> float:
    return REGISTRY.get_sample_value("parley_unbilled_turns_total") or 0.0


async def _sweep_for(usage: Any, seconds: float) -> None:
    """As the loop does it, every ten seconds."""
    for _ in range(int(seconds / EVERY_S)):
        usage.clock.advance(EVERY_S)
        await usage.sweeper.sweep()


async def test_a_dead_turns_hold_is_free_within_sixty_seconds(usage: Any) -> None:
    await usage.reserve(request_hash="k", body_hash="one")
    await _sweep_for(usage, 30)
    assert (await usage.budget()).held_usd == 1
    await _sweep_for(usage, 30)
    assert (await usage.budget()).held_usd == 0
    assert not (await usage.reserve(request_hash="k", body_hash="two")).is_replay


async def test_a_young_hold_is_not_asked_about(usage: Any) -> None:
    turn_id = (await usage.reserve()).turn_id
    usage.clock.advance(29)
    await usage.sweeper.sweep()
    assert turn_id not in usage.bus.asked


async def test_one_unknown_frees_nothing_and_an_open_turn_is_kept_for_ever(usage: Any) -> None:
    turn_id = (await usage.reserve()).turn_id
    await _sweep_for(usage, 30)
    usage.bus.whereabouts = {turn_id: "open"}
    await _sweep_for(usage, 10)
    usage.bus.whereabouts = {}
    await _sweep_for(usage, 10)  # unknown again, but not twice running
    assert (await usage.budget()).held_usd == 1
    usage.bus.whereabouts = {turn_id: "open"}
    await _sweep_for(usage, 3600)
    assert (await usage.budget()).held_usd == 1


async def test_a_stored_result_that_was_missed_is_settled(usage: Any) -> None:
    turn_id = (await usage.reserve()).turn_id
    usage.bus.turns.results[turn_id] = usage.result(turn_id)
    await _sweep_for(usage, 30)
    budget = await usage.budget()
    assert (budget.spent_usd, budget.held_usd) == (Decimal("0.5"), 0)
    assert turn_id not in usage.bus.asked


async def test_an_ended_turn_without_result_is_released_after_ten_minutes_and_counted(usage: Any) -> None:
    turn_id = (await usage.reserve()).turn_id
    usage.bus.whereabouts = {turn_id: "ended"}
    before = _unbilled()
    await _sweep_for(usage, 30 + 590)
    assert ((await usage.budget()).held_usd, _unbilled()) == (1, before)
    await _sweep_for(usage, 10)
    assert ((await usage.budget()).held_usd, _unbilled()) == (0, before + 1)
    await usage.settle(usage.result(turn_id))  # late, and billed all the same
    budget = await usage.budget()
    assert (budget.spent_usd, budget.held_usd) == (Decimal("0.5"), 0)


async def test_holds_are_kept_while_chat_or_the_log_does_not_answer(usage: Any) -> None:
    await usage.reserve()
    usage.bus.whereabouts = None
    await _sweep_for(usage, 300)
    usage.bus.whereabouts, usage.bus.turns.is_readable = {}, False
    await _sweep_for(usage, 300)
    assert (await usage.budget()).held_usd == 1
    usage.bus.turns.is_readable = True
    await _sweep_for(usage, 20)
    assert (await usage.budget()).held_usd == 0


async def test_more_holds_than_one_batch_are_all_looked_at(usage: Any) -> None:
    for _ in range(150):
        await usage.reserve()
    await _sweep_for(usage, 60)
    assert (await usage.budget()).held_usd == 0


async def test_two_replicas_ask_once_about_each_hold(usage: Any) -> None:
    turns = {(await usage.reserve()).turn_id for _ in range(40)}
    other = Sweeper(usage.bus, usage.database, usage.settlement, usage.clock)
    usage.clock.advance(30)
    await asyncio.gather(usage.sweeper.sweep(), other.sweep())
    assert sorted(turn_id for turn_id in usage.bus.asked if turn_id in turns) == sorted(turns)


async def test_no_transaction_is_open_while_the_bus_is_asked(usage: Any, migrated_url: str) -> None:
    turn_id = (await usage.reserve()).turn_id
    watcher = Database(migrated_url, bus=usage.bus, pool_size=1)
    await watcher.open()
    open_transactions: list[int] = []

    async def look() -> None:
        async with watcher.transaction() as tx:
            connection = await tx.session.connection()
            row = await connection.exec_driver_sql(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND pid <> pg_backend_pid() AND state LIKE 'idle in transaction%'"
            )
            open_transactions.append(row.scalar_one())
            assert await UsageStore(tx).release(turn_id, usage.user_id)  # nobody has it locked

    usage.bus.before_answer = look
    await _sweep_for(usage, 30)
    await watcher.close()
    assert open_transactions == [0]
