"""The server of the memory bus: what is stored and who listens, for all buses of one test."""

import asyncio
import contextlib
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import msgspec

from parley_contracts.errors import ServiceUnavailable
from parley_contracts.message import Message
from parley_contracts.streams import CONSUMERS, STREAMS, ConsumerSpec, Stream
from parley_contracts.turns import (
    Control,
    Generate,
    LogEntry,
    TurnCommitted,
    TurnDelta,
    TurnResult,
    decode_log_entry,
)
from parley_runtime.bus import Closable, ControlRefused, LastControl, LiveMessage, LogUnreadable, OutcomeUnknown
from parley_runtime.memory_streams import MemoryStream
from parley_runtime.replies import sized

Headers: TypeAlias = dict[str, str]
Reply: TypeAlias = tuple[bytes, Headers | None]
Answer: TypeAlias = Callable[[bytes, Headers, asyncio.Future[Reply]], None]
Hear: TypeAlias = Callable[[bytes, Headers], None]


class Reconnecting(Protocol):
    def reconnected(self) -> None: ...


class Advisory(msgspec.Struct):
    stream_seq: int


class MemoryHub:
    """What a server is to NATS. Make it anew for each test."""

    def __init__(self, *, consumers: Sequence[ConsumerSpec] = CONSUMERS, lose_live: float = 0.0, seed: int = 0) -> None:
        self.lose_live = lose_live
        """The share of a turn's live messages that nobody hears; all of them are stored."""
        self.said: list[Message] = []
        self.is_cut = False
        self.lose_acks = 0
        """So many of the next control messages are dealt with, but their writer never learns how (N10)."""
        self.streams = {
            spec.name: MemoryStream(spec, [each for each in consumers if each.stream is spec.name], self._give_up)
            for spec in STREAMS
        }
        self.answers: dict[str, list[tuple[object, Answer]]] = defaultdict(list)
        self.hears: dict[str, list[Hear]] = defaultdict(list)
        self.watches: dict[str, list[Callable[[LiveMessage], None]]] = defaultdict(list)
        self.logs: dict[str, list[LogEntry]] = defaultdict(list)
        self.controls: dict[str, LastControl] = {}
        self.buses: list[Reconnecting] = []
        self._control_seq = 0
        self._random = random.Random(seed)  # noqa: S311 - a test's dice, thrown the same way again

    def cut(self) -> None:
        """Nobody reaches anybody, until `restore`."""
        self.is_cut = True

    def restore(self) -> None:
        self.is_cut = False
        for bus in self.buses:
            bus.reconnected()

    def full(self, stream: Stream, *, is_full: bool = True) -> None:
        self.streams[stream].is_full = is_full

    def close(self) -> None:
        for stream in self.streams.values():
            for consumer in stream.consumers.values():
                consumer.close()

    def _give_up(self, stream: Stream, seq: int) -> None:
        if stream is Stream.COMMANDS:
            advisory = msgspec.json.encode(Advisory(seq))
            self.streams[Stream.DEAD_LETTERS].store("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES", advisory, {})

    def show(self, turn_id: str, message: LiveMessage) -> None:
        """Live copies, to everyone who watches now, in order, after this call."""
        for watch in self.watches.get(turn_id, ()):
            if self.lose_live == 0.0 or self._random.random() >= self.lose_live:
                asyncio.get_running_loop().call_soon(self._hand, turn_id, watch, message)

    def _hand(self, turn_id: str, watch: Callable[[LiveMessage], None], message: LiveMessage) -> None:
        if watch in self.watches.get(turn_id, ()):
            watch(message)

    def append_control(self, entry: Control, expected_seq: int) -> int:
        last = self.controls.get(entry.turn_id, LastControl(0, None))
        self.show(entry.turn_id, entry)  # also when it is refused: core NATS knows of no refusal (fact 2)
        if last.seq != expected_seq:
            raise ControlRefused(f"wrong last sequence: {last.seq}")
        self._control_seq += 1
        self.controls[entry.turn_id] = LastControl(self._control_seq, entry)
        self.logs[entry.turn_id].append(entry)
        return self._control_seq


class Closing:
    """Ends something registered with the hub."""

    def __init__(self, end: Callable[[], None]) -> None:
        self._end: Callable[[], None] | None = end

    async def close(self) -> None:
        if self._end is not None:
            self._end()
            self._end = None


class MemoryTurnLog:
    """`TurnLog` in the hub's memory."""

    def __init__(self, hub: MemoryHub) -> None:
        self._hub = hub

    async def _reach(self) -> None:
        await asyncio.sleep(0)
        if self._hub.is_cut:
            raise LogUnreadable("cut off")

    async def last_control(self, turn_id: str) -> LastControl:
        TurnDelta.subject_for(turn_id=turn_id)
        await self._reach()
        return self._hub.controls.get(turn_id, LastControl(0, None))

    async def append_control(self, entry: Control, *, expected_seq: int) -> int:
        entry.route()
        copy = decode_log_entry(sized(entry.encode()))
        await asyncio.sleep(0)
        if self._hub.is_cut or isinstance(copy, TurnDelta):
            raise OutcomeUnknown("cut off")
        if self._hub.lose_acks > 0:
            self._hub.lose_acks -= 1
            with contextlib.suppress(ControlRefused):
                self._hub.append_control(copy, expected_seq)
            raise OutcomeUnknown("the acknowledgement was lost")
        return self._hub.append_control(copy, expected_seq)

    def say(self, delta: TurnDelta) -> None:
        delta.route()
        copy = decode_log_entry(delta.encode())
        if not self._hub.is_cut:
            self._hub.logs[delta.turn_id].append(copy)
            self._hub.show(delta.turn_id, copy)

    async def read(self, turn_id: str) -> list[LogEntry]:
        TurnDelta.subject_for(turn_id=turn_id)
        await self._reach()
        return list(self._hub.logs.get(turn_id, ()))

    async def watch(self, turn_id: str, callback: Callable[[LiveMessage], None]) -> Closable:
        TurnDelta.subject_for(turn_id=turn_id)
        await asyncio.sleep(0)
        if self._hub.is_cut:
            raise ServiceUnavailable(service="nats")

        def watch(message: LiveMessage) -> None:  # its own object: two watchers may share one callback
            callback(message)

        watches = self._hub.watches[turn_id]
        watches.append(watch)
        return Closing(lambda: watches.remove(watch))

    async def watch_control(self, turn_id: str, callback: Callable[[Control], None]) -> Closable:
        def hear(message: LiveMessage) -> None:
            if not isinstance(message, TurnDelta | TurnCommitted):
                callback(message)

        return await self.watch(turn_id, hear)

    async def find_command(self, turn_id: str) -> bool:
        await self._reach()
        return self._hub.streams[Stream.COMMANDS].last(Generate.subject_for(turn_id=turn_id)) is not None

    async def forget_command(self, seq: int) -> None:
        await self._reach()
        self._hub.streams[Stream.COMMANDS].messages.pop(seq, None)

    async def find_result(self, turn_id: str) -> TurnResult | None:
        await self._reach()
        stored = self._hub.streams[Stream.RESULTS].last(TurnResult.subject_for(turn_id=turn_id))
        return None if stored is None else TurnResult.decode(stored.data)
