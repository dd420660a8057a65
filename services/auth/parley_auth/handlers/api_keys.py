"""API keys: made, listed, deleted, and checked for the gateways; when each was last used is written in batches."""

import contextlib
import re
from datetime import UTC, datetime
from decimal import Decimal

import structlog

from parley_auth.fields import checked_text, wrong
from parley_auth.stores.api_keys import ApiKeyStore, StoredApiKey
from parley_auth.stores.revocations import RevocationStore
from parley_auth.stores.users import UserStore
from parley_auth.tokens import hash_of, new_api_key
from parley_contracts.accounts import ApiKeyRevoked, Principal
from parley_contracts.api_keys import ApiKey, CheckApiKey, CreateApiKey, DeleteApiKey, ListApiKeys, NewApiKey, Scope
from parley_contracts.errors import KeyNotFound, ServiceUnavailable, TokenExpired, TokenRevoked, Unauthenticated, UserNotFound
from parley_contracts.ids import new_id
from parley_runtime.clock import Clock
from parley_runtime.database import Database, Transaction

log = structlog.get_logger()

NEVER = datetime(9999, 12, 31, tzinfo=UTC)
MOST_KEYS = 100
USES_WRITTEN_EVERY_S = 10.0
_SCOPES: tuple[Scope, ...] = ("openai", "chat", "activity", "usage")
_SHOWN_CHARACTERS = 9
_LONGEST_NAME = 100
_MOST_MODELS = 100
_HIGHEST_BUDGET_USD = Decimal(1_000_000)
_HASH = re.compile(r"[0-9a-f]{64}")


class ApiKeys:
    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._used_at: dict[str, datetime] = {}

    async def create_api_key(self, command: CreateApiKey, tx: Transaction) -> NewApiKey:
        now = self._clock.now()
        key = new_api_key()
        api_key = ApiKey(
            id=new_id(),
            user_id=command.user_id,
            name=checked_text(command.name, "name", longest=_LONGEST_NAME),
            prefix=key[:_SHOWN_CHARACTERS],
            scopes=_checked_scopes(command.scopes),
            models=_checked_models(command.models),
            budget_usd=_checked_budget(command.budget_usd),
            expires_at=_checked_expiry(command.expires_at, now),
            created_at=now,
        )
        store = ApiKeyStore(tx)
        # The user's row is held, so that keys made at once are counted one by one.
        if await UserStore(tx).find_account_by_id(command.user_id, for_change=True) is None:
            raise UserNotFound
        if await store.count(command.user_id) >= MOST_KEYS:
            raise wrong("name", f"you have {MOST_KEYS} keys; delete one")
        await store.add(api_key, hash_of(key))
        log.info("api_key_created", user_id=command.user_id, key_id=api_key.id)
        return NewApiKey(key=key, api_key=api_key)

    async def list_api_keys(self, query: ListApiKeys, tx: Transaction) -> tuple[ApiKey, ...]:
        return await ApiKeyStore(tx).list_keys(query.user_id)

    async def delete_api_key(self, command: DeleteApiKey, tx: Transaction) -> None:
        now = self._clock.now()
        if not await ApiKeyStore(tx).revoke(command.id, command.user_id, now):
            raise KeyNotFound
        await RevocationStore(tx).say(ApiKeyRevoked(key_id=command.id, user_id=command.user_id), now)
        log.info("api_key_deleted", user_id=command.user_id, key_id=command.id)

    async def check_api_key(self, command: CheckApiKey, tx: Transaction) -> Principal:
        if not _HASH.fullmatch(command.hash):
            raise Unauthenticated
        stored = await ApiKeyStore(tx).find(bytes.fromhex(command.hash))
        now = self._clock.now()
        if stored is None:
            raise Unauthenticated
        if stored.revoked_at is not None or not stored.account.is_active:
            raise TokenRevoked
        if stored.api_key.expires_at is not None and stored.api_key.expires_at <= now:
            raise TokenExpired
        self._used_at[stored.api_key.id] = now
        return _principal(stored, now)

    async def write_uses(self) -> None:
        """For ever. What a crash loses is ten seconds of `last_used_at`."""
        while True:
            await self._clock.sleep(USES_WRITTEN_EVERY_S)
            with contextlib.suppress(ServiceUnavailable):  # the database is away, and its own log says so
                await self.write_uses_now()

    async def write_uses_now(self) -> None:
        used_at, self._used_at = self._used_at, {}
        if not used_at:
            return
        try:
            async with self._database.transaction() as tx:
                await ApiKeyStore(tx).note_uses(used_at)
        except BaseException:
            self._used_at = used_at | self._used_at  # written next time
            raise


def _principal(stored: StoredApiKey, now: datetime) -> Principal:
    account, api_key = stored.account, stored.api_key
    return Principal(
        user_id=account.user.id,
        role=account.role.name,
        permissions=account.role.permissions,
        limits=account.role.limits,
        family="",
        expires_at=api_key.expires_at or NEVER,
        issued_at=max(now, account.valid_from or now),
        key_id=api_key.id,
        scopes=api_key.scopes,
        models=api_key.models,
    )


def _checked_scopes(scopes: tuple[Scope, ...]) -> tuple[Scope, ...]:
    if not scopes:
        raise wrong("scopes", "names no scope; leave it out for openai")
    return tuple(scope for scope in _SCOPES if scope in scopes)


def _checked_models(models: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if models is None:
        return None
    if not 1 <= len(models) <= _MOST_MODELS:
        raise wrong("models", f"needs 1 to {_MOST_MODELS} names; leave it out for all models")
    return tuple(dict.fromkeys(checked_text(model, "models", longest=200) for model in models))


def _checked_budget(budget_usd: Decimal | None) -> Decimal | None:
    if budget_usd is not None and not (budget_usd.is_finite() and 0 < budget_usd <= _HIGHEST_BUDGET_USD):
        raise wrong("budget", f"must be more than 0 and at most {_HIGHEST_BUDGET_USD}")
    return budget_usd


def _checked_expiry(expires_at: datetime | None, now: datetime) -> datetime | None:
    if expires_at is None:
        return None
    if expires_at.tzinfo is None:
        raise wrong("expiresAt", "needs a time zone, such as Z")
    if expires_at <= now:
        raise wrong("expiresAt", "is in the past")
    return expires_at.astimezone(UTC)
