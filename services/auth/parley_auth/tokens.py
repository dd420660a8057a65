"""Tokens: access JWTs signed with Ed25519, and opaque refresh tokens whose successors are computed, not drawn.

All keys come from JWT_SECRET, so every replica signs alike and nothing needs to be stored. A refresh token's successor is
an HMAC of it: the same old token gives the same new one to two tabs, and the database holds hashes only.
"""

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta

import jwt
import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from parley_auth.roles import permissions_of
from parley_contracts.accounts import Jwk, Tokens
from parley_contracts.ids import derived_id
from parley_runtime.access_tokens import ALGORITHM, AccessClaims

_REFRESH_TOKEN = re.compile(r"^rt-[A-Za-z0-9_-]{43}\Z")
_KEY_ID_LENGTH = 11


class Login(msgspec.Struct, frozen=True, kw_only=True):
    """Whom tokens are made for: a user, their role now, and the family of this login."""

    user_id: int
    role: str
    family: str


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

    def __init__(self, jwt_secrets: Sequence[str], *, access_ttl_s: int) -> None:
        self._keys = {key.id: key for key in map(SigningKey, jwt_secrets)}
        self.signing_key = next(iter(self._keys.values()))
        self._access_ttl_s = access_ttl_s

    def key(self, key_id: str) -> SigningKey | None:
        """None: its secret was taken out of JWT_SECRET."""
        return self._keys.get(key_id)

    def jwks(self) -> tuple[Jwk, ...]:
        return tuple(key.jwk for key in self._keys.values())

    def tokens(self, login: Login, refresh_token: str, issued_at: datetime) -> Tokens:
        """The pair that `refresh_token` is half of; for the same arguments the very same, as EdDSA draws nothing."""
        claims = AccessClaims(
            sub=str(login.user_id),
            jti=derived_id("access", hash_of(refresh_token).hex()),
            typ="access",
            fam=login.family,
            role=login.role,
            permissions=permissions_of(login.role),
            iat=int(issued_at.timestamp()),
            exp=int((issued_at + timedelta(seconds=self._access_ttl_s)).timestamp()),
        )
        access_token = jwt.encode(
            msgspec.to_builtins(claims),
            self.signing_key.private,
            algorithm=ALGORITHM,
            headers={"kid": self.signing_key.id},
        )
        return Tokens(access_token=access_token, refresh_token=refresh_token, expires_in_s=self._access_ttl_s)


def thumbprint(point: str) -> str:
    """RFC 7638: a hash of the key's required members in alphabetical order, without spaces."""
    return _base64url(hashlib.sha256(f'{{"crv":"Ed25519","kty":"OKP","x":"{point}"}}'.encode()).digest())


def new_refresh_token() -> str:
    return "rt-" + secrets.token_urlsafe(32)


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
