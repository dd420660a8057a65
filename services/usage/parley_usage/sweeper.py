"""Sweeper: holds whose result did not come. Frees what dead turns hold, within a minute (reliability 9.3).

A row is taken by noting on it that it is asked about, so that replicas share the work; no transaction is open while we ask.
"""

import asyncio
import contextlib
from datetime import timedelta

import structlog
from prometheus_client import Counter

from parley_contracts.errors import ParleyError, ServiceUnavailable
from parley_contracts.turns import FindTurn
from parley_runtime.bus import Bus, LogUnreadable
from parley_runtime.clock import Clock
from parley_runtime.database import Database
from parley_usage.books import StaleHold
from parley_usage.settlement import Settlement
from parley_usage.store import UsageStore

log = structlog.get_logger()

EVERY_S = 10.0
HOLD_AGE = timedelta(seconds=30)
ASKED_AGAIN_AFTER = timedelta(seconds=8)
"""Shorter than the round, so that a row is asked about in every one, and by one replica."""
RESULT_MAY_TAKE = timedelta(minutes=10)
ASK_TIMEOUT_S = 2.0
AT_ONCE = 16
MOST_TAKEN = 128

_TIMES_UNKNOWN = 2

unbilled_turns_total = Counter("parley_unbilled_turns_total", "Turns that ended without a result, and cost nobody anything.")


class Sweeper:
    def __init__(self, bus: Bus, database: Database, settlement: Settlement, clock: Clock) -> None:
        self._bus = bus
        self._database = database
        self._settlement = settlement
        self._clock = clock

    async def keep_holds_true(self) -> None:
        """For ever."""
        while True:
            with contextlib.suppress(ServiceUnavailable):  # the database is away, and its own log says so
                await self.sweep()
            await self._clock.sleep(EVERY_S)

    async def sweep(self) -> None:
        """Look once at every hold that is old enough, until somebody does not answer."""
        while holds := await self._take():
            for start in range(0, len(holds), AT_ONCE):
                answered = await asyncio.gather(*(self._look_at(hold) for hold in holds[start : start + AT_ONCE]))
                if not all(answered):
                    return  # what was not looked at is kept: the next round asks again

    async def _take(self) -> list[StaleHold]:
        now = self._clock.now()
        async with self._database.transaction() as tx:
            return await UsageStore(tx).take_stale_holds(
                at=now, held_before=now - HOLD_AGE, asked_before=now - ASKED_AGAIN_AFTER, most=MOST_TAKEN
            )

    async def _look_at(self, hold: StaleHold) -> bool:
        """False: could not be looked at now."""
        try:
            result = await self._bus.turns.find_result(hold.turn_id)
            if result is not None:
                await self._settlement.settle(result)
                return True
            match await self._bus.ask(FindTurn(turn_id=hold.turn_id), timeout_s=ASK_TIMEOUT_S):
                case "open":
                    await self._keep(hold)
                case "unknown":
                    await self._unknown(hold)
                case "ended":
                    await self._ended(hold)
        except (ParleyError, LogUnreadable) as error:
            log.warning("hold_kept", turn_id=hold.turn_id, error=f"{type(error).__name__}: {error}"[:200])
            return False
        return True

    async def _keep(self, hold: StaleHold) -> None:
        if hold.times_unknown or hold.ended_since:
            async with self._database.transaction() as tx:
                await UsageStore(tx).note(hold.turn_id)

    async def _unknown(self, hold: StaleHold) -> None:
        times = hold.times_unknown + 1
        async with self._database.transaction() as tx:
            if times < _TIMES_UNKNOWN:
                await UsageStore(tx).note(hold.turn_id, times_unknown=times)
            elif await UsageStore(tx).release(hold.turn_id, hold.user_id):
                log.info("dead_hold_released", turn_id=hold.turn_id)

    async def _ended(self, hold: StaleHold) -> None:
        now = self._clock.now()
        ended_since = hold.ended_since or now
        is_released = False
        async with self._database.transaction() as tx:
            if now - ended_since < RESULT_MAY_TAKE:
                await UsageStore(tx).note(hold.turn_id, ended_since=ended_since)
            else:
                is_released = await UsageStore(tx).release(hold.turn_id, hold.user_id)
        if is_released:
            unbilled_turns_total.inc()
            log.error("turn_unbilled", turn_id=hold.turn_id, user_id=hold.user_id)
