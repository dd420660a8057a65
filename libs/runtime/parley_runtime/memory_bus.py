"""The bus in memory, shipped for tests: `bus.py` without a server, within one loop. It passes the suite of the real one.

Buses of one `MemoryHub` hear each other. Messages are encoded and decoded on the way, live copies arrive later than the
call that said them, handlers run in their own task and context, so what works here works there. A test may lose live
messages (`lose_live`) or acknowledgements (`lose_acks`), cut everyone off (`cut`, `restore`), fill a stream (`full`), and
read all that was said (`said`).
"""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias, TypeVar

import msgspec
import structlog

from parley_contracts.errors import Overloaded, ServiceUnavailable
from parley_contracts.message import Durable, Event, Question
from parley_contracts.streams import Stream
from parley_contracts.turns import Generate, TurnCommitted
from parley_runtime.bus import Asks, Bus, Closable, DeadLetter, Taken, TurnLog
from parley_runtime.memory_hub import Advisory, Answer, Closing, Headers, Hear, MemoryHub, MemoryTurnLog, Reply
from parley_runtime.memory_streams import MemoryConsumer, Stored
from parley_runtime.replies import read_reply, reply_to, sized
from parley_runtime.tasks import Tasks

__all__ = ["MemoryBus", "MemoryHub"]

log = structlog.get_logger()

R = TypeVar("R")
M = TypeVar("M")
E = TypeVar("E", bound=Event)
D = TypeVar("D", bound=Durable)

EVENT_TIMEOUT_S = 30.0

Inject: TypeAlias = Callable[[], Mapping[str, str]]
Extract: TypeAlias = Callable[[Mapping[str, str]], AbstractContextManager[None]]
Mailbox: TypeAlias = asyncio.Queue[tuple[bytes, Headers]]


class _Taker:
    """Takes from one consumer for one bus, as `nats_durable.Taker` does."""

    def __init__(
        self,
        bus: "MemoryBus",
        consumer: MemoryConsumer,
        handle: Callable[[Stored], Awaitable[Taken]],
        at_once: int,
        beat_s: float,
    ) -> None:
        self._bus = bus
        self._consumer = consumer
        self._handle = handle
        self._at_once = at_once
        self._beat_s = beat_s
        self._running = 0
        self._beats: dict[int, asyncio.TimerHandle] = {}
        self.is_stopping = False

    @property
    def has_room(self) -> bool:
        return not self.is_stopping and self._running < self._at_once

    def start(self) -> None:
        self._consumer.takers.append(self)
        self._consumer.wake()

    def stop(self) -> None:
        self.is_stopping = True
        if self in self._consumer.takers:
            self._consumer.takers.remove(self)

    def deliver(self, message: Stored, deliveries: int) -> None:
        self._running += 1
        self._bus.spawn(self._take(message, deliveries))

    async def _take(self, message: Stored, deliveries: int) -> None:
        self._beat(message.seq)
        try:
            taken = await self._handle(message)
        except asyncio.CancelledError:
            if not self._bus.is_killed:
                self._consumer.refuse(message.seq)
            raise
        except Exception as error:
            log.warning("message_failed", subject=message.subject, deliveries=deliveries, exc_info=error)
            self._consumer.refuse(message.seq, delay_s=min(60.0, 2.0 ** min(deliveries - 1, 10)))
        else:
            match taken:
                case Taken.DONE:
                    self._consumer.acknowledge(message.seq)
                case Taken.AGAIN:
                    self._consumer.refuse(message.seq)
                case Taken.LEFT:
                    pass
        finally:
            if timer := self._beats.pop(message.seq, None):
                timer.cancel()
            self._running -= 1
            self._consumer.wake()

    def _beat(self, seq: int, *, alive: bool = False) -> None:
        if alive:
            self._consumer.keep_alive(seq)
        if self._beat_s:
            loop = asyncio.get_running_loop()
            self._beats[seq] = loop.call_later(self._beat_s, lambda: self._beat(seq, alive=True))


class MemoryBus:
    """One service's connection to all others on the same hub."""

    def __init__(
        self,
        hub: MemoryHub,
        service: str,
        *,
        inject: Inject = dict,
        extract: Extract = lambda _headers: nullcontext(),
        drain_s: float = 10.0,
        keep_alive_s: float = 1.5,
    ) -> None:
        self.service = service
        self.turns: TurnLog = MemoryTurnLog(hub)
        self.is_killed = False
        self._hub = hub
        self._inject = inject
        self._extract = extract
        self._drain_s = drain_s
        self._keep_alive_s = keep_alive_s
        self._tasks = Tasks()
        self._answers: list[tuple[str, Answer]] = []
        self._mailboxes: list[tuple[str, Mailbox, Callable[[bytes], Awaitable[None]]]] = []
        self._hears: list[tuple[str, Hear]] = []
        self._takers: list[_Taker] = []
        self._hearing: list[asyncio.Task[Any]] = []
        self._reconnected: list[Callable[[], None]] = []
        self._context = contextvars.copy_context()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        # As with NATS: a handler sees the context the headers carry, never the asker's own.
        self._tasks.spawn(work, context=self._context.copy())

    # --- before start ---

    def answer(self, kind: Asks[M, R], handler: Callable[[M], Awaitable[R]]) -> None:
        self._answers.append((kind.pattern(), self._answer_with(kind, handler)))

    def _answer_with(self, kind: Asks[M, R], handler: Callable[[M], Awaitable[R]]) -> Answer:
        async def answer(data: bytes, headers: Headers, replied: asyncio.Future[Reply]) -> None:
            with self._extract(headers):
                reply = await reply_to(kind, handler, data)
            if not replied.done():
                replied.set_result(reply)

        return lambda data, headers, replied: self.spawn(answer(data, headers, replied))

    def on(self, kind: type[E], handler: Callable[[E], Awaitable[None]]) -> None:
        self._mailboxes.append((kind.pattern(), asyncio.Queue(), lambda data: handler(kind.decode(data))))

    def take(
        self, kind: type[D], handler: Callable[[D], Awaitable[Taken | None]], *, at_once: int = 16, keep_alive: bool = False
    ) -> None:
        async def handle(message: Stored) -> Taken:
            with self._extract(message.headers):
                return await handler(kind.decode(message.data)) or Taken.DONE

        self._take(kind.stream, handle, at_once, self._keep_alive_s if keep_alive else 0.0)

    def take_dead_letters(self, handler: Callable[[DeadLetter], Awaitable[None]]) -> None:
        async def handle(message: Stored) -> Taken:
            seq = msgspec.json.decode(message.data, type=Advisory).stream_seq
            dead = self._hub.streams[Stream.COMMANDS].messages.get(seq)
            if dead is None:
                await handler(DeadLetter(seq, None, None))
                return Taken.DONE
            try:
                command: Generate | None = Generate.decode(dead.data)
            except msgspec.DecodeError:
                command = None
            await handler(DeadLetter(seq, command, dead.subject.rpartition(".")[2]))
            return Taken.DONE

        self._take(Stream.DEAD_LETTERS, handle, 4, self._keep_alive_s)

    def _take(self, stream: Stream, handle: Callable[[Stored], Awaitable[Taken]], at_once: int, beat_s: float) -> None:
        consumer = self._hub.streams[stream].consumers[self.service]
        self._takers.append(_Taker(self, consumer, handle, at_once, beat_s))

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        self._reconnected.append(callback)

    def reconnected(self) -> None:
        for callback in self._reconnected:
            callback()

    # --- life ---

    async def start(self) -> None:
        self._context = contextvars.copy_context()
        self._hub.buses.append(self)
        for subject, answer in self._answers:
            self._hub.answers[subject].append((self, answer))
        for subject, mailbox, handle in self._mailboxes:
            hear = _into(mailbox)
            self._hears.append((subject, hear))
            self._hub.hears[subject].append(hear)
            self._hearing.append(asyncio.create_task(self._hear(subject, mailbox, handle), context=self._context.copy()))
        for taker in self._takers:
            taker.start()

    async def _hear(self, subject: str, mailbox: Mailbox, handle: Callable[[bytes], Awaitable[None]]) -> None:
        while True:
            data, headers = await mailbox.get()
            try:
                with self._extract(headers):
                    async with asyncio.timeout(EVENT_TIMEOUT_S):
                        await handle(data)
            except Exception:
                log.exception("event_failed", subject=subject)

    async def stop_taking(self) -> None:
        for taker in self._takers:
            taker.stop()
        for subject, answer in self._answers:
            if (self, answer) in self._hub.answers[subject]:
                self._hub.answers[subject].remove((self, answer))
        await asyncio.sleep(0)

    async def close(self) -> None:
        await self.stop_taking()
        for subject, hear in self._hears:
            if hear in self._hub.hears[subject]:
                self._hub.hears[subject].remove(hear)
        for answers in self._hub.answers.values():
            answers[:] = [each for each in answers if each[0] is not self]
        await self._tasks.finish(self._drain_s)
        for task in self._hearing:
            task.cancel()
        await asyncio.gather(*self._hearing, return_exceptions=True)
        if self in self._hub.buses:
            self._hub.buses.remove(self)

    async def kill(self) -> None:
        """Die as by `kill -9`: nothing is finished, acknowledged or refused."""
        self.is_killed = True
        self._drain_s = 0.0
        await self.close()

    async def check(self, timeout_s: float = 2.0) -> float:  # noqa: ARG002 - the protocol's signature
        await asyncio.sleep(0)
        if self._hub.is_cut:
            raise ConnectionError("cut off")
        return 0.0

    # --- say ---

    async def ask(self, question: Question[R], *, timeout_s: float = 5.0) -> R:
        subject, data = question.route(), sized(question.encode())
        headers = dict(self._inject())
        await asyncio.sleep(0)
        answers = self._hub.answers.get(subject)
        if not answers or self._hub.is_cut:
            raise ServiceUnavailable(service=question.service())
        answers.append(answers.pop(0))  # the next one is another replica's turn
        _, answer = answers[-1]
        replied: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        answer(data, headers, replied)
        try:
            async with asyncio.timeout(timeout_s):
                payload, reply_headers = await replied
        except TimeoutError:  # also when the answering replica died
            raise ServiceUnavailable(service=question.service()) from None
        return read_reply(type(question), payload, reply_headers)

    async def publish(self, message: Event | Durable) -> None:
        subject, data, headers = message.route(), sized(message.encode()), dict(self._inject())
        await asyncio.sleep(0)
        self._hub.said.append(message)
        if isinstance(message, Durable):
            stream = self._hub.streams[message.stream]
            if self._hub.is_cut:
                raise ServiceUnavailable(service="nats")
            if stream.is_full:
                raise Overloaded
            stream.store(subject, data, headers, dedup_id=message.dedup_id())
        elif not self._hub.is_cut:
            for hear in self._hub.hears.get(type(message).pattern(), ()):
                hear(data, headers)
            if isinstance(message, TurnCommitted):
                self._hub.show(message.turn_id, message)

    async def answer_one(self, question: type[Question[R]], turn_id: str, handler: Callable[[], Awaitable[R]]) -> Closable:
        subject = question.subject_for(turn_id=turn_id)

        async def ignoring_it(_question: object) -> R:
            return await handler()

        await asyncio.sleep(0)
        answers = self._hub.answers[subject]
        registered = (self, self._answer_with(question, ignoring_it))
        answers.append(registered)

        def end() -> None:
            if registered in answers:  # a bus that was killed has taken it away already
                answers.remove(registered)

        return Closing(end)


def _into(mailbox: Mailbox) -> Hear:
    return lambda data, headers: mailbox.put_nowait((data, headers))


def _conforms(bus: MemoryBus) -> Bus:
    return bus  # mypy: MemoryBus is a Bus
