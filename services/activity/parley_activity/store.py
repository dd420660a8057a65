"""Every SQL statement activity sends."""

from collections.abc import Collection
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import ARRAY, DateTime, Integer, Select, delete, func, literal, or_, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlmodel import col

from parley_activity.tables import PresenceRow, SpeakerRow
from parley_contracts.activity import Presence, PresenceStatus
from parley_runtime.database import Transaction

_LARGEST_ID = 2**31 - 1
_COLUMNS = ["user_id", "status", "last_active_at"]


class ActivityStore:
    def __init__(self, tx: Transaction) -> None:
        self._session = tx.session

    # --- what is known ----------------------------------------------------------------------------------------------

    async def get_presence(self, user_id: int) -> Presence:
        row = await self._session.get(PresenceRow, user_id) if 0 < user_id <= _LARGEST_ID else None
        return _presence(row) if row else Presence(user_id=user_id, status="OFFLINE")

    async def list_online(self) -> tuple[Presence, ...]:
        rows = await self._session.scalars(select(PresenceRow).where(col(PresenceRow.status) != "OFFLINE"))
        return tuple(map(_presence, rows))

    async def online_users(self) -> frozenset[int]:
        rows = await self._session.scalars(select(col(PresenceRow.user_id)).where(col(PresenceRow.status) != "OFFLINE"))
        return frozenset(rows)

    # --- what changes -----------------------------------------------------------------------------------------------

    async def hold_speech(self, replica: str, *, now: datetime, until: datetime) -> bool:
        """Whether `replica` speaks until then: it does already, or nobody does any more.

        The row stays locked until COMMIT: while one replica writes what it says, no other can begin to.
        """
        statement = upsert(SpeakerRow).values(id=1, replica=replica, held_until=until)
        free = or_(col(SpeakerRow.replica) == replica, col(SpeakerRow.held_until) <= now)
        statement = statement.on_conflict_do_update(
            index_elements=[col(SpeakerRow.id)], set_={"replica": replica, "held_until": until}, where=free
        )
        return (await self._session.execute(statement.returning(col(SpeakerRow.id)))).first() is not None

    async def release_speech(self, replica: str, now: datetime) -> None:
        await self._session.execute(update(SpeakerRow).where(col(SpeakerRow.replica) == replica).values(held_until=now))

    async def mark_active(self, user_ids: Collection[int], now: datetime) -> frozenset[int]:
        """The users among them who were not."""
        statement = upsert(PresenceRow).from_select(_COLUMNS, _rows(user_ids, "ACTIVE", now))
        statement = statement.on_conflict_do_update(
            index_elements=[col(PresenceRow.user_id)],
            set_={"status": statement.excluded.status, "last_active_at": statement.excluded.last_active_at},
            where=col(PresenceRow.status) != statement.excluded.status,
        )
        return frozenset(await self._session.scalars(statement.returning(col(PresenceRow.user_id))))

    async def mark_offline(self, user_ids: Collection[int]) -> frozenset[int]:
        """The users among them who were not."""
        statement = (
            update(PresenceRow)
            .where(
                col(PresenceRow.user_id) == func.any(literal(list(user_ids), ARRAY(Integer))),
                col(PresenceRow.status) != "OFFLINE",
            )
            .values(status="OFFLINE")
            .returning(col(PresenceRow.user_id))
        )
        return frozenset(await self._session.scalars(statement))

    async def note_active(self, user_ids: Collection[int], now: datetime) -> None:
        """They were seen until now, whatever their status."""
        statement = upsert(PresenceRow).from_select(_COLUMNS, _rows(user_ids, "OFFLINE", now))
        statement = statement.on_conflict_do_update(
            index_elements=[col(PresenceRow.user_id)], set_={"last_active_at": statement.excluded.last_active_at}
        )
        await self._session.execute(statement)

    async def delete(self, user_id: int) -> bool:
        """Whether the user was online, as far as anybody was told."""
        statement = delete(PresenceRow).where(col(PresenceRow.user_id) == user_id)
        status = (await self._session.execute(statement.returning(col(PresenceRow.status)))).scalar_one_or_none()
        return status not in {None, "OFFLINE"}


def _rows(user_ids: Collection[int], status: PresenceStatus, now: datetime) -> Select[Any]:
    """One row a user, as one array: thousands of users are one parameter."""
    each = func.unnest(literal(list(user_ids), ARRAY(Integer))).column_valued("each")
    return select(each, literal(status), literal(now, DateTime(timezone=True)))


def _presence(row: PresenceRow) -> Presence:
    status = msgspec.convert(row.status, PresenceStatus)
    return Presence(user_id=row.user_id, status=status, last_active_at=row.last_active_at)
