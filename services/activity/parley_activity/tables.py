"""The schema `activity`: what was last said of each user, and which replica says it."""

from datetime import datetime

from sqlalchemy import CheckConstraint, Column, DateTime, Index, Integer, MetaData, text
from sqlmodel import Field, SQLModel

METADATA = MetaData(
    schema="activity",
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    },
)


def _instant() -> Column[datetime]:
    return Column(DateTime(timezone=True), nullable=False)


class Table(SQLModel):
    metadata = METADATA


class PresenceRow(Table, table=True):
    """`last_active_at` is written in batches: for somebody online it is up to half a minute old."""

    __tablename__ = "presence"
    __table_args__ = (Index("ix_presence_online", "user_id", postgresql_where=text("status <> 'OFFLINE'")),)

    user_id: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    status: str
    last_active_at: datetime = Field(sa_column=_instant())


class SpeakerRow(Table, table=True):
    """One row at most: the replica that writes presence and tells of changes, for as long as it renews the lease."""

    __tablename__ = "speaker"
    __table_args__ = (CheckConstraint("id = 1", name="only_one"),)

    id: int = Field(default=1, sa_column=Column(Integer, primary_key=True, autoincrement=False))
    replica: str
    held_until: datetime = Field(sa_column=_instant())
