"""The load generator: many clients that ask again as soon as they are answered, and a window in which they are counted.

A bare HTTP/1.1 client on uvloop that looks for stamps and for the end, nothing else. A client that is not answered, or not
wholly, is an error with a name; one that hears no token in the whole window is starved.
"""

import asyncio
import contextlib
import gc
import json
import re
import time
from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final, cast

from typing_extensions import override

from bench.wire import MODEL, S0_DELTA, STAMP, ask

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_ANSWER_S: Final = 30.0
_CONNECT_S: Final = 10.0
_BREATH_S: Final = 0.025
"""Between single streams: what a system does after an answer, its books, is not what the next one waits for."""
_TURNS_A_SESSION: Final = 10
_END_BYTES: Final = len(b"\r\n0\r\n\r\n")
"""Of a chunked answer, however its last bytes were read."""
_PAUSE_S: Final = 0.05
"""After an error: a client that is refused must not become a storm."""


@dataclass(frozen=True, slots=True)
class Work:
    """What each client asks, again and again. `body` makes the nth request of a client; `tokens` is what must come back."""

    port: int
    path: str
    tokens: int
    every_ms: int
    is_streamed: bool = True
    headers: tuple[tuple[str, str], ...] = ()
    sessions: tuple[str, ...] = ()
    """Of stored turns, which are asked in S0's dialect; client n's are the nth, counted round."""
    clients: int = 1

    def request(self, client: int, number: int) -> bytes:
        prompt = ask(self.tokens, self.every_ms)
        body: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "stream": self.is_streamed}
        if self.sessions:
            # Its history is part of every later prompt: no conversation grows without end, and none has two clients.
            at = client + number // _TURNS_A_SESSION * self.clients
            body |= {"sessionId": self.sessions[at % len(self.sessions)]}
        payload = json.dumps(body).encode()
        head = [f"POST {self.path} HTTP/1.1", f"host: 127.0.0.1:{self.port}", "content-type: application/json"]
        head += [f"{name}: {value}" for name, value in self.headers]
        return "\r\n".join([*head, f"content-length: {len(payload)}", "", ""]).encode() + payload


class Window:
    """What all clients heard while it was open."""

    def __init__(self) -> None:
        self.is_open = False
        self.delays_ns = array("q")
        self.first_ns = array("q")
        self.heard: set[int] = set()
        self.answered = 0
        self.errors: Counter[str] = Counter()


class Connection(asyncio.Protocol):
    """One client's connection; `exchange` sends one request and returns None, or what went wrong."""

    def __init__(self, window: Window, client: int, work: Work) -> None:
        self._window = window
        self._client = client
        self._work = work
        self._is_s0 = bool(work.sessions) and work.is_streamed
        self._answer: asyncio.Future[str | None] | None = None
        self.is_alive = False
        self.first_at = 0
        self.first_stamp = 0

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass of it
        self.is_alive = True

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self.is_alive = False
        self._end("connection cut")

    def close(self) -> None:
        self.is_alive = False
        self._transport.abort()

    async def exchange(self, request: bytes) -> str | None:
        self._rest = self._last = b""
        self._status: bytes | None = None
        self._left: int | None = None
        self._count = 0
        self._is_done = False
        self.first_at = 0
        self._answer = asyncio.get_running_loop().create_future()
        self.sent_at = time.monotonic_ns()
        self._transport.write(request)
        return await self._answer

    def _end(self, problem: str | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(problem)

    @override
    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        self._last = data[-_END_BYTES:] if len(data) >= _END_BYTES else (self._last + data)[-_END_BYTES:]
        data = self._rest + data if self._rest else data
        if self._status is None:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._rest = data
                return
            self._status = data[9:12]
            length = _LENGTH.search(data, 0, end + 2)
            self._left = int(length[1]) if length else None
            data = data[end + 4 :]
        if self._left is not None:  # a whole answer: looked at when all of it is here
            if len(data) < self._left:
                self._rest = data
                return
            self._look(data, now)
            self._finish(is_done=True)
            return
        has_ended = self._last in {b"\r\n0\r\n\r\n", b"0\r\n\r\n"}
        cut = len(data) if has_ended else data.rfind(b"\n") + 1
        self._rest = data[cut:]
        self._look(data[:cut], now)
        if has_ended:
            self._finish(is_done=self._is_done or not self._work.is_streamed)

    def _look(self, data: bytes, now: int) -> None:
        if b"[DONE]" in data or b'"type":"done"' in data:
            self._is_done = True
        stamps = STAMP.findall(b"".join(S0_DELTA.findall(data)) if self._is_s0 else data)
        if not stamps:
            return
        self._count += len(stamps)
        if not self.first_at:
            self.first_at, self.first_stamp = now, int(stamps[0])
        window = self._window
        if window.is_open:
            window.heard.add(self._client)
            window.delays_ns.extend([now - int(stamp) for stamp in stamps])

    def _finish(self, *, is_done: bool) -> None:
        if self._status != b"200":
            self._end(f"status {(self._status or b'?').decode()}")
        elif not is_done:
            self._end("no proper end")
        elif self._count != self._work.tokens:
            self._end(f"{self._count} tokens of {self._work.tokens}")
        else:
            self._end(None)


async def connect(window: Window, client: int, work: Work) -> Connection:
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(_CONNECT_S):
        _, connection = await loop.create_connection(lambda: Connection(window, client, work), "127.0.0.1", work.port)
    return connection


class Clients:
    """`count` clients that ask again and again until they are stopped."""

    def __init__(self, work: Work, count: int) -> None:
        self.window = Window()
        self._work = work
        self._count = count
        self._is_stopping = False
        self._connections: dict[int, Connection] = {}

    async def run(self, *, ramp_s: float, settle_s: float, window_s: float, watch: "Watch") -> float:
        """Ask for ramp and settling time, then count for `window_s`. Returns how long the window really was."""
        tasks = [asyncio.create_task(self._client(n, ramp_s * n / self._count)) for n in range(self._count)]
        try:
            await asyncio.sleep(ramp_s + settle_s)
            gc.collect()
            gc.disable()
            await watch.begin()
            self.window.is_open = True
            began = time.monotonic()
            await asyncio.sleep(window_s)
            self.window.is_open = False
            lasted = time.monotonic() - began
            await watch.end()
            gc.enable()
            self._is_stopping = True
            await asyncio.wait(tasks, timeout=2.0 + self._work.tokens * max(self._work.every_ms, 0) / 1000)
        finally:
            gc.enable()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for connection in self._connections.values():
                connection.close()
        return lasted

    async def _client(self, client: int, begin_after_s: float) -> None:
        await asyncio.sleep(begin_after_s)
        number = 0
        while not self._is_stopping:
            was_open = self.window.is_open
            problem = await self._ask(client, number)
            number += 1
            if problem is None:
                self.window.answered += self.window.is_open
                continue
            if was_open or self.window.is_open:
                self.window.errors[problem] += 1
            await asyncio.sleep(_PAUSE_S)

    async def _ask(self, client: int, number: int) -> str | None:
        try:
            connection = self._connections.get(client)
            if connection is None or not connection.is_alive:
                connection = self._connections[client] = await connect(self.window, client, self._work)
            async with asyncio.timeout(_ANSWER_S):
                problem = await connection.exchange(self._work.request(client, number))
        except TimeoutError:
            problem = "no answer in time"
        except OSError as error:
            return f"cannot connect: {error.strerror}"
        if problem is None:
            if self.window.is_open:
                self.window.first_ns.append(connection.first_at - connection.sent_at)
        else:
            connection.close()
        return problem


class Watch:
    """What else is read when the window opens and closes."""

    async def begin(self) -> None:
        """Just before the window opens."""

    async def end(self) -> None:
        """Just after it closed."""


@dataclass(slots=True)
class Pairs:
    """Times to the first token, in ms: of the direct call, through the proxy, and of the proxy's way there and back."""

    direct: list[float] = field(default_factory=list)
    proxied: list[float] = field(default_factory=list)
    there: list[float] = field(default_factory=list)
    back: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)


async def one_at_a_time(direct: Work, proxied: Work, count: int, *, warm_up: int = 20) -> Pairs:
    """One stream at a time, directly and through the proxy in turns, so that both meet the same machine."""
    window = Window()
    pairs = Pairs()
    straight = await connect(window, 0, direct)
    through = await connect(window, 0, proxied)
    try:
        for number in range(count + warm_up):
            times = []
            for connection, work in ((straight, direct), (through, proxied)):
                problem: str | None = "no answer in time"
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_ANSWER_S):
                        problem = await connection.exchange(work.request(0, number))
                if problem is not None:
                    pairs.errors[problem] += 1
                    break
                times.append((connection.first_at - connection.sent_at) / 1e6)
            if not through.is_alive:
                through = await connect(window, 0, proxied)
            if number >= warm_up and len(times) == 2:  # noqa: PLR2004
                pairs.direct.append(times[0])
                pairs.proxied.append(times[1])
                pairs.there.append((through.first_stamp - through.sent_at) / 1e6)
                pairs.back.append((through.first_at - through.first_stamp) / 1e6)
            await asyncio.sleep(_BREATH_S)
    finally:
        straight.close()
        through.close()
    return pairs
