"""Access tokens, verified: a JWT and auth's public keys become a `Principal`. Pure; whoever signs is auth's secret.

The algorithm is ours, never the token's; every claim is required; a token of another kind (`typ`) is no access token.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Literal

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from parley_contracts.accounts import AUDIENCE, ISSUER, Principal
from parley_contracts.errors import TokenExpired, Unauthenticated

ALGORITHM = "EdDSA"
LEEWAY_S = 30
_REQUIRED = ["exp", "iat", "sub", "iss", "aud", "jti"]
_LAST_INSTANT_S = 253_402_300_799  # the end of the year 9999, where datetime ends

_Instant = Annotated[int, msgspec.Meta(ge=0, le=_LAST_INSTANT_S)]


class AccessClaims(msgspec.Struct, frozen=True, kw_only=True):
    """What an access token says. `fam`: the login it belongs to, revoked as a whole."""

    iss: str = ISSUER
    aud: str = AUDIENCE
    sub: Annotated[str, msgspec.Meta(pattern=r"^[1-9][0-9]{0,18}\Z")]
    jti: Annotated[str, msgspec.Meta(min_length=1)]
    typ: Literal["access"]
    fam: Annotated[str, msgspec.Meta(min_length=1)]
    role: str
    permissions: tuple[str, ...]
    iat: _Instant
    exp: _Instant


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
        claims = msgspec.convert(payload, AccessClaims)
    except (jwt.InvalidTokenError, msgspec.ValidationError) as error:
        raise Unauthenticated from error
    instant_s = now.timestamp()
    if claims.iat > instant_s + LEEWAY_S:
        raise Unauthenticated
    if claims.exp <= instant_s - LEEWAY_S:
        raise TokenExpired
    return Principal(
        user_id=int(claims.sub),
        role=claims.role,
        permissions=claims.permissions,
        family=claims.fam,
        expires_at=datetime.fromtimestamp(claims.exp, UTC),
    )
