"""API keys at the edge: auth says whom a key speaks for, and its answer is remembered for 30 s (60 s while auth is away)."""

import hashlib
from datetime import UTC, datetime
from typing import Final

import msgspec

from parley_contracts.accounts import Principal
from parley_contracts.api_keys import CheckApiKey
from parley_contracts.errors import ModelNotFound, ServiceUnavailable, TokenExpired
from parley_runtime.bus import Bus
from parley_runtime.clock import Clock

API_KEY_PREFIX: Final = "pk-"
_FRESH_S = 30.0
_USABLE_S = 60.0
_MOST = 10_000

_SCOPES = {
    "openai": ("/v1/", "/chat/v1/"),
    "activity": ("/activity/",),
    "usage": ("/api/usage/", "/api/chat/usage"),
    "chat": (
        "/chat/",
        "/conversation",
        "/api/sessions",
        "/api/chat/stream",
        "/api/chat/completion",
        "/api/chat/stop",
        "/api/chat/regenerate",
        "/api/chat/message",
        "/api/chat/conversations",
    ),
}
_NEVER = ("/api/chat/stream-token", "/chat/connections", "/chat/flows")


def scope_of(route: str) -> str | None:
    """The scope a key needs for a route; None: no key opens it. What is not listed stays shut."""
    if route.startswith(_NEVER):
        return None
    return next((scope for scope, prefixes in _SCOPES.items() if route.startswith(prefixes)), None)


class ApiKeys:
    """What auth said of keys, by their SHA-256; the keys themselves are kept nowhere."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._bus = bus
        self._clock = clock
        self._known: dict[str, tuple[float, Principal]] = {}
        self._version = 0

    def forget(self) -> None:
        """Rights changed or a key was deleted: ask again, also for what is being asked just now."""
        self._known.clear()
        self._version += 1

    async def principal(self, key: str) -> Principal:
        """Raises Unauthenticated, TokenExpired, TokenRevoked; ServiceUnavailable when auth is away and the key unknown."""
        digest = hashlib.sha256(key.encode()).hexdigest()
        now = self._clock.monotonic()
        asked_at, known = self._known.get(digest, (0.0, None))
        if known is None or now - asked_at >= _FRESH_S:
            known = await self._ask(digest, known if now - asked_at < _USABLE_S else None)
        if known.expires_at <= self._clock.now():
            raise TokenExpired
        return known

    async def _ask(self, digest: str, known: Principal | None) -> Principal:
        version = self._version
        asked_at = self._clock.monotonic()
        try:
            principal = await self._bus.ask(CheckApiKey(hash=digest))
        except ServiceUnavailable:
            if known is None or version != self._version:
                raise
            return known
        except Exception:
            self._known.pop(digest, None)
            raise
        # No key has an administrator's rights: neither routes nor other people's data.
        principal = msgspec.structs.replace(principal, permissions=(), role="USER" if principal.is_admin else principal.role)
        if principal.issued_at is None:
            principal = msgspec.structs.replace(principal, issued_at=datetime.now(UTC))
        if version == self._version:
            if len(self._known) >= _MOST:
                self._known.clear()
            self._known[digest] = (asked_at, principal)
        return principal


def may_name(principal: Principal, model: str) -> bool:
    return principal.models is None or model in principal.models


def check_model(principal: Principal, model: str | None) -> None:
    """A key's list of models is all it sees. Raises ModelNotFound, as for a model that is not there."""
    if principal.models is not None and (model is None or model not in principal.models):
        raise ModelNotFound(model=model or "default")
