"""Sessions and messages: what chat keeps. A foreign session is answered like a missing one."""

from datetime import datetime
from enum import StrEnum
from typing import ClassVar, Literal, TypeAlias

import msgspec

from parley_contracts.ids import MessageId, ModelConfigId, SessionId, TurnId
from parley_contracts.message import Command, Query
from parley_contracts.parts import Answer, FinishReason, TokenUsage
from parley_contracts.prompts import Params

MessageRole: TypeAlias = Literal["system", "user", "assistant"]


class MessageStatus(StrEnum):
    SENDING = "sending"
    SENT = "sent"
    ERROR = "error"
    CANCELED = "canceled"


class RunningTurn(msgspec.Struct, frozen=True, kw_only=True):
    turn_id: TurnId
    user_message_id: MessageId
    message_id: MessageId


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """One conversation. `model_config_id` None: the caller's default model."""

    id: SessionId
    user_id: int
    title: str | None = None
    system_prompt: str | None = None
    model_config_id: ModelConfigId | None = None
    params: Params = Params()
    is_shareable: bool = False
    share_token: str | None = None
    session_type: str | None = None
    document_id: str | None = None
    product_code: str | None = None
    running_turn: RunningTurn | None = None
    created_at: datetime
    updated_at: datetime


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One stored message. `answer.text` is its text, whatever its role."""

    id: MessageId
    session_id: SessionId
    user_id: int
    role: MessageRole
    answer: Answer
    status: MessageStatus
    usage: TokenUsage | None = None
    finish_reason: FinishReason | None = None
    model: str | None = None
    provider: str | None = None
    turn_id: TurnId | None = None
    response_time_ms: int | None = None
    created_at: datetime
    updated_at: datetime


class SessionPage(msgspec.Struct, frozen=True, kw_only=True):
    """Newest `updated_at` first; `total` counts all that match."""

    sessions: tuple[Session, ...]
    total: int


class MessagePage(msgspec.Struct, frozen=True, kw_only=True):
    """Oldest first; `has_more`: there are older ones."""

    messages: tuple[ChatMessage, ...]
    has_more: bool


class SharedSession(msgspec.Struct, frozen=True, kw_only=True):
    """What anyone with the link may read: no model, no user."""

    title: str | None
    created_at: datetime
    messages: tuple[ChatMessage, ...]


class CreateSession(Command[Session], frozen=True, kw_only=True):
    subject: ClassVar[str] = "chat.create_session"
    user_id: int
    title: str | None = None
    system_prompt: str | None = None
    model_config_id: ModelConfigId | None = None
    params: Params = Params()
    is_shareable: bool = False
    session_type: str | None = None
    document_id: str | None = None
    product_code: str | None = None


class SessionChanges(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a partial update names. UNSET: stays as it is; None: removed."""

    title: str | msgspec.UnsetType | None = msgspec.UNSET
    system_prompt: str | msgspec.UnsetType | None = msgspec.UNSET
    model_config_id: ModelConfigId | msgspec.UnsetType | None = msgspec.UNSET
    temperature: float | msgspec.UnsetType | None = msgspec.UNSET
    max_tokens: int | msgspec.UnsetType | None = msgspec.UNSET
    top_p: float | msgspec.UnsetType | None = msgspec.UNSET
    top_k: int | msgspec.UnsetType | None = msgspec.UNSET
    frequency_penalty: float | msgspec.UnsetType | None = msgspec.UNSET
    presence_penalty: float | msgspec.UnsetType | None = msgspec.UNSET
    is_shareable: bool | msgspec.UnsetType = msgspec.UNSET
    session_type: str | msgspec.UnsetType | None = msgspec.UNSET
    document_id: str | msgspec.UnsetType | None = msgspec.UNSET
    product_code: str | msgspec.UnsetType | None = msgspec.UNSET


class UpdateSession(Command[Session], frozen=True, kw_only=True):
    """Change what `changes` names; the rest stays. Errors: SessionNotFound."""

    subject: ClassVar[str] = "chat.update_session"
    user_id: int
    session_id: SessionId
    changes: SessionChanges


class GetSession(Query[Session], frozen=True, kw_only=True):
    """Errors: SessionNotFound."""

    subject: ClassVar[str] = "chat.get_session"
    user_id: int
    session_id: SessionId


class ListSessions(Query[SessionPage], frozen=True, kw_only=True):
    """`search` looks in titles, without case."""

    subject: ClassVar[str] = "chat.list_sessions"
    user_id: int
    limit: int = 50
    offset: int = 0
    search: str | None = None


class ListMessages(Query[MessagePage], frozen=True, kw_only=True):
    """The newest `limit` messages of a session, or those before message `before`. Errors: SessionNotFound, MessageNotFound."""

    subject: ClassVar[str] = "chat.list_messages"
    user_id: int
    session_id: SessionId
    limit: int = 100
    before: MessageId | None = None


class DeleteSessions(Command[tuple[SessionId, ...]], frozen=True, kw_only=True):
    """Delete sessions with their messages; running turns are stopped. Replies with the ids that were the caller's."""

    subject: ClassVar[str] = "chat.delete_sessions"
    user_id: int
    session_ids: tuple[SessionId, ...]


class GetSharedSession(Query[SharedSession], frozen=True, kw_only=True):
    """Errors: ShareNotFound, also after sharing was turned off."""

    subject: ClassVar[str] = "chat.get_shared_session"
    share_token: str
