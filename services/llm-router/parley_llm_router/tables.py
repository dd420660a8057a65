"""The schema `llm_router`: model configs of users, with their keys sealed to the row. System configs live in the settings."""

from datetime import datetime

from sqlalchemy import Column, DateTime, Index, Integer, MetaData, text
from sqlmodel import Field, SQLModel

METADATA = MetaData(
    schema="llm_router",
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    },
)


class Table(SQLModel):
    metadata = METADATA


class ModelConfigRow(Table, table=True):
    """`key_fingerprint` is an HMAC: equal credentials that come with many requests are one hidden row."""

    __tablename__ = "model_configs"
    __table_args__ = (
        Index(
            "uq_model_configs_inline",
            *("owner_id", "provider", "base_url", "model", "key_fingerprint", "protocol", "auth"),
            unique=True,
            postgresql_where=text("is_hidden"),
        ),
        Index("ix_model_configs_owner_id", "owner_id"),
    )

    id: str = Field(primary_key=True, max_length=26)
    owner_id: int = Field(sa_column=Column(Integer, nullable=False))
    name: str
    provider: str
    protocol: str
    auth: str
    base_url: str
    model: str
    sealed_key: str | None = None
    key_hint: str | None = None
    key_fingerprint: bytes
    is_hidden: bool
    created_at: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False))
