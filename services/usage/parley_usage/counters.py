"""Counters in Redis, for whoever shows live usage: `user:{id}:usage:{yyyy-MM-dd}` (S4-25). A projection of the ledger.

Values are absolute and come from Postgres after COMMIT, so they can be written twice and are right after FLUSHALL. A settlement
only names the day; one loop writes, so Redis may be slow or away without anybody waiting for it.
"""

import asyncio
from datetime import timedelta
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from parley_contracts.errors import ServiceUnavailable
from parley_runtime.clock import Clock
from parley_runtime.database import Database
from parley_usage.books import DayUsage
from parley_usage.store import UsageStore

log = structlog.get_logger()

LIFETIME = timedelta(days=90)
TIMEOUT_S = 1.0
PAUSE_S = 2.0
WARN_EVERY_S = 60.0
MOST_AT_ONCE = 200
MOST_WAITING = 100_000
"""Days of users that wait for a Redis that is away; more are dropped, and written when the user is next billed."""

Day = tuple[int, str]


class Counters:
    """Owned by the service; the last days are written when it closes."""

    name = "counters"

    def __init__(self, redis_url: str, database: Database, clock: Clock) -> None:
        self._redis: Redis = Redis.from_url(
            redis_url,
            decode_responses=True,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            retry=Retry(NoBackoff(), retries=0),  # we try again ourselves, without a transaction open
        )
        self._database = database
        self._clock = clock
        self._waiting: dict[Day, None] = {}
        self._has_news = asyncio.Event()
        self._warned_at: float | None = None

    async def open(self) -> None:
        """Connects when it first writes."""

    async def check(self) -> None:
        """Ready always: without Redis the books are as true as with it."""

    async def close(self) -> None:
        await self.write_waiting()
        await self._redis.aclose()

    def count(self, user_id: int, day: str) -> None:
        """A user's day has changed. Does not wait."""
        if len(self._waiting) < MOST_WAITING:
            self._waiting[user_id, day] = None
        self._has_news.set()

    async def keep_written(self) -> None:
        """For ever: write what changed; wait for a Redis that is away."""
        while True:
            await self._has_news.wait()
            self._has_news.clear()
            while not await self.write_waiting():
                await self._clock.sleep(PAUSE_S)

    async def write_waiting(self) -> bool:
        """False: Redis or Postgres is away, and the days wait on."""
        while self._waiting:
            days = list(self._waiting)[:MOST_AT_ONCE]
            for day in days:  # before the ledger is read: what is settled from now on is news again
                del self._waiting[day]
            is_written = False
            try:
                await self._write(days)
                is_written = True
            except (RedisError, ServiceUnavailable, OSError) as error:
                self._warn(error)
                return False
            finally:
                if not is_written:  # also when the service stops just now: `close` writes them
                    self._waiting.update(dict.fromkeys(days))
        return True

    async def _write(self, days: list[Day]) -> None:
        async with self._database.transaction() as tx:
            store = UsageStore(tx)
            await store.lock_counters()
            usage = await store.usage_of_days(days)
            async with self._redis.pipeline(transaction=True) as pipe:
                for user_id, day in days:
                    _write_day(pipe, user_id, day, [line for line in usage if (line.user_id, line.day) == (user_id, day)])
                await pipe.execute()

    def _warn(self, error: Exception) -> None:
        now = self._clock.monotonic()
        if self._warned_at is None or now - self._warned_at >= WARN_EVERY_S:
            self._warned_at = now
            log.warning("counters_not_written", error=f"{type(error).__name__}: {error}"[:200], waiting=len(self._waiting))


def _write_day(pipe: Any, user_id: int, day: str, lines: list[DayUsage]) -> None:
    """Queue a user's day as it is in the ledger. `pipe` is untyped: redis-py types what it queues as what it awaits."""
    key = f"user:{user_id}:usage:{day}"
    pipe.delete(key)
    if lines:
        fields = {
            f"{line.model}:{field}": value
            for line in lines
            for field, value in (("requests", line.requests), ("tokens", line.tokens), ("cost", f"{line.cost_usd:f}"))
        }
        pipe.hset(key, mapping=fields)
        pipe.expire(key, LIFETIME)
