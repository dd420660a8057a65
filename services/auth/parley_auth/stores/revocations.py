"""What ended rights, kept as it was said: gateways that missed an event ask for it."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, TypeAlias, TypeVar

import msgspec
from sqlalchemy import Row, delete, insert, select
from sqlmodel import col

from parley_auth.tables import RevocationRow
from parley_contracts.accounts import ApiKeyRevoked, FamilyRevoked, Revocations, RightsChanged
from parley_runtime.database import Transaction

Revocation: TypeAlias = FamilyRevoked | RightsChanged | ApiKeyRevoked
K = TypeVar("K", FamilyRevoked, RightsChanged, ApiKeyRevoked)


class RevocationStore:
    def __init__(self, tx: Transaction) -> None:
        self._tx = tx

    async def say(self, revocation: Revocation, now: datetime) -> None:
        """Keep it in this transaction, and announce it after the COMMIT."""
        await self._tx.session.execute(
            insert(RevocationRow).values(at=now, kind=type(revocation).__name__, said=msgspec.to_builtins(revocation))
        )
        self._tx.announce(revocation)

    async def since(self, instant: datetime, *, as_of: datetime) -> Revocations:
        statement = select(col(RevocationRow.kind), col(RevocationRow.said)).where(col(RevocationRow.at) >= instant)
        rows = (await self._tx.session.execute(statement.order_by(col(RevocationRow.id)))).all()
        return Revocations(
            as_of=as_of,
            families=_those(rows, FamilyRevoked),
            rights=_those(rows, RightsChanged),
            api_keys=_those(rows, ApiKeyRevoked),
        )

    async def purge(self, before: datetime) -> None:
        await self._tx.session.execute(delete(RevocationRow).where(col(RevocationRow.at) < before))


def _those(rows: Iterable[Row[Any]], kind: type[K]) -> tuple[K, ...]:
    return tuple(msgspec.convert(row.said, kind) for row in rows if row.kind == kind.__name__)
