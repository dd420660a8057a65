"""An OpenAI-compatible provider that costs next to nothing: a bare protocol on uvloop, one timer for all streams.

It has to be cheaper than everything it measures, so it does what the benchmark needs and no more: it streams, or answers
whole, as many stamped tokens as the prompt asks for (`wire.ask`). `GET /stats` is its meter.

    python -m bench.fake_provider --port 0 --core 1
"""

import argparse
import asyncio
import json
import os
import re
import signal
import time
from typing import Final, cast

import uvloop
from typing_extensions import override

from bench.wire import ASK, BURST, MODEL, TOKEN

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_STREAM: Final = re.compile(rb'"stream": *true')
_USAGE: Final = re.compile(rb'"include_usage": *true')
_COMMON: Final = b'"id":"chatcmpl-bench","created":1700000000,"model":"%b"' % MODEL.encode()
_SSE_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


def _event(data: bytes, *, filled: int = 0) -> bytes:
    """One SSE event as one HTTP chunk; `filled` is by how much a `%` in it grows."""
    body = b"data: " + data + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(body) + filled, body)


def _chunk(delta: bytes, finish: bytes = b"null") -> bytes:
    choice = b'[{"index":0,"delta":%b,"logprobs":null,"finish_reason":%b}]' % (delta, finish)
    return b'{%b,"object":"chat.completion.chunk","choices":%b}' % (_COMMON, choice)


_ROLE: Final = _event(_chunk(b'{"role":"assistant","content":""}'))
_TOKEN: Final = _event(_chunk(b'{"content":"%b"}' % TOKEN), filled=len(TOKEN % 0) - len(TOKEN))
_FINISH: Final = _event(_chunk(b"{}", b'"stop"'))
_DONE: Final = _event(b"[DONE]") + b"0\r\n\r\n"
_TICK_S: Final = 0.001
_SLOTS: Final = 8192


def _usage(tokens: int) -> bytes:
    return b'{"prompt_tokens":10,"completion_tokens":%d,"total_tokens":%d}' % (tokens, tokens + 10)


class Meter:
    """What was really sent, told by `GET /stats`."""

    def __init__(self) -> None:
        self.calls = self.tokens = self.open = self.cut = 0

    def told(self) -> bytes:
        return json.dumps({"calls": self.calls, "tokens": self.tokens, "open": self.open, "cut": self.cut}).encode()


class Wheel:
    """One timer for all paced streams: a slot a millisecond, and each stream puts itself `every_ms` further on."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._slots: list[list[Stream]] = [[] for _ in range(_SLOTS)]
        self._began = loop.time()
        self._tick = 0
        self._waiting = 0

    def add(self, stream: "Stream") -> None:
        if self._waiting == 0:
            self._tick = int((self._loop.time() - self._began) / _TICK_S)
            self._loop.call_later(_TICK_S, self._turn)
        self._waiting += 1
        self._slots[(self._tick + stream.every_ms) % _SLOTS].append(stream)

    def _turn(self) -> None:
        now = int((self._loop.time() - self._began) / _TICK_S)
        while self._tick < now:
            self._tick += 1
            at = self._tick % _SLOTS
            due = self._slots[at]
            if not due:
                continue
            self._slots[at] = []
            for stream in due:
                if stream.step():
                    self._slots[(at + stream.every_ms) % _SLOTS].append(stream)
                else:
                    self._waiting -= 1
        if self._waiting:
            self._loop.call_later(_TICK_S, self._turn)


class Stream:
    """One answer on its way."""

    __slots__ = ("_ends_with", "_is_cut", "_left", "_meter", "_tokens", "_transport", "every_ms")

    def __init__(self, transport: asyncio.Transport, meter: Meter, tokens: int, every_ms: int, *, usage: bool) -> None:
        self.every_ms = every_ms
        self._transport = transport
        self._meter = meter
        self._tokens = self._left = tokens
        self._is_cut = False
        said = b'{%b,"object":"chat.completion.chunk","choices":[],"usage":%b}' % (_COMMON, _usage(tokens))
        self._ends_with = _FINISH + (_event(said) if usage else b"") + _DONE

    def cut(self) -> None:
        if self._left:
            self._is_cut = True
            self._meter.cut += 1
            self._meter.open -= 1

    def step(self) -> bool:
        """Send one token; whether more are to come."""
        if self._is_cut:
            return False
        self._meter.tokens += 1
        self._left -= 1
        event = _TOKEN % time.monotonic_ns()
        if self._left:
            self._transport.write(event)
            return True
        self._meter.open -= 1
        self._transport.write(event + self._ends_with)
        return False

    def begin(self, wheel: Wheel, loop: asyncio.AbstractEventLoop) -> None:
        self._meter.open += 1
        if self.every_ms == BURST:
            self._meter.tokens += self._left
            now = time.monotonic_ns()
            events = b"".join(_TOKEN % (now + n) for n in range(self._left))
            self._left = 0
            self._meter.open -= 1
            self._transport.write(_SSE_HEAD + _ROLE + events + self._ends_with)
            return
        self._transport.write(_SSE_HEAD + _ROLE)  # the first token follows in the same pass, so in the same packet
        if not self.step():
            return
        if self.every_ms > 0:
            wheel.add(self)
        else:
            loop.call_soon(self._go_on, loop)

    def _go_on(self, loop: asyncio.AbstractEventLoop) -> None:
        if self.step():
            loop.call_soon(self._go_on, loop)


class Provider(asyncio.Protocol):
    """One connection, one request after the other."""

    def __init__(self, meter: Meter, wheel: Wheel, loop: asyncio.AbstractEventLoop) -> None:
        self._meter = meter
        self._wheel = wheel
        self._loop = loop
        self._waiting = b""
        self._stream: Stream | None = None

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass of it

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        if self._stream is not None:
            self._stream.cut()

    @override
    def data_received(self, data: bytes) -> None:
        self._waiting += data
        while (end := self._waiting.find(b"\r\n\r\n")) >= 0:
            head = self._waiting[:end]
            length = _LENGTH.search(head)
            whole = end + 4 + (int(length[1]) if length else 0)
            if len(self._waiting) < whole:
                return
            body = self._waiting[end + 4 : whole]
            self._waiting = self._waiting[whole:]
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"POST"):
            self._complete(body)
        elif head.startswith(b"GET /stats"):
            self._whole(self._meter.told())
        else:
            self._whole(json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]}).encode())

    def _complete(self, body: bytes) -> None:
        asked = ASK.findall(body)
        if not asked:
            self._whole(b'{"error":{"message":"the prompt asks for no tokens","type":"bench"}}', status=b"400 Bad Request")
            return
        tokens, every_ms = int(asked[-1][0]), int(asked[-1][1])  # the last: before it stands the session's history
        self._meter.calls += 1
        if _STREAM.search(body):
            self._stream = Stream(self._transport, self._meter, tokens, every_ms, usage=bool(_USAGE.search(body)))
            self._stream.begin(self._wheel, self._loop)
            return
        self._meter.tokens += tokens
        now = time.monotonic_ns()
        text = b"".join(TOKEN % (now + n) for n in range(tokens))
        message = b'[{"index":0,"message":{"role":"assistant","content":"%b"},"logprobs":null,"finish_reason":"stop"}]' % text
        self._whole(b'{%b,"object":"chat.completion","choices":%b,"usage":%b}' % (_COMMON, message, _usage(tokens)))

    def _whole(self, body: bytes, status: bytes = b"200 OK") -> None:
        head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (status, len(body))
        self._transport.write(head + body)


async def serve(port: int = 0) -> tuple[asyncio.Server, int]:
    loop = asyncio.get_running_loop()
    meter, wheel = Meter(), Wheel(loop)
    server = await loop.create_server(lambda: Provider(meter, wheel, loop), "127.0.0.1", port, backlog=4096)
    return server, server.sockets[0].getsockname()[1]


async def _run(port: int) -> None:
    server, port = await serve(port)
    print(port, flush=True)
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    parent = os.getppid()
    while not ended.is_set() and os.getppid() == parent:  # it ends with the benchmark, also when that is killed
        try:
            async with asyncio.timeout(1.0):
                await ended.wait()
        except TimeoutError:
            continue
    server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one, which is printed")
    parser.add_argument("--core", type=int, help="the core to run on")
    asked = parser.parse_args()
    if asked.core is not None:
        os.sched_setaffinity(0, {asked.core})
    uvloop.run(_run(asked.port))


if __name__ == "__main__":
    main()
