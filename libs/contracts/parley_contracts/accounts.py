"""Accounts: users, principals, tokens. Auth answers; the gateway checks access tokens by public key alone."""

from datetime import datetime
from typing import ClassVar

import msgspec

from parley_contracts.message import Command, Query

ISSUER = "parley"
AUDIENCE = "parley-api"


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Who a token speaks for."""

    user_id: int
    role: str
    permissions: tuple[str, ...] = ()
    family: str
    expires_at: datetime

    @property
    def is_admin(self) -> bool:
        return self.role == "ADMIN"


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """A new pair: `access_token` is an EdDSA JWT, `refresh_token` is opaque and rotates at every use."""

    access_token: str
    refresh_token: str
    expires_in_s: int


class User(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    username: str
    email: str
    role: str
    created_at: datetime


class Jwk(msgspec.Struct, frozen=True, kw_only=True):
    """A public key of RFC 8037: `x` is the Ed25519 point in base64url."""

    kid: str
    x: str
    kty: str = "OKP"
    crv: str = "Ed25519"
    alg: str = "EdDSA"
    use: str = "sig"


class Register(Command[Tokens], frozen=True, kw_only=True):
    """Make an account and log in. Errors: EmailTaken, InvalidEmail, PasswordPolicy, RegistrationClosed."""

    subject: ClassVar[str] = "auth.register"
    email: str
    username: str
    password: str


class LogIn(Command[Tokens], frozen=True, kw_only=True):
    """Errors: InvalidCredentials, alike for an unknown e-mail and a wrong password."""

    subject: ClassVar[str] = "auth.log_in"
    email: str
    password: str


class RefreshTokens(Command[Tokens], frozen=True, kw_only=True):
    """Rotate a refresh token: within 10 s the same one gives the same successor, later the family is revoked.

    Errors: Unauthenticated (no refresh token at all), TokenRevoked.
    """

    subject: ClassVar[str] = "auth.refresh_tokens"
    refresh_token: str


class GetUser(Query[User], frozen=True, kw_only=True):
    """Errors: UserNotFound."""

    subject: ClassVar[str] = "auth.get_user"
    user_id: int


class GetUsers(Query[tuple[User, ...]], frozen=True, kw_only=True):
    """The users among `user_ids` that exist, in any order."""

    subject: ClassVar[str] = "auth.get_users"
    user_ids: tuple[int, ...]


class GetJwks(Query[tuple[Jwk, ...]], frozen=True, kw_only=True):
    """The public keys that verify access tokens; the first one signs."""

    subject: ClassVar[str] = "auth.get_jwks"
