"""Responses that stream a turn, or gather it: plain ASGI, one write for all that is pending.

Both notice at once when the client leaves; what that means is `TurnStreams`' business.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from parley_contracts.errors import ParleyError, TokenRevoked, error_from
from parley_contracts.parts import Text
from parley_contracts.reader import Ended, Shown, Started, StreamEvent
from parley_gateway.dialects.dialect import Dialect
from parley_gateway.dialects.errors import openai_status
from parley_gateway.presence import Connections
from parley_gateway.turn_stream import LiveTurn
from parley_runtime.follow import ReaderTooSlow

SSE_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)


_LAST_WRITE_S = 1.0
# A field of the first event, not an event of its own: OpenAI's SDK would parse its empty data as JSON.
_RETRY = b"retry: 1000\n"


class ClientLeft(Exception):
    """The client closed its connection."""


class TurnResponse(Response):
    """A turn as server-sent events in one dialect. `turn` is entered already; this closes it."""

    def __init__(self, turn: LiveTurn, dialect: Dialect, connections: Connections) -> None:
        super().__init__()
        self._turn = turn
        self._dialect = dialect
        self._connections = connections
        self._has_begun = False

    @property
    def turn(self) -> LiveTurn:
        return self._turn

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        revoked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        principal = scope.get("state", {}).get("principal")
        try:
            async with self._connections.held(self._turn.user_id, principal, lambda: _resolve(revoked)):
                await unless_left(receive, self._stream(send), revoked)
        except TokenRevoked:
            if not self._has_begun:
                raise
            # Cut without an end: who comes to resume is told why.
            with contextlib.suppress(OSError):
                async with asyncio.timeout(_LAST_WRITE_S):
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (ClientLeft, OSError):
            pass
        finally:
            await self._turn.__aexit__(None, None, None)

    async def _stream(self, send: Send) -> None:
        encoder = self._dialect.encoder(self._turn.ticket)
        headers = [*SSE_HEADERS, (b"x-turn-id", self._turn.ticket.turn_id.encode())]
        async with aclosing(self._turn.batches()) as batches:
            first: list[StreamEvent] = []
            if not self._dialect.opens_at_once:
                first = await _until_visible(batches)
                if first and isinstance(first[-1], Ended) and first[-1].error is not None and not _shows(first):
                    self._has_begun = True
                    await send_error(send, error_from(first[-1].error), self._dialect, self._turn.ticket.turn_id)
                    return
            self._has_begun = True
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            opening = b"" if self._turn.seen else encoder.start()
            await _write(send, _RETRY + opening + (encoder.encode(first) if first else b""))
            try:
                async for batch in batches:
                    await _write(send, encoder.encode(batch) if batch else encoder.ping())
            except ReaderTooSlow:
                return  # cut without an end: this client may resume
            except ParleyError as error:
                await _write(send, encoder.fail(error))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def send_error(send: Send, error: ParleyError, dialect: Dialect, turn_id: str) -> None:
    status = openai_status(error) if dialect.name == "openai" else error.http_status
    headers = [(b"content-type", b"application/json"), (b"x-turn-id", turn_id.encode())]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(max(1, round(error.retry_after_s))).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": dialect.encode_error(error)})


async def _write(send: Send, data: bytes) -> None:
    if data:
        await send({"type": "http.response.body", "body": data, "more_body": True})


async def _until_visible(batches: AsyncIterator[list[StreamEvent]]) -> list[StreamEvent]:
    """The first events that show something, or the end, or nothing after one heartbeat."""
    waiting: list[StreamEvent] = []
    async for batch in batches:
        waiting += batch
        if not batch or any(not isinstance(event, Started) for event in batch):
            break
    return waiting


def _shows(events: list[StreamEvent]) -> bool:
    return any(isinstance(event, Shown) for event in events)


async def gathered(turn: LiveTurn, receive: Receive) -> tuple[Ended, list[msgspec.Raw]]:
    """A turn's end, for a client that does not stream; with it the log probabilities of its pieces. Raises ClientLeft."""
    ended: list[Ended] = []
    logprobs: list[msgspec.Raw] = []

    async def gather() -> None:
        async with aclosing(turn.batches()) as batches:
            async for batch in batches:
                for event in batch:
                    if isinstance(event, Ended):
                        ended.append(event)
                    elif isinstance(event, Shown) and isinstance(event.part, Text) and event.part.logprobs is not None:
                        logprobs.append(event.part.logprobs)
                    elif not isinstance(event, Shown | Started):
                        logprobs.clear()

    await unless_left(receive, gather())
    return ended[0], logprobs


async def unless_left(receive: Receive, work: Awaitable[None], revoked: asyncio.Future[None] | None = None) -> None:
    """Do `work`, or give it up at once when the client leaves, ClientLeft, or its rights end, TokenRevoked."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.create_task(_left(receive), name="client-left")
    waiting = {working, leaving} if revoked is None else {working, leaving, revoked}
    try:
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if working in done:
            await working
        elif leaving not in done:
            raise TokenRevoked
        else:
            raise ClientLeft
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def json_response(body: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), status_code=status, media_type="application/json", headers=headers)
