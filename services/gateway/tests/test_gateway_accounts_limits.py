"""Limits against a real Valkey, and without one."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from datetime import UTC, datetime
from typing import Any

import pytest
import pytest_asyncio

from parley_contracts.accounts import Principal
from parley_contracts.errors import ParleyError, RateLimited, TooManyTurns
from parley_contracts.ids import new_id
from parley_contracts.roles import Limits as RoleLimits
from parley_gateway.limits import Limits
from parley_gateway.settings import GatewaySettings
from parley_runtime.clock import SystemClock
from parley_runtime.memory_bus import MemoryBus, MemoryHub

NOWHERE = "redis://127.0.0.1:1/0"
FOREVER = datetime(9999, 12, 31, tzinfo=UTC)


def settings_of(redis_url: str, **fields: Any) -> GatewaySettings:
    few = {"rate_requests_per_min": 4, "rate_anonymous_per_min": 50, "rate_login_per_min": 3, "rate_turns_per_min": 4}
    return GatewaySettings(node_env="test", redis_url=redis_url, **{**few, "max_running_turns": 2, **fields})


def limits_of(redis_url: str, **fields: Any) -> Limits:
    return Limits(settings_of(redis_url, **fields), MemoryBus(MemoryHub(), service="gateway"), SystemClock())


@pytest_asyncio.fixture(params=["counted in Redis", "Redis is away"])
async def limits(request: pytest.FixtureRequest, redis_url: str) -> AsyncIterator[Limits]:
    limits = limits_of(NOWHERE if request.param == "Redis is away" else redis_url)
    yield limits
    await limits.close()


def someone(**limits: int) -> Principal:
    return Principal(
        user_id=int(new_id(), 36) % 10**9, role="USER", family="f", expires_at=FOREVER, limits=RoleLimits(**limits)
    )


async def count(asking: list[Awaitable[Any]]) -> tuple[int, list[ParleyError]]:
    answers = await asyncio.gather(*asking, return_exceptions=True)
    errors = [answer for answer in answers if isinstance(answer, ParleyError)]
    assert len(errors) == sum(isinstance(answer, BaseException) for answer in answers), answers
    return len(answers) - len(errors), errors


async def test_a_user_asks_as_often_as_allowed_and_is_told_when_to_ask_again(limits: Limits) -> None:
    user, other = someone(), someone()
    admitted, errors = await count([limits.admit_user(user, starts_turn=False) for _ in range(10)])
    assert admitted == 4
    assert {type(error) for error in errors} == {RateLimited}
    assert errors[0].retry_after_s == 15  # a quarter of a minute until the next of four
    assert (await limits.admit_user(other, starts_turn=False)).remaining == 3


async def test_a_role_s_limit_holds_instead_of_the_installation_s(limits: Limits) -> None:
    user = someone(requests_per_minute=7)
    admitted, _ = await count([limits.admit_user(user, starts_turn=False) for _ in range(10)])
    assert admitted == 7
    nobody = someone(requests_per_minute=0)
    admitted, _ = await count([limits.admit_user(nobody, starts_turn=False) for _ in range(3)])
    assert admitted == 0


async def test_only_so_many_turns_run_at_once_and_an_ended_one_makes_room(limits: Limits) -> None:
    user = someone(requests_per_minute=100)
    first = await limits.admit_user(user, starts_turn=True)
    assert (first.limit, first.remaining) == (4, 3)
    assert first.headers.keys() == {"X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"}
    await limits.admit_user(user, starts_turn=True)
    with pytest.raises(TooManyTurns) as error:
        await limits.admit_user(user, starts_turn=True)
    assert error.value.http_status == 429
    assert error.value.retry_after_s
    assert first.slot is not None
    releasing = asyncio.create_task(limits.keep_released())
    limits.release(first.slot)
    async with asyncio.timeout(3):
        while True:
            try:
                third = await limits.admit_user(user, starts_turn=True)
                break
            except TooManyTurns:
                await asyncio.sleep(0.01)
    assert third.remaining == 1  # what was refused was not counted
    releasing.cancel()
    await asyncio.gather(releasing, return_exceptions=True)


async def test_an_address_tries_ten_times_and_the_owner_logs_in_from_another(limits: Limits) -> None:
    account, address = f"{new_id()}@example.org", new_id()
    admitted, errors = await count([limits.admit_login(address, account) for _ in range(8)])
    assert admitted == 3
    assert {error.code for error in errors} == {"rate_limited"}
    await limits.admit_login(new_id(), account.upper())
    admitted, _ = await count([limits.admit_login(new_id(), account) for _ in range(40)])
    assert admitted == 26  # thirty in all: many addresses guess no faster


async def test_two_gateways_count_together(redis_url: str) -> None:
    one, two, user = limits_of(redis_url), limits_of(redis_url), someone()
    admitted, _ = await count([each.admit_user(user, starts_turn=False) for each in (one, two) for _ in range(10)])
    assert admitted == 4
    await one.close()
    await two.close()


async def test_a_request_is_one_round_trip(redis_url: str) -> None:
    limits = limits_of(redis_url)
    await limits.admit_user(someone(), starts_turn=True)
    asked: list[Any] = []
    send = limits._redis.execute_command

    async def counted(*command: Any, **options: Any) -> Any:
        asked.append(command[0])
        return await send(*command, **options)  # type: ignore[no-untyped-call]

    limits._redis.execute_command = counted  # type: ignore[method-assign]
    await limits.admit_user(someone(), starts_turn=True)
    await limits.admit_login("an address", "an account")
    assert asked == ["EVALSHA", "EVALSHA"]
    await limits.close()


async def test_a_thousand_requests_at_once_are_all_counted_in_redis(redis_url: str) -> None:
    limits = limits_of(redis_url, rate_requests_per_min=800)
    user = someone()
    admitted, errors = await count([limits.admit_user(user, starts_turn=False) for _ in range(1_000)])
    assert 800 <= admitted <= 830  # as time passes, some become free again
    assert len(errors) == 1_000 - admitted
    assert not limits._is_away
    await limits.close()
