"""Stop: what a user's wish to end a turn sets in motion (reliability §7).

A router that runs the turn obeys and states the final itself. Nobody there: chat does, with the text the log holds. Both at
once: compare-and-set lets one win. The wish is stored first, so the sweeper finishes what a crash leaves half done.
"""

from dataclasses import dataclass
from datetime import timedelta

import structlog

from parley_chat.ending import Ending
from parley_chat.turn_store import OpenTurn, TurnStore
from parley_contracts.errors import ParleyError, TurnNotFound
from parley_contracts.parts import FinishReason
from parley_contracts.turns import StopGeneration, StopTurn, Turn
from parley_runtime.bus import Bus, LogUnreadable
from parley_runtime.clock import Clock
from parley_runtime.database import Database

log = structlog.get_logger()

UNFINISHED_AFTER = timedelta(seconds=3)
"""A stop without a final for so long is the sweeper's to finish."""
_ASK_FOR_S = 1.0
_ASK_EVERY_S = 0.25
_WAIT_S = 2.0
_LOOK_EVERY_S = 0.025


@dataclass(frozen=True, slots=True)
class Stopping:
    database: Database
    bus: Bus
    ending: Ending
    clock: Clock

    async def stop_turn(self, command: StopTurn) -> Turn:
        now = self.clock.now()
        async with self.database.transaction() as tx:
            turns = TurnStore(tx)
            if (known := await turns.get(command.user_id, command.turn_id)) is None:
                raise TurnNotFound
            running = await turns.request_stop(command.turn_id, now, look_at=now + UNFINISHED_AFTER)
        if running is None:
            return known if known.status.is_terminal else await self._get(command)
        return await (self._wait_for_end(command) if await self.try_to_finish(running) else self._get(command))

    async def try_to_finish(self, turn: OpenTurn) -> bool:
        """Finish a stop that is stored. False: it failed, and is the sweeper's now: accepted it is."""
        try:
            await self.finish(turn)
        except (ParleyError, LogUnreadable) as error:
            log.warning("stop_unfinished", turn_id=turn.id, error=type(error).__name__)
            return False
        return True

    async def finish(self, turn: OpenTurn) -> None:
        """Raises LogUnreadable, Overloaded, ServiceUnavailable."""
        tokens = turn.request.input_tokens
        final = await self.ending.end_unclaimed(turn.id, reason=FinishReason.CANCELED, input_tokens=tokens)
        if final is None:
            if await self._router_obeys(turn.id):
                return
            final = await self.ending.end(turn.id, reason=FinishReason.CANCELED, input_tokens=tokens)
        await self.ending.state(turn.command(), final)

    async def _router_obeys(self, turn_id: str) -> bool:
        give_up_at = self.clock.monotonic() + _ASK_FOR_S
        while True:
            asked_at = self.clock.monotonic()
            try:
                if await self.bus.ask(StopGeneration(turn_id=turn_id), timeout_s=_ASK_EVERY_S):
                    return True
            except ParleyError as error:
                log.debug("stop_unanswered", turn_id=turn_id, error=error.code)
            ask_at = max(asked_at + _ASK_EVERY_S, self.clock.monotonic())
            if ask_at >= give_up_at:
                return False
            await self.clock.sleep(ask_at - self.clock.monotonic())

    async def _wait_for_end(self, command: StopTurn) -> Turn:
        """The turn as it stands, once its end is stored or it takes too long."""
        give_up_at = self.clock.monotonic() + _WAIT_S
        while True:
            turn = await self._get(command)
            if turn.status.is_terminal or self.clock.monotonic() >= give_up_at:
                return turn
            await self.clock.sleep(_LOOK_EVERY_S)

    async def _get(self, command: StopTurn) -> Turn:
        async with self.database.transaction() as tx:
            turn = await TurnStore(tx).get(command.user_id, command.turn_id)
        if turn is None:
            raise TurnNotFound
        return turn
