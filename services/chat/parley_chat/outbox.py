"""Outbox: commands of accepted turns on their way to the bus. Sends them, and repeats what a crash or a full bus left unsent.

The outbox holds ids, not prompts: a command that is repeated is built again from the tables, by the same `window.py`.
"""

import asyncio
from datetime import timedelta

import structlog

from parley_chat.store import MessageStore, SessionStore
from parley_chat.turn_store import OutboxStore, TurnStore
from parley_chat.window import with_prompt
from parley_contracts.errors import MessagesTooLong, Overloaded, ServiceUnavailable
from parley_contracts.turns import Generate
from parley_runtime.bus import Bus
from parley_runtime.clock import Clock
from parley_runtime.database import Database

log = structlog.get_logger()

FIRST_REPEAT = timedelta(seconds=1)
"""A row unsent for so long is the relay's; before, whoever accepted the turn is sending it."""
_LEASE = timedelta(seconds=4)
_EVERY_S = 1.0
_PUBLISH_S = 2.0
_BATCH = 50


class Outbox:
    """`is_full`: the stream of commands took no more. New turns are refused until a command went through again."""

    def __init__(self, database: Database, bus: Bus, clock: Clock, *, max_messages: int) -> None:
        self._database = database
        self._bus = bus
        self._clock = clock
        self._max_messages = max_messages
        self.is_full = False

    async def send(self, command: Generate) -> bool:
        """Publish and mark as sent. False: not sent for certain; the relay repeats it, under the same id."""
        try:
            async with asyncio.timeout(_PUBLISH_S):
                await self._bus.publish(command)
        except Overloaded:
            self.is_full = True
            log.warning("commands_full", turn_id=command.turn_id)
            return False
        except (ServiceUnavailable, TimeoutError) as error:
            log.warning("command_unsent", turn_id=command.turn_id, error=type(error).__name__)
            return False
        self.is_full = False
        try:
            await self._mark_sent(command.turn_id)
        except ServiceUnavailable:
            log.warning("command_unmarked", turn_id=command.turn_id)  # so it is sent twice, which is harmless
        return True

    async def send_again(self, turn_id: str) -> bool:
        """Send a turn's command, built anew. True: sent, or there is nothing to send any more."""
        try:
            command = await self._rebuild(turn_id)
        except MessagesTooLong:
            log.exception("command_not_rebuilt", turn_id=turn_id)  # a limit was lowered; the turn ends at its deadline
            command = None
        if command is None:
            await self._mark_sent(turn_id)
            return True
        return await self.send(command)

    async def relay_outbox(self) -> None:
        while True:
            await self.send_due()
            await self._clock.sleep(_EVERY_S)

    async def send_due(self) -> None:
        async with self._database.transaction() as tx:
            outbox = OutboxStore(tx)
            due = await outbox.take_due(self._clock.now(), lease=_LEASE, limit=_BATCH)
            if self.is_full and not due and await outbox.is_empty():
                self.is_full = False  # another replica's commands, and ours, went through
        for turn_id in due:
            if not await self.send_again(turn_id):
                return  # the others are due again when their lease ends

    async def _rebuild(self, turn_id: str) -> Generate | None:
        """None: the turn has ended, or its session is gone."""
        async with self._database.transaction() as tx:
            messages = MessageStore(tx)
            turn = await TurnStore(tx).get_open(turn_id)
            if turn is None:
                return None
            session = await SessionStore(tx).find(turn.user_id, turn.session_id)
            content = await messages.text_of(turn.session_id, turn.user_message_id)
            if session is None or content is None:
                return None
            history = await messages.history(turn.session_id, limit=self._max_messages, before=turn.user_message_id)
        return with_prompt(
            turn.command(),
            system_prompt=session.system_prompt if turn.request.system_prompt is None else turn.request.system_prompt,
            history=history,
            content=content,
            max_messages=self._max_messages,
            max_tokens=turn.request.token_limit,
        )

    async def _mark_sent(self, turn_id: str) -> None:
        async with self._database.transaction() as tx:
            await OutboxStore(tx).mark_sent(turn_id)
