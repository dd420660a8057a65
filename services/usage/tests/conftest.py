"""Usage in parts, on real stores, with a bus that answers from a script and a clock that is moved by hand."""

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from parley_contracts.errors import ServiceUnavailable
from parley_contracts.ids import new_id
from parley_contracts.message import Message
from parley_contracts.parts import Answer, FinishReason, TokenUsage
from parley_contracts.turns import Attempt, FindTurn, TurnResult, status_of
from parley_contracts.usage import (
    Budget,
    ChargePage,
    GetBudget,
    ListCharges,
    ReleaseBudget,
    Reservation,
    ReserveBudget,
    SetBudget,
)
from parley_runtime.bus import LogUnreadable
from parley_runtime.database import Database, migrate
from parley_usage.books import Mismatch
from parley_usage.counters import Counters
from parley_usage.handlers import Handlers
from parley_usage.periods import Calendar
from parley_usage.pricing import load_prices
from parley_usage.service import MIGRATIONS
from parley_usage.settlement import Settlement
from parley_usage.store import UsageStore
from parley_usage.sweeper import Sweeper

NOON = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)
_USERS = itertools.count(1)


class ManualClock:
    def __init__(self) -> None:
        self.time = NOON

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return self.time.timestamp()

    async def sleep(self, seconds: float) -> None:
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


class ScriptedTurns:
    def __init__(self) -> None:
        self.results: dict[str, TurnResult] = {}
        self.is_readable = True

    async def find_result(self, turn_id: str) -> TurnResult | None:
        if not self.is_readable:
            raise LogUnreadable
        return self.results.get(turn_id)


class ScriptedBus:
    """Holds what was wired and said; chat's answers are `whereabouts`, None: chat is away."""

    service = "usage"

    def __init__(self) -> None:
        self.turns = ScriptedTurns()
        self.said: list[Message] = []
        self.whereabouts: dict[str, str] | None = {}
        self.asked: list[str] = []
        self.before_answer: Callable[[], Awaitable[None]] | None = None

    async def publish(self, message: Message) -> None:
        self.said.append(message)

    async def ask(self, question: FindTurn, *, timeout_s: float = 5.0) -> str:
        assert timeout_s <= 5
        self.asked.append(question.turn_id)
        if self.before_answer:
            await self.before_answer()
        if self.whereabouts is None:
            raise ServiceUnavailable(service="chat")
        return self.whereabouts.get(question.turn_id, "unknown")


@dataclass
class Usage:
    """One replica's parts. Everything asked passes through the wire format, as it would on the bus."""

    bus: ScriptedBus
    clock: ManualClock
    database: Database
    handlers: Handlers
    counters: Counters
    settlement: Settlement
    sweeper: Sweeper
    user_id: int = field(default_factory=lambda: next(_USERS))

    async def reserve(self, **fields: Any) -> Reservation:
        """By default a turn of exactly 1 USD: a thousand thousand tokens at the default price."""
        command = ReserveBudget(
            **{
                "turn_id": new_id(),
                "user_id": self.user_id,
                "provider": "SIMULATOR",
                "model": "simulator",
                "input_tokens": 600_000,
                "max_output_tokens": 400_000,
                **fields,
            }
        )
        return await self.database.transact(self.handlers.reserve_budget)(ReserveBudget.decode(command.encode()))

    async def release(self, turn_id: str) -> None:
        command = ReleaseBudget(turn_id=turn_id, user_id=self.user_id)
        await self.database.transact(self.handlers.release_budget)(command)

    async def set_budget(self, limit: str | None) -> Budget:
        command = SetBudget(user_id=self.user_id, limit_usd=None if limit is None else Decimal(limit))
        return await self.database.transact(self.handlers.set_budget)(SetBudget.decode(command.encode()))

    async def budget(self) -> Budget:
        return await self.database.transact(self.handlers.get_budget)(GetBudget(user_id=self.user_id))

    async def charges(self, **filters: Any) -> ChargePage:
        query = ListCharges(user_id=self.user_id, **filters)
        reply = await self.database.transact(self.handlers.list_charges)(ListCharges.decode(query.encode()))
        return ListCharges.decode_reply(ListCharges.encode_reply(reply))

    async def settle(self, result: TurnResult) -> None:
        await self.settlement.settle(TurnResult.decode(result.encode()))

    async def audit(self) -> list[Mismatch]:
        async with self.database.transaction() as tx:
            return await UsageStore(tx).audit()

    def result(
        self,
        turn_id: str,
        *attempts: Attempt,
        finish_reason: FinishReason = FinishReason.STOP,
        **fields: Any,
    ) -> TurnResult:
        attempts = attempts or (self.attempt(),)
        values: dict[str, Any] = {
            "turn_id": turn_id,
            "user_id": self.user_id,
            "store": True,
            "status": status_of(finish_reason),
            "finish_reason": finish_reason,
            "answer": Answer(text="yes"),
            "attempt": attempts[-1].attempt,
            "attempts": attempts,
            "model": attempts[-1].model,
            "provider": attempts[-1].provider,
            "accepted_at": self.clock.now(),
            "ended_at": self.clock.now(),
        }
        return TurnResult(**{**values, **fields})

    @staticmethod
    def attempt(number: int = 1, **fields: Any) -> Attempt:
        """By default a billable attempt of 0.5 USD."""
        values: dict[str, Any] = {
            "provider": "SIMULATOR",
            "model": "simulator",
            "usage": TokenUsage(input_tokens=300_000, output_tokens=200_000),
            "is_estimated": False,
            "method": "provider",
            "is_billable": True,
            "is_success": True,
            "duration_ms": 1200,
        }
        return Attempt(attempt=number, **{**values, **fields})


def parts_of_usage(database: Database, redis_url: str, bus: ScriptedBus, *, timezone: str = "UTC") -> Usage:
    clock = ManualClock()
    handlers = Handlers(prices=load_prices(), calendar=Calendar(timezone), clock=clock)
    counters = Counters(redis_url, database, clock)
    settlement = Settlement(database, handlers, counters)
    sweeper = Sweeper(bus, database, settlement, clock)  # type: ignore[arg-type]  # the half of a Bus it needs
    return Usage(bus, clock, database, handlers, counters, settlement, sweeper)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def migrated_url(database_url: str) -> str:
    await migrate(database_url, *MIGRATIONS)
    return database_url


@pytest_asyncio.fixture
async def database(migrated_url: str) -> AsyncIterator[tuple[Database, ScriptedBus]]:
    bus = ScriptedBus()
    database = Database(migrated_url, bus=bus, pool_size=10)  # type: ignore[arg-type]
    await database.open()
    yield database, bus
    await database.close()


@pytest_asyncio.fixture
async def usage(database: tuple[Database, ScriptedBus], redis_url: str) -> AsyncIterator[Usage]:
    parts = parts_of_usage(*_ordered(database, redis_url))
    yield parts
    mismatches = await parts.audit()
    await parts.counters.close()
    assert mismatches == []


@pytest_asyncio.fixture
async def usage_in_shanghai(database: tuple[Database, ScriptedBus], redis_url: str) -> AsyncIterator[Usage]:
    parts = parts_of_usage(*_ordered(database, redis_url), timezone="Asia/Shanghai")
    yield parts
    mismatches = await parts.audit()
    await parts.counters.close()
    assert mismatches == []


def _ordered(database: tuple[Database, ScriptedBus], redis_url: str) -> tuple[Database, str, ScriptedBus]:
    return database[0], redis_url, database[1]


@pytest.fixture
def redis(redis_url: str) -> Redis:
    return Redis.from_url(redis_url, decode_responses=True)
