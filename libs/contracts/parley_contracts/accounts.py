"""Accounts: users, principals, tokens, and what ends them. Auth answers; gateways check access tokens by public key alone."""

from datetime import datetime
from typing import ClassVar, Literal, TypeAlias

import msgspec

from parley_contracts.ids import Id, SessionId
from parley_contracts.message import Command, Event, Query
from parley_contracts.roles import Limits

ISSUER = "parley"
AUDIENCE = "parley-api"

UserStatus: TypeAlias = Literal["active", "disabled"]


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Who a token or an API key speaks for.

    `family` is the login a token belongs to; empty for an API key. `limits` None in a field: the role sets no such limit, the
    installation's own (requirements 2.8) hold. `token_id` (`jti`) and `issued_at` are what revocations are compared with; for
    an API key `issued_at` is the instant it was checked.

    For an API key only: `key_id`, the `scopes` it opens, the `models` it may name (None: all). A key without expiry has
    `expires_at` in the year 9999.
    """

    user_id: int
    role: str
    permissions: tuple[str, ...] = ()
    limits: Limits = Limits()
    family: str
    expires_at: datetime
    token_id: str = ""
    issued_at: datetime | None = None
    key_id: Id | None = None
    scopes: tuple[str, ...] = ()
    models: tuple[str, ...] | None = None

    @property
    def is_admin(self) -> bool:
        return self.role == "ADMIN"


class User(msgspec.Struct, frozen=True, kw_only=True):
    """An account. A disabled one logs in nowhere. `last_login_at` None: made by an administrator, never used."""

    id: int
    username: str
    email: str
    role: str
    status: UserStatus = "active"
    created_at: datetime
    last_login_at: datetime | None = None


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """A new pair: `access_token` is an EdDSA JWT, `refresh_token` is opaque and rotates at every use.

    `user` is whom they are for, as stored now; None only from an auth of an older version.
    """

    access_token: str
    refresh_token: str
    expires_in_s: int
    user: User | None = None


class StreamToken(msgspec.Struct, frozen=True, kw_only=True):
    """A JWT for the two `es` routes alone; reusable until it expires."""

    token: str
    expires_in_s: int


class StreamGrant(msgspec.Struct, frozen=True, kw_only=True):
    """What a verified stream token opens. `session_id` None: any session of the user; another than this one is Forbidden."""

    principal: Principal
    session_id: SessionId | None = None


class Jwk(msgspec.Struct, frozen=True, kw_only=True):
    """A public key of RFC 8037: `x` is the Ed25519 point in base64url."""

    kid: str
    x: str
    kty: str = "OKP"
    crv: str = "Ed25519"
    alg: str = "EdDSA"
    use: str = "sig"


# --- logging in and out ---------------------------------------------------------------------------------------------


class Register(Command[Tokens], frozen=True, kw_only=True):
    """Make an account and log in. Errors: EmailTaken, InvalidEmail, PasswordPolicy, RegistrationClosed.

    `username` None: what stands before the @. `is_long_lived`: the access token lives S3_TOKEN_TTL_S (24 h) instead of
    ACCESS_TOKEN_TTL_S, for clients that do not refresh.
    """

    subject: ClassVar[str] = "auth.register"
    email: str
    username: str | None = None
    password: str
    is_long_lived: bool = False


class LogIn(Command[Tokens], frozen=True, kw_only=True):
    """Errors: InvalidCredentials, alike for an unknown e-mail, a wrong password and a disabled user.

    With AUTH_DISTINCT_LOGIN_ERRORS the first two are EmailNotFound and PasswordIncorrect. `is_long_lived`: as in Register.
    """

    subject: ClassVar[str] = "auth.log_in"
    email: str
    password: str
    is_long_lived: bool = False


class RefreshTokens(Command[Tokens], frozen=True, kw_only=True):
    """Rotate a refresh token: within 10 s the same one gives the same successor, later the family is revoked.

    Errors: Unauthenticated (no refresh token at all), TokenRevoked.
    """

    subject: ClassVar[str] = "auth.refresh_tokens"
    refresh_token: str


class LogOut(Command[None], frozen=True, kw_only=True):
    """End the login this refresh token belongs to; well if it had ended. Errors: Unauthenticated (no refresh token at all)."""

    subject: ClassVar[str] = "auth.log_out"
    refresh_token: str


# --- one's own account ----------------------------------------------------------------------------------------------


class ChangeUsername(Command[User], frozen=True, kw_only=True):
    """Errors: ValidationFailed (`username`: 1 to 50 printable characters), UserNotFound."""

    subject: ClassVar[str] = "auth.change_username"
    user_id: int
    username: str


class ChangeEmail(Command[User], frozen=True, kw_only=True):
    """Errors: InvalidEmail, EmailTaken, UserNotFound."""

    subject: ClassVar[str] = "auth.change_email"
    user_id: int
    email: str


class ChangePassword(Command[Tokens], frozen=True, kw_only=True):
    """S2: by refresh token. Ends every login of the user, this one too, and begins a new one.

    `old_password` is checked when given, and required with PASSWORD_CHANGE_REQUIRES_OLD.
    Errors: Unauthenticated, TokenRevoked, PasswordPolicy, WrongPassword.
    """

    subject: ClassVar[str] = "auth.change_password"
    refresh_token: str
    new_password: str
    old_password: str | None = None


class ChangePasswordKnowingOld(Command[Tokens], frozen=True, kw_only=True):
    """S3: by the access token's user and the current password. Ends every login of the user and begins a new one.

    Errors: PasswordPolicy, WrongPassword, UserNotFound.
    """

    subject: ClassVar[str] = "auth.change_password_knowing_old"
    user_id: int
    current_password: str
    new_password: str
    is_long_lived: bool = True


class IssueStreamToken(Command[StreamToken], frozen=True, kw_only=True):
    """A stream token (300 s) for the login `family` of the caller's access token; API keys get none.

    Whether `session_id` is the user's is not auth's to know: ask chat first. Errors: TokenRevoked.
    """

    subject: ClassVar[str] = "auth.issue_stream_token"
    user_id: int
    family: str
    session_id: SessionId | None = None


# --- asking about accounts ------------------------------------------------------------------------------------------


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


# --- what ends rights -----------------------------------------------------------------------------------------------


class FamilyRevoked(Event, frozen=True, kw_only=True):
    """A login ended (logged out, or its refresh token was stolen): refuse its access and stream tokens with TokenRevoked."""

    subject: ClassVar[str] = "auth.event.family_revoked"
    family: str
    user_id: int


class RightsChanged(Event, frozen=True, kw_only=True):
    """What tokens say of a user, or of all users of a role, is no longer so: exactly one of `user_id` and `role` is set.

    Tokens of theirs with `issued_at` before `before` are refused: with TokenRevoked if `must_log_in` (password changed, user
    disabled or deleted), else with TokenExpired, so that the client refreshes. Principals of API keys that were remembered
    are forgotten, and checked again. `before` is a whole second, maybe the coming one: tokens made after the change bear
    at least that instant, so none of them is refused.
    """

    subject: ClassVar[str] = "auth.event.rights_changed"
    user_id: int | None = None
    role: str | None = None
    before: datetime
    must_log_in: bool = False


class ApiKeyRevoked(Event, frozen=True, kw_only=True):
    """An API key was deleted: refuse it with TokenRevoked, close what it opened."""

    subject: ClassVar[str] = "auth.event.api_key_revoked"
    key_id: Id
    user_id: int


class KeysChanged(Event, frozen=True, kw_only=True):
    """Auth started, maybe with another JWT_SECRET: ask GetJwks unless all of `key_ids` are known; forget all others."""

    subject: ClassVar[str] = "auth.event.keys_changed"
    key_ids: tuple[str, ...]


class UserDeleted(Event, frozen=True, kw_only=True):
    """Erase what was this user's; the ledger stays. Said again every hour for a week, as events may be missed.

    User ids are never given twice.
    """

    subject: ClassVar[str] = "auth.event.user_deleted"
    user_id: int


class Revocations(msgspec.Struct, frozen=True, kw_only=True):
    """What ended, as the events said it. Ask next with `since=as_of`; what is told twice is the same."""

    as_of: datetime
    families: tuple[FamilyRevoked, ...] = ()
    rights: tuple[RightsChanged, ...] = ()
    api_keys: tuple[ApiKeyRevoked, ...] = ()


class ListRevoked(Query[Revocations], frozen=True, kw_only=True):
    """What ended after `since`, and a minute before it, as commits come late. None: all that a living token could meet."""

    subject: ClassVar[str] = "auth.list_revoked"
    since: datetime | None = None
