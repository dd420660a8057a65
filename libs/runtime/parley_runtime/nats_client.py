"""One connection to NATS, by the rules for nats-py that concern a connection (reliability §11: N1-N7, N11, N21, N25, N26).

The other `nats_*` files speak over it. Nothing else in Parley imports nats.
"""

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, Mapping

import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from typing_extensions import override

from parley_contracts.errors import ServiceUnavailable

log = structlog.get_logger()

PENDING_BYTES = 16 * 1024 * 1024
"""N6: nats-py's own 2 MiB are less than one command."""
MAX_HEADER_BYTES = 4096
LOST = (nats.errors.Error, OSError, TimeoutError)
"""All that a broken or slow connection raises; whether the server did something is then unknown (N10)."""

_RECONNECT_WAIT_S = 0.2
_PING_S = 2
_FLUSH_TIMEOUT_S = 5
_BARRIER_S = 5.0
_QUIET_S = 5.0
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def clean(headers: Mapping[str, str]) -> dict[str, str] | None:
    """Headers fit to send: at most 4 KiB, no control characters (N21). A header too many is left out."""
    cleaned: dict[str, str] = {}
    left = MAX_HEADER_BYTES
    for name, raw in headers.items():
        value = _CONTROL_CHARACTERS.sub("", raw).encode("utf-8", "replace")
        size = len(name) + len(value) + 4
        if size <= left:
            cleaned[name] = value.decode()
            left -= size
    return cleaned or None


class _Client(Client):
    """nats-py's client, minus one way to die."""

    @override
    async def _process_pong(self) -> None:
        # nats-py sets the result of a PING that its sender gave up (timeout, cancelled request): InvalidStateError,
        # which ends the read loop in silence, and every message until the pings notice, 4 s later, is lost.
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()


class Connection:
    """Connected for ever, if need be again and again. `on_reconnect` is called each time it is up again (N7)."""

    def __init__(
        self,
        *,
        url: str,
        name: str,
        inbox_prefix: str,
        user: str | None = None,
        password: str | None = None,
        on_closed: Callable[[], None] | None = None,
    ) -> None:
        self.client: Client = _Client()
        self.on_reconnect: list[Callable[[], None]] = []
        self.is_closing = False
        self._url = url
        self._name = name
        self._inbox_prefix = inbox_prefix
        self._user = user
        self._password = password
        self._on_closed = on_closed
        self._quiet_until = 0.0
        self._kept_quiet = 0

    async def open(self) -> None:
        """Connect, however long it takes."""
        await self.client.connect(
            servers=self._url.split(","),
            name=self._name,
            user=self._user,
            password=self._password,
            inbox_prefix=self._inbox_prefix,  # N26: else every service reads every reply
            # N1: by default 60 attempts, 2 s apart, then closed for ever.
            max_reconnect_attempts=-1,
            reconnect_time_wait=_RECONNECT_WAIT_S,  # type: ignore[arg-type]  # seconds, annotated as int there
            # N2: by default a black hole goes unnoticed for minutes.
            ping_interval=_PING_S,
            max_outstanding_pings=2,
            flush_timeout=_FLUSH_TIMEOUT_S,  # N6: a stuck socket would block publishers without end
            pending_size=PENDING_BYTES,
            drain_timeout=2,
            skip_subject_validation=True,  # N25: subjects come from message classes and checked ids only (N20)
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnected,
            reconnected_cb=self._on_reconnected,
            closed_cb=self._on_close,
        )

    # N4: an exception in `error_cb` ends the read loop in silence, an await in it stops it; so both are ruled out here.
    async def _on_error(self, error: Exception) -> None:
        now = asyncio.get_running_loop().time()
        if now < self._quiet_until:
            self._kept_quiet += 1
            return
        self._quiet_until = now + _QUIET_S
        with contextlib.suppress(Exception):  # nor may a log that cannot be written
            log.warning("nats_error", connection=self._name, error=repr(error)[:300], kept_quiet=self._kept_quiet)
        self._kept_quiet = 0

    async def _on_disconnected(self) -> None:
        if not self.is_closing:
            log.warning("nats_disconnected", connection=self._name)

    async def _on_reconnected(self) -> None:
        log.info("nats_reconnected", connection=self._name)
        for callback in list(self.on_reconnect):
            try:
                callback()
            except Exception:
                log.exception("reconnect_callback_failed", connection=self._name)

    async def _on_close(self) -> None:
        # N3: almost any -ERR closes for good. Nothing heals that, so the process ends and its supervisor restarts it.
        if self.is_closing:
            return
        log.critical("nats_closed_for_good", connection=self._name, error=repr(self.client.last_error))
        if self._on_closed is not None:
            self._on_closed()

    def say(self, subject: str, payload: bytes, *, reply: str = "", headers: dict[str, str] | None = None) -> bool:
        """Publish without waiting. False: not sent, since the connection is closed or its buffer full.

        `Client.publish` is a coroutine, but waits only when the buffer is full. Ruled that out, one step runs all of it.
        """
        client = self.client
        if client.pending_data_size + len(payload) + MAX_HEADER_BYTES > PENDING_BYTES:
            return False
        publishing = client.publish(subject, payload, reply, headers)
        try:
            publishing.send(None)
        except StopIteration:
            return True
        except nats.errors.Error:
            return False
        publishing.close()
        return True

    async def request(self, subject: str, payload: bytes, *, timeout_s: float, headers: dict[str, str] | None = None) -> Msg:
        """Raises one of `LOST`; `NoRespondersError` among them means that nobody got it."""
        return await self.client.request(subject, payload, timeout=timeout_s, headers=headers)

    async def subscribe(self, subject: str, callback: Callable[[Msg], Awaitable[None]], *, queue: str = "") -> Subscription:
        """Subscribe, with a callback always (N12). In force after the next `barrier`. Raises ServiceUnavailable."""
        try:
            return await self.client.subscribe(subject, queue=queue, cb=callback)
        except nats.errors.Error as error:
            raise ServiceUnavailable(service="nats") from error

    async def barrier(self) -> None:
        """Everything subscribed before is in force on return. Raises ServiceUnavailable."""
        try:
            async with asyncio.timeout(_BARRIER_S):
                while True:
                    try:
                        # N11: `flush` writes its PING before the pending SUB, so only the second one is a barrier.
                        if self.client.is_connected:
                            await self.client.flush(timeout=_PING_S)
                            await self.client.flush(timeout=_PING_S)
                            return
                    except LOST:
                        pass
                    if self.client.is_closed:
                        raise ServiceUnavailable(service="nats")
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise ServiceUnavailable(service="nats") from None

    async def rtt(self, timeout_s: float) -> float:
        """N5: only a round trip proves life; `is_connected` stays true when the read loop is dead."""
        if not self.client.is_connected:
            raise ConnectionError("not connected to nats")
        async with asyncio.timeout(timeout_s):
            return await self.client.rtt(timeout=timeout_s)  # type: ignore[arg-type]  # seconds, annotated as int there

    async def close(self) -> None:
        """Send what is pending, within a bounded time, and disconnect. Never raises."""
        self.is_closing = True
        # N16: while disconnected `drain` raises ConnectionReconnectingError and `close` TypeError.
        for ending in (self.client.drain, self.client.close):
            try:
                async with asyncio.timeout(3.0):
                    await ending()
            except Exception as error:  # noqa: BLE001 - nothing is left to be done about it
                log.debug("nats_close", connection=self._name, error=repr(error))


async def unsubscribe(subscription: Subscription) -> None:
    """End a subscription; harmless when the connection is gone."""
    with contextlib.suppress(*LOST):
        await subscription.unsubscribe()


async def drain(subscription: Subscription, *, timeout_s: float = 2.0) -> None:
    """End a subscription after what was delivered to it has been heard."""
    try:
        async with asyncio.timeout(timeout_s):
            await subscription.drain()  # type: ignore[no-untyped-call]
    except LOST:
        await unsubscribe(subscription)
