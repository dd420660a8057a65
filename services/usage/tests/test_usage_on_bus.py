"""The service on a bus, beside a chat that answers: what others see of it."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from decimal import Decimal
from typing import Any

import pytest
import pytest_asyncio
from pydantic import SecretStr

from parley_contracts.errors import BudgetExceeded, IdempotencyKeyReused, ValidationFailed
from parley_contracts.ids import new_id
from parley_contracts.turns import FindTurn, TurnWhereabouts
from parley_contracts.usage import (
    GetBudget,
    ListCharges,
    ReleaseBudget,
    Reservation,
    ReserveBudget,
    SetBudget,
    UsageRecorded,
)
from parley_runtime.database import Database
from parley_runtime.memory_bus import MemoryBus, MemoryHub
from parley_usage.service import UsageService
from parley_usage.settings import UsageSettings
from parley_usage.store import UsageStore


class Chat:
    """The other end: asks, publishes results, hears what was recorded."""

    def __init__(self, bus: MemoryBus) -> None:
        self.bus = bus
        self.recorded: list[UsageRecorded] = []
        bus.answer(FindTurn, self.find_turn)
        bus.on(UsageRecorded, self.hear)

    async def find_turn(self, _query: FindTurn) -> TurnWhereabouts:
        return "unknown"

    async def hear(self, event: UsageRecorded) -> None:
        self.recorded.append(event)

    async def reserve(self, user_id: int, **fields: Any) -> Reservation:
        values: dict[str, Any] = {
            "turn_id": new_id(),
            "provider": "SIMULATOR",
            "model": "simulator",
            "input_tokens": 600_000,
            "max_output_tokens": 400_000,
        }
        return await self.bus.ask(ReserveBudget(user_id=user_id, **{**values, **fields}))


@pytest_asyncio.fixture
async def chat(migrated_url: str, redis_url: str) -> AsyncIterator[Chat]:
    """Beside three replicas of usage; at the end the books are audited."""
    hub = MemoryHub()
    settings = UsageSettings(database_url=SecretStr(migrated_url), redis_url=SecretStr(redis_url))
    replicas = [UsageService(settings, MemoryBus(hub, "usage")) for _ in range(3)]
    chat = Chat(MemoryBus(hub, "chat"))
    await chat.bus.start()
    for replica in replicas:
        await replica.start()
    yield chat
    for replica in replicas:
        await replica.stop()
    database = Database(migrated_url, bus=chat.bus)
    await database.open()
    async with database.transaction() as tx:
        assert await UsageStore(tx).audit() == []
    await database.close()
    await chat.bus.close()
    hub.close()


async def _until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(5):
        while not await holds():  # noqa: ASYNC110 - what others see, there is no event for it
            await asyncio.sleep(0.01)


async def test_three_replicas_admit_ten_of_two_hundred_at_once(chat: Chat, usage: Any) -> None:
    await chat.bus.ask(SetBudget(user_id=usage.user_id, limit_usd=Decimal(10)))
    answers = await asyncio.gather(*(chat.reserve(usage.user_id) for _ in range(200)), return_exceptions=True)
    assert sum(isinstance(answer, Reservation) for answer in answers) == 10
    assert sum(isinstance(answer, BudgetExceeded) for answer in answers) == 190


async def test_a_turn_is_reserved_charged_told_of_and_listed(chat: Chat, usage: Any) -> None:
    turn_id = (await chat.reserve(usage.user_id)).turn_id
    result = usage.result(turn_id)
    began = time.perf_counter()
    await chat.bus.publish(result)

    async def is_listed() -> bool:
        return (await chat.bus.ask(ListCharges(user_id=usage.user_id, turn_id=turn_id))).total == 1

    await _until(is_listed)
    assert time.perf_counter() - began < 1
    budget = await chat.bus.ask(GetBudget(user_id=usage.user_id))
    assert (budget.held_usd, budget.spent_usd) == (Decimal(0), Decimal("0.5"))

    async def is_told() -> bool:
        return bool(chat.recorded)

    await _until(is_told)
    assert [(event.turn_id, event.cost_usd) for event in chat.recorded] == [(turn_id, Decimal("0.5"))]


async def test_errors_keep_their_names_and_fields_on_the_bus(chat: Chat, usage: Any) -> None:
    first = await chat.reserve(usage.user_id, request_hash="k", body_hash="one")
    with pytest.raises(IdempotencyKeyReused):
        await chat.reserve(usage.user_id, request_hash="k", body_hash="two")
    await chat.bus.ask(ReleaseBudget(turn_id=first.turn_id, user_id=usage.user_id))
    await chat.bus.ask(SetBudget(user_id=usage.user_id, limit_usd=Decimal("0.25")))
    with pytest.raises(BudgetExceeded) as refusal:
        await chat.reserve(usage.user_id)
    assert refusal.value.fields["remaining_usd"] == "0.25"
    with pytest.raises(ValidationFailed):
        await chat.bus.ask(SetBudget(user_id=usage.user_id, limit_usd=Decimal("NaN")))
