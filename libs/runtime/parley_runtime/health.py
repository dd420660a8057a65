"""Health: `/healthz` (alive), `/readyz` (useful) and `/metrics` (Prometheus) of one service, on its own port.

Readiness means it: each thing the service owns and the bus itself answer within two seconds, asked at most once a second.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec
import structlog
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from typing_extensions import override

log = structlog.get_logger()

CHECK_TIMEOUT_S = 2.0
_REMEMBERED_S = 1.0

Check = Callable[[], Awaitable[object]]
Send = Callable[[dict[str, object]], Awaitable[None]]


class Readiness:
    """What must answer for a service to be ready; `problems` names what does not, and why."""

    def __init__(self, checks: dict[str, Check]) -> None:
        self._checks = checks
        self._problems: dict[str, str] = {"service": "is starting"}
        self._checked_at = 0.0
        self._is_open = False
        self._lock = asyncio.Lock()

    def open(self) -> None:
        self._is_open = True
        self._checked_at = 0.0

    def close(self, reason: str) -> None:
        self._is_open = False
        self._problems = {"service": reason}

    async def problems(self) -> dict[str, str]:
        """Empty: ready."""
        async with self._lock:
            if self._is_open and time.monotonic() - self._checked_at > _REMEMBERED_S:
                answers = await asyncio.gather(*(self._ask(name, check) for name, check in self._checks.items()))
                if self._is_open:
                    self._problems = {name: problem for name, problem in answers if problem}
                self._checked_at = time.monotonic()
            return self._problems

    @staticmethod
    async def _ask(name: str, check: Check) -> tuple[str, str]:
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                await check()
        except TimeoutError:
            return name, f"no answer in {CHECK_TIMEOUT_S:.0f} s"
        except Exception as error:  # noqa: BLE001 - whatever it is, it means not ready
            return name, f"{type(error).__name__}: {error}"[:200]
        return name, ""


class EmbeddedUvicorn(uvicorn.Server):
    """uvicorn without its signal handlers: the launcher decides when a service stops."""

    @contextlib.contextmanager
    @override
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve_asgi(
    app: Any, listener: socket.socket, *, name: str, **config: Any
) -> tuple[uvicorn.Server, asyncio.Task[None]]:
    """Serve an ASGI app on a bound socket inside this loop; accepting when this returns. Ends by `server.should_exit`."""
    options: dict[str, Any] = {
        "interface": "asgi3",  # uvicorn's guess takes a bound method for the older interface
        "proxy_headers": False,
        "log_config": None,
        "lifespan": "off",
        "access_log": False,
        "server_header": False,
        "ws": "none",
    }
    options |= config
    server = EmbeddedUvicorn(uvicorn.Config(app, **options))
    task = asyncio.create_task(server.serve([listener]), name=name)
    while not server.started:
        if task.done():
            await task
            raise OSError(f"{name} ended while it started")
        await asyncio.sleep(0.005)
    return server, task


class HealthServer:
    """Serves the three pages on `host:port`; port 0 takes a free one, told by `port` after `open`."""

    def __init__(self, service: str, readiness: Readiness, *, host: str, port: int) -> None:
        self._service = service
        self._readiness = readiness
        self._host, self.port = host, port
        self._server: uvicorn.Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Raises OSError when the port is taken."""
        listener = socket.create_server((self._host, self.port), backlog=64)
        self.port = listener.getsockname()[1]
        self._server, self._task = await serve_asgi(self._app, listener, name=f"health-{self._service}")

    async def close(self) -> None:
        if self._server is not None and self._task is not None:
            self._server.should_exit = True
            await self._task

    async def _app(
        self, scope: dict[str, object], _receive: object, send: Callable[[dict[str, object]], Awaitable[None]]
    ) -> None:
        status, content_type, body = await self._page(str(scope.get("path")))
        headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _page(self, path: str) -> tuple[int, str, bytes]:
        match path:
            case "/healthz":
                return 200, "application/json", msgspec.json.encode({"service": self._service, "status": "alive"})
            case "/readyz":
                problems = await self._readiness.problems()
                status = {"service": self._service, "status": "not ready" if problems else "ready", "problems": problems}
                return (503 if problems else 200), "application/json", msgspec.json.encode(status)
            case "/metrics":
                return 200, CONTENT_TYPE_LATEST, generate_latest()
            case _:
                return 404, "application/json", b'{"error":"/healthz, /readyz and /metrics are here"}'
