"""Users in the database: their rows, the first of them, and since when their tokens count.

Instants are the caller's, so that a test can hold the clock.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, cast

import msgspec
from sqlalchemy import ColumnElement, Row, delete, func, insert, or_, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import IntegrityError
from sqlmodel import col

from parley_auth.roles import ADMIN, role_named
from parley_auth.stores.roles import role_of
from parley_auth.tables import BootstrapRow, DeletedUserRow, RoleRow, UserRow
from parley_contracts.accounts import User
from parley_contracts.errors import EmailTaken
from parley_contracts.roles import Role
from parley_runtime.database import Transaction

_LARGEST_ID = 2**31 - 1
_ADMIN_ACTS = 0x61646D696E  # "admin"

_USER: tuple[Any, ...] = (
    col(UserRow.id),
    col(UserRow.username),
    col(UserRow.email),
    col(UserRow.role),
    col(UserRow.status),
    col(UserRow.created_at),
    col(UserRow.last_login_at),
)
ACCOUNT: tuple[Any, ...] = (
    *_USER,
    col(UserRow.password_hash),
    col(UserRow.tokens_valid_from),
    col(RoleRow.permissions),
    col(RoleRow.limits),
    col(RoleRow.tokens_valid_from).label("role_valid_from"),
)
ROLE_OF_USER = col(RoleRow.name) == col(UserRow.role)


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """A user with what a login is checked against, and what their role is now."""

    user: User
    role: Role
    password_hash: str
    valid_from: datetime | None

    @property
    def is_active(self) -> bool:
        return self.user.status == "active"


class UserStore:
    def __init__(self, tx: Transaction) -> None:
        self._session = tx.session

    async def one_admin_act_at_a_time(self) -> None:
        """Until the transaction ends. So 20 demotions at once leave an administrator, and no two wait for each other."""
        await self._session.execute(select(func.pg_advisory_xact_lock(_ADMIN_ACTS)))

    async def claim_bootstrap(self, now: datetime) -> bool:
        """True once in the life of an installation. A second claim waits until the first one's transaction is decided."""
        statement = upsert(BootstrapRow).values(id=1, claimed_at=now).on_conflict_do_nothing().returning(col(BootstrapRow.id))
        return (await self._session.execute(statement)).first() is not None

    async def has_begun(self) -> bool:
        """Whether the first account was made."""
        return (await self._session.execute(select(col(BootstrapRow.id)))).first() is not None

    # --- reading ----------------------------------------------------------------------------------------------------

    async def find_account(self, email: str) -> Account | None:
        return await self._account(col(UserRow.email) == email)

    async def find_account_by_id(self, user_id: int, *, for_change: bool = False) -> Account | None:
        """`for_change`: nobody else changes it until the transaction ends; what merely names the user goes on."""
        if not 0 < user_id <= _LARGEST_ID:
            return None
        return await self._account(col(UserRow.id) == user_id, for_change=for_change)

    async def _account(self, condition: ColumnElement[bool], *, for_change: bool = False) -> Account | None:
        statement = select(*ACCOUNT).outerjoin(RoleRow, ROLE_OF_USER).where(condition)
        if for_change:
            statement = statement.with_for_update(key_share=True, of=UserRow)
        row = (await self._session.execute(statement)).one_or_none()
        return account_of(row) if row else None

    async def get_users(self, user_ids: Sequence[int]) -> tuple[User, ...]:
        possible = [user_id for user_id in user_ids if 0 < user_id <= _LARGEST_ID]
        rows = await self._session.execute(select(*_USER).where(col(UserRow.id).in_(possible)))
        return tuple(map(user_of, rows))

    async def list_users(
        self, *, q: str | None, role: str | None, status: str | None, limit: int, offset: int
    ) -> tuple[tuple[User, ...], int]:
        """One page, newest first, and how many there are in all."""
        conditions: list[ColumnElement[bool]] = []
        if q:
            conditions.append(
                or_(col(UserRow.username).icontains(q, autoescape=True), col(UserRow.email).icontains(q, autoescape=True))
            )
        if role is not None:
            conditions.append(col(UserRow.role) == role)
        if status is not None:
            conditions.append(col(UserRow.status) == status)
        page = select(*_USER).where(*conditions).order_by(col(UserRow.id).desc()).limit(limit).offset(offset)
        rows = await self._session.execute(page)
        total = await self._session.execute(select(func.count()).select_from(UserRow).where(*conditions))
        return tuple(map(user_of, rows)), int(total.scalar_one())

    async def has_another_active_admin(self, user_id: int) -> bool:
        another = (col(UserRow.role) == ADMIN) & (col(UserRow.status) == "active") & (col(UserRow.id) != user_id)
        return (await self._session.execute(select(col(UserRow.id)).where(another).limit(1))).first() is not None

    # --- changing ---------------------------------------------------------------------------------------------------

    async def add_user(
        self,
        *,
        email: str,
        username: str,
        role: str,
        password_hash: str,
        now: datetime,
        last_login_at: datetime | None = None,
    ) -> Account | None:
        """The new account; None: the e-mail is taken."""
        statement = (
            upsert(UserRow)
            .values(
                email=email,
                username=username,
                role=role,
                password_hash=password_hash,
                created_at=now,
                last_login_at=last_login_at,
            )
            .on_conflict_do_nothing(index_elements=[col(UserRow.email)])
            .returning(col(UserRow.id))
        )
        user_id = (await self._session.execute(statement)).scalar_one_or_none()
        return None if user_id is None else await self.find_account_by_id(user_id)

    async def note_login(self, account: Account, new_hash: str | None, now: datetime) -> Account | None:
        """The account as it is now; None: password, status or the user changed since `account` was read."""
        same = (
            (col(UserRow.id) == account.user.id)
            & (col(UserRow.password_hash) == account.password_hash)
            & (col(UserRow.status) == "active")
        )
        values = {"last_login_at": now, "password_hash": new_hash or account.password_hash}
        noted = await self._session.execute(update(UserRow).where(same).values(values).returning(col(UserRow.id)))
        return None if noted.first() is None else await self.find_account_by_id(account.user.id)

    async def change_user(self, user_id: int, **values: str) -> None:
        """Raises EmailTaken. The transaction goes on all the same."""
        if not values:
            return
        try:
            async with self._session.begin_nested():
                await self._session.execute(update(UserRow).where(col(UserRow.id) == user_id).values(values))
        except IntegrityError as error:
            raise EmailTaken from error

    async def renew_tokens(self, user_id: int, now: datetime) -> datetime:
        """From the instant returned on, tokens are new ones; two changes never give the same."""
        later = func.greatest(col(UserRow.tokens_valid_from) + timedelta(seconds=1), next_second(now))  # NULL is no rival
        statement = (
            update(UserRow)
            .where(col(UserRow.id) == user_id)
            .values(tokens_valid_from=later)
            .returning(col(UserRow.tokens_valid_from))
        )
        renewed: Any = (await self._session.execute(statement)).scalar_one()
        return cast("datetime", renewed)

    async def delete_user(self, user_id: int, now: datetime) -> None:
        await self._session.execute(delete(UserRow).where(col(UserRow.id) == user_id))
        await self._session.execute(insert(DeletedUserRow).values(user_id=user_id, deleted_at=now))

    # --- whose data is to be erased ---------------------------------------------------------------------------------

    async def deleted_users(self) -> tuple[int, ...]:
        return tuple((await self._session.execute(select(col(DeletedUserRow.user_id)))).scalars())

    async def forget_deleted_users(self, before: datetime) -> None:
        await self._session.execute(delete(DeletedUserRow).where(col(DeletedUserRow.deleted_at) < before))


def next_second(instant: datetime) -> datetime:
    """Tokens count whole seconds: those issued until `instant` are all dated before this."""
    return instant.replace(microsecond=0) + timedelta(seconds=1)


def user_of(row: Row[Any]) -> User:
    return User(
        id=row.id,
        username=row.username,
        email=row.email,
        role=row.role,
        status=row.status,
        created_at=row.created_at,
        last_login_at=row.last_login_at,
    )


def account_of(row: Row[Any]) -> Account:
    stored = None if row.permissions is None else role_of(row.role, row.permissions, row.limits)
    starts = [instant for instant in (row.tokens_valid_from, row.role_valid_from) if instant is not None]
    return Account(
        user=user_of(row),
        role=role_named(row.role, stored),
        password_hash=row.password_hash,
        valid_from=max(starts, default=None),
    )
