"""Authentication at the edge: a bearer token becomes a `Principal` by auth's public keys, asked for over the bus.

Keys are kept in memory, so valid tokens go on working while auth is down. A token that was verified is remembered until
it expires: a signature costs 130 µs, a lookup nothing. Whether it was revoked is looked up each time.
"""

import asyncio
import base64
import hashlib
import time

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from parley_contracts.accounts import GetJwks, Jwk, KeysChanged, Principal, StreamGrant
from parley_contracts.errors import ServiceUnavailable, TokenExpired, Unauthenticated
from parley_gateway.api_keys import API_KEY_PREFIX, ApiKeys
from parley_gateway.revocations import RevocationList
from parley_runtime.access_tokens import key_id_of, verify_access_token, verify_stream_token
from parley_runtime.bus import Bus
from parley_runtime.clock import Clock

ACCESS_COOKIE = "parley_access"
STREAM_COOKIE = "parley_stream"

_ASK_AGAIN_S = 10.0
_REMEMBERED_TOKENS = 10_000


class Authenticator:
    """`principal(token)` for access tokens and API keys; asks auth for its public keys when it meets an unknown one."""

    def __init__(self, bus: Bus, clock: Clock, revocations: RevocationList) -> None:
        self._bus = bus
        self._clock = clock
        self._revocations = revocations
        self._api_keys = ApiKeys(bus, clock)
        revocations.listeners.append(self._api_keys.forget)
        bus.on(KeysChanged, self.hear_keys)
        self._keys: dict[str, Ed25519PublicKey] = {}
        self._asked_at = -_ASK_AGAIN_S
        self._asking = asyncio.Lock()
        self._known: dict[bytes, Principal] = {}

    async def principal(self, token: str) -> Principal:
        """Raises Unauthenticated, TokenExpired or TokenRevoked; ServiceUnavailable when auth never told its keys."""
        if token.startswith(API_KEY_PREFIX):
            return await self._api_keys.principal(token)
        digest = hashlib.sha256(token.encode()).digest()
        known = self._known.get(digest)
        now = self._clock.now()
        if known is None:
            await self._learn(key_id_of(token))
            known = verify_access_token(token, self._keys, now=now)
            if len(self._known) >= _REMEMBERED_TOKENS:
                self._known.clear()
            self._known[digest] = known
        elif known.expires_at <= now:
            del self._known[digest]
            raise TokenExpired
        refusal = self._revocations.refusal(known)
        if refusal is not None:
            raise refusal
        return known

    async def stream_grant(self, token: str) -> StreamGrant:
        """What a stream token opens. Raises as `principal` does."""
        await self._learn(key_id_of(token))
        grant = verify_stream_token(token, self._keys, now=self._clock.now())
        refusal = self._revocations.refusal(grant.principal)
        if refusal is not None:
            raise refusal
        return grant

    async def hear_keys(self, event: KeysChanged) -> None:
        """Auth started: what it no longer signs or verifies with opens nothing here either."""
        gone = self._keys.keys() - set(event.key_ids)
        if gone:
            self._keys = {key_id: key for key_id, key in self._keys.items() if key_id not in gone}
            self._known.clear()
        if set(event.key_ids) - self._keys.keys():
            self._asked_at = -_ASK_AGAIN_S
            await self._learn(event.key_ids[0])

    async def _learn(self, key_id: str) -> None:
        if key_id in self._keys:
            return
        async with self._asking:
            if key_id in self._keys or time.monotonic() - self._asked_at < _ASK_AGAIN_S:
                return
            try:
                jwks = await self._bus.ask(GetJwks())
            except ServiceUnavailable:
                if not self._keys:
                    raise
                return
            self._asked_at = time.monotonic()
            self._keys = {jwk.kid: _public_key(jwk) for jwk in jwks}


def _public_key(jwk: Jwk) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(jwk.x + "=" * (-len(jwk.x) % 4)))


def bearer(authorization: str | None) -> str:
    """The token of an `Authorization: Bearer …` header. Raises Unauthenticated."""
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated
    return token.strip()
