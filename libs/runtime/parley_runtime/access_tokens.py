"""Access and stream tokens, verified: a JWT and auth's public keys become a `Principal`. Pure; whoever signs is auth's secret.

The algorithm is ours, never the token's; every claim is required; a token of another kind (`typ`) opens nothing here.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Literal, TypeVar

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from parley_contracts.accounts import AUDIENCE, ISSUER, Principal, StreamGrant
from parley_contracts.errors import TokenExpired, Unauthenticated
from parley_contracts.ids import SessionId
from parley_contracts.roles import Limits

ALGORITHM = "EdDSA"
LEEWAY_S = 30
_REQUIRED = ["exp", "iat", "sub", "iss", "aud", "jti"]
_LAST_INSTANT_S = 253_402_300_799  # the end of the year 9999, where datetime ends

_Instant = Annotated[int, msgspec.Meta(ge=0, le=_LAST_INSTANT_S)]


class Claims(msgspec.Struct, frozen=True, kw_only=True):
    """What every token of ours says. `fam`: the login it belongs to, revoked as a whole; `limits`: those that are set."""

    iss: str = ISSUER
    aud: str = AUDIENCE
    sub: Annotated[str, msgspec.Meta(pattern=r"^[1-9][0-9]{0,18}\Z")]
    jti: Annotated[str, msgspec.Meta(min_length=1)]
    fam: Annotated[str, msgspec.Meta(min_length=1)]
    role: str
    permissions: tuple[str, ...]
    limits: Limits = Limits()
    iat: _Instant
    exp: _Instant

    def principal(self) -> Principal:
        return Principal(
            user_id=int(self.sub),
            role=self.role,
            permissions=self.permissions,
            limits=self.limits,
            family=self.fam,
            expires_at=datetime.fromtimestamp(self.exp, UTC),
            token_id=self.jti,
            issued_at=datetime.fromtimestamp(self.iat, UTC),
        )


class AccessClaims(Claims, frozen=True, kw_only=True):
    typ: Literal["access"]


class StreamClaims(Claims, frozen=True, kw_only=True):
    """`ses`: the one session it opens; none: all of the user's."""

    typ: Literal["stream"]
    ses: SessionId | None = None


C = TypeVar("C", bound=Claims)


def key_id_of(token: str) -> str:
    """The `kid` a token names; nothing about it is verified. Raises Unauthenticated when it names none."""
    try:
        key_id = jwt.get_unverified_header(token).get("kid")
    except jwt.InvalidTokenError as error:
        raise Unauthenticated from error
    if not isinstance(key_id, str):
        raise Unauthenticated
    return key_id


def verify_access_token(token: str, keys: Mapping[str, Ed25519PublicKey], now: datetime) -> Principal:
    """Who `token` speaks for. Raises TokenExpired for a good token past its time, Unauthenticated for any other."""
    return _verified(token, keys, now, AccessClaims).principal()


def verify_stream_token(token: str, keys: Mapping[str, Ed25519PublicKey], now: datetime) -> StreamGrant:
    """What a stream token opens. Raises as `verify_access_token`; whether its family was revoked is the caller's to ask."""
    claims = _verified(token, keys, now, StreamClaims)
    return StreamGrant(principal=claims.principal(), session_id=claims.ses)


def _verified(token: str, keys: Mapping[str, Ed25519PublicKey], now: datetime, kind: type[C]) -> C:
    key = keys.get(key_id_of(token))
    if key is None:
        raise Unauthenticated
    try:
        # Instants are checked below: PyJWT knows only the machine's clock.
        payload = jwt.decode(
            token,
            key,
            algorithms=[ALGORITHM],
            audience=AUDIENCE,
            issuer=ISSUER,
            options={"require": _REQUIRED, "strict_aud": True, "verify_exp": False, "verify_iat": False},
        )
        claims = msgspec.convert(payload, kind)
    except (jwt.InvalidTokenError, msgspec.ValidationError) as error:
        raise Unauthenticated from error
    instant_s = now.timestamp()
    if claims.iat > instant_s + LEEWAY_S:
        raise Unauthenticated
    if claims.exp <= instant_s - LEEWAY_S:
        raise TokenExpired
    return claims
