"""The bus on NATS: `bus.py` over one connection a service. nats-py is spoken here and in the other `nats_*` files only.

The rules N1-N26 (reliability §11) are named where they are kept: connection `nats_client.py`, JetStream `nats_durable.py`,
turn log `nats_turns.py`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, cast

import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.micro import add_service
from nats.micro.request import Request

from parley_contracts.errors import Overloaded, ServiceUnavailable
from parley_contracts.message import Durable, Event, Question
from parley_contracts.streams import Stream
from parley_runtime.bus import Asks, Bus, Closable, DeadLetter, Taken, TurnLog
from parley_runtime.nats_client import LOST, Connection, clean, drain, unsubscribe
from parley_runtime.nats_durable import KEEP_ALIVE_S, Taker, provision, store
from parley_runtime.nats_turns import NatsTurnLog, Watch
from parley_runtime.replies import error_reply, read_reply, reply_to, sized
from parley_runtime.tasks import Tasks

__all__ = ["NatsBus", "provision"]

log = structlog.get_logger()

R = TypeVar("R")
M = TypeVar("M")
E = TypeVar("E", bound=Event)
D = TypeVar("D", bound=Durable)

ASKERS = ("_INBOX_",)
"""Where answers may go: inboxes of our own services. Anything else was chosen by an attacker (security §3, rule 5)."""
EVENT_TIMEOUT_S = 30.0
_AT_ONCE = 256
_WAITING = 2048
_NO_RESPONDERS = nats.errors.NoRespondersError
_VERSION = "0.1.0"

Inject = Callable[[], Mapping[str, str]]
Extract = Callable[[Mapping[str, str]], AbstractContextManager[None]]
Hear = Callable[[Msg], Awaitable[None]]


class Asked:
    """What nats.micro gets for a client: answers go to those who may ask, one endpoint's requests run side by side."""

    def __init__(self, connection: Connection, tasks: Tasks) -> None:
        self._connection = connection
        self._tasks = tasks
        self.endpoints: list[Subscription] = []
        self.refused = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection.client, name)

    async def subscribe(self, subject: str, queue: str = "", cb: Hear | None = None) -> Subscription:
        if cb is None:
            raise TypeError("an endpoint has a callback")
        answer: Hear = cb
        places = asyncio.Semaphore(_AT_ONCE)
        waiting = 0

        async def answer_in_turn(msg: Msg) -> None:
            nonlocal waiting
            try:
                async with places:
                    await answer(msg)
            except LOST as error:  # the reply could not be sent; the asker's timeout tells them
                log.warning("reply_unsent", subject=msg.subject, error=repr(error))
            finally:
                waiting -= 1

        async def checked(msg: Msg) -> None:
            nonlocal waiting
            if not msg.reply.startswith(ASKERS):
                # JetStream, say, or another's inbox: our permissions would carry the answer there.
                self.refused += 1
                log.warning("reply_refused", subject=msg.subject, reply=msg.reply[:80], refused=self.refused)
                return
            if waiting >= _WAITING:
                payload, headers = error_reply(Overloaded())
                self._connection.say(msg.reply, payload, headers=headers)
                return
            waiting += 1
            self._tasks.spawn(answer_in_turn(msg))

        subscription = await self._connection.subscribe(subject, checked, queue=queue)
        if queue:
            self.endpoints.append(subscription)
        return subscription


class NatsBus:
    """One service's connection to all others. `instance` names a replica in the server's own lists."""

    def __init__(
        self,
        service: str,
        *,
        url: str,
        user: str | None = None,
        password: str | None = None,
        instance: str = "",
        inject: Inject = dict,
        extract: Extract = lambda _headers: nullcontext(),
        on_closed: Callable[[], None] | None = None,
        drain_s: float = 10.0,
        keep_alive_s: float = KEEP_ALIVE_S,
    ) -> None:
        self.service = service
        self._connection = Connection(
            url=url,
            name=f"{service}-{instance}" if instance else service,
            inbox_prefix=f"_INBOX_{service}",
            user=user,
            password=password,
            on_closed=on_closed,
        )
        self._log = NatsTurnLog(self._connection)
        self.turns: TurnLog = self._log
        self._inject = inject
        self._extract = extract
        self._drain_s = drain_s
        self._keep_alive_s = keep_alive_s
        self._tasks = Tasks()
        self._asked = Asked(self._connection, self._tasks)
        self._answers: list[tuple[str, Callable[[Request], Awaitable[None]]]] = []
        self._hears: list[tuple[str, Hear]] = []
        self._takers: list[Taker] = []
        self._is_started = False
        self._is_closed = False

    # --- before start ---

    def answer(self, kind: Asks[M, R], handler: Callable[[M], Awaitable[R]]) -> None:
        async def answer(request: Request) -> None:
            # N24: nats.micro would send the asker `repr(exception)` and keep it for everyone to read.
            with self._extract(request.headers or {}):
                payload, headers = await reply_to(kind, handler, request.data)
            await request.respond(payload, headers)

        self._must_not_run()
        self._answers.append((kind.pattern(), answer))

    def on(self, kind: type[E], handler: Callable[[E], Awaitable[None]]) -> None:
        async def hear(msg: Msg) -> None:
            # The subscription's own queue is the mailbox: events of one kind stay in order, other kinds do not wait.
            try:
                with self._extract(msg.headers or {}):
                    async with asyncio.timeout(EVENT_TIMEOUT_S):
                        await handler(kind.decode(msg.data))
            except Exception:
                log.exception("event_failed", subject=msg.subject)

        self._must_not_run()
        self._hears.append((kind.pattern(), hear))

    def take(
        self, kind: type[D], handler: Callable[[D], Awaitable[Taken | None]], *, at_once: int = 16, keep_alive: bool = False
    ) -> None:
        async def handle(msg: Msg) -> Taken:
            with self._extract(msg.headers or {}):
                return await handler(kind.decode(msg.data)) or Taken.DONE

        self._take(kind.stream, handle, at_once=at_once, keep_alive=keep_alive)

    def take_dead_letters(self, handler: Callable[[DeadLetter], Awaitable[None]]) -> None:
        async def handle(msg: Msg) -> Taken:
            await handler(await self._log.read_dead_letter(msg.data))
            return Taken.DONE

        self._take(Stream.DEAD_LETTERS, handle, at_once=4, keep_alive=True)

    def _take(self, stream: Stream, handle: Callable[[Msg], Awaitable[Taken]], *, at_once: int, keep_alive: bool) -> None:
        self._must_not_run()
        self._takers.append(
            Taker(
                self._connection,
                self._tasks,
                handle,
                stream=stream,
                durable=self.service,
                at_once=at_once,
                keep_alive_s=self._keep_alive_s if keep_alive else None,
            )
        )

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        self._connection.on_reconnect.append(callback)

    def _must_not_run(self) -> None:
        if self._is_started:
            raise RuntimeError("handlers are registered before start")

    # --- life ---

    async def start(self) -> None:
        self._is_started = True
        await self._connection.open()
        await self._log.subscribe()
        for subject, hear in self._hears:
            await self._connection.subscribe(subject, hear)
        for taker in self._takers:
            await taker.subscribe()
        # Without endpoints too, so that `nats micro ls` shows every service.
        asked = cast("Client", self._asked)
        micro = await add_service(asked, name=self.service, version=_VERSION, description=f"Parley {self.service}")
        for subject, answer in self._answers:
            name = subject.partition(".")[2].replace(".", "_")
            await micro.add_endpoint(name=name, subject=subject, queue_group=self.service, handler=answer)
        await self._connection.barrier()
        for taker in self._takers:
            taker.start()

    async def stop_taking(self) -> None:
        await asyncio.gather(
            *(taker.stop() for taker in self._takers),
            *(drain(endpoint) for endpoint in self._asked.endpoints),
            return_exceptions=True,
        )

    async def close(self) -> None:
        # N16: `drain` does not wait for tasks that callbacks spawned, so first the subscriptions, then the tasks, then it.
        if self._is_closed:
            return
        self._is_closed = True
        try:
            await self.stop_taking()
            if cut := await self._tasks.finish(self._drain_s):
                log.warning("handlers_cut", count=cut, after_s=self._drain_s)
        except Exception:
            log.exception("bus_close_failed")
        await self._connection.close()

    async def check(self, timeout_s: float = 2.0) -> float:
        return await self._connection.rtt(timeout_s)

    # --- say ---

    async def ask(self, question: Question[R], *, timeout_s: float = 5.0) -> R:
        subject, payload = question.route(), sized(question.encode())
        try:
            reply = await self._connection.request(subject, payload, timeout_s=timeout_s, headers=clean(self._inject()))
        except _NO_RESPONDERS:
            raise ServiceUnavailable(service=question.service()) from None
        except LOST as error:
            log.warning("no_answer", question=question.subject, error=repr(error))
            raise ServiceUnavailable(service=question.service()) from error
        return read_reply(type(question), reply.data, reply.headers)

    async def publish(self, message: Event | Durable) -> None:
        headers = dict(self._inject())
        if isinstance(message, Durable):
            await store(self._connection, message, headers)
        elif not self._connection.say(message.route(), sized(message.encode()), headers=clean(headers)):
            log.warning("event_unsaid", subject=message.subject)

    async def answer_one(self, question: type[Question[R]], turn_id: str, handler: Callable[[], Awaitable[R]]) -> Closable:
        async def answer(msg: Msg) -> None:
            async def ignoring_it(_question: object) -> R:
                return await handler()

            with self._extract(msg.headers or {}):
                payload, headers = await reply_to(question, ignoring_it, msg.data)
            self._connection.say(msg.reply, payload, headers=headers)

        async def hear(msg: Msg) -> None:
            if msg.reply.startswith(ASKERS):
                self._tasks.spawn(answer(msg))

        subscription = await self._connection.subscribe(question.subject_for(turn_id=turn_id), hear)
        try:
            await self._connection.barrier()
        except BaseException:
            await unsubscribe(subscription)
            raise
        return Watch(subscription)


def _conforms(bus: NatsBus) -> Bus:
    return bus  # mypy: NatsBus is a Bus
