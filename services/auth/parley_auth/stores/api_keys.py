"""API keys in the database: found by their hash, which is all that is kept of them."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Row, bindparam, func, insert, or_, select, update
from sqlmodel import col

from parley_auth.stores.users import ACCOUNT, ROLE_OF_USER, Account, account_of
from parley_auth.tables import ApiKeyRow, RoleRow, UserRow
from parley_contracts.api_keys import ApiKey
from parley_runtime.database import Transaction

_KEY: tuple[Any, ...] = (
    col(ApiKeyRow.id).label("key_id"),
    col(ApiKeyRow.user_id),
    col(ApiKeyRow.name),
    col(ApiKeyRow.prefix),
    col(ApiKeyRow.scopes),
    col(ApiKeyRow.models),
    col(ApiKeyRow.budget_usd),
    col(ApiKeyRow.expires_at),
    col(ApiKeyRow.last_used_at),
    col(ApiKeyRow.created_at).label("key_created_at"),
    col(ApiKeyRow.revoked_at),
)


class StoredApiKey(msgspec.Struct, frozen=True, kw_only=True):
    api_key: ApiKey
    account: Account
    revoked_at: datetime | None


class ApiKeyStore:
    def __init__(self, tx: Transaction) -> None:
        self._session = tx.session

    async def add(self, api_key: ApiKey, key_hash: bytes) -> None:
        await self._session.execute(
            insert(ApiKeyRow).values(
                id=api_key.id,
                hash=key_hash,
                user_id=api_key.user_id,
                name=api_key.name,
                prefix=api_key.prefix,
                scopes=list(api_key.scopes),
                models=None if api_key.models is None else list(api_key.models),
                budget_usd=api_key.budget_usd,
                expires_at=api_key.expires_at,
                created_at=api_key.created_at,
            )
        )

    async def count(self, user_id: int) -> int:
        statement = select(func.count()).select_from(ApiKeyRow)
        kept = statement.where(col(ApiKeyRow.user_id) == user_id, col(ApiKeyRow.revoked_at).is_(None))
        return int((await self._session.execute(kept)).scalar_one())

    async def list_keys(self, user_id: int) -> tuple[ApiKey, ...]:
        statement = (
            select(*_KEY)
            .where(col(ApiKeyRow.user_id) == user_id, col(ApiKeyRow.revoked_at).is_(None))
            .order_by(col(ApiKeyRow.created_at).desc(), col(ApiKeyRow.id).desc())
        )
        return tuple(map(_api_key, await self._session.execute(statement)))

    async def find(self, key_hash: bytes) -> StoredApiKey | None:
        statement = (
            select(*_KEY, *ACCOUNT)
            .join(UserRow, col(UserRow.id) == col(ApiKeyRow.user_id))
            .outerjoin(RoleRow, ROLE_OF_USER)
            .where(col(ApiKeyRow.hash) == key_hash)
        )
        row = (await self._session.execute(statement)).one_or_none()
        if row is None:
            return None
        return StoredApiKey(api_key=_api_key(row), account=account_of(row), revoked_at=row.revoked_at)

    async def revoke(self, key_id: str, user_id: int, now: datetime) -> bool:
        """False: there is no such key of this user, or not any more."""
        statement = (
            update(ApiKeyRow)
            .where(col(ApiKeyRow.id) == key_id, col(ApiKeyRow.user_id) == user_id, col(ApiKeyRow.revoked_at).is_(None))
            .values(revoked_at=now)
            .returning(col(ApiKeyRow.id))
        )
        return (await self._session.execute(statement)).first() is not None

    async def note_uses(self, used_at: Mapping[str, datetime]) -> None:
        """Never backwards: another replica may have written a later use."""
        connection = await self._session.connection()
        statement = (
            update(ApiKeyRow)
            .where(
                col(ApiKeyRow.id) == bindparam("key"),
                or_(col(ApiKeyRow.last_used_at).is_(None), col(ApiKeyRow.last_used_at) < bindparam("used_at")),
            )
            .values(last_used_at=bindparam("used_at"))
        )
        # In one order, so that two replicas cannot wait for each other.
        await connection.execute(statement, [{"key": key, "used_at": at} for key, at in sorted(used_at.items())])


def _api_key(row: Row[Any]) -> ApiKey:
    return ApiKey(
        id=row.key_id,
        user_id=row.user_id,
        name=row.name,
        prefix=row.prefix,
        scopes=tuple(row.scopes),
        models=None if row.models is None else tuple(row.models),
        budget_usd=row.budget_usd,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
        created_at=row.key_created_at,
    )
