"""Sessions: conversations, their messages, who may read them. A foreign session is answered like a missing one."""

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from parley_chat.stop import UNFINISHED_AFTER, Stopping
from parley_chat.store import MessageStore, SessionFields, SessionStore
from parley_chat.turn_store import OpenTurn, TurnStore
from parley_contracts.accounts import UserDeleted
from parley_contracts.errors import MessageNotFound, SessionNotFound, ShareNotFound
from parley_contracts.ids import new_id
from parley_contracts.parts import Answer
from parley_contracts.prompts import Params
from parley_contracts.sessions import (
    ChatMessage,
    CreateSession,
    DeleteSessions,
    GetSession,
    GetSharedSession,
    ListMessages,
    ListSessions,
    MessagePage,
    MessageStatus,
    Session,
    SessionChanges,
    SessionPage,
    SharedSession,
    UpdateSession,
)
from parley_runtime.clock import Clock
from parley_runtime.database import Database, Transaction

_TOKEN_BYTES = 16
_MOST_SHARED = 500
_MOST_CHARACTERS = 1_500_000
"""Of all messages of one reply: even four bytes a character stay below what the bus takes."""
_PARAMS = ("temperature", "max_tokens", "top_p", "top_k", "frequency_penalty", "presence_penalty")
_FIELDS = ("title", "system_prompt", "model_config_id", "session_type", "document_id", "product_code")


@dataclass(frozen=True, slots=True)
class Handlers:
    database: Database
    stopping: Stopping
    clock: Clock

    async def create_session(self, command: CreateSession, tx: Transaction) -> Session:
        fields = SessionFields(
            **{name: getattr(command, name) for name in _FIELDS},
            params=command.params,
            share_token=_new_token() if command.is_shareable else None,
        )
        return await SessionStore(tx).add(new_id(), command.user_id, fields, self.clock.now())

    async def update_session(self, command: UpdateSession, tx: Transaction) -> Session:
        sessions = SessionStore(tx)
        session = await sessions.lock(command.user_id, command.session_id)
        if session is None:
            raise SessionNotFound
        await sessions.replace(session.id, changed(session, command.changes), self.clock.now())
        return await self._own(command.user_id, command.session_id, tx)

    async def get_session(self, query: GetSession, tx: Transaction) -> Session:
        return await self._own(query.user_id, query.session_id, tx)

    async def list_sessions(self, query: ListSessions, tx: Transaction) -> SessionPage:
        sessions, total = await SessionStore(tx).page(
            query.user_id, search=query.search, limit=query.limit, offset=query.offset
        )
        return SessionPage(sessions=sessions, total=total)

    async def list_messages(self, query: ListMessages, tx: Transaction) -> MessagePage:
        await self._own(query.user_id, query.session_id, tx)
        messages = MessageStore(tx)
        if query.before is not None and await messages.text_of(query.session_id, query.before) is None:
            raise MessageNotFound
        newest = await messages.newest(query.session_id, limit=query.limit + 1, before=query.before)
        page = fitting(newest[: query.limit])
        return MessagePage(messages=page[::-1], has_more=len(newest) > len(page))

    async def get_shared_session(self, query: GetSharedSession, tx: Transaction) -> SharedSession:
        session = await SessionStore(tx).find_shared(query.share_token)
        if session is None:
            raise ShareNotFound
        newest = await MessageStore(tx).newest(session.id, limit=_MOST_SHARED)
        shown = tuple(bare(message) for message in fitting(newest) if is_shown(message))
        return SharedSession(title=session.title, created_at=session.created_at, messages=shown[::-1])

    async def delete_sessions(self, command: DeleteSessions) -> tuple[str, ...]:
        """Running turns go on until they are stopped; their rows stay until then, so they end even if this dies here."""
        now = self.clock.now()
        async with self.database.transaction() as tx:
            deleted = await SessionStore(tx).delete(command.user_id, command.session_ids)
            running = await TurnStore(tx).request_stops(deleted, now, look_at=now + UNFINISHED_AFTER)
        await self._stop(running)
        return deleted

    async def erase_user(self, event: UserDeleted) -> None:
        """Heard by every replica, and again for days: what is gone already is no harm."""
        now = self.clock.now()
        async with self.database.transaction() as tx:
            await SessionStore(tx).delete_all(event.user_id)
            running = await TurnStore(tx).request_stops_of(event.user_id, now, look_at=now + UNFINISHED_AFTER)
        await self._stop(running)

    async def _stop(self, running: Sequence[OpenTurn]) -> None:
        async with asyncio.TaskGroup() as stops:
            for turn in running:
                stops.create_task(self.stopping.try_to_finish(turn))

    async def _own(self, user_id: int, session_id: str, tx: Transaction) -> Session:
        session = await SessionStore(tx).find(user_id, session_id)
        if session is None:
            raise SessionNotFound
        return session


def changed(session: Session, changes: SessionChanges) -> SessionFields:
    """The session's fields with what `changes` names: UNSET stays, None removes. Sharing again makes a new token."""
    named = {name: value for name in changes.__struct_fields__ if (value := getattr(changes, name)) is not msgspec.UNSET}
    params: Params = msgspec.structs.replace(session.params, **{name: named[name] for name in _PARAMS if name in named})
    share_token = session.share_token
    if "is_shareable" in named:
        share_token = (share_token or _new_token()) if named["is_shareable"] else None
    fields = {name: named.get(name, getattr(session, name)) for name in _FIELDS}
    return SessionFields(**fields, params=params, share_token=share_token)


def fitting(messages: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
    """The first of `messages` that one reply can hold; at least one."""
    characters = 0
    for count, message in enumerate(messages):
        calls = sum(len(call.arguments) for call in message.answer.tool_calls)
        characters += len(message.answer.text) + len(message.answer.reasoning) + calls
        if characters > _MOST_CHARACTERS and count:
            return messages[:count]
    return messages


def is_shown(message: ChatMessage) -> bool:
    """Whether a stranger with the link sees it: not while it is being written, nor when it says nothing."""
    return message.status is not MessageStatus.SENDING and bool(message.answer.text)


def bare(message: ChatMessage) -> ChatMessage:
    """A message without user, model or reasoning."""
    return ChatMessage(
        id=message.id,
        session_id=message.session_id,
        user_id=0,
        role=message.role,
        answer=Answer(text=message.answer.text),
        status=message.status,
        created_at=message.created_at,
        updated_at=message.updated_at,
    )


def _new_token() -> str:
    return secrets.token_urlsafe(_TOKEN_BYTES)
