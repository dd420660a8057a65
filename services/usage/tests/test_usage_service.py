"""The service as a whole: its wiring, its life."""

from typing import Any

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from parley_contracts.errors import ServiceUnavailable
from parley_contracts.turns import TurnResult
from parley_contracts.usage import GetBudget, ListCharges, ReleaseBudget, ReserveBudget, SetBudget
from parley_usage.service import UsageService
from parley_usage.settings import UsageSettings


class _Wired:
    """A bus that only notes who hears what."""

    service = "usage"

    def __init__(self) -> None:
        self.answers: dict[Any, Any] = {}
        self.takes: dict[Any, Any] = {}
        self.turns = self

    def answer(self, kind: Any, handler: Any) -> None:
        self.answers[kind] = handler

    def take(self, kind: Any, handler: Any) -> None:
        self.takes[kind] = handler

    async def nothing(self, *_args: Any) -> None:
        return None

    start = stop_taking = close = publish = check = find_result = nothing


async def test_the_service_hears_five_questions_and_results_and_lives_and_dies_quietly(
    migrated_url: str, redis_url: str, usage: Any
) -> None:
    bus: Any = _Wired()
    settings = UsageSettings(database_url=SecretStr(migrated_url), redis_url=SecretStr(redis_url))
    service = UsageService(settings, bus)
    assert set(bus.answers) == {ReserveBudget, ReleaseBudget, GetBudget, SetBudget, ListCharges}
    assert set(bus.takes) == {TurnResult}
    await service.start()
    try:
        assert await service.readiness.problems() == {}
        result = usage.result("0" * 26)
        await bus.takes[TurnResult](result)
        page = await bus.answers[ListCharges](ListCharges(user_id=usage.user_id))
        assert page.total == 1
    finally:
        await service.stop()
    async with Redis.from_url(redis_url, decode_responses=True) as redis:  # written at the latest when the service closes
        assert await redis.hget(f"user:{usage.user_id}:usage:2026-03-10", "simulator:requests") == "1"


async def test_the_service_meets_a_database_that_is_away_without_dying(redis_url: str) -> None:
    settings = UsageSettings(database_url=SecretStr("postgresql://nobody@127.0.0.1:1/none"), redis_url=SecretStr(redis_url))
    bus: Any = _Wired()
    service = UsageService(settings, bus)
    await service.start()
    try:
        assert "database" in await service.readiness.problems()
        with pytest.raises(ServiceUnavailable):
            await bus.answers[GetBudget](GetBudget(user_id=1))
    finally:
        await service.stop()
