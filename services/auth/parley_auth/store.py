"""Every SQL statement auth sends. Instants are the caller's, so that a test can hold the clock."""

from collections.abc import Sequence
from datetime import datetime

import msgspec
from sqlalchemy import insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlmodel import col

from parley_auth.tables import BootstrapRow, RefreshTokenRow, UserRow
from parley_auth.tokens import Login
from parley_contracts.accounts import User
from parley_runtime.database import Transaction

_LARGEST_ID = 2**31 - 1

_USER = (
    col(UserRow.id),
    col(UserRow.username),
    col(UserRow.email),
    col(UserRow.role),
    col(UserRow.created_at),
)


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """What a login is checked against."""

    user_id: int
    role: str
    password_hash: str


class StoredRefreshToken(msgspec.Struct, frozen=True, kw_only=True):
    login: Login
    key_id: str
    rotated_at: datetime | None
    revoked_at: datetime | None


class AuthStore:
    def __init__(self, tx: Transaction) -> None:
        self._session = tx.session

    # --- users ------------------------------------------------------------------------------------------------------

    async def claim_bootstrap(self, now: datetime) -> bool:
        """True once in the life of an installation. A second claim waits until the first one's transaction is decided."""
        statement = upsert(BootstrapRow).values(id=1, claimed_at=now).on_conflict_do_nothing().returning(col(BootstrapRow.id))
        return (await self._session.execute(statement)).first() is not None

    async def add_user(self, *, email: str, username: str, role: str, password_hash: str, now: datetime) -> int | None:
        """The new user's id; None: the e-mail is taken."""
        statement = (
            upsert(UserRow)
            .values(email=email, username=username, role=role, password_hash=password_hash, created_at=now, last_login_at=now)
            .on_conflict_do_nothing(index_elements=[col(UserRow.email)])
            .returning(col(UserRow.id))
        )
        return (await self._session.execute(statement)).scalar_one_or_none()

    async def find_account(self, email: str) -> Account | None:
        statement = select(col(UserRow.id), col(UserRow.role), col(UserRow.password_hash)).where(col(UserRow.email) == email)
        row = (await self._session.execute(statement)).one_or_none()
        return Account(user_id=row.id, role=row.role, password_hash=row.password_hash) if row else None

    async def note_login(self, user_id: int, now: datetime) -> None:
        await self._session.execute(update(UserRow).where(col(UserRow.id) == user_id).values(last_login_at=now))

    async def replace_password_hash(self, user_id: int, old: str, new: str) -> None:
        """Only while `old` stands: a password changed meanwhile must win."""
        same = (col(UserRow.id) == user_id) & (col(UserRow.password_hash) == old)
        await self._session.execute(update(UserRow).where(same).values(password_hash=new))

    async def get_users(self, user_ids: Sequence[int]) -> tuple[User, ...]:
        possible = [user_id for user_id in user_ids if 0 < user_id <= _LARGEST_ID]
        rows = await self._session.execute(select(*_USER).where(col(UserRow.id).in_(possible)))
        return tuple(
            User(id=row.id, username=row.username, email=row.email, role=row.role, created_at=row.created_at) for row in rows
        )

    # --- refresh tokens ---------------------------------------------------------------------------------------------

    async def add_refresh_token(self, token_hash: bytes, login: Login, *, key_id: str, expires_at: datetime) -> None:
        await self._session.execute(
            insert(RefreshTokenRow).values(
                hash=token_hash, family=login.family, user_id=login.user_id, key_id=key_id, expires_at=expires_at
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

    async def find_refresh_token(self, token_hash: bytes) -> StoredRefreshToken | None:
        statement = (
            select(
                col(RefreshTokenRow.user_id),
                col(RefreshTokenRow.family),
                col(RefreshTokenRow.key_id),
                col(RefreshTokenRow.rotated_at),
                col(RefreshTokenRow.revoked_at),
                col(UserRow.role),
            )
            .join(UserRow, col(UserRow.id) == col(RefreshTokenRow.user_id))
            .where(col(RefreshTokenRow.hash) == token_hash)
        )
        row = (await self._session.execute(statement)).one_or_none()
        if row is None:
            return None
        return StoredRefreshToken(
            login=Login(user_id=row.user_id, role=row.role, family=row.family),
            key_id=row.key_id,
            rotated_at=row.rotated_at,
            revoked_at=row.revoked_at,
        )

    async def revoke_family(self, family: str, now: datetime) -> None:
        """No token of this login opens anything any more.

        Repeated until nothing is left: a rotation that was under way has added a row which the first UPDATE, having
        waited for it, could not see; it holds its parent's row, so the UPDATE that finds nothing comes after the last.
        """
        statement = (
            update(RefreshTokenRow)
            .where(col(RefreshTokenRow.family) == family, col(RefreshTokenRow.revoked_at).is_(None))
            .values(revoked_at=now)
            .returning(col(RefreshTokenRow.hash))
        )
        while (await self._session.execute(statement)).first() is not None:
            pass
