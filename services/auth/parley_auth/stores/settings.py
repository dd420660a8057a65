"""Settings in the database: what was said; the rest has its default."""

from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlmodel import col

from parley_auth.tables import PersonalSettingsRow, SystemSettingsRow
from parley_contracts.settings import PersonalSettings, SystemSettings
from parley_runtime.database import Transaction


class SettingsStore:
    def __init__(self, tx: Transaction) -> None:
        self._session = tx.session

    async def system(self) -> SystemSettings:
        said = (await self._session.execute(select(col(SystemSettingsRow.said)))).scalar_one_or_none()
        return msgspec.convert(said or {}, SystemSettings)

    async def put_system(self, settings: SystemSettings) -> None:
        said = _said(settings)
        statement = upsert(SystemSettingsRow).values(id=1, said=said)
        changed = statement.on_conflict_do_update(index_elements=[col(SystemSettingsRow.id)], set_={"said": said})
        await self._session.execute(changed)

    async def personal(self, user_id: int) -> PersonalSettings:
        statement = select(col(PersonalSettingsRow.said)).where(col(PersonalSettingsRow.user_id) == user_id)
        said = (await self._session.execute(statement)).scalar_one_or_none()
        return msgspec.convert(said or {}, PersonalSettings)

    async def put_personal(self, user_id: int, settings: PersonalSettings) -> None:
        said = _said(settings)
        statement = upsert(PersonalSettingsRow).values(user_id=user_id, said=said)
        changed = statement.on_conflict_do_update(index_elements=[col(PersonalSettingsRow.user_id)], set_={"said": said})
        await self._session.execute(changed)


def _said(settings: msgspec.Struct) -> dict[str, Any]:
    said: dict[str, Any] = msgspec.to_builtins(settings)
    return said
