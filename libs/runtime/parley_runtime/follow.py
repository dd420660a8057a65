"""Following a turn: live messages and the stored log as one sequence of stream events (reliability 5.2).

Used by the gateway for every stream, by chat for titles. The reader rule decides; this file only does the waiting:
a bounded mailbox, a log read for each gap, a look at the log when a turn is silent for too long.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

from parley_contracts.reader import Gap, Reading, StreamEvent, step
from parley_contracts.turns import LogEntry, TurnCommitted

from parley_runtime.bus import Bus, Closable, LiveMessage, LogUnreadable

SILENCE_S = 12.0
"""A silent router speaks every 5 s, so 12 s of nothing is a reason to look."""
_DOUBT_S = 1.0
_GAP_PAUSES_S = (0.0, 0.05, 0.2)  # the stream's capture lags a little behind live
_MAILBOX_ENTRIES = 100_000


class Follower:
    """One turn, followed from its beginning: `async with`, then iterate `batches()`.

    `committed` is set once chat said that the answer is stored; the caller falls back to asking, since events may be missed.
    """

    def __init__(self, bus: Bus, turn_id: str, *, reads: asyncio.Semaphore | None = None) -> None:
        self._bus = bus
        self._turn_id = turn_id
        self._mailbox: deque[LogEntry] = deque()
        self._arrived = asyncio.Event()
        self._watch: Closable | None = None
        self._reading = Reading()
        self._must_look = True
        self._reads = reads or asyncio.Semaphore(1)
        self.committed = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._watch = await self._bus.turns.watch(self._turn_id, self._hear)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
        elif len(self._mailbox) < _MAILBOX_ENTRIES:
            self._mailbox.append(message)
        else:
            self._mailbox.clear()  # a reader this slow reads the log instead
            self._must_look = True
        self._arrived.set()

    async def batches(self, *, is_new: bool = False) -> AsyncIterator[list[StreamEvent]]:
        """Everything to show, in order, all that is pending at a time; ends after `Ended`.

        `is_new`: the turn was not begun before the subscription stood, so its log need not be read first.
        """
        self._must_look = not is_new
        in_doubt = False
        while not self._reading.ended:
            if self._must_look:
                self._must_look = False
                if events := await self._look():
                    yield events
                continue
            if not self._mailbox:
                self._arrived.clear()
                try:
                    async with asyncio.timeout(_DOUBT_S if in_doubt else SILENCE_S):
                        await self._arrived.wait()
                except TimeoutError:
                    self._must_look = True
                in_doubt = False
                continue
            events, in_doubt = await self._take_pending()
            if events:
                yield events

    async def _take_pending(self) -> tuple[list[StreamEvent], bool]:
        """Feed what the mailbox holds; True beside it when something live is not in the log (yet)."""
        events: list[StreamEvent] = []
        while self._mailbox and not self._reading.ended:
            entry = self._mailbox[0]
            stepped = step(self._reading, entry, stored=False)
            if isinstance(stepped, Gap):
                if events:
                    return events, False  # show what there is before waiting for the log
                self._mailbox.popleft()
                return await self._fill_gap(entry)
            self._mailbox.popleft()
            self._reading, more = stepped
            events += more
        return events, False

    async def _fill_gap(self, entry: LogEntry) -> tuple[list[StreamEvent], bool]:
        events: list[StreamEvent] = []
        for pause_s in _GAP_PAUSES_S:
            await asyncio.sleep(pause_s)
            events += await self._look()
            stepped = step(self._reading, entry, stored=False)
            if not isinstance(stepped, Gap):
                self._reading, more = stepped
                return events + more, False
            if events:
                self._mailbox.appendleft(entry)  # show what there is; then try again
                return events, False
        return events, True  # refused by the stream, or a replica lags: look again in a second

    async def _look(self) -> list[StreamEvent]:
        events: list[StreamEvent] = []
        try:
            async with self._reads:
                log = await self._bus.turns.read(self._turn_id)
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
