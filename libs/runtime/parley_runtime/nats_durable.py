"""JetStream: making its streams, storing durable messages, taking them (reliability 2.3, 2.5; rules N9, N10, N16, N18)."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import msgspec
import nats.errors
import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamManager, api
from nats.js.errors import NotFoundError

from parley_contracts.errors import Overloaded, PayloadTooLarge, ServiceUnavailable
from parley_contracts.message import Durable
from parley_contracts.streams import CONSUMERS, STREAMS, ConsumerSpec, Stream, StreamSpec
from parley_runtime.bus import MAX_PAYLOAD_BYTES, Taken
from parley_runtime.nats_client import LOST, Connection, clean, drain
from parley_runtime.replies import sized
from parley_runtime.tasks import Tasks

log = structlog.get_logger()

PUBLISH_TIMEOUT_S = 2.0
STORE_WITHIN_S = 10.0
KEEP_ALIVE_S = 1.5
_RETRY_S = 0.1
_PULL_EXPIRES_S = 30.0
_PULL_AGAIN_S = 0.25
_LONGEST_DELAY_S = 60.0
_ALARM_AT = 5
_ACK_TRIES = 3
# What the server says when it has no room: insufficient resources, account, memory, storage, and "maximum bytes exceeded".
_NO_ROOM = frozenset({10002, 10023, 10028, 10047, 10077})
_TOO_LARGE = 10054


class ApiError(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class PubAck(msgspec.Struct):
    """What the server says to a publish into a stream."""

    seq: int = 0
    error: ApiError | None = None


PUB_ACK = msgspec.json.Decoder(PubAck)


# --- making streams -------------------------------------------------------------------------------------------------


async def provision(
    url: str,
    *,
    streams: Sequence[StreamSpec] = STREAMS,
    consumers: Sequence[ConsumerSpec] = CONSUMERS,
    replicas: int = 1,
    user: str | None = None,
    password: str | None = None,
    on_created: Callable[[], None] | None = None,
    wait_s: float = 30.0,
) -> None:
    """Make streams and consumers what their specs say, any number of times, and leave. Raises what cannot be changed.

    `on_created` is called once if a stream was made: a fresh stream can vanish as a whole in a power cut until the file
    system is synced (reliability 2.4), which the caller does where the store is local.
    """
    connection = Connection(url=url, name="provision", inbox_prefix="_INBOX_provision", user=user, password=password)
    try:
        async with asyncio.timeout(wait_s):
            await connection.open()
            manager = connection.client.jsm()
            created = [await _make_stream(manager, spec, replicas) for spec in streams]
            for consumer in consumers:
                await manager.add_consumer(consumer.stream, _consumer_config(consumer))
        if any(created) and on_created is not None:
            on_created()
    finally:
        await connection.close()


async def _make_stream(manager: JetStreamManager, spec: StreamSpec, replicas: int) -> bool:
    config = api.StreamConfig(
        name=spec.name.value,
        subjects=list(spec.subjects),
        retention=api.RetentionPolicy(spec.retention),
        storage=api.StorageType(spec.storage),
        discard=api.DiscardPolicy(spec.discard),
        max_age=spec.max_age_s,
        max_bytes=spec.max_bytes,
        allow_direct=spec.allow_direct,
        duplicate_window=min(spec.duplicate_window_s, spec.max_age_s),
        num_replicas=replicas,
    )
    try:
        await manager.stream_info(spec.name)
    except NotFoundError:
        await manager.add_stream(config)
        return True
    await manager.update_stream(config)
    return False


def _consumer_config(spec: ConsumerSpec) -> api.ConsumerConfig:
    return api.ConsumerConfig(
        durable_name=spec.durable,
        ack_policy=api.AckPolicy.EXPLICIT,
        ack_wait=spec.ack_wait_s,
        max_deliver=spec.max_deliver,
        max_ack_pending=spec.max_ack_pending,
    )


# --- storing --------------------------------------------------------------------------------------------------------


async def store(connection: Connection, message: Durable, headers: dict[str, str]) -> None:
    """Stored when this returns: repeated under one id until acknowledged (N9), so that a timeout doubles nothing."""
    payload = sized(message.encode())
    subject = message.route()
    said = clean({"Nats-Msg-Id": message.dedup_id(), **headers})
    loop = asyncio.get_running_loop()
    deadline = loop.time() + STORE_WITHIN_S
    while True:
        problem = await _store_once(connection, subject, payload, said)
        if problem is None:
            return
        if loop.time() + PUBLISH_TIMEOUT_S > deadline:
            log.error("not_stored", subject=subject, problem=problem)
            raise ServiceUnavailable(service="nats")
        await asyncio.sleep(_RETRY_S)


async def _store_once(connection: Connection, subject: str, payload: bytes, headers: dict[str, str] | None) -> str | None:
    """None: stored. A text: not acknowledged, try again. Raises when trying again makes no sense."""
    try:
        reply = await connection.request(subject, payload, timeout_s=PUBLISH_TIMEOUT_S, headers=headers)
        error = PUB_ACK.decode(reply.data).error
    except nats.errors.MaxPayloadError:
        raise PayloadTooLarge(limit_bytes=MAX_PAYLOAD_BYTES) from None
    except (*LOST, msgspec.DecodeError) as lost:
        return repr(lost)
    if error is None:
        return None
    if error.err_code in _NO_ROOM:
        log.error("stream_full", subject=subject, error=error.err_code, description=error.description)
        raise Overloaded
    if error.err_code == _TOO_LARGE:
        raise PayloadTooLarge(limit_bytes=MAX_PAYLOAD_BYTES)
    return f"{error.err_code} {error.description}"


# --- taking ---------------------------------------------------------------------------------------------------------


def delay_s(deliveries: int) -> float:
    """How long a message rests after its handler failed for the `deliveries`-th time: 1, 2, 4 … 60 s."""
    return min(_LONGEST_DELAY_S, 2.0 ** min(deliveries - 1, 10))


class Taker:
    """Takes the messages of one durable consumer, up to `at_once` side by side.

    One pull request stands at a time, for as many messages as there are free places, and each message goes straight to its
    own task. (nats-py's `fetch` would make a task, a timer and a UUID for each, and hold a batch until it is complete: N18.)
    """

    def __init__(
        self,
        connection: Connection,
        tasks: Tasks,
        handle: Callable[[Msg], Awaitable[Taken]],
        *,
        stream: Stream,
        durable: str,
        at_once: int,
        keep_alive_s: float | None,
    ) -> None:
        self._connection = connection
        self._tasks = tasks
        self._handle = handle
        self._names = {"stream": stream.value, "durable": durable}
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream.value}.{durable}"
        self._at_once = at_once
        self._keep_alive_s = keep_alive_s
        self._running: set[str] = set()
        self._asked = 0
        self._is_stopping = False
        self._is_refused = False
        self._inbox = ""
        self._subscription: Subscription | None = None
        self._pull_timer: asyncio.TimerHandle | None = None
        self._alive_timer: asyncio.TimerHandle | None = None

    async def subscribe(self) -> None:
        self._inbox = self._connection.client.new_inbox()
        self._subscription = await self._connection.subscribe(self._inbox, self._hear)
        self._connection.on_reconnect.append(self._pull_anew)

    def start(self) -> None:
        """Take the first ones; the subscription stands."""
        self._pull()

    async def stop(self) -> None:
        """Take no more; what runs goes on. What is on its way is refused, so that others get it at once."""
        self._is_stopping = True
        if self._pull_timer is not None:
            self._pull_timer.cancel()
        if self._subscription is not None:
            await drain(self._subscription)

    def _pull(self) -> None:
        free = self._at_once - len(self._running)
        if self._is_stopping or self._asked > 0 or free <= 0:
            return
        self._asked = free
        ask = msgspec.json.encode({"batch": free, "expires": int(_PULL_EXPIRES_S * 1e9)})
        self._connection.say(self._next, ask, reply=self._inbox)
        self._pull_after(_PULL_EXPIRES_S + 2.0)  # its end is told by the server; this is for an end nobody tells

    def _pull_after(self, pause_s: float) -> None:
        if self._pull_timer is not None:
            self._pull_timer.cancel()
        self._pull_timer = asyncio.get_running_loop().call_later(pause_s, self._pull_anew)

    def _pull_anew(self) -> None:
        self._asked = 0  # the server forgot our request, with the connection or by its own restart
        self._pull()

    async def _hear(self, msg: Msg) -> None:
        status = msg.headers.get("Status") if msg.headers else None
        if status is not None:
            self._hear_status(status, msg)
        elif self._is_stopping:
            self._connection.say(msg.reply, b"-NAK")
        else:
            self._is_refused = False
            self._asked -= 1
            self._running.add(msg.reply)
            if self._alive_timer is None:
                self._arm_alive()
            self._tasks.spawn(self._take(msg))
            self._pull()

    def _hear_status(self, status: str, msg: Msg) -> None:
        if status == "100":
            return
        if status in {"404", "408"}:
            self._pull_anew()
            return
        # 409: the consumer moves or is gone; 503: JetStream is not up yet. Asking again is all one can do.
        if not self._is_refused and not self._is_stopping:
            self._is_refused = True
            log.warning("pull_refused", status=status, description=(msg.headers or {}).get("Description"), **self._names)
        self._pull_after(_PULL_AGAIN_S)

    def _say_alive(self) -> None:
        self._alive_timer = None
        for reply in self._running:
            self._connection.say(reply, b"+WPI")
        if self._running:
            self._arm_alive()

    def _arm_alive(self) -> None:
        if self._keep_alive_s is not None:
            self._alive_timer = asyncio.get_running_loop().call_later(self._keep_alive_s, self._say_alive)

    async def _take(self, msg: Msg) -> None:
        try:
            taken = await self._handle(msg)
        except asyncio.CancelledError:
            self._connection.say(msg.reply, b"-NAK")
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the message comes again
            self._refuse(msg, error)
        else:
            match taken:
                case Taken.DONE:
                    await self._acknowledge(msg)
                case Taken.AGAIN:
                    self._connection.say(msg.reply, b"-NAK")
                case Taken.LEFT:
                    pass
        finally:
            self._running.discard(msg.reply)
            self._pull()

    def _refuse(self, msg: Msg, error: Exception) -> None:
        # Never `term`: the message would be gone, and the advisory names neither subject nor turn.
        deliveries = msg.metadata.num_delivered
        pause_s = delay_s(deliveries)
        say = log.error if deliveries >= _ALARM_AT or isinstance(error, msgspec.DecodeError) else log.warning
        say("message_failed", subject=msg.subject, deliveries=deliveries, again_in_s=pause_s, exc_info=error, **self._names)
        self._connection.say(msg.reply, b"-NAK " + msgspec.json.encode({"delay": int(pause_s * 1e9)}))

    async def _acknowledge(self, msg: Msg) -> None:
        for _ in range(_ACK_TRIES):
            try:
                await self._connection.request(msg.reply, b"+ACK", timeout_s=PUBLISH_TIMEOUT_S)
            except LOST:
                await asyncio.sleep(_RETRY_S)
            else:
                return
        log.warning("ack_unconfirmed", subject=msg.subject, **self._names)
