"""Tokens: access and stream JWTs signed with Ed25519; opaque refresh tokens whose successors are computed, not drawn; API keys.

All keys come from JWT_SECRET, so every replica signs alike and nothing needs to be stored. A refresh token's successor is
an HMAC of it: the same old token gives the same new one to two tabs, and the database holds hashes only.
"""

import base64
import hashlib
import hmac
import re
import secrets
import string
from collections.abc import Sequence
from datetime import datetime, timedelta

import jwt
import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from parley_contracts.accounts import Jwk, StreamToken, Tokens, User
from parley_contracts.ids import SessionId, derived_id, new_id
from parley_contracts.roles import Role
from parley_runtime.access_tokens import ALGORITHM, AccessClaims, Claims, StreamClaims

_REFRESH_TOKEN = re.compile(r"^rt-[A-Za-z0-9_-]{43}\Z")
_KEY_ID_LENGTH = 11
_API_KEY_CHARACTERS = 40
_API_KEY_ALPHABET = string.ascii_letters + string.digits
STREAM_TTL_S = 300


class Login(msgspec.Struct, frozen=True, kw_only=True):
    """Whom tokens are made for: a user and their role as they are now, and the family of this login.

    `valid_from`: tokens issued before it are refused, so none is dated earlier.
    """

    user: User
    role: Role
    family: str
    valid_from: datetime | None = None
    is_long_lived: bool = False


class SigningKey:
    """What one secret of JWT_SECRET gives: a key pair, its id, and the key that computes successors."""

    def __init__(self, secret: str) -> None:
        self.private = Ed25519PrivateKey.from_private_bytes(_derive(secret, "jwt-ed25519-v1"))
        self._successor_key = _derive(secret, "refresh-v1")
        point = _base64url(self.private.public_key().public_bytes_raw())
        self.id = thumbprint(point)[:_KEY_ID_LENGTH]
        self.jwk = Jwk(kid=self.id, x=point)

    def successor(self, refresh_token: str) -> str:
        return "rt-" + _base64url(hmac.digest(self._successor_key, refresh_token.encode(), hashlib.sha256))


class Issuer:
    """Makes access tokens. The first secret signs; `jwks` names the public keys of all."""

    def __init__(self, jwt_secrets: Sequence[str], *, access_ttl_s: int, long_ttl_s: int) -> None:
        self._keys = {key.id: key for key in map(SigningKey, jwt_secrets)}
        self.signing_key = next(iter(self._keys.values()))
        self._access_ttl_s = access_ttl_s
        self._long_ttl_s = long_ttl_s
        self.longest_ttl = timedelta(seconds=max(access_ttl_s, long_ttl_s, STREAM_TTL_S))

    def key(self, key_id: str) -> SigningKey | None:
        """None: its secret was taken out of JWT_SECRET."""
        return self._keys.get(key_id)

    def jwks(self) -> tuple[Jwk, ...]:
        return tuple(key.jwk for key in self._keys.values())

    def tokens(self, login: Login, refresh_token: str, issued_at: datetime) -> Tokens:
        """The pair that `refresh_token` is half of; for the same arguments the very same, as EdDSA draws nothing."""
        ttl_s = self._long_ttl_s if login.is_long_lived else self._access_ttl_s
        issued_s = _issued_s(login, issued_at)
        claims = AccessClaims(
            sub=str(login.user.id),
            jti=derived_id("access", hash_of(refresh_token).hex()),
            typ="access",
            fam=login.family,
            role=login.role.name,
            permissions=login.role.permissions,
            limits=login.role.limits,
            iat=issued_s,
            exp=issued_s + ttl_s,
        )
        return Tokens(access_token=self._signed(claims), refresh_token=refresh_token, expires_in_s=ttl_s, user=login.user)

    def stream_token(self, login: Login, session_id: SessionId | None, issued_at: datetime) -> StreamToken:
        issued_s = _issued_s(login, issued_at)
        claims = StreamClaims(
            sub=str(login.user.id),
            jti=new_id(),
            typ="stream",
            fam=login.family,
            role=login.role.name,
            permissions=login.role.permissions,
            limits=login.role.limits,
            iat=issued_s,
            exp=issued_s + STREAM_TTL_S,
            ses=session_id,
        )
        return StreamToken(token=self._signed(claims), expires_in_s=STREAM_TTL_S)

    def _signed(self, claims: Claims) -> str:
        payload = msgspec.to_builtins(claims)
        payload["limits"] = {name: limit for name, limit in payload["limits"].items() if limit is not None}
        return jwt.encode(payload, self.signing_key.private, algorithm=ALGORITHM, headers={"kid": self.signing_key.id})


def _issued_s(login: Login, issued_at: datetime) -> int:
    issued_s = int(issued_at.timestamp())
    return issued_s if login.valid_from is None else max(issued_s, int(login.valid_from.timestamp()))


def thumbprint(point: str) -> str:
    """RFC 7638: a hash of the key's required members in alphabetical order, without spaces."""
    return _base64url(hashlib.sha256(f'{{"crv":"Ed25519","kty":"OKP","x":"{point}"}}'.encode()).digest())


def new_refresh_token() -> str:
    return "rt-" + secrets.token_urlsafe(32)


def new_api_key() -> str:
    return "pk-" + "".join(secrets.choice(_API_KEY_ALPHABET) for _ in range(_API_KEY_CHARACTERS))


def is_refresh_token(text: str) -> bool:
    """Whether it looks like one."""
    return _REFRESH_TOKEN.match(text) is not None


def hash_of(token: str) -> bytes:
    """What is stored of a token. A plain hash suffices: the token itself is 256 random bits."""
    return hashlib.sha256(token.encode()).digest()


def _derive(secret: str, purpose: str) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=b"parley", info=purpose.encode()).derive(secret.encode())


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
