"""API keys: `pk-` and 40 random characters, for programs. Shown once; afterwards only its SHA-256 is known."""

from datetime import datetime
from decimal import Decimal
from typing import ClassVar, Literal, TypeAlias

import msgspec

from parley_contracts.accounts import Principal
from parley_contracts.ids import Id
from parley_contracts.message import Command, Query

Scope: TypeAlias = Literal["openai", "chat", "activity", "usage"]


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key as its owner may see it: `prefix` is its beginning. `models` None: all; `budget_usd` None: the user's alone."""

    id: Id
    user_id: int
    name: str
    prefix: str
    scopes: tuple[Scope, ...]
    models: tuple[str, ...] | None = None
    budget_usd: Decimal | None = None
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    """To about ten seconds; None: never used."""
    created_at: datetime


class NewApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """`key` is shown this once."""

    key: str
    api_key: ApiKey


class CreateApiKey(Command[NewApiKey], frozen=True, kw_only=True):
    """Errors: ValidationFailed (name 1 to 100, expiry in the past, no scopes, budget not positive, over 100 keys)."""

    subject: ClassVar[str] = "auth.create_api_key"
    user_id: int
    name: str
    scopes: tuple[Scope, ...] = ("openai",)
    models: tuple[str, ...] | None = None
    budget_usd: Decimal | None = None
    expires_at: datetime | None = None


class ListApiKeys(Query[tuple[ApiKey, ...]], frozen=True, kw_only=True):
    """A user's keys, newest first; deleted ones not, expired ones too."""

    subject: ClassVar[str] = "auth.list_api_keys"
    user_id: int


class DeleteApiKey(Command[None], frozen=True, kw_only=True):
    """It opens nothing from now on. Errors: KeyNotFound, also for a foreign one."""

    subject: ClassVar[str] = "auth.delete_api_key"
    user_id: int
    id: Id


class CheckApiKey(Command[Principal], frozen=True, kw_only=True):
    """Whom the key with this SHA-256 (hex) speaks for now, with the user's role, permissions and limits; notes its use.

    The key itself never travels. An answer may be remembered for 60 s, and is forgotten at ApiKeyRevoked and RightsChanged.
    Errors: Unauthenticated (unknown), TokenExpired, TokenRevoked (deleted, or its user is disabled).
    """

    subject: ClassVar[str] = "auth.check_api_key"
    hash: str
