"""Roles in the database: those an administrator made or changed. What is not stored is built in."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlmodel import col

from parley_auth.roles import BUILT_IN
from parley_auth.tables import RoleRow
from parley_contracts.roles import Limits, Role
from parley_runtime.database import Transaction


class RoleStore:
    def __init__(self, tx: Transaction) -> None:
        self._session = tx.session

    async def find_role(self, name: str) -> Role | None:
        """None: neither built in nor made."""
        statement = select(col(RoleRow.permissions), col(RoleRow.limits)).where(col(RoleRow.name) == name)
        row = (await self._session.execute(statement)).one_or_none()
        return role_of(name, row.permissions, row.limits) if row else BUILT_IN.get(name)

    async def list_roles(self) -> tuple[Role, ...]:
        rows = await self._session.execute(select(col(RoleRow.name), col(RoleRow.permissions), col(RoleRow.limits)))
        stored = {row.name: role_of(row.name, row.permissions, row.limits) for row in rows}
        made = [stored[name] for name in sorted(set(stored) - set(BUILT_IN))]
        return (*(stored.get(name, role) for name, role in BUILT_IN.items()), *made)

    async def put_role(self, role: Role, valid_from: datetime) -> datetime:
        """Make or replace it; returns from when on tokens say so. Two changes never give the same instant."""
        values = {"permissions": list(role.permissions), "limits": msgspec.to_builtins(role.limits)}
        later = func.greatest(col(RoleRow.tokens_valid_from) + timedelta(seconds=1), valid_from)
        statement = (
            upsert(RoleRow)
            .values(name=role.name, tokens_valid_from=valid_from, **values)
            .on_conflict_do_update(index_elements=[col(RoleRow.name)], set_={**values, "tokens_valid_from": later})
            .returning(col(RoleRow.tokens_valid_from))
        )
        put: datetime = (await self._session.execute(statement)).scalar_one()
        return put


def role_of(name: str, permissions: Sequence[str], limits: dict[str, Any]) -> Role:
    return Role(
        name=name,
        permissions=tuple(permissions),
        limits=msgspec.convert(limits, Limits),
        is_built_in=name in BUILT_IN,
    )
