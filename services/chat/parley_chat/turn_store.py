"""Every SQL statement about turns and the outbox. Instants are the caller's, so that a test can hold the clock."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import Select, case, delete, exists, func, literal, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlmodel import col

from parley_chat.store import OPEN, answer_of
from parley_chat.tables import MessageRow, OutboxRow, TurnRequest, TurnRow
from parley_contracts.parts import FinishReason
from parley_contracts.prompts import PromptMessage
from parley_contracts.turns import Generate, StartTurn, Turn, TurnResult, TurnStatus
from parley_runtime.database import Transaction

KEY_LIFE = timedelta(hours=24)
_IS_OPEN = col(TurnRow.status).in_(OPEN)


class OpenTurn(msgspec.Struct, frozen=True, kw_only=True):
    """A turn that has not ended, as those see it who must bring it to its end."""

    id: str
    user_id: int
    session_id: str
    user_message_id: str
    message_id: str
    status: TurnStatus
    attempt: int
    model: str
    provider: str
    request: TurnRequest
    dispatch: int
    stop_requested_at: datetime | None
    suspicion: str | None
    suspected_at: datetime | None
    accepted_at: datetime
    deadline_at: datetime
    is_unsent: bool = False

    def command(self, prompt: tuple[PromptMessage, ...] = ()) -> Generate:
        """The command of this turn; without a prompt it is enough for stating the result."""
        return Generate(
            turn_id=self.id,
            user_id=self.user_id,
            session_id=self.session_id,
            user_message_id=self.user_message_id,
            message_id=self.message_id,
            prompt=prompt,
            model_config_id=self.request.model_config_id,
            model=self.model,
            provider=self.provider,
            params=self.request.params,
            max_output_tokens=self.request.max_output_tokens,
            is_budget_limited=self.request.is_budget_limited,
            accepted_at=self.accepted_at,
            deadline_at=self.deadline_at,
            dispatch=self.dispatch,
            store=True,
            restart_after_text=True,
        )


class KnownTurn(msgspec.Struct, frozen=True):
    """A turn that was asked for before, with what it was asked by."""

    turn: Turn
    user_id: int
    fingerprint: str
    body_hash: str


class TurnStore:
    def __init__(self, tx: Transaction) -> None:
        self._session = tx.session

    # --- asking -----------------------------------------------------------------------------------------------------

    async def find(self, turn_id: str) -> KnownTurn | None:
        return await self._known(_turns().where(col(TurnRow.id) == turn_id))

    async def find_by_key(self, user_id: int, request_hash: str, *, since: datetime) -> KnownTurn | None:
        """The turn that holds this Idempotency-Key: it runs, or ended well after `since`."""
        holds_key = (col(TurnRow.user_id) == user_id) & (col(TurnRow.request_hash) == request_hash)
        return await self._known(_turns().where(holds_key, col(TurnRow.accepted_at) > since))

    async def running_in(self, session_id: str) -> str | None:
        statement = select(col(TurnRow.id)).where(col(TurnRow.session_id) == session_id, _IS_OPEN)
        return (await self._session.execute(statement)).scalar_one_or_none()

    async def free_old_key(self, user_id: int, request_hash: str, *, until: datetime) -> None:
        holds_key = (col(TurnRow.user_id) == user_id) & (col(TurnRow.request_hash) == request_hash)
        statement = update(TurnRow).where(holds_key, col(TurnRow.accepted_at) <= until)
        await self._session.execute(statement.values(request_hash=None))

    async def add(
        self, command: StartTurn, planned: Generate, request: TurnRequest, *, fingerprint: str, look_at: datetime
    ) -> Turn | None:
        """None: the id is taken, the key is, or the session has a running turn; whichever won has committed by now."""
        statement = (
            upsert(TurnRow)
            .values(
                id=command.turn_id,
                user_id=command.user_id,
                session_id=command.session_id,
                user_message_id=command.user_message_id,
                message_id=command.message_id,
                status=TurnStatus.QUEUED.value,
                attempt=0,
                model=planned.model,
                provider=planned.provider,
                dialect=command.dialect,
                request=request,
                fingerprint=fingerprint,
                request_hash=command.request_hash,
                body_hash=command.body_hash,
                dispatch=0,
                look_at=look_at,
                accepted_at=planned.accepted_at,
                deadline_at=planned.deadline_at,
            )
            .on_conflict_do_nothing()
            .returning(TurnRow)
        )
        row = (await self._session.execute(statement)).scalar_one_or_none()
        return None if row is None else _turn(row, None)

    async def _known(self, statement: Select[TurnRow, MessageRow]) -> KnownTurn | None:
        row = (await self._session.execute(statement)).one_or_none()
        if row is None:
            return None
        return KnownTurn(_turn(*row), row[0].user_id, row[0].fingerprint, row[0].body_hash)

    # --- reading ----------------------------------------------------------------------------------------------------

    async def get(self, user_id: int, turn_id: str) -> Turn | None:
        row = (
            await self._session.execute(_turns().where(col(TurnRow.id) == turn_id, col(TurnRow.user_id) == user_id))
        ).one_or_none()
        return None if row is None else _turn(*row)

    async def status(self, turn_id: str) -> TurnStatus | None:
        statement = select(col(TurnRow.status)).where(col(TurnRow.id) == turn_id)
        status = (await self._session.execute(statement)).scalar_one_or_none()
        return None if status is None else TurnStatus(status)

    async def get_open(self, turn_id: str) -> OpenTurn | None:
        statement = select(TurnRow, _is_unsent()).where(col(TurnRow.id) == turn_id, _IS_OPEN)
        row = (await self._session.execute(statement)).one_or_none()
        return None if row is None else _open(row[0], is_unsent=row[1])

    # --- ending -----------------------------------------------------------------------------------------------------

    async def request_stop(self, turn_id: str, now: datetime, *, look_at: datetime) -> OpenTurn | None:
        """None: it has ended."""
        stopped = await self._request_stops(col(TurnRow.id) == turn_id, now, look_at)
        return stopped[0] if stopped else None

    async def request_stops(self, session_ids: Sequence[str], now: datetime, *, look_at: datetime) -> tuple[OpenTurn, ...]:
        return await self._request_stops(col(TurnRow.session_id).in_(session_ids), now, look_at)

    async def request_stops_of(self, user_id: int, now: datetime, *, look_at: datetime) -> tuple[OpenTurn, ...]:
        return await self._request_stops(col(TurnRow.user_id) == user_id, now, look_at)

    async def _request_stops(self, which: Any, now: datetime, look_at: datetime) -> tuple[OpenTurn, ...]:
        statement = (
            update(TurnRow)
            .where(which, _IS_OPEN)
            .values(
                stop_requested_at=func.coalesce(col(TurnRow.stop_requested_at), now),
                look_at=func.least(col(TurnRow.look_at), look_at),
            )
            .returning(TurnRow)
        )
        return tuple(_open(row) for row in (await self._session.execute(statement)).scalars())

    async def finish(self, result: TurnResult) -> bool:
        """End a turn, once. False: it has ended before, or was never here. One that did not end well frees its key."""
        ended_well = result.status is TurnStatus.DONE
        statement = (
            update(TurnRow)
            .where(col(TurnRow.id) == result.turn_id, col(TurnRow.user_id) == result.user_id, _IS_OPEN)
            .values(
                status=result.status.value,
                finish_reason=result.finish_reason.value,
                attempt=result.attempt,
                usage=result.usage,
                error=result.error,
                ended_at=result.ended_at,
                request_hash=col(TurnRow.request_hash) if ended_well else None,
            )
            .returning(col(TurnRow.id))
        )
        return (await self._session.execute(statement)).first() is not None

    async def forget(self, turn_id: str) -> None:
        await self._session.execute(delete(TurnRow).where(col(TurnRow.id) == turn_id))

    # --- the sweeper's ----------------------------------------------------------------------------------------------

    async def take_due(self, now: datetime, *, lease: timedelta, soon: timedelta, limit: int) -> tuple[OpenTurn, ...]:
        """Turns to look at; no other replica looks at them for `lease`, or until their deadline if that comes first."""
        due = (
            select(col(TurnRow.id))
            .where(_IS_OPEN, col(TurnRow.look_at) <= now)
            .order_by(col(TurnRow.look_at))
            .limit(limit)
            .with_for_update(skip_locked=True)
            .cte("due")
        )
        until_deadline = func.greatest(col(TurnRow.deadline_at), literal(now + soon))
        statement = (
            update(TurnRow)
            .where(col(TurnRow.id).in_(select(due.c.id)))
            .values(look_at=func.least(literal(now + lease), until_deadline))
            .returning(TurnRow, _is_unsent())
        )
        return tuple(_open(row, is_unsent=unsent) for row, unsent in (await self._session.execute(statement)).all())

    async def note_attempt(self, turn_id: str, attempt: int) -> None:
        """A router was seen at work: nothing is suspected of the turn any more."""
        running = case((literal(attempt) > 0, TurnStatus.RUNNING.value), else_=col(TurnRow.status))
        statement = update(TurnRow).where(col(TurnRow.id) == turn_id, _IS_OPEN)
        await self._session.execute(statement.values(status=running, attempt=attempt, suspicion=None, suspected_at=None))

    async def suspect(self, turn_id: str, suspicion: str, now: datetime) -> None:
        statement = update(TurnRow).where(col(TurnRow.id) == turn_id, _IS_OPEN)
        await self._session.execute(statement.values(suspicion=suspicion, suspected_at=now))

    async def count_dispatch(self, turn_id: str) -> bool:
        """Another command may be sent for this turn. False: it has ended."""
        statement = (
            update(TurnRow)
            .where(col(TurnRow.id) == turn_id, _IS_OPEN)
            .values(dispatch=col(TurnRow.dispatch) + 1, suspicion=None, suspected_at=None)
            .returning(col(TurnRow.id))
        )
        return (await self._session.execute(statement)).first() is not None


class OutboxStore:
    def __init__(self, tx: Transaction) -> None:
        self._session = tx.session

    async def add(self, turn_id: str, *, due_at: datetime) -> None:
        """Harmless when it stands there already."""
        await self._session.execute(upsert(OutboxRow).values(turn_id=turn_id, due_at=due_at).on_conflict_do_nothing())

    async def take_due(self, now: datetime, *, lease: timedelta, limit: int) -> tuple[str, ...]:
        """Turns whose command to send; no other replica sends them for `lease`."""
        due = (
            select(col(OutboxRow.turn_id))
            .where(col(OutboxRow.due_at) <= now)
            .order_by(col(OutboxRow.due_at))
            .limit(limit)
            .with_for_update(skip_locked=True)
            .cte("due")
        )
        statement = update(OutboxRow).where(col(OutboxRow.turn_id).in_(select(due.c.turn_id)))
        rows = await self._session.execute(statement.values(due_at=now + lease).returning(col(OutboxRow.turn_id)))
        return tuple(rows.scalars())

    async def is_empty(self) -> bool:
        return not (await self._session.execute(select(exists(select(col(OutboxRow.turn_id)))))).scalar_one()

    async def mark_sent(self, turn_id: str) -> None:
        await self._session.execute(delete(OutboxRow).where(col(OutboxRow.turn_id) == turn_id))


def _turns() -> Select[TurnRow, MessageRow]:
    return select(TurnRow, MessageRow).outerjoin(MessageRow, col(MessageRow.id) == col(TurnRow.message_id))


def _is_unsent() -> Any:
    return exists(select(col(OutboxRow.turn_id)).where(col(OutboxRow.turn_id) == col(TurnRow.id))).label("is_unsent")


def _turn(row: TurnRow, message: MessageRow | None) -> Turn:
    status = TurnStatus(row.status)
    return Turn(
        turn_id=row.id,
        session_id=row.session_id,
        user_message_id=row.user_message_id,
        message_id=row.message_id,
        status=status,
        finish_reason=FinishReason(row.finish_reason) if row.finish_reason else None,
        attempt=row.attempt,
        model=row.model,
        provider=row.provider,
        answer=answer_of(message) if message is not None and status.is_terminal else None,
        usage=row.usage,
        error=row.error,
        dialect=row.dialect,
        created_at=row.accepted_at,
        ended_at=row.ended_at,
    )


def _open(row: TurnRow, *, is_unsent: bool = False) -> OpenTurn:
    return OpenTurn(
        id=row.id,
        user_id=row.user_id,
        session_id=row.session_id,
        user_message_id=row.user_message_id,
        message_id=row.message_id,
        status=TurnStatus(row.status),
        attempt=row.attempt,
        model=row.model,
        provider=row.provider,
        request=row.request,
        dispatch=row.dispatch,
        stop_requested_at=row.stop_requested_at,
        suspicion=row.suspicion,
        suspected_at=row.suspected_at,
        accepted_at=row.accepted_at,
        deadline_at=row.deadline_at,
        is_unsent=is_unsent,
    )
