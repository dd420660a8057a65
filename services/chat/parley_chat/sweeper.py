"""Sweeper: brings turns to their end that nobody else finishes (reliability 8.1). Every replica sweeps, none twice.

A turn is leased before it is looked at, so that no transaction is held while the bus is asked. What might only be a moment
between two steps of a healthy turn is suspected first, and acted on when it is found again.
"""

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from parley_chat.ending import Ending
from parley_chat.outbox import FIRST_REPEAT, Outbox
from parley_chat.stop import UNFINISHED_AFTER, Stopping
from parley_chat.turn_store import OpenTurn, OutboxStore, TurnStore
from parley_contracts.errors import DeadlinePassed, ParleyError
from parley_contracts.parts import FinishReason
from parley_contracts.turns import TurnClaim, TurnFinal
from parley_runtime.bus import Bus, LogUnreadable
from parley_runtime.clock import Clock
from parley_runtime.database import Database

log = structlog.get_logger()

FIRST_LOOK = timedelta(seconds=5)
"""Most turns have ended before anybody looks at them."""
_EVERY_S = 2.0
_SOON = timedelta(seconds=2)
_LEASE = timedelta(seconds=5)
_CONFIRMED_AFTER = timedelta(seconds=5)
_SILENT_AFTER = timedelta(seconds=15)
_BATCH = 200
_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Sweeper:
    database: Database
    bus: Bus
    outbox: Outbox
    ending: Ending
    stopping: Stopping
    clock: Clock

    async def sweep_turns(self) -> None:
        while True:
            await self.sweep()
            await self.clock.sleep(_EVERY_S)

    async def sweep(self) -> None:
        """Look at every turn that is due."""
        places = asyncio.Semaphore(_AT_ONCE)
        while True:
            async with self.database.transaction() as tx:
                due = await TurnStore(tx).take_due(self.clock.now(), lease=_LEASE, soon=_SOON, limit=_BATCH)
            async with asyncio.TaskGroup() as looks:
                for turn in due:
                    looks.create_task(self._look_quietly(turn, places))
            if len(due) < _BATCH:
                return

    async def _look_quietly(self, turn: OpenTurn, places: asyncio.Semaphore) -> None:
        async with places:
            try:
                await self._look(turn)
            except (ParleyError, LogUnreadable) as error:
                log.warning("sweep_failed", turn_id=turn.id, error=type(error).__name__)
            except Exception:
                log.exception("sweep_failed", turn_id=turn.id)  # one turn's trouble is not the others'

    async def _look(self, turn: OpenTurn) -> None:
        now = self.clock.now()
        control = (await self.bus.turns.last_control(turn.id)).entry
        if isinstance(control, TurnFinal):
            await self._state_again(turn, control, now)
        elif turn.stop_requested_at is not None and now - turn.stop_requested_at >= UNFINISHED_AFTER:
            await self.stopping.finish(turn)
        elif now >= turn.deadline_at:
            await self._time_out(turn)
        elif turn.is_unsent or await self.bus.turns.find_command(turn.id):
            await self._leave(turn, control)
        else:
            await self._dispatch_again(turn, now)

    async def _state_again(self, turn: OpenTurn, final: TurnFinal, now: datetime) -> None:
        """A final that stood here 5 s ago too: its result was lost, or its writer died before stating it."""
        if await self._is_confirmed(turn, "final", now, after=_CONFIRMED_AFTER):
            log.warning("result_stated_again", turn_id=turn.id)
            await self.ending.state(turn.command(), final)

    async def _time_out(self, turn: OpenTurn) -> None:
        log.warning("turn_timed_out", turn_id=turn.id)
        error = DeadlinePassed().body()
        tokens = turn.request.input_tokens
        final = await self.ending.end(turn.id, reason=FinishReason.ERROR, error=error, input_tokens=tokens)
        await self.ending.state(turn.command(), final)

    async def _leave(self, turn: OpenTurn, claim: TurnClaim | None) -> None:
        """JetStream has its command, or the relay will give it: note how far it got, and nothing else."""
        attempt = 0 if claim is None else claim.attempt
        if attempt != turn.attempt or turn.suspicion is not None:
            async with self.database.transaction() as tx:
                await TurnStore(tx).note_attempt(turn.id, attempt)

    async def _dispatch_again(self, turn: OpenTurn, now: datetime) -> None:
        """No final, no command: it was lost, unless a router still speaks. Two copies of a command are harmless."""
        heard = len(await self.bus.turns.read(turn.id))
        silence = _SILENT_AFTER if heard else _CONFIRMED_AFTER
        if not await self._is_confirmed(turn, f"lost after {heard}", now, after=silence):
            return
        log.warning("turn_dispatched_again", turn_id=turn.id, dispatch=turn.dispatch + 1)
        async with self.database.transaction() as tx:
            if not await TurnStore(tx).count_dispatch(turn.id):
                return
            await OutboxStore(tx).add(turn.id, due_at=now + FIRST_REPEAT)
        await self.outbox.send_again(turn.id)

    async def _is_confirmed(self, turn: OpenTurn, suspicion: str, now: datetime, *, after: timedelta) -> bool:
        """Whether the same was found `after` ago already; else it is suspected from now on."""
        if turn.suspicion == suspicion and turn.suspected_at is not None:
            return now - turn.suspected_at >= after
        async with self.database.transaction() as tx:
            await TurnStore(tx).suspect(turn.id, suspicion, now)
        return False
