"""Turn streams: follow a turn, wait for its commit, and stop it where disconnect means stop.

A stored turn goes on when its client leaves. A stateless one lives as long as a connection holds it: when the last one
leaves, its router is told to stop, ten seconds later if a key was given, so that a retry finds it (reliability §3, §7).
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import structlog

from parley_contracts.errors import ParleyError, ServiceUnavailable
from parley_contracts.parts import Part, Reasoning, Text
from parley_contracts.reader import Ended, Position, Shown, Snapshot, Started, StreamEvent, unseen
from parley_contracts.turns import GatewayAlive, GetTurn, StopGeneration, Turn
from parley_gateway.dialects.dialect import Ticket
from parley_runtime.bus import Bus
from parley_runtime.clock import Clock
from parley_runtime.follow import Follower

log = structlog.get_logger()

_ALIVE_S = 2.0
_ASK_COMMITTED_S = (2.0, 5.0)
_STOP_AGAIN_S = 0.25
_KEYED_GRACE_S = 10.0
_ADOPTED_S = 5.0
_GIVE_UP_S = 900.0  # past every turn's deadline
_LOG_READS = 64  # a restart with a thousand clients is a mass replay


class LiveTurn:
    """One client's view of one turn: `async with`, then iterate `batches()`; an empty batch is a heartbeat."""

    def __init__(
        self, streams: "TurnStreams", ticket: Ticket, *, user_id: int, is_stored: bool, is_keyed: bool = False
    ) -> None:
        self.ticket = ticket
        self.user_id = user_id
        self.is_stored = is_stored
        self.is_new = False
        self.seen: Position | None = None
        self.stored_turn: Turn | None = None
        """Set when the log is gone or was never needed: the whole answer is told from the store."""
        self.is_begun = False
        """The turn may run: whoever leaves it must see to its end. Not so while it was not commanded yet."""
        self.has_ended = False
        self._streams = streams
        self._is_keyed = is_keyed
        self._stack = AsyncExitStack()
        self.follower = streams.follower(ticket.turn_id)

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self.follower)
        self._streams.hold(self)
        self._stack.callback(self._streams.let_go, self, is_keyed=self._is_keyed)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def batches(self) -> AsyncGenerator[list[StreamEvent]]:
        """What this client must still be shown; `Ended` comes only once the answer can be read. Raises ReaderTooSlow."""
        if self.stored_turn is not None:
            self.has_ended = True
            yield told_from_store(self.stored_turn, self.seen)
            return
        async for batch in self.follower.batches(is_new=self.is_new):
            events = batch
            if self.seen is not None and batch:
                events, self.seen = unseen(batch, self.seen)
            if not (batch and isinstance(batch[-1], Ended)):
                if events or not batch:
                    yield events
                continue
            self.has_ended = True
            if self.is_stored:
                if events[:-1]:
                    yield events[:-1]
                    events = events[-1:]
                async for beat in self._until_committed():
                    yield beat
            yield events

    async def _until_committed(self) -> AsyncGenerator[list[StreamEvent]]:
        """Heartbeats until chat stored the answer: told by its event, or asked for, since events may be missed."""
        first_s, later_s = _ASK_COMMITTED_S
        pause_s = first_s
        while not self.follower.committed.is_set():
            try:
                async with asyncio.timeout(pause_s):
                    await self.follower.committed.wait()
            except TimeoutError:
                pause_s = later_s
                if await self._streams.is_committed(self.ticket.turn_id, self.user_id):
                    return
                yield []


def told_from_store(turn: Turn, seen: Position | None) -> list[StreamEvent]:
    """An ended turn without its log: the start, the whole answer at once, the end (requirements 2.5.7).

    Whoever has seen some of it gets a snapshot instead, which replaces what they show.
    """
    answer = turn.answer
    if answer is None or turn.finish_reason is None:
        raise ServiceUnavailable(service="chat")
    if seen:
        events: list[StreamEvent] = [Snapshot(turn.attempt, 0, answer)]
    else:
        parts: list[Part] = [Reasoning(answer.reasoning)] if answer.reasoning else []
        parts += [Text(answer.text)] if answer.text else []
        parts += answer.tool_calls
        events = [Started(turn.attempt), *(Shown(turn.attempt, n, part) for n, part in enumerate(parts))]
    events.append(Ended(turn.finish_reason, answer, turn.usage, turn.error))
    return events


class TurnStreams:
    """All turns this gateway's clients follow."""

    def __init__(self, bus: Bus, gateway_id: str, clock: Clock, *, beat_s: float) -> None:
        self._bus = bus
        self._gateway_id = gateway_id
        self._clock = clock
        self._beat_s = beat_s
        self._reads = asyncio.Semaphore(_LOG_READS)
        self._followers: set[Follower] = set()
        self._holders: Counter[str] = Counter()
        self._adopted: set[str] = set()
        self._adopted_elsewhere: dict[str, float] = {}
        self._endings: set[asyncio.Task[None]] = set()
        bus.on(GatewayAlive, self.hear_alive)
        bus.on_reconnect(self.look_again)

    @property
    def open_streams(self) -> int:
        return sum(self._holders.values())

    def follower(self, turn_id: str) -> Follower:
        return Follower(self._bus, turn_id, reads=self._reads, beat_s=self._beat_s)

    def look_again(self) -> None:
        """After a reconnect live messages may be missing: every live turn reads its log (N7)."""
        for follower in self._followers:
            follower.look()

    # --- who holds what -----------------------------------------------------------------------------------------------

    def hold(self, turn: LiveTurn) -> None:
        self._followers.add(turn.follower)
        self._holders[turn.ticket.turn_id] += 1
        if not turn.is_stored and not turn.is_new:
            self._adopted.add(turn.ticket.turn_id)

    def let_go(self, turn: LiveTurn, *, is_keyed: bool) -> None:
        turn_id = turn.ticket.turn_id
        self._followers.discard(turn.follower)
        self._holders[turn_id] -= 1
        if self._holders[turn_id] > 0:
            return
        del self._holders[turn_id]
        if turn.is_stored or turn.has_ended or not turn.is_begun:
            self._adopted.discard(turn_id)
            return
        ending = asyncio.create_task(self._end(turn_id, _KEYED_GRACE_S if is_keyed else 0.0), name=f"end-{turn_id}")
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)

    async def hear_alive(self, event: GatewayAlive) -> None:
        if event.gateway_id != self._gateway_id:
            now = self._clock.monotonic()
            self._adopted_elsewhere.update(dict.fromkeys(event.adopted, now))

    async def say_alive(self) -> None:
        """A loop of the service: routers end stateless turns whose gateway nobody hears."""
        while True:
            await self._bus.publish(GatewayAlive(gateway_id=self._gateway_id, adopted=tuple(self._adopted)))
            old = self._clock.monotonic() - _ADOPTED_S
            self._adopted_elsewhere = {turn: at for turn, at in self._adopted_elsewhere.items() if at > old}
            await self._clock.sleep(_ALIVE_S)

    # --- ends -----------------------------------------------------------------------------------------------------------

    async def is_committed(self, turn_id: str, user_id: int) -> bool:
        try:
            turn = await self._bus.ask(GetTurn(turn_id=turn_id, user_id=user_id))
        except ParleyError as error:
            log.info("commit_not_known_yet", turn_id=turn_id, code=error.code)
            return False
        return turn.status.is_terminal

    async def _end(self, turn_id: str, grace_s: float) -> None:
        """Stop a stateless turn that nobody holds: ask its router until it has ended; an unclaimed one, once it is claimed."""
        await self._clock.sleep(grace_s)
        try:
            async with asyncio.timeout(_GIVE_UP_S), self.follower(turn_id) as follower:
                asking = asyncio.create_task(self._ask_to_stop(turn_id), name=f"stop-{turn_id}")
                try:
                    async for batch in follower.batches():
                        if batch and isinstance(batch[-1], Ended):
                            break
                        if self._is_held(turn_id):
                            return
                finally:
                    asking.cancel()
                    await asyncio.gather(asking, return_exceptions=True)
        except TimeoutError:
            log.warning("turn_never_ended", turn_id=turn_id)
        finally:
            if not self._holders.get(turn_id):
                self._adopted.discard(turn_id)

    async def _ask_to_stop(self, turn_id: str) -> None:
        while not self._is_held(turn_id):
            try:
                await self._bus.ask(StopGeneration(turn_id=turn_id), timeout_s=1.0)
            except ParleyError:
                await self._clock.sleep(_STOP_AGAIN_S)  # nobody runs it (yet)
            else:
                return

    def _is_held(self, turn_id: str) -> bool:
        return bool(self._holders.get(turn_id)) or turn_id in self._adopted_elsewhere

    name = "turn_streams"

    async def open(self) -> None:
        pass

    async def check(self) -> None:
        pass

    async def close(self) -> None:
        """The routers end what is left over once they do not hear this gateway any more."""
        for ending in tuple(self._endings):
            ending.cancel()
        await asyncio.gather(*self._endings, return_exceptions=True)
