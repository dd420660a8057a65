"""Limits: how often an address, an account or a user may ask, and how many turns run at once (requirements 2.8).

Counted in Redis for all gateways, in one round trip a request: a script of ours runs the GCRA, a sliding window that needs
one number a bucket (`throttled-py` would ask once for each bucket, and knows no count of what runs). All buckets of a
request are looked at before any is filled, so what is refused costs nothing.

**When Redis is away** each gateway counts by itself, with the same numbers, until it is back: logins stay limited, so a
guesser gains one bucket a gateway, and no turn fails for want of Redis. After a failure it is left alone for two seconds.

Guessing passwords: an address has RATE_LOGIN_PER_MIN tries, and an account ten times that from all addresses together, so
that a guesser is bounded and yet cannot lock the owner out from another address (security, row 15).
"""

import asyncio
import hashlib
import math
import time
from collections import defaultdict
from collections.abc import Iterable

import msgspec
import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from parley_contracts.accounts import Principal
from parley_contracts.errors import ParleyError, RateLimited, TooManyTurns
from parley_contracts.ids import new_id
from parley_contracts.turns import GetTurn
from parley_gateway.settings import GatewaySettings
from parley_runtime.bus import Bus
from parley_runtime.clock import Clock

log = structlog.get_logger()

WINDOW_S = 60
STARTS_TURNS = frozenset(
    {
        "/chat/completions",
        "/v1/chat/completions",
        "/chat/v1/chat/completions",
        "/chat/send",
        "/api/chat/completion",
        "/api/chat/message",
        "/api/chat/regenerate",
        "/api/chat/stream",
    }
)
"""Routes whose requests begin a turn, by POST."""
ACCOUNT_FACTOR = 10

_CONNECTIONS = 32
_QUEUE_S = 1.0
_TIMEOUT_S = 0.25
_PAUSE_S = 2.0
_LOOK_EVERY_S = 2.0
_TOO_MANY_WAIT_S = 1.0
_MOST_LOCAL = 50_000

_SCRIPT = """
local time = redis.call('TIME')
local now, period, count = time[1] * 1000000 + time[2], tonumber(ARGV[1]), tonumber(ARGV[2])
local denied, wait, tats, out = 0, 0, {}, {}
for i = 1, count do
  local limit = tonumber(ARGV[2 + i])
  local step = period / math.max(limit, 1)
  local tat = math.max(now, tonumber(redis.call('GET', KEYS[i]) or now))
  local over = tat + step - period - now
  if limit < 1 then over = period end
  if over > wait then denied, wait = i, over end
  tats[i] = tat + step
  out[2 * i - 1] = math.max(0, math.floor((period - (tat + step - now)) / step + 0.000001))
  out[2 * i] = math.floor(tat + step - now)
end
local running = KEYS[count + 1]
if running and denied == 0 then
  redis.call('ZREMRANGEBYSCORE', running, '-inf', now)
  if redis.call('ZCARD', running) >= tonumber(ARGV[count + 3]) then denied = count + 1 end
end
if denied == 0 then
  for i = 1, count do
    redis.call('SET', KEYS[i], string.format('%.0f', tats[i]), 'PX', math.ceil((tats[i] - now) / 1000) + 1)
  end
  if running then
    redis.call('ZADD', running, string.format('%.0f', now + tonumber(ARGV[count + 5])), ARGV[count + 4])
    redis.call('PEXPIRE', running, math.ceil(tonumber(ARGV[count + 5]) / 1000))
  end
end
return {denied, math.ceil(wait), unpack(out)}
"""


class Bucket(msgspec.Struct, frozen=True):
    """So many in a minute, under this key."""

    key: str
    limit: int


class Slot(msgspec.Struct, frozen=True):
    """A place among a user's running turns."""

    user_id: int
    id: str


class Admission(msgspec.Struct, frozen=True, kw_only=True):
    """What a request that may pass has left, of the last bucket it was counted in."""

    limit: int
    remaining: int
    reset_s: int
    slot: Slot | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {
            "X-RateLimit-Limit": str(self.limit),
            "X-RateLimit-Remaining": str(self.remaining),
            "X-RateLimit-Reset": str(self.reset_s),
        }


class Limits:
    """Owned by the gateway. `admit_*` raise RateLimited or TooManyTurns."""

    name = "limits"

    def __init__(self, settings: GatewaySettings, bus: Bus, clock: Clock) -> None:
        self._settings = settings
        self._bus = bus
        self._clock = clock
        pool = BlockingConnectionPool.from_url(
            settings.redis_url.get_secret_value(),
            max_connections=_CONNECTIONS,  # a thousand requests at once wait a quarter of a second, and open no thousand
            timeout=_QUEUE_S,
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            retry=Retry(NoBackoff(), retries=0),
        )
        self._redis: Redis = Redis.from_pool(pool)
        self._script = self._redis.register_script(_SCRIPT)
        self._away_until = 0.0
        self._is_away = False
        self._local: dict[str, float] = {}
        self._running: defaultdict[int, set[str]] = defaultdict(set)
        self._left: dict[str, Slot] = {}
        """Stored turns whose client has left, by id: they run on."""
        self._ended: list[Slot] = []
        self._has_ended = asyncio.Event()
        self.loops = (self.keep_released, self.keep_looking)
        self._slot_life_s = 2 * settings.provider_timeout_ms / 1000 + WINDOW_S

    async def open(self) -> None:
        """Connects when it first counts."""

    async def check(self) -> None:
        """Ready always: without Redis each gateway counts by itself."""

    async def close(self) -> None:
        await self._redis.aclose()

    # --- who asks -------------------------------------------------------------------------------------------------------

    async def admit_anyone(self, address: str) -> None:
        await self._admit([Bucket(f"address:{address}", self._settings.rate_anonymous_per_min)])

    async def admit_login(self, address: str, account: str | None) -> None:
        limit = self._settings.rate_login_per_min
        buckets = [
            Bucket(f"address:{address}", self._settings.rate_anonymous_per_min),
            Bucket(f"login:address:{address}", limit),
        ]
        if account is not None:
            digest = hashlib.sha256(account.strip().lower().encode()).hexdigest()[:32]
            buckets.append(Bucket(f"login:account:{digest}", limit * ACCOUNT_FACTOR))
        await self._admit(buckets)

    async def admit_user(self, principal: Principal, *, starts_turn: bool) -> Admission:
        own = principal.limits
        user = f"{{user:{principal.user_id}}}"
        requests = own.requests_per_minute
        buckets = [Bucket(f"{user}:requests", self._settings.rate_requests_per_min if requests is None else requests)]
        if not starts_turn:
            return await self._admit(buckets)
        turns = own.turns_per_minute
        buckets.append(Bucket(f"{user}:turns", self._settings.rate_turns_per_min if turns is None else turns))
        most = self._settings.max_running_turns if own.concurrent_turns is None else own.concurrent_turns
        return await self._admit(buckets, Slot(principal.user_id, new_id()), most)

    # --- running turns --------------------------------------------------------------------------------------------------

    def release(self, slot: Slot) -> None:
        """Its turn has ended, or never began. Does not wait: a loop tells Redis."""
        self._running[slot.user_id].discard(slot.id)
        if not self._running[slot.user_id]:
            del self._running[slot.user_id]
        self._ended.append(slot)
        self._has_ended.set()

    def leave(self, slot: Slot, turn_id: str) -> None:
        """The client has left a stored turn, which runs on: it is looked after until it has ended."""
        self._left[turn_id] = slot

    async def keep_released(self) -> None:
        """A loop of the service."""
        while True:
            await self._has_ended.wait()
            self._has_ended.clear()
            ended, self._ended = self._ended, []
            try:
                async with self._redis.pipeline(transaction=False) as pipe:
                    for slot in ended:
                        _ = pipe.zrem(_running_key(slot.user_id), slot.id)  # queued; redis-py types it as awaited
                    await pipe.execute()
            except (RedisError, OSError):
                self._ended = [*ended, *self._ended][-10_000:]  # later ones expire by themselves
                self._has_ended.set()
                await self._clock.sleep(_PAUSE_S)

    async def keep_looking(self) -> None:
        """A loop of the service: turns that were left are asked after until they have ended."""
        while True:
            await self._clock.sleep(_LOOK_EVERY_S)
            for turn_id, slot in list(self._left.items()):
                if await self._has_turn_ended(turn_id, slot.user_id):
                    self._left.pop(turn_id, None)
                    self.release(slot)

    async def _has_turn_ended(self, turn_id: str, user_id: int) -> bool:
        try:
            turn = await self._bus.ask(GetTurn(turn_id=turn_id, user_id=user_id))
        except ParleyError as error:
            return not error.retryable  # deleted with its session
        return turn.status.is_terminal

    # --- counting -------------------------------------------------------------------------------------------------------

    async def _admit(self, buckets: list[Bucket], slot: Slot | None = None, most: int = 0) -> Admission:
        denied, wait_s, left = await self._count(buckets, slot, most)
        if denied > len(buckets):
            raise TooManyTurns(most=most, retry_after_s=_TOO_MANY_WAIT_S)
        if denied:
            seconds = max(1, math.ceil(wait_s))
            raise RateLimited(seconds=seconds, retry_after_s=float(seconds))
        if slot is not None:
            self._running[slot.user_id].add(slot.id)
        remaining, reset_s = left[-1]
        return Admission(limit=buckets[-1].limit, remaining=remaining, reset_s=math.ceil(reset_s), slot=slot)

    async def _count(self, buckets: list[Bucket], slot: Slot | None, most: int) -> tuple[int, float, list[tuple[int, float]]]:
        if self._clock.monotonic() < self._away_until:
            return self._count_here(buckets, slot, most)
        keys = [f"limit:{bucket.key}" for bucket in buckets]
        arguments: list[str | int | float] = [WINDOW_S * 1_000_000, len(buckets), *(bucket.limit for bucket in buckets)]
        if slot is not None:
            keys.append(_running_key(slot.user_id))
            arguments += [most, slot.id, int(self._slot_life_s * 1_000_000)]
        try:
            denied, wait_us, *rest = await self._script(keys=keys, args=arguments)
        except (RedisError, OSError) as error:
            if not self._is_away:
                log.warning("limits_counted_here", error=f"{type(error).__name__}: {error}"[:300])
            self._is_away = True
            self._away_until = self._clock.monotonic() + _PAUSE_S
            return self._count_here(buckets, slot, most)
        if self._is_away:
            self._is_away = False
            self._local.clear()
            log.info("limits_counted_in_redis")
        pairs = zip(rest[::2], rest[1::2], strict=True)
        return denied, wait_us / 1e6, [(remaining, reset_us / 1e6) for remaining, reset_us in pairs]

    def _count_here(
        self, buckets: Iterable[Bucket], slot: Slot | None, most: int
    ) -> tuple[int, float, list[tuple[int, float]]]:
        """The same arithmetic, of this process alone."""
        now = time.monotonic()
        denied, wait_s, tats, left = 0, 0.0, {}, []
        for number, bucket in enumerate(buckets, 1):
            step = WINDOW_S / max(bucket.limit, 1)
            tat = max(now, self._local.get(bucket.key, now)) + step
            over = tat - WINDOW_S - now if bucket.limit >= 1 else float(WINDOW_S)
            if over > max(wait_s, 1e-9):
                denied, wait_s = number, over
            tats[bucket.key] = tat
            left.append((max(0, int((WINDOW_S - (tat - now)) / step + 1e-6)), tat - now))
        if slot is not None and not denied and len(self._running.get(slot.user_id, ())) >= most:
            denied = len(left) + 1
        if not denied:
            if len(self._local) >= _MOST_LOCAL:
                self._local = {key: tat for key, tat in self._local.items() if tat > now}
            self._local.update(tats)
        return denied, wait_s, left


def _running_key(user_id: int) -> str:
    return f"limit:{{user:{user_id}}}:running"
