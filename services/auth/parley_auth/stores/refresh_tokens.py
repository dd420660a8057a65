"""Refresh tokens in the database: hashes only, each used up once, each of a family that ends as a whole."""

from datetime import datetime

import msgspec
from sqlalchemy import ColumnElement, delete, insert, select, update
from sqlmodel import col

from parley_auth.stores.users import ACCOUNT, ROLE_OF_USER, Account, account_of
from parley_auth.tables import RefreshTokenRow, RoleRow, UserRow
from parley_runtime.database import Transaction


class StoredRefreshToken(msgspec.Struct, frozen=True, kw_only=True):
    account: Account
    family: str
    key_id: str
    expires_at: datetime
    rotated_at: datetime | None
    revoked_at: datetime | None


class RefreshTokenStore:
    def __init__(self, tx: Transaction) -> None:
        self._session = tx.session

    async def add(self, token_hash: bytes, *, user_id: int, family: str, key_id: str, expires_at: datetime) -> None:
        await self._session.execute(
            insert(RefreshTokenRow).values(
                hash=token_hash, family=family, user_id=user_id, key_id=key_id, expires_at=expires_at
            )
        )

    async def rotate(self, token_hash: bytes, now: datetime) -> bool:
        """Whether this transaction is the one that uses the token up."""
        statement = (
            update(RefreshTokenRow)
            .where(
                col(RefreshTokenRow.hash) == token_hash,
                col(RefreshTokenRow.rotated_at).is_(None),
                col(RefreshTokenRow.revoked_at).is_(None),
                col(RefreshTokenRow.expires_at) > now,
            )
            .values(rotated_at=now)
            .returning(col(RefreshTokenRow.hash))
        )
        return (await self._session.execute(statement)).first() is not None

    async def find(self, token_hash: bytes) -> StoredRefreshToken | None:
        statement = (
            select(
                col(RefreshTokenRow.family),
                col(RefreshTokenRow.key_id),
                col(RefreshTokenRow.expires_at),
                col(RefreshTokenRow.rotated_at),
                col(RefreshTokenRow.revoked_at),
                *ACCOUNT,
            )
            .join(UserRow, col(UserRow.id) == col(RefreshTokenRow.user_id))
            .outerjoin(RoleRow, ROLE_OF_USER)
            .where(col(RefreshTokenRow.hash) == token_hash)
        )
        row = (await self._session.execute(statement)).one_or_none()
        if row is None:
            return None
        return StoredRefreshToken(
            account=account_of(row),
            family=row.family,
            key_id=row.key_id,
            expires_at=row.expires_at,
            rotated_at=row.rotated_at,
            revoked_at=row.revoked_at,
        )

    async def is_alive(self, family: str, user_id: int, now: datetime) -> bool:
        """Whether this login of this user has not ended."""
        statement = select(col(RefreshTokenRow.hash)).where(
            col(RefreshTokenRow.family) == family,
            col(RefreshTokenRow.user_id) == user_id,
            col(RefreshTokenRow.revoked_at).is_(None),
            col(RefreshTokenRow.expires_at) > now,
        )
        return (await self._session.execute(statement.limit(1))).first() is not None

    async def revoke_family(self, family: str, now: datetime) -> bool:
        """No token of this login opens anything any more. True: one did until now."""
        return await self._revoke(col(RefreshTokenRow.family) == family, now)

    async def revoke_all(self, user_id: int, now: datetime) -> bool:
        """Nor of any login of this user."""
        return await self._revoke(col(RefreshTokenRow.user_id) == user_id, now)

    async def _revoke(self, condition: ColumnElement[bool], now: datetime) -> bool:
        """Repeated until nothing is left.

        A rotation that was under way has added a row which the first UPDATE, having waited for it, could not see; it
        holds its parent's row, so the UPDATE that finds nothing comes after the last.
        """
        statement = (
            update(RefreshTokenRow)
            .where(condition, col(RefreshTokenRow.revoked_at).is_(None))
            .values(revoked_at=now)
            .returning(col(RefreshTokenRow.hash))
        )
        has_revoked = False
        while (await self._session.execute(statement)).first() is not None:
            has_revoked = True
        return has_revoked

    async def purge(self, now: datetime) -> int:
        """Expired ones open nothing and tell nothing any more; returns how many went."""
        gone = await self._session.execute(
            delete(RefreshTokenRow).where(col(RefreshTokenRow.expires_at) <= now).returning(col(RefreshTokenRow.hash))
        )
        return len(gone.all())
