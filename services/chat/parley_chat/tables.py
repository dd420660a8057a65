"""The schema `chat`: sessions, their messages, turns, and the outbox of commands that are not published yet."""

from datetime import datetime
from typing import Any, ClassVar

import msgspec
from sqlalchemy import JSON, BigInteger, Column, DateTime, Dialect, ForeignKey, Index, Integer, MetaData, String, Text, text
from sqlalchemy.types import TypeDecorator
from sqlmodel import Field, SQLModel
from typing_extensions import override

from parley_contracts.errors import ErrorBody
from parley_contracts.parts import TokenUsage, ToolCall
from parley_contracts.prompts import Params

METADATA = MetaData(
    schema="chat",
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    },
)
OPEN = "status IN ('queued', 'running')"


class TurnRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a turn needs and no other column holds: with the session's messages, its `Generate` can be built again."""

    model_config_id: str
    params: Params = Params()
    system_prompt: str | None = None
    """The request's own; None: the session's."""
    input_tokens: int
    """Of the prompt, estimated when the turn was accepted: what is billed for when no provider counted."""
    token_limit: int | None = None
    """What the prompt must fit in: the model's context without the answer. None: not known."""
    max_output_tokens: int
    is_budget_limited: bool = False


class Json(TypeDecorator[Any]):
    """One of our values as JSON. The type is `json`, since `jsonb` refuses the character U+0000, which models do say."""

    impl = JSON(none_as_null=True)
    cache_ok = True

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.kind = kind

    @override
    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        return None if value is None else msgspec.json.decode(msgspec.json.encode(value))

    @override
    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        return None if value is None else msgspec.json.decode(msgspec.json.encode(value), type=self.kind)


def _id(*, nullable: bool = False) -> Any:
    return Field(sa_column=Column(String(26), nullable=nullable))


def _key() -> Any:
    return Field(sa_column=Column(String(26), primary_key=True))


def _parent(table: str, *, is_key: bool = False) -> Any:
    parent = ForeignKey(f"chat.{table}.id", ondelete="CASCADE")
    return Field(sa_column=Column(String(26), parent, primary_key=is_key, nullable=False))


def _text(*, nullable: bool = False) -> Any:
    return Field(sa_column=Column(Text, nullable=nullable))


def _number(kind: Any = Integer, *, nullable: bool = False) -> Any:
    return Field(sa_column=Column(kind, nullable=nullable))


def _json(kind: Any, *, nullable: bool = False) -> Any:
    return Field(sa_column=Column(Json(kind), nullable=nullable))


def _instant(*, nullable: bool = False) -> Any:
    return Field(sa_column=Column(DateTime(timezone=True), nullable=nullable))


class ChatTable(SQLModel):
    metadata: ClassVar[MetaData] = METADATA
    model_config = {"arbitrary_types_allowed": True}


class SessionRow(ChatTable, table=True):
    __tablename__ = "sessions"
    __table_args__ = (
        Index("ix_sessions_user_id", "user_id", "updated_at", "id"),
        Index("uq_sessions_share_token", "share_token", unique=True, postgresql_where=text("share_token IS NOT NULL")),
    )

    id: str = _key()
    user_id: int = _number(BigInteger)
    title: str | None = _text(nullable=True)
    system_prompt: str | None = _text(nullable=True)
    model_config_id: str | None = _id(nullable=True)
    params: Params = _json(Params)
    share_token: str | None = _text(nullable=True)
    """Set while the session is shared."""
    session_type: str | None = _text(nullable=True)
    document_id: str | None = _text(nullable=True)
    product_code: str | None = _text(nullable=True)
    created_at: datetime = _instant()
    updated_at: datetime = _instant()


class MessageRow(ChatTable, table=True):
    """Read in the order of (created_at, id); `created_at` grows within a session whatever the clocks of replicas say."""

    __tablename__ = "messages"
    __table_args__ = (Index("ix_messages_session_id", "session_id", "created_at", "id"),)

    id: str = _key()
    session_id: str = _parent("sessions")
    user_id: int = _number(BigInteger)
    turn_id: str | None = _id(nullable=True)
    role: str = _text()
    text: str = _text()
    reasoning: str = _text()
    tool_calls: tuple[ToolCall, ...] | None = _json(tuple[ToolCall, ...], nullable=True)
    status: str = _text()
    usage: TokenUsage | None = _json(TokenUsage, nullable=True)
    finish_reason: str | None = _text(nullable=True)
    model: str | None = _text(nullable=True)
    provider: str | None = _text(nullable=True)
    response_time_ms: int | None = _number(BigInteger, nullable=True)
    created_at: datetime = _instant()
    updated_at: datetime = _instant()


class TurnRow(ChatTable, table=True):
    """One question and its answer. No foreign key to the session: a turn whose session is deleted must still end.

    `fingerprint` is the hash of what was asked, `request_hash` that of the client's Idempotency-Key while the key is taken.
    The sweeper's own: `look_at` when it looks next (the lease, too), `suspicion` what it found at `suspected_at` and must
    find again before it acts.
    """

    __tablename__ = "turns"
    __table_args__ = (
        Index("uq_turns_running", "session_id", unique=True, postgresql_where=text(OPEN)),
        Index("uq_turns_key", "user_id", "request_hash", unique=True, postgresql_where=text("request_hash IS NOT NULL")),
        Index("ix_turns_look_at", "look_at", postgresql_where=text(OPEN)),
        Index("ix_turns_session_id", "session_id"),
    )

    id: str = _key()
    user_id: int = _number(BigInteger)
    session_id: str = _id()
    user_message_id: str = _id()
    message_id: str = _id()
    status: str = _text()
    finish_reason: str | None = _text(nullable=True)
    attempt: int = _number()
    model: str = _text()
    provider: str = _text()
    dialect: str = _text()
    request: TurnRequest = _json(TurnRequest)
    usage: TokenUsage | None = _json(TokenUsage, nullable=True)
    error: ErrorBody | None = _json(ErrorBody, nullable=True)
    fingerprint: str = _text()
    request_hash: str | None = _text(nullable=True)
    body_hash: str = _text()
    dispatch: int = _number()
    stop_requested_at: datetime | None = _instant(nullable=True)
    look_at: datetime = _instant()
    suspicion: str | None = _text(nullable=True)
    suspected_at: datetime | None = _instant(nullable=True)
    accepted_at: datetime = _instant()
    deadline_at: datetime = _instant()
    ended_at: datetime | None = _instant(nullable=True)


class OutboxRow(ChatTable, table=True):
    """A row stands here from TX-C1 until its turn's command was published. It holds ids, not prompts."""

    __tablename__ = "outbox"
    __table_args__ = (Index("ix_outbox_due_at", "due_at"),)

    turn_id: str = _parent("turns", is_key=True)
    due_at: datetime = _instant()
