"""The simulator's HTTP: one connection, watched and breakable, and a server of such connections on uvicorn."""

import asyncio
import contextlib
import json
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, MutableMapping
from typing import Any, Final

import uvicorn
from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

Message = MutableMapping[str, Any]
Json = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

JSON: Final = (b"content-type", b"application/json")
CUT_AFTER_S: Final = 0.02  # some clients drop what they have not read when the RST arrives; what was sent is to be seen


class ClientClosed(Exception):
    """The client has gone: nothing more can be said."""


class Client:
    """One request's connection: writes to it, and waits that end at once when it is gone."""

    def __init__(self, scope: Message, receive: Receive, send: Send) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        self._gone = False
        self._waiting: asyncio.Future[None] | None = None

    async def body(self) -> bytes:
        body = bytearray()
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientClosed
            body += message.get("body", b"")
            if not message.get("more_body"):
                return bytes(body)

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Within it `pause` and `write` raise ClientClosed as soon as the server has seen the connection end."""

        async def watch() -> None:
            while (await self._receive())["type"] != "http.disconnect":
                pass
            self._gone = True
            if self._waiting is not None and not self._waiting.done():
                self._waiting.set_result(None)

        watching = asyncio.create_task(watch())
        try:
            yield
        finally:
            watching.cancel()

    async def pause(self, seconds: float = float("inf")) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
        elif not self._gone:
            loop = asyncio.get_running_loop()
            self._waiting = loop.create_future()
            timer = None if seconds == float("inf") else loop.call_later(seconds, _wake, self._waiting)
            await self._waiting
            if timer is not None:
                timer.cancel()
        if self._gone:
            raise ClientClosed

    async def start(self, status: int, *headers: tuple[bytes, bytes]) -> None:
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, data: bytes | bytearray, *, last: bool = False) -> None:
        if self._gone:
            raise ClientClosed
        await self._send({"type": "http.response.body", "body": bytes(data), "more_body": not last})

    async def answer(self, status: int, content: Json, *headers: tuple[bytes, bytes]) -> None:
        data = json.dumps(content).encode()
        await self.start(status, JSON, (b"content-length", b"%d" % len(data)), *headers)
        await self.write(data, last=True)

    async def refuse(self, status: int, message: str, *headers: tuple[bytes, bytes]) -> None:
        await self.answer(status, error_envelope(status, message), *headers)

    async def cut(self) -> None:
        """The connection breaks by RST, after what was written has left."""
        await self.scope["state"]["reset"]()
        await self.pause()


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


def error_envelope(status: int, message: str) -> Json:
    kinds = {
        401: ("invalid_request_error", "invalid_api_key"),
        404: ("invalid_request_error", "model_not_found"),
        429: ("rate_limit_error", "rate_limit_exceeded"),
    }
    kind, code = kinds.get(status, ("invalid_request_error" if status < 500 else "server_error", None))  # noqa: PLR2004 - a status class
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def event(content: Json) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


class _BreakableProtocol(HttpToolsProtocol):
    """uvicorn's HTTP, whose connection the application can break: ASGI has no word for it."""

    @override
    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"]["reset"] = self.reset

    async def reset(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):  # a client that reads nothing would never empty the buffer
                while self.transport.get_write_buffer_size():  # noqa: ASYNC110 - a transport announces no such event
                    await asyncio.sleep(0.001)
        await asyncio.sleep(CUT_AFTER_S)
        if not self.transport.is_closing():
            # The option belongs to the connection, not to the descriptor; uvloop's own socket object cannot set it.
            with socket.socket(fileno=os.dup(self.transport.get_extra_info("socket").fileno())) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()


class _Server(uvicorn.Server):
    @override
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield  # whoever runs `serve` decides what a signal means: it is stopped by cancelling it

    def abort_connections(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()


async def serve_app(app: App, host: str, port: int, listening: Callable[[int], None]) -> None:
    """Serve until cancelled; `listening` is told the port as soon as connections to it are taken."""
    listener = socket.create_server((host, port), backlog=2048)
    listening(listener.getsockname()[1])
    config = uvicorn.Config(
        app,
        http=_BreakableProtocol,
        interface="asgi3",
        proxy_headers=False,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=2,
    )
    server = _Server(config)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await asyncio.shield(running)
    finally:
        server.should_exit = True
        server.abort_connections()
        await running
