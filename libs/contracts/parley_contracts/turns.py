"""Turns: one question and its answer, from `StartTurn` to `TurnCommitted`. The protocol is reliability.md's §3–8.

The turn log is what is stored under `turn.<id>.control` and `turn.<id>.delta`: `TurnClaim`, `TurnDelta`, `TurnFinal`.
It is the only order of a turn; `reader.py` reads it.
"""

from datetime import datetime
from enum import StrEnum
from typing import ClassVar, Literal, TypeAlias

import msgspec
from typing_extensions import override

from parley_contracts.errors import ErrorBody
from parley_contracts.ids import GatewayId, MessageId, ModelConfigId, SessionId, TurnId
from parley_contracts.message import Command, Durable, Event, Message, Query
from parley_contracts.parts import Answer, FinishReason, Part, TokenUsage
from parley_contracts.prompts import Params, PromptMessage
from parley_contracts.streams import Stream


class TurnStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    CANCELED = "canceled"
    ERROR = "error"

    @property
    def is_terminal(self) -> bool:
        return self in {TurnStatus.DONE, TurnStatus.CANCELED, TurnStatus.ERROR}


def status_of(reason: FinishReason) -> TurnStatus:
    """How a turn that finished for `reason` is stored (requirements 2.6)."""
    if reason is FinishReason.ERROR:
        return TurnStatus.ERROR
    if reason in {FinishReason.CANCELED, FinishReason.BUDGET_EXHAUSTED}:
        return TurnStatus.CANCELED
    return TurnStatus.DONE


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One provider call and what it used. `billable`: the user pays for it; others are the operator's loss, visible."""

    attempt: int
    provider: str
    model: str
    """The model config's name, which prices and statistics go by."""
    model_config_id: ModelConfigId | None = None
    usage: TokenUsage
    is_estimated: bool
    """False when `usage` is the provider's own figure."""
    method: str
    """`provider`, or how the tokens were counted."""
    is_billable: bool
    is_success: bool
    error_code: str | None = None
    duration_ms: int = 0
    first_token_ms: int | None = None


# --- the turn log ---------------------------------------------------------------------------------------------------


class TurnClaim(Message, frozen=True, kw_only=True, tag="claim"):
    """A router may speak: its attempt begins. Stored by compare-and-set on the control subject.

    `nonce` (128 random bits, hex) recognises one's own claim after a lost acknowledgement; `run` counts takeovers.
    """

    subject: ClassVar[str] = "turn.{turn_id}.control"
    turn_id: TurnId
    attempt: int
    run: int
    nonce: str
    provider: str
    model: str
    model_config_id: ModelConfigId | None = None
    claimed_at: datetime


class TurnDelta(Message, frozen=True, kw_only=True, tag="delta"):
    """Parts `n`, `n + 1`, … of an attempt. Empty `parts` prove that a silent router lives."""

    subject: ClassVar[str] = "turn.{turn_id}.delta"
    turn_id: TurnId
    attempt: int
    n: int
    parts: tuple[Part, ...]


class TurnFinal(Message, frozen=True, kw_only=True, tag="final"):
    """The end of a turn. One stands: compare-and-set lets one router, or chat, write it. `n` counts the answer's parts."""

    subject: ClassVar[str] = "turn.{turn_id}.control"
    turn_id: TurnId
    attempt: int
    n: int
    answer: Answer
    finish_reason: FinishReason
    usage: TokenUsage | None = None
    error: ErrorBody | None = None
    attempts: tuple[Attempt, ...] = ()
    ended_at: datetime
    nonce: str = ""


LogEntry: TypeAlias = TurnClaim | TurnDelta | TurnFinal
Control: TypeAlias = TurnClaim | TurnFinal

_LOG_DECODER: msgspec.json.Decoder[LogEntry] = msgspec.json.Decoder(LogEntry)


def decode_log_entry(data: bytes) -> LogEntry:
    return _LOG_DECODER.decode(data)


# --- commands, results, events --------------------------------------------------------------------------------------


class Generate(Durable, frozen=True, kw_only=True):
    """Answer this prompt. Holds no key and no secret.

    `store`: chat keeps the answer; else the turn lives as long as the gateway `gateway_id` holds it.
    `restart_after_text`: a new attempt may replace text that was shown (our own dialects can show a reset, OpenAI's cannot).
    `max_output_tokens` is what the reservation pays for. `dispatch` counts how often the command was sent.
    """

    subject: ClassVar[str] = "llm_router.generate.{turn_id}"
    stream: ClassVar[Stream] = Stream.COMMANDS
    turn_id: TurnId
    user_id: int
    session_id: SessionId | None = None
    user_message_id: MessageId | None = None
    message_id: MessageId | None = None
    prompt: tuple[PromptMessage, ...]
    model_config_id: ModelConfigId
    model: str
    provider: str
    params: Params = Params()
    max_output_tokens: int
    is_budget_limited: bool = False
    """`max_output_tokens` is what the budget pays, so reaching it ends the turn as `budget_exhausted`."""
    accepted_at: datetime
    deadline_at: datetime
    dispatch: int = 0
    store: bool
    restart_after_text: bool
    gateway_id: GatewayId | None = None

    @override
    def dedup_id(self) -> str:
        return self.turn_id if self.dispatch == 0 else f"{self.turn_id}:r{self.dispatch}"


class TurnResult(Durable, frozen=True, kw_only=True):
    """How a turn ended: all that storing and billing need. Stated by whoever's final stands; chat stores it, usage bills it."""

    subject: ClassVar[str] = "turn.{turn_id}.result"
    stream: ClassVar[Stream] = Stream.RESULTS
    turn_id: TurnId
    user_id: int
    session_id: SessionId | None = None
    user_message_id: MessageId | None = None
    message_id: MessageId | None = None
    store: bool
    status: TurnStatus
    finish_reason: FinishReason
    answer: Answer
    attempt: int
    usage: TokenUsage | None = None
    attempts: tuple[Attempt, ...]
    error: ErrorBody | None = None
    model: str
    provider: str
    accepted_at: datetime
    ended_at: datetime

    @override
    def dedup_id(self) -> str:
        return f"result:{self.turn_id}"


def result_of(command: Generate, final: TurnFinal) -> TurnResult:
    """The result that `final` states for `command`; always the same one, so it may be stated again by anyone."""
    return TurnResult(
        turn_id=command.turn_id,
        user_id=command.user_id,
        session_id=command.session_id,
        user_message_id=command.user_message_id,
        message_id=command.message_id,
        store=command.store,
        status=status_of(final.finish_reason),
        finish_reason=final.finish_reason,
        answer=final.answer,
        attempt=final.attempt,
        usage=final.usage,
        attempts=final.attempts,
        error=final.error,
        model=command.model,
        provider=command.provider,
        accepted_at=command.accepted_at,
        ended_at=final.ended_at,
    )


class TurnCommitted(Event, frozen=True, kw_only=True):
    """Chat stored the answer: reading returns it from now on."""

    subject: ClassVar[str] = "turn.{turn_id}.committed"
    turn_id: TurnId
    session_id: SessionId
    status: TurnStatus


class StopGeneration(Command[bool], frozen=True, kw_only=True):
    """To the router that runs the turn; nobody else listens. True: the provider call is closed, a final follows."""

    subject: ClassVar[str] = "turn.{turn_id}.stop"
    turn_id: TurnId


class GatewayAlive(Event, frozen=True, kw_only=True):
    """Every 2 s: routers end stateless turns whose gateway nobody has heard for 10 s.

    `adopted`: turns that other gateways began and this one follows now.
    """

    subject: ClassVar[str] = "gateway.event.alive"
    gateway_id: GatewayId
    adopted: tuple[TurnId, ...] = ()


# --- chat's questions -----------------------------------------------------------------------------------------------


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """A stored turn as its owner may see it. `answer`, `usage` and `error` are there once it ended."""

    turn_id: TurnId
    session_id: SessionId
    user_message_id: MessageId
    message_id: MessageId
    status: TurnStatus
    finish_reason: FinishReason | None = None
    attempt: int = 0
    model: str
    provider: str
    answer: Answer | None = None
    usage: TokenUsage | None = None
    error: ErrorBody | None = None
    dialect: str
    created_at: datetime
    ended_at: datetime | None = None


class StartTurn(Command[Turn], frozen=True, kw_only=True):
    """Ask in a stored session. Replies with the turn; the same `turn_id` or idempotency hash finds the same turn.

    Ids are the gateway's claims: one that exists with another user or body is `IdConflict`.
    `request_hash`, `body_hash`: SHA-256 hex of the client's Idempotency-Key and of its body.
    Errors: SessionNotFound, TurnInProgress, ModelNotFound, BudgetExceeded, MessageTooLong, MessagesTooLong,
    IdempotencyKeyReused, Overloaded.
    """

    subject: ClassVar[str] = "chat.start_turn"
    turn_id: TurnId
    user_message_id: MessageId
    message_id: MessageId
    user_id: int
    session_id: SessionId
    content: str
    system_prompt: str | None = None
    model: str | None = None
    params: Params = Params()
    request_hash: str | None = None
    body_hash: str = ""
    dialect: str


class GetTurn(Query[Turn], frozen=True, kw_only=True):
    """Errors: TurnNotFound, also for a foreign turn."""

    subject: ClassVar[str] = "chat.get_turn"
    turn_id: TurnId
    user_id: int


class StopTurn(Command[Turn], frozen=True, kw_only=True):
    """Stop a turn, any number of times; after its end nothing changes. Errors: TurnNotFound."""

    subject: ClassVar[str] = "chat.stop_turn"
    turn_id: TurnId
    user_id: int


TurnWhereabouts: TypeAlias = Literal["open", "ended", "unknown"]


class FindTurn(Query[TurnWhereabouts], frozen=True, kw_only=True):
    """Whether anything can still end this turn, stored or stateless: chat looks at its rows, TURNS and COMMANDS (9.3)."""

    subject: ClassVar[str] = "chat.find_turn"
    turn_id: TurnId
