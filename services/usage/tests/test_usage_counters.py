"""Counters: Redis shows what the ledger holds, and nobody waits for it."""

import socket
import time
from decimal import Decimal
from typing import Any

from redis.asyncio import Redis
from structlog.testing import capture_logs

from parley_contracts.ids import new_id
from parley_usage.counters import Counters
from parley_usage.settlement import Settlement

DAY = "2026-03-10"


async def _day(usage: Any, redis: Redis, day: str = DAY) -> dict[str, str]:
    async with redis:
        found = await redis.hgetall(f"user:{usage.user_id}:usage:{day}")
        return {str(field): str(value) for field, value in found.items()}


async def test_a_day_counts_turns_and_the_tokens_and_money_that_are_paid(usage: Any, redis: Redis) -> None:
    lost = usage.attempt(1, is_billable=False)
    await usage.settle(usage.result(new_id(), lost, usage.attempt(2)))
    await usage.settle(usage.result(new_id(), usage.attempt(model="qwen2.5")))
    assert await usage.counters.write_waiting()
    async with redis:
        assert 89 * 86400 < await redis.ttl(f"user:{usage.user_id}:usage:{DAY}") <= 90 * 86400
    day = await _day(usage, redis)
    assert day.keys() == {f"{m}:{f}" for m in ("simulator", "qwen2.5") for f in ("requests", "tokens", "cost")}
    assert (day["simulator:requests"], day["simulator:tokens"]) == ("1", "500000")
    assert Decimal(day["simulator:cost"]) == Decimal(day["qwen2.5:cost"]) == Decimal("0.5")


async def test_a_result_delivered_again_brings_back_what_redis_lost(usage: Any, redis: Redis) -> None:
    result = usage.result(new_id())
    await usage.settle(result)
    await usage.counters.write_waiting()
    before = await _day(usage, redis)
    async with redis:
        await redis.flushall()
    await usage.settle(result)
    await usage.counters.write_waiting()
    assert await _day(usage, redis) == before != {}


async def test_a_day_is_a_day_of_the_time_zone(usage_in_shanghai: Any, redis: Redis) -> None:
    usage = usage_in_shanghai
    usage.clock.time = usage.clock.time.replace(hour=16)
    await usage.settle(usage.result(new_id()))
    await usage.counters.write_waiting()
    assert await _day(usage, redis, "2026-03-11")


async def test_a_redis_that_is_away_fails_no_settlement_and_is_warned_of_once(usage: Any, redis: Redis) -> None:
    with socket.socket() as nobody:  # bound, not listening: refused at once
        nobody.bind(("127.0.0.1", 0))
        away = Counters(f"redis://127.0.0.1:{nobody.getsockname()[1]}/0", usage.database, usage.clock)
        settlement = Settlement(usage.database, usage.handlers, away)
        with capture_logs() as lines:
            for _ in range(3):
                await settlement.settle(usage.result(new_id()))
                assert not await away.write_waiting()
        assert [line["log_level"] for line in lines if line["event"] == "counters_not_written"] == ["warning"]
        await away.close()
    assert (await usage.budget()).spent_usd == Decimal("1.5")
    usage.counters._waiting.update(away._waiting)  # Redis is back
    assert await usage.counters.write_waiting()
    assert (await _day(usage, redis))["simulator:requests"] == "3"


async def test_a_settlement_does_not_wait_for_a_redis_that_says_nothing(usage: Any) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        away = Counters(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", usage.database, usage.clock)
        began = time.perf_counter()
        await Settlement(usage.database, usage.handlers, away).settle(usage.result(new_id()))
        assert time.perf_counter() - began < 0.5
        away._waiting.clear()
        await away.close()
