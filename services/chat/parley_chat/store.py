"""Every SQL statement about sessions and their messages. Instants are the caller's, so that a test can hold the clock."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, cast

import msgspec
from sqlalchemy import ARRAY, Select, String, delete, func, insert, literal, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlmodel import col

from parley_chat.tables import MessageRow, SessionRow, TurnRow
from parley_chat.window import Said
from parley_contracts.parts import Answer, FinishReason
from parley_contracts.prompts import Params
from parley_contracts.sessions import ChatMessage, MessageRole, MessageStatus, RunningTurn, Session
from parley_contracts.turns import StartTurn, TurnResult, TurnStatus
from parley_runtime.database import Transaction

OPEN = (TurnStatus.QUEUED.value, TurnStatus.RUNNING.value)


def storable(text: str) -> str:
    """PostgreSQL holds no U+0000; models do say it, and an answer that cannot be stored would never end its turn."""
    return text.replace("\x00", "\ufffd")


class SessionFields(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller may set of a session. `share_token`: set while it is shared."""

    title: str | None
    system_prompt: str | None
    model_config_id: str | None
    params: Params
    share_token: str | None
    session_type: str | None
    document_id: str | None
    product_code: str | None

    def values(self) -> dict[str, Any]:
        fields = msgspec.structs.asdict(self)
        return {name: storable(value) if isinstance(value, str) else value for name, value in fields.items()}


class SessionStore:
    def __init__(self, tx: Transaction) -> None:
        self._session = tx.session

    async def add(self, session_id: str, user_id: int, fields: SessionFields, now: datetime) -> Session:
        values = {"id": session_id, "user_id": user_id, "created_at": now, "updated_at": now}
        statement = insert(SessionRow).values(**values, **fields.values()).returning(SessionRow)
        return _session((await self._session.execute(statement)).scalar_one(), None)

    async def find(self, user_id: int, session_id: str) -> Session | None:
        statement = _sessions().where(col(SessionRow.id) == session_id, col(SessionRow.user_id) == user_id)
        row = (await self._session.execute(statement)).one_or_none()
        return None if row is None else _session(*row)

    async def lock(self, user_id: int, session_id: str) -> Session | None:
        """The session, held until this transaction ends, so that turns of one session begin one after another."""
        mine = (col(SessionRow.id) == session_id) & (col(SessionRow.user_id) == user_id)
        row = (await self._session.execute(select(SessionRow).where(mine).with_for_update())).scalar_one_or_none()
        return None if row is None else _session(row, None)

    async def replace(self, session_id: str, fields: SessionFields, now: datetime) -> None:
        statement = update(SessionRow).where(col(SessionRow.id) == session_id)
        await self._session.execute(statement.values(**fields.values(), updated_at=now))

    async def touch(self, session_id: str, now: datetime) -> None:
        """A session's `updated_at` only grows."""
        statement = update(SessionRow).where(col(SessionRow.id) == session_id)
        await self._session.execute(statement.values(updated_at=func.greatest(col(SessionRow.updated_at), now)))

    async def page(self, user_id: int, *, search: str | None, limit: int, offset: int) -> tuple[tuple[Session, ...], int]:
        matches = [col(SessionRow.user_id) == user_id]
        if search:
            matches.append(col(SessionRow.title).icontains(storable(search), autoescape=True))
        newest = _sessions().where(*matches).order_by(col(SessionRow.updated_at).desc(), col(SessionRow.id).desc())
        rows = (await self._session.execute(newest.limit(limit).offset(offset))).all()
        total = await self._session.execute(select(func.count()).select_from(SessionRow).where(*matches))
        return tuple(_session(*row) for row in rows), total.scalar_one()

    async def find_shared(self, share_token: str) -> Session | None:
        statement = _sessions().where(col(SessionRow.share_token) == share_token)
        row = (await self._session.execute(statement)).one_or_none()
        return None if row is None else _session(*row)

    async def delete(self, user_id: int, session_ids: Sequence[str]) -> tuple[str, ...]:
        """The ids that were the caller's; their messages and ended turns go with them."""
        deleted = await self._delete(col(SessionRow.id).in_(session_ids), col(SessionRow.user_id) == user_id)
        return tuple(session_id for session_id in dict.fromkeys(session_ids) if session_id in deleted)

    async def delete_all(self, user_id: int) -> None:
        """All sessions of a user, with their messages and ended turns."""
        await self._delete(col(SessionRow.user_id) == user_id)

    async def _delete(self, *which: Any) -> set[str]:
        rows = await self._session.execute(delete(SessionRow).where(*which).returning(col(SessionRow.id)))
        deleted = set(rows.scalars())
        # In a statement of its own: a turn that ended until now is seen, one that ends later misses its message.
        theirs = col(TurnRow.session_id) == func.any(literal(list(deleted), ARRAY(String)))
        await self._session.execute(delete(TurnRow).where(theirs, col(TurnRow.status).not_in(OPEN)))
        return deleted


def _sessions() -> Select[SessionRow, TurnRow]:
    is_running = (col(TurnRow.session_id) == col(SessionRow.id)) & col(TurnRow.status).in_(OPEN)
    return select(SessionRow, TurnRow).outerjoin(TurnRow, is_running)


def _session(row: SessionRow, running: TurnRow | None) -> Session:
    turn = None
    if running is not None:
        turn = RunningTurn(turn_id=running.id, user_message_id=running.user_message_id, message_id=running.message_id)
    return Session(
        id=row.id,
        user_id=row.user_id,
        title=row.title,
        system_prompt=row.system_prompt,
        model_config_id=row.model_config_id,
        params=row.params,
        is_shareable=row.share_token is not None,
        share_token=row.share_token,
        session_type=row.session_type,
        document_id=row.document_id,
        product_code=row.product_code,
        running_turn=turn,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


class MessageStore:
    def __init__(self, tx: Transaction) -> None:
        self._session = tx.session

    async def last(self, session_id: str) -> tuple[str, datetime] | None:
        """Id and instant of a session's newest message."""
        newest = select(col(MessageRow.id), col(MessageRow.created_at)).where(col(MessageRow.session_id) == session_id)
        row = (await self._session.execute(_newest_first(newest).limit(1))).one_or_none()
        return None if row is None else (row.id, row.created_at)

    async def add_exchange(self, command: StartTurn, *, model: str, provider: str, at: datetime) -> bool:
        """A question, sent, and the place of its answer, a microsecond later. False: one of the ids is taken."""
        shared = {"session_id": command.session_id, "user_id": command.user_id, "turn_id": command.turn_id, "reasoning": ""}
        question = {
            **shared,
            "id": command.user_message_id,
            "role": "user",
            "text": storable(command.content),
            "status": MessageStatus.SENT.value,
            "model": None,
            "provider": None,
            "created_at": at,
            "updated_at": at,
        }
        answer = {
            **question,
            "id": command.message_id,
            "role": "assistant",
            "text": "",
            "status": MessageStatus.SENDING.value,
            "model": model,
            "provider": provider,
            "created_at": at + timedelta(microseconds=1),
        }
        statement = upsert(MessageRow).values([question, answer]).on_conflict_do_nothing().returning(col(MessageRow.id))
        return len((await self._session.execute(statement)).all()) == len((question, answer))

    async def finish(self, result: TurnResult, *, status: MessageStatus, model: str, provider: str, now: datetime) -> bool:
        """Store the answer. False: the message was deleted with its session."""
        tool_calls = result.answer.tool_calls
        statement = (
            update(MessageRow)
            .where(col(MessageRow.id) == result.message_id, col(MessageRow.turn_id) == result.turn_id)
            .values(
                text=storable(result.answer.text),
                reasoning=storable(result.answer.reasoning),
                tool_calls=tool_calls or None,
                status=status.value,
                usage=result.usage,
                finish_reason=result.finish_reason.value,
                model=model,
                provider=provider,
                response_time_ms=max(0, round((result.ended_at - result.accepted_at).total_seconds() * 1000)),
                updated_at=now,
            )
            .returning(col(MessageRow.id))
        )
        return (await self._session.execute(statement)).first() is not None

    async def history(self, session_id: str, *, limit: int, before: str | None = None) -> tuple[Said, ...]:
        """The newest `limit` messages as a model is shown them, oldest first; those before the message `before`."""
        what = (col(MessageRow.id), col(MessageRow.role), col(MessageRow.text), col(MessageRow.status))
        rows = await self._newest(select(*what), session_id, limit=limit, before=before)
        return tuple(Said(id=row.id, role=row.role, text=row.text, status=MessageStatus(row.status)) for row in reversed(rows))

    async def newest(self, session_id: str, *, limit: int, before: str | None = None) -> tuple[ChatMessage, ...]:
        """The newest `limit` messages, newest first; those before the message `before`."""
        rows = await self._newest(select(MessageRow), session_id, limit=limit, before=before)
        return tuple(_message(row[0]) for row in rows)

    async def text_of(self, session_id: str, message_id: str) -> str | None:
        """None: there is no such message in this session."""
        mine = (col(MessageRow.id) == message_id) & (col(MessageRow.session_id) == session_id)
        return (await self._session.execute(select(col(MessageRow.text)).where(mine))).scalar_one_or_none()

    async def _newest(self, what: Any, session_id: str, *, limit: int, before: str | None) -> Sequence[Any]:
        statement = what.where(col(MessageRow.session_id) == session_id)
        if before is not None:
            mark = select(col(MessageRow.created_at), col(MessageRow.id)).where(col(MessageRow.id) == before)
            statement = statement.where(tuple_(col(MessageRow.created_at), col(MessageRow.id)) < mark.scalar_subquery())
        rows: Sequence[Any] = (await self._session.execute(_newest_first(statement).limit(limit))).all()
        return rows


def _newest_first(statement: Any) -> Any:
    return statement.order_by(col(MessageRow.created_at).desc(), col(MessageRow.id).desc())


def _message(row: MessageRow) -> ChatMessage:
    return ChatMessage(
        id=row.id,
        session_id=row.session_id,
        user_id=row.user_id,
        role=cast("MessageRole", row.role),
        answer=answer_of(row),
        status=MessageStatus(row.status),
        usage=row.usage,
        finish_reason=FinishReason(row.finish_reason) if row.finish_reason else None,
        model=row.model,
        provider=row.provider,
        turn_id=row.turn_id,
        response_time_ms=row.response_time_ms,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def answer_of(row: MessageRow) -> Answer:
    return Answer(text=row.text, reasoning=row.reasoning, tool_calls=row.tool_calls or ())
