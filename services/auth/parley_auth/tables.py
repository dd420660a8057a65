"""The schema `auth`: users and what proves them (hashes only), roles, settings, what was revoked, and who changed what."""

from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Column, DateTime, Identity, Integer, MetaData, Numeric
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field, SQLModel

METADATA = MetaData(
    schema="auth",
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    },
)


def _instant(*, nullable: bool = False) -> Column[datetime]:
    return Column(DateTime(timezone=True), nullable=nullable)


def _json(*, nullable: bool = False) -> Column[Any]:
    return Column(JSONB(none_as_null=True), nullable=nullable)


class Table(SQLModel):
    metadata = METADATA


class UserRow(Table, table=True):
    """`email` is stored in lower case, so that its uniqueness holds in any case.

    `tokens_valid_from`, a whole second: access tokens issued before it are refused; the next ones bear at least it.
    """

    __tablename__ = "users"

    id: int | None = Field(default=None, sa_column=Column(Integer, Identity(), primary_key=True))
    email: str = Field(unique=True, max_length=254)
    username: str = Field(max_length=50)
    role: str
    status: str = Field(default="active", sa_column_kwargs={"server_default": "active"})
    password_hash: str
    created_at: datetime = Field(sa_column=_instant())
    last_login_at: datetime | None = Field(default=None, sa_column=_instant(nullable=True))
    tokens_valid_from: datetime | None = Field(default=None, sa_column=_instant(nullable=True))


class RefreshTokenRow(Table, table=True):
    """`key_id` names the secret that computes the successor: it stays the same when another is put in front."""

    __tablename__ = "refresh_tokens"

    hash: bytes = Field(primary_key=True)
    family: str = Field(index=True)
    user_id: int = Field(foreign_key="auth.users.id", index=True, ondelete="CASCADE")
    key_id: str
    expires_at: datetime = Field(sa_column=_instant())
    rotated_at: datetime | None = Field(default=None, sa_column=_instant(nullable=True))
    revoked_at: datetime | None = Field(default=None, sa_column=_instant(nullable=True))


class BootstrapRow(Table, table=True):
    """One row at most. Whoever inserts it is the first account of the installation, also among 20 at once."""

    __tablename__ = "bootstrap"
    __table_args__ = (CheckConstraint("id = 1", name="only_one"),)

    id: int = Field(default=1, sa_column=Column(Integer, primary_key=True, autoincrement=False))
    claimed_at: datetime = Field(sa_column=_instant())


class ApiKeyRow(Table, table=True):
    """A deleted key stays as a row, so that its use can be told from nonsense."""

    __tablename__ = "api_keys"

    id: str = Field(primary_key=True)
    hash: bytes = Field(unique=True)
    user_id: int = Field(foreign_key="auth.users.id", index=True, ondelete="CASCADE")
    name: str
    prefix: str
    scopes: list[str] = Field(sa_column=_json())
    models: list[str] | None = Field(default=None, sa_column=_json(nullable=True))
    budget_usd: Decimal | None = Field(default=None, sa_column=Column(Numeric(), nullable=True))
    expires_at: datetime | None = Field(default=None, sa_column=_instant(nullable=True))
    last_used_at: datetime | None = Field(default=None, sa_column=_instant(nullable=True))
    created_at: datetime = Field(sa_column=_instant())
    revoked_at: datetime | None = Field(default=None, sa_column=_instant(nullable=True))


class RoleRow(Table, table=True):
    """Roles an administrator made, USER among them once it was changed; ADMIN never."""

    __tablename__ = "roles"

    name: str = Field(primary_key=True)
    permissions: list[str] = Field(sa_column=_json())
    limits: dict[str, Any] = Field(sa_column=_json())
    tokens_valid_from: datetime = Field(sa_column=_instant())


class SystemSettingsRow(Table, table=True):
    """One row at most; what it does not say has its default, so that settings can be added without a migration."""

    __tablename__ = "system_settings"
    __table_args__ = (CheckConstraint("id = 1", name="only_one"),)

    id: int = Field(default=1, sa_column=Column(Integer, primary_key=True, autoincrement=False))
    said: dict[str, Any] = Field(sa_column=_json())


class PersonalSettingsRow(Table, table=True):
    __tablename__ = "personal_settings"

    user_id: int = Field(foreign_key="auth.users.id", primary_key=True, ondelete="CASCADE")
    said: dict[str, Any] = Field(sa_column=_json())


class RevocationRow(Table, table=True):
    """An event that ended rights, as it was said, for gateways that missed it; kept while a token could still meet it."""

    __tablename__ = "revocations"

    id: int | None = Field(default=None, sa_column=Column(BigInteger, Identity(), primary_key=True))
    at: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False, index=True))
    kind: str
    said: dict[str, Any] = Field(sa_column=_json())


class DeletedUserRow(Table, table=True):
    """Whose data the other services must erase; said again for a week."""

    __tablename__ = "deleted_users"

    user_id: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    deleted_at: datetime = Field(sa_column=_instant())


class AuditRow(Table, table=True):
    """What an administrator did. `actor_id` None: the operator at the command line. No foreign key: it outlives users."""

    __tablename__ = "audit"

    id: int | None = Field(default=None, sa_column=Column(BigInteger, Identity(), primary_key=True))
    at: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False, index=True))
    actor_id: int | None = Field(default=None)
    act: str
    subject: str
    before: dict[str, Any] | None = Field(default=None, sa_column=_json(nullable=True))
    after: dict[str, Any] | None = Field(default=None, sa_column=_json(nullable=True))
    request_id: str | None = Field(default=None)
