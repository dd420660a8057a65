"""What every route needs: the bus, who is asking, the body as it may be, and errors in the shape of the path's dialect."""

import hashlib
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel
from starlette.convertors import Convertor, register_url_convertor
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from parley_contracts.accounts import Principal
from parley_contracts.errors import (
    Forbidden,
    InvalidJson,
    OriginRefused,
    Problem,
    TokenExpired,
    TokenRevoked,
    Unauthenticated,
    UnsupportedMediaType,
    ValidationFailed,
)
from parley_contracts.ids import is_id
from parley_contracts.roles import Permission
from parley_gateway.api_keys import scope_of
from parley_gateway.authenticate import ACCESS_COOKIE, STREAM_COOKIE, Authenticator, bearer
from parley_gateway.limits import STARTS_TURNS, Limits, Slot
from parley_gateway.model_configs import ModelConfigs
from parley_gateway.presence import Connections
from parley_gateway.responses import TurnResponse
from parley_gateway.settings import GatewaySettings
from parley_gateway.turn_stream import TurnStreams
from parley_runtime.bus import Bus
from parley_runtime.clock import Clock
from parley_runtime.service import Service
from parley_runtime.telemetry import bound


class IdConvertor(Convertor[str]):
    """In a path only an id matches; anything else is 404, before any handler (requirements 1.1)."""

    regex = "[0-9a-z]{26}"

    @override
    def convert(self, value: str) -> str:
        return value

    @override
    def to_string(self, value: str) -> str:
        return value


class ShareConvertor(IdConvertor):
    regex = "[A-Za-z0-9_-]{22,64}"


class RoleConvertor(IdConvertor):
    regex = "[A-Za-z][A-Za-z0-9_-]{0,31}"


register_url_convertor("id", IdConvertor())
register_url_convertor("role", RoleConvertor())
register_url_convertor("share", ShareConvertor())

MAX_DEPTH = 32
MAX_KEY_CHARACTERS = 255


@dataclass(frozen=True, slots=True)
class Edge:
    """The gateway's parts, as its routes use them."""

    gateway_id: str
    settings: GatewaySettings
    bus: Bus
    clock: Clock
    authenticator: Authenticator
    connections: Connections
    streams: TurnStreams
    limits: Limits
    configs: ModelConfigs
    readiness: Callable[[], Service]


class SnakeBody(BaseModel):
    """A request body in snake_case; a field not listed is refused, so that nobody smuggles one in."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class CamelBody(BaseModel):
    """A request body in camelCase; a field not listed is refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, alias_generator=to_camel)


class EdgeRequest(Request):
    """A request whose body is read strictly: JSON by RFC 8259, no NaN, at most 32 levels deep."""

    @override
    async def json(self) -> Any:
        if not hasattr(self, "_strict"):
            content_type = self.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
            if content_type != "application/json" and not content_type.endswith("+json"):
                raise UnsupportedMediaType(content_type=content_type[:60])
            self._strict = parse_json(await self.body())
        return self._strict


def parse_json(data: bytes) -> Any:
    """Raises InvalidJson, with a reason a person can act on."""
    try:
        value = msgspec.json.decode(data)
    except RecursionError:
        raise InvalidJson(reason=f"it is nested deeper than {MAX_DEPTH} levels") from None
    except (msgspec.DecodeError, UnicodeError) as error:
        raise InvalidJson(reason=str(error)[:200]) from None
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return value
    raise InvalidJson(reason=f"it is nested deeper than {MAX_DEPTH} levels")


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [child for child in value.values() if isinstance(child, dict | list)]
    if isinstance(value, list):
        return [child for child in value if isinstance(child, dict | list)]
    return []


class OpenRoute(APIRoute):
    """A route for anyone, as often as an address may ask."""

    @override
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strictly(request: Request) -> Response:
            edge: Edge = request.app.state.edge
            strict = EdgeRequest(request.scope, request.receive)
            await self.admit(edge.limits, strict)
            return await handle(strict)

        return strictly

    async def admit(self, limits: Limits, request: EdgeRequest) -> None:
        await limits.admit_anyone(request.state.client_ip)


class ProbeRoute(OpenRoute):
    """A route that a supervisor asks again and again."""

    @override
    async def admit(self, limits: Limits, request: EdgeRequest) -> None:
        pass


class LoginRoute(OpenRoute):
    """A route where passwords and refresh tokens are tried: limited by address, and by the account that is named."""

    @override
    async def admit(self, limits: Limits, request: EdgeRequest) -> None:
        account = request.headers.get("authorization")
        try:
            body = await request.json()
        except (InvalidJson, UnsupportedMediaType):
            body = None  # told by the route, after it was counted
        if isinstance(body, dict) and isinstance(body.get("email"), str):
            account = body["email"]
        await limits.admit_login(request.state.client_ip, account)


class UserRoute(APIRoute):
    """A route for those with an access token, or an API key of its scope: who is asking comes before what is asked."""

    @override
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        scope = scope_of(self.path)
        starts_turn = self.path in STARTS_TURNS and "POST" in (self.methods or ())

        async def authenticated(request: Request) -> Response:
            edge: Edge = request.app.state.edge
            try:
                principal = await self.identify(edge, request)
            except Unauthenticated:
                # Nonsense is nobody's request, so keys and tokens are guessed no faster than that.
                await edge.limits.admit_anyone(request.state.client_ip)
                raise
            if principal.key_id is not None and scope not in principal.scopes:
                raise Forbidden
            request.state.principal = principal
            with bound(user_id=principal.user_id):
                admission = await edge.limits.admit_user(principal, starts_turn=starts_turn)
                if admission.slot is None:
                    return await handle(EdgeRequest(request.scope, request.receive))
                request.state.headers.update(admission.headers)
                return await _in_slot(edge.limits, admission.slot, handle(EdgeRequest(request.scope, request.receive)))

        return authenticated

    async def identify(self, edge: Edge, request: Request) -> Principal:
        return await edge.authenticator.principal(bearer(request.headers.get("authorization")))


class EventSourceRoute(UserRoute):
    """A route for browsers' EventSource, which sends no header: a stream token or a cookie will do (S4-22).

    `request.state.grant` is what a stream token opens, None for other credentials; the route compares its session.
    """

    @override
    async def identify(self, edge: Edge, request: Request) -> Principal:
        request.state.grant = None
        if request.headers.get("authorization") is not None:
            return await super().identify(edge, request)
        token = request.query_params.get("token")
        if token is not None:
            return await self._by_stream_token(edge, request, token)
        cookies = [name for name in (ACCESS_COOKIE, STREAM_COOKIE) if request.cookies.get(name)]
        if not cookies:
            raise Unauthenticated
        refuse_foreign_origin(request, edge.settings.origins)
        try:
            if cookies[0] == ACCESS_COOKIE:
                return await edge.authenticator.principal(request.cookies[ACCESS_COOKIE])
        except (Unauthenticated, TokenExpired, TokenRevoked):
            if cookies[-1] != STREAM_COOKIE:
                raise
        return await self._by_stream_token(edge, request, request.cookies[STREAM_COOKIE])

    @staticmethod
    async def _by_stream_token(edge: Edge, request: Request, token: str) -> Principal:
        request.state.grant = await edge.authenticator.stream_grant(token)
        principal: Principal = request.state.grant.principal
        return principal


def refuse_foreign_origin(request: Request, allowed: tuple[str, ...]) -> None:
    """A browser sends its cookies whoever asks: they count for our own pages and listed ones. Raises OriginRefused."""
    origin = request.headers.get("origin")
    if origin is None or origin in allowed:
        return
    if urlsplit(origin).netloc.lower() != request.headers.get("host", "").lower():
        raise OriginRefused(origin=origin[:200])


async def _in_slot(limits: Limits, slot: Slot, answering: Awaitable[Response]) -> Response:
    """Hold a place among the user's running turns for as long as the turn of this answer runs."""
    try:
        response = await answering
    except BaseException:
        limits.release(slot)
        raise
    if isinstance(response, TurnResponse):
        return SlotResponse(response, limits, slot)
    limits.release(slot)
    return response


class SlotResponse(Response):
    """A streamed turn in its slot. A stored turn keeps it when the client leaves, since it runs on."""

    def __init__(self, inner: TurnResponse, limits: Limits, slot: Slot) -> None:
        super().__init__()
        self._inner = inner
        self._limits = limits
        self._slot = slot

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._inner(scope, receive, send)
        finally:
            turn = self._inner.turn
            if turn.is_stored and not turn.has_ended:
                self._limits.leave(self._slot, turn.ticket.turn_id)
            else:
                self._limits.release(self._slot)


_SCHEME = HTTPBearer(auto_error=False, description="An access token from /user/login.")


# Coroutines, though they wait for nothing: FastAPI runs a plain function in a thread, which costs more than all of routing.
async def _principal(request: Request, _shown_in_openapi: Annotated[Any, Depends(_SCHEME)] = None) -> Principal:
    principal: Principal = request.state.principal
    return principal


async def _admin(request: Request, _shown_in_openapi: Annotated[Any, Depends(_SCHEME)] = None) -> Principal:
    principal: Principal = request.state.principal
    if not principal.is_admin or principal.key_id is not None:
        raise Forbidden
    return principal


def needs(permission: Permission) -> Any:
    """A dependency: the caller, who must hold `permission`; an ADMIN holds all, an API key none."""

    async def permitted(request: Request, _shown_in_openapi: Annotated[Any, Depends(_SCHEME)] = None) -> Principal:
        principal: Principal = request.state.principal
        if principal.key_id is not None or not (principal.is_admin or permission in principal.permissions):
            raise Forbidden
        return principal

    return Depends(permitted)


async def _edge(request: Request) -> Edge:
    edge: Edge = request.app.state.edge
    return edge


TheEdge = Annotated[Edge, Depends(_edge)]
Caller = Annotated[Principal, Depends(_principal)]
Admin = Annotated[Principal, Depends(_admin)]  # one Depends: of two, FastAPI heeds the last alone


def body_id(value: str, field: str) -> str:
    """An id that came in a body or a query; a malformed one is a mistake of the client's."""
    if not is_id(value):
        raise ValidationFailed(problems=(Problem(field, "is no id: 26 lower-case letters and digits"),))
    return value


def idempotency(request: Request) -> str | None:
    """The SHA-256 of the client's Idempotency-Key; the key itself goes nowhere. Raises ValidationFailed."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if not (1 <= len(key) <= MAX_KEY_CHARACTERS and key.isascii() and key.isprintable()):
        raise ValidationFailed(problems=(Problem("Idempotency-Key", "must be 1 to 255 printable ASCII characters"),))
    return hashlib.sha256(key.encode()).hexdigest()


async def body_hash(request: Request) -> str:
    """The SHA-256 of what was asked: route and body."""
    digest = hashlib.sha256(request.url.path.encode() + b"\x00" + request.url.query.encode() + b"\x00")
    digest.update(await request.body())
    return digest.hexdigest()


def no_nul(text: str, field: str) -> str:
    """Text as it may be stored: PostgreSQL takes no NUL."""
    if "\x00" in text:
        raise ValidationFailed(problems=(Problem(field, "holds a NUL character; remove it"),))
    return text
