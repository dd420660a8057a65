"""Every SQL statement the llm-router sends."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, cast

import msgspec
from sqlalchemy import delete, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import col

from parley_contracts.model_configs import Credential, ModelConfig, Protocol
from parley_llm_router.tables import ModelConfigRow
from parley_runtime.database import Transaction


class StoredConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A model config with its key as it lies in the database."""

    config: ModelConfig
    sealed_key: str | None = None


class ModelConfigStore:
    def __init__(self, tx: Transaction) -> None:
        self._session = tx.session

    async def get(self, config_id: str) -> StoredConfig | None:
        rows = await self._session.execute(select(ModelConfigRow).where(col(ModelConfigRow.id) == config_id))
        row = rows.scalar_one_or_none()
        return _stored(row) if row else None

    async def list_visible(self, owner_id: int) -> tuple[ModelConfig, ...]:
        """The user's own, in the order of their names."""
        return await self._visible(owner_id)

    async def called(self, owner_id: int, name: str) -> tuple[ModelConfig, ...]:
        """The user's own of this name, or for a model of this name; never hidden ones, which nobody named."""
        return await self._visible(owner_id, or_(col(ModelConfigRow.name) == name, col(ModelConfigRow.model) == name))

    async def add(self, stored: StoredConfig, *, fingerprint: bytes, now: datetime) -> bool:
        """False: equal credentials are kept already, see `equal_to`."""
        config = stored.config
        statement = (
            insert(ModelConfigRow)
            .values(
                id=config.id,
                owner_id=config.owner_id,
                name=config.name,
                provider=config.provider,
                protocol=config.protocol,
                auth=config.auth,
                base_url=config.base_url,
                model=config.model,
                sealed_key=stored.sealed_key,
                key_hint=config.key_hint,
                key_fingerprint=fingerprint,
                is_hidden=config.is_hidden,
                created_at=now,
            )
            .on_conflict_do_nothing()
            .returning(col(ModelConfigRow.id))
        )
        return (await self._session.execute(statement)).first() is not None

    async def equal_to(self, config: ModelConfig, *, fingerprint: bytes) -> ModelConfig | None:
        """The hidden config that holds the same credentials of the same user."""
        statement = select(ModelConfigRow).where(
            col(ModelConfigRow.is_hidden),
            col(ModelConfigRow.owner_id) == config.owner_id,
            col(ModelConfigRow.provider) == config.provider,
            col(ModelConfigRow.base_url) == config.base_url,
            col(ModelConfigRow.model) == config.model,
            col(ModelConfigRow.key_fingerprint) == fingerprint,
            col(ModelConfigRow.protocol) == config.protocol,
            col(ModelConfigRow.auth) == config.auth,
        )
        row = (await self._session.execute(statement)).scalar_one_or_none()
        return _stored(row).config if row else None

    async def delete_all(self, owner_id: int) -> tuple[str, ...]:
        """The ids of a user's configs, hidden ones too, which are gone."""
        statement = delete(ModelConfigRow).where(col(ModelConfigRow.owner_id) == owner_id)
        return tuple((await self._session.execute(statement.returning(col(ModelConfigRow.id)))).scalars())

    async def _visible(self, owner_id: int, *conditions: Any) -> tuple[ModelConfig, ...]:
        statement = (
            select(ModelConfigRow)
            .where(col(ModelConfigRow.owner_id) == owner_id, ~col(ModelConfigRow.is_hidden), *conditions)
            .order_by(col(ModelConfigRow.name), col(ModelConfigRow.id))
        )
        rows: Sequence[ModelConfigRow] = (await self._session.execute(statement)).scalars().all()
        return tuple(_stored(row).config for row in rows)


def _stored(row: ModelConfigRow) -> StoredConfig:
    config = ModelConfig(
        id=row.id,
        name=row.name,
        provider=row.provider,
        protocol=cast("Protocol", row.protocol),
        auth=cast("Credential", row.auth),
        base_url=row.base_url,
        model=row.model,
        key_hint=row.key_hint,
        owner_id=row.owner_id,
        is_hidden=row.is_hidden,
    )
    return StoredConfig(config=config, sealed_key=row.sealed_key)
