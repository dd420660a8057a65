"""Middleware, pure ASGI: the request's context, its size, cross-origin rules, the prefix rule, and one place for failures."""

import re
import secrets
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from time import perf_counter

import structlog
from prometheus_client import Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from parley_contracts.errors import PayloadTooLarge
from parley_runtime.telemetry import begin_trace, bound

log = structlog.get_logger()

MIB = 1024 * 1024
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z")
_SLOW_S = 1.0
_AN_ID = re.compile(r"(?<=/)[0-9a-z]{26}(?=/|\Z)")
_SOME_ID = "0" * 26
_MOST_SHAPES = 2_000
_SECONDS = Histogram("parley_http_request_seconds", "Time to the first byte of an answer.", ("route", "method", "status"))


class ContextMiddleware:
    """Binds request_id, trace_id, client_ip, method, path once, for every log line and bus message (S2-26)."""

    def __init__(self, app: ASGIApp, *, trusted_proxies: str = "") -> None:
        self._app = app
        self._trusted = [ip_network(text.strip(), strict=False) for text in trusted_proxies.split(",") if text.strip()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.match(given) else secrets.token_hex(12)
        traceparent = headers.get("traceparent", "")
        context, trace_id = begin_trace(traceparent if _TRACEPARENT.match(traceparent) else None)
        client_ip = self._client_ip(scope, headers)
        state = scope.setdefault("state", {})
        state |= {"request_id": request_id, "client_ip": client_ip, "headers": {}}
        began = perf_counter()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                answer["x-request-id"] = request_id
                answer["x-content-type-options"] = "nosniff"
                for name, value in state["headers"].items():
                    answer[name] = value
                self._observe(scope, int(message["status"]), perf_counter() - began)
            await send(message)

        with bound(
            context,
            request_id=request_id,
            trace_id=trace_id,
            client_ip=client_ip,
            method=scope["method"],
            path=scope["path"][:200],
        ):
            await self._app(scope, receive, send_with_id)

    @staticmethod
    def _observe(scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unknown")
        _SECONDS.labels(route, scope["method"], str(status)).observe(seconds)
        if seconds > _SLOW_S:
            log.warning("request_slow", route=route, status=status, seconds=round(seconds, 3))

    def _client_ip(self, scope: Scope, headers: Headers) -> str:
        """The first untrusted address from the right; forwarded ones count only behind a trusted proxy."""
        client = scope.get("client")
        hop = str(client[0]) if client else ""
        forwarded = [text.strip() for text in headers.get("x-forwarded-for", "").split(",") if text.strip()]
        while forwarded and self._is_trusted(hop):
            hop = forwarded.pop()[:45]
        return hop

    def _is_trusted(self, text: str) -> bool:
        try:
            address = ip_address(text)
        except ValueError:
            return False
        return any(address in network for network in self._trusted)


class BodyLimitMiddleware:
    """Refuses a body that is too large before it is read (413): by its length header, or where it grows past the limit."""

    def __init__(self, app: ASGIApp, *, limit_of: Callable[[str], int]) -> None:
        self._app = app
        self._limit_of = limit_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limit_of(scope["path"])
        length = Headers(scope=scope).get("content-length", "")
        if length.isdigit() and int(length) > limit:
            raise PayloadTooLarge(limit_bytes=limit)
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > limit:
                    raise PayloadTooLarge(limit_bytes=limit)
            return message

        await self._app(scope, counted, send)


class PrefixMiddleware:
    """Serves every route with and without `/api` in front; the one that is written down wins (requirements 1.1)."""

    def __init__(self, app: ASGIApp, *, routes: list[BaseRoute]) -> None:
        self._app = app
        self._routes = routes
        self._known: dict[tuple[str, str, str], bool] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in {"http", "websocket"} and not self._is_known(scope):
            path: str = scope["path"]
            other = path.removeprefix("/api") if path.startswith("/api/") else f"/api{path}"
            changed = {**scope, "path": other, "raw_path": other.encode()}
            if self._is_known(changed):
                scope = changed
        await self._app(scope, receive, send)

    def _is_known(self, scope: Scope) -> bool:
        # Asking every route costs more than answering some of them; a route sees of an id only that it is one.
        shape = (scope["type"], scope.get("method", ""), _AN_ID.sub(_SOME_ID, scope["path"]))
        known = self._known.get(shape)
        if known is None:
            if len(self._known) >= _MOST_SHAPES:
                self._known.clear()
            known = self._known[shape] = any(route.matches(scope)[0] is Match.FULL for route in self._routes)
        return known
