"""Following a turn: live messages and the stored log as one sequence of stream events (reliability 5.2).

Used by the gateway for every stream, by chat for titles. The reader rule decides; this file only does the waiting:
a bounded mailbox, a log read for each gap, a look at the log when a turn is silent for too long. One timer a turn, armed
anew when it fires and not at each message, so that waiting costs nothing per token.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

from parley_contracts.parts import ToolCall
from parley_contracts.reader import Gap, Reading, StreamEvent, step
from parley_contracts.turns import LogEntry, TurnCommitted, TurnDelta
from parley_runtime.bus import Bus, Closable, LiveMessage, LogUnreadable

SILENCE_S = 12.0
"""A silent router speaks every 5 s, so 12 s of nothing is a reason to look."""
_DOUBT_S = 1.0
_GAP_PAUSES_S = (0.0, 0.05, 0.2)  # the stream's capture lags a little behind live
MAILBOX_BYTES = 1024 * 1024


class ReaderTooSlow(Exception):
    """More waits than a mailbox holds: this reader is cut, and may resume; nobody else is harmed."""


class Follower:
    """One turn, followed from its beginning: `async with`, then iterate `batches()`.

    `committed` is set once chat said that the answer is stored; the caller falls back to asking, since events may be missed.
    """

    def __init__(self, bus: Bus, turn_id: str, *, reads: asyncio.Semaphore | None = None, beat_s: float | None = None) -> None:
        self.turn_id = turn_id
        self.committed = asyncio.Event()
        self._bus = bus
        self._mailbox: deque[LogEntry] = deque()
        self._waiting_bytes = 0
        self._arrived = asyncio.Event()
        self._watch: Closable | None = None
        self._reading = Reading()
        self._must_look = False
        self._reads = reads or asyncio.Semaphore(1)
        self._loop = asyncio.get_running_loop()
        self._beat_s = beat_s
        self._beat_due = False
        self._beat_at = self._heard_at = self._loop.time()
        self._doubt_at: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        self._watch = await self._bus.turns.watch(self.turn_id, self._hear)
        self._arm()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._watch is not None:
            await self._watch.close()

    @property
    def reading(self) -> Reading:
        return self._reading

    def look(self) -> None:
        """Read the log at the next occasion: after a reconnect live messages may be missing (N7)."""
        self._must_look = True
        self._arrived.set()

    def _hear(self, message: LiveMessage) -> None:
        if isinstance(message, TurnCommitted):
            self.committed.set()
        elif self._waiting_bytes > MAILBOX_BYTES:
            self._mailbox.clear()  # N14: whoever does not read is cut when it next does, and costs nothing until then
        else:
            self._mailbox.append(message)
            if isinstance(message, TurnDelta):
                for part in message.parts:
                    self._waiting_bytes += 100 + len(part.arguments if isinstance(part, ToolCall) else part.text)
        self._arrived.set()

    def _arm(self) -> None:
        due = self._heard_at + SILENCE_S
        if self._doubt_at is not None:
            due = min(due, self._doubt_at)
        if self._beat_s is not None:
            due = min(due, self._beat_at + self._beat_s)
        self._timer = self._loop.call_at(due, self._on_timer)

    def _on_timer(self) -> None:
        now = self._loop.time()
        if now >= self._heard_at + SILENCE_S or (self._doubt_at is not None and now >= self._doubt_at):
            self._heard_at, self._doubt_at = now, None
            self.look()
        if self._beat_s is not None and now >= self._beat_at + self._beat_s:
            self._beat_due, self._beat_at = True, now
            self._arrived.set()
        self._arm()

    async def batches(self, *, is_new: bool = False) -> AsyncIterator[list[StreamEvent]]:
        """Everything to show, in order, all that is pending at a time; ends after `Ended`.

        An empty batch is a heartbeat: `beat_s` seconds passed without anything to show. `is_new`: the turn was not begun
        before the subscription stood, so its log need not be read first. Raises `ReaderTooSlow`.
        """
        self._must_look = self._must_look or not is_new  # a reconnect may have come first
        while not self._reading.ended:
            events: list[StreamEvent] = []
            if self._must_look:
                self._must_look = False
                events = await self._look()
            elif self._mailbox or self._waiting_bytes > MAILBOX_BYTES:
                events = await self._take_pending()
            else:
                self._arrived.clear()
                await self._arrived.wait()
            if events:
                self._beat_at, self._beat_due = self._loop.time(), False
                yield events
            elif self._beat_due:
                self._beat_due = False
                yield events

    async def _take_pending(self) -> list[StreamEvent]:
        if self._waiting_bytes > MAILBOX_BYTES:
            raise ReaderTooSlow
        self._waiting_bytes = 0
        self._heard_at = self._loop.time()
        events: list[StreamEvent] = []
        while self._mailbox and not self._reading.ended:
            entry = self._mailbox[0]
            stepped = step(self._reading, entry, stored=False)
            if isinstance(stepped, Gap):
                if not events:
                    self._mailbox.popleft()
                    events = await self._fill_gap(entry)
                break  # show what there is before waiting for the log
            self._mailbox.popleft()
            self._reading, more = stepped
            events += more
        return events

    async def _fill_gap(self, entry: LogEntry) -> list[StreamEvent]:
        """Read the log until `entry` can be read too; one that never gets there was refused by the stream."""
        for pause_s in _GAP_PAUSES_S:
            if pause_s:
                await asyncio.sleep(pause_s)
            events = await self._look()
            stepped = step(self._reading, entry, stored=False)
            if not isinstance(stepped, Gap):
                self._reading, more = stepped
                return events + more
            if events:
                self._mailbox.appendleft(entry)  # show what there is; then try again
                return events
        # Refused by the stream, or a replica lags: look again in a second.
        self._doubt_at = self._loop.time() + _DOUBT_S
        if self._timer is not None:
            self._timer.cancel()
        self._arm()
        return []

    async def _look(self) -> list[StreamEvent]:
        events: list[StreamEvent] = []
        try:
            async with self._reads:
                log = await self._bus.turns.read(self.turn_id)
        except LogUnreadable:
            await asyncio.sleep(0.2)
            self._must_look = True
            return events
        for entry in log:
            stepped = step(self._reading, entry, stored=True)
            if not isinstance(stepped, Gap):
                self._reading, more = stepped
                events += more
        return events
