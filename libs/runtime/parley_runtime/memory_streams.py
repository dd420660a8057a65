"""JetStream in memory, as far as Parley uses it: what is stored, delivered again, refused, forgotten, given up.

Acknowledgements go by message and not by delivery, as on the real server: a late one of a dead taker deletes the message
under its successor (reliability fact 1). So tests on this bus meet what claims are for.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from parley_contracts.streams import ConsumerSpec, Stream, StreamSpec


@dataclass(slots=True)
class Stored:
    """One message of a stream."""

    seq: int
    subject: str
    data: bytes
    headers: dict[str, str]
    deliveries: dict[str, int] = field(default_factory=dict)


class Taking(Protocol):
    """Someone who takes messages and tells when one more finds room."""

    @property
    def has_room(self) -> bool: ...

    def deliver(self, message: Stored, deliveries: int) -> None: ...


class MemoryConsumer:
    """A durable consumer: which messages wait, which are out and until when."""

    def __init__(self, spec: ConsumerSpec, stream: "MemoryStream") -> None:
        self.takers: list[Taking] = []
        self._spec = spec
        self._stream = stream
        self._waiting: deque[int] = deque()
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._is_scheduled = False

    def add(self, seq: int) -> None:
        self._waiting.append(seq)
        self.wake()

    def wake(self) -> None:
        """Deliver what waits, soon: nobody's message is handled inside the call that published it."""
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._deliver)

    def _deliver(self) -> None:
        self._is_scheduled = False
        while self._waiting:
            message = self._stream.messages.get(self._waiting[0])
            if message is None:
                self._waiting.popleft()
                continue
            deliveries = message.deliveries.get(self._spec.durable, 0) + 1
            if 0 < self._spec.max_deliver < deliveries:
                self._waiting.popleft()
                self._stream.give_up(message.seq)
                continue
            taker = next((taker for taker in self.takers if taker.has_room), None)
            if taker is None:
                return
            self.takers.append(self.takers.pop(self.takers.index(taker)))  # the next one is another's turn
            self._waiting.popleft()
            message.deliveries[self._spec.durable] = deliveries
            self._again_after(message.seq, self._spec.ack_wait_s)
            taker.deliver(message, deliveries)

    def _again_after(self, seq: int, pause_s: float) -> None:
        self._stop_timer(seq)
        self._timers[seq] = asyncio.get_running_loop().call_later(pause_s, self._again, seq)

    def _again(self, seq: int) -> None:
        self._stop_timer(seq)
        self._waiting.appendleft(seq)
        self.wake()

    def _stop_timer(self, seq: int) -> None:
        if timer := self._timers.pop(seq, None):
            timer.cancel()

    def acknowledge(self, seq: int) -> None:
        self._stop_timer(seq)
        if seq in self._waiting:
            self._waiting.remove(seq)
        if self._stream.spec.retention == "workqueue":
            self._stream.messages.pop(seq, None)

    def refuse(self, seq: int, *, delay_s: float = 0.0) -> None:
        if seq in self._timers:
            self._again_after(seq, delay_s)

    def keep_alive(self, seq: int) -> None:
        if seq in self._timers:
            self._again_after(seq, self._spec.ack_wait_s)

    def close(self) -> None:
        for seq in list(self._timers):
            self._stop_timer(seq)


class MemoryStream:
    """One stream with its consumers."""

    def __init__(self, spec: StreamSpec, consumers: list[ConsumerSpec], give_up: Callable[[Stream, int], None]) -> None:
        self.spec = spec
        self.messages: dict[int, Stored] = {}
        self.is_full = False
        self.consumers = {consumer.durable: MemoryConsumer(consumer, self) for consumer in consumers}
        self._last_seq = 0
        self._ids: dict[str, float] = {}
        self._give_up = give_up

    def store(self, subject: str, data: bytes, headers: dict[str, str], *, dedup_id: str | None = None) -> int:
        """The message's sequence. One with an id known for less than the duplicate window is not stored again."""
        now = asyncio.get_running_loop().time()
        if dedup_id is not None:
            if now - self._ids.get(dedup_id, float("-inf")) < self.spec.duplicate_window_s:
                return self._last_seq
            self._ids[dedup_id] = now
        self._last_seq += 1
        self.messages[self._last_seq] = Stored(self._last_seq, subject, data, headers)
        for consumer in self.consumers.values():
            consumer.add(self._last_seq)
        return self._last_seq

    def last(self, subject: str) -> Stored | None:
        return next((self.messages[seq] for seq in reversed(self.messages) if self.messages[seq].subject == subject), None)

    def give_up(self, seq: int) -> None:
        self._give_up(self.spec.name, seq)
