"""The schema `auth`: users, their refresh tokens (hashes only), and the one row that decides the first account."""

from datetime import datetime

from sqlalchemy import CheckConstraint, Column, DateTime, Identity, Integer, MetaData
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


class Table(SQLModel):
    metadata = METADATA


class UserRow(Table, table=True):
    """`email` is stored in lower case, so that its uniqueness holds in any case."""

    __tablename__ = "users"

    id: int | None = Field(default=None, sa_column=Column(Integer, Identity(), primary_key=True))
    email: str = Field(unique=True, max_length=254)
    username: str = Field(max_length=50)
    role: str
    password_hash: str
    created_at: datetime = Field(sa_column=_instant())
    last_login_at: datetime = Field(sa_column=_instant())


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
