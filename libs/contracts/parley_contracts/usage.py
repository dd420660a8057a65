"""Usage: what turns cost. Budgets are reserved before a turn and settled by its result; the ledger is append-only.

Money is `Decimal` US dollars on the bus (a JSON string) and exact in the ledger.
"""

from datetime import datetime
from decimal import Decimal
from typing import ClassVar

import msgspec

from parley_contracts.ids import Id, SessionId, TurnId
from parley_contracts.message import Command, Event, Query


class Reservation(msgspec.Struct, frozen=True, kw_only=True):
    """What was set aside for a turn.

    `max_output_tokens` is what the reservation pays for: less than asked when less is left (`is_limited`), and the turn is
    cut there. `turn_id` differs from the one asked for when an equal Idempotency-Key already runs a turn (stateless only).
    """

    turn_id: TurnId
    held_usd: Decimal
    max_output_tokens: int
    is_limited: bool = False
    is_replay: bool = False


class ReserveBudget(Command[Reservation], frozen=True, kw_only=True):
    """Set aside what a turn may cost, by one conditional update. The same turn again: what stands.

    `model` is the model config's name. `request_hash` is set for stateless turns only: stored ones keep theirs in chat.
    Errors: BudgetExceeded (less than the prompt and 16 tokens is left), IdempotencyKeyReused.
    """

    subject: ClassVar[str] = "usage.reserve_budget"
    turn_id: TurnId
    user_id: int
    session_id: SessionId | None = None
    provider: str
    model: str
    input_tokens: int
    max_output_tokens: int
    request_hash: str | None = None
    body_hash: str = ""


class ReleaseBudget(Command[None], frozen=True, kw_only=True):
    """Give back what was set aside for a turn that never began. Harmless when it was settled or released already."""

    subject: ClassVar[str] = "usage.release_budget"
    turn_id: TurnId
    user_id: int


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """A user's money for one calendar month of `TIMEZONE`. `limit_usd` None: no limit."""

    user_id: int
    period: str
    limit_usd: Decimal | None
    spent_usd: Decimal
    held_usd: Decimal
    resets_at: datetime

    @property
    def remaining_usd(self) -> Decimal | None:
        return None if self.limit_usd is None else max(self.limit_usd - self.spent_usd - self.held_usd, Decimal(0))


class GetBudget(Query[Budget], frozen=True, kw_only=True):
    subject: ClassVar[str] = "usage.get_budget"
    user_id: int


class SetBudget(Command[Budget], frozen=True, kw_only=True):
    """Set or remove (None) a user's monthly limit; it acts on the next reservation."""

    subject: ClassVar[str] = "usage.set_budget"
    user_id: int
    limit_usd: Decimal | None


class Charge(msgspec.Struct, frozen=True, kw_only=True):
    """One ledger row: what one attempt used and cost."""

    id: Id
    turn_id: TurnId
    user_id: int
    session_id: SessionId | None
    attempt: int
    provider: str
    model: str
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    total_tokens: int
    cost_usd: Decimal
    price_version: str
    is_billable: bool
    is_estimated: bool
    method: str
    is_success: bool
    error_code: str | None
    response_time_ms: int
    first_token_ms: int | None
    created_at: datetime


class ChargePage(msgspec.Struct, frozen=True, kw_only=True):
    charges: tuple[Charge, ...]
    total: int


class ListCharges(Query[ChargePage], frozen=True, kw_only=True):
    """A user's ledger rows, newest first."""

    subject: ClassVar[str] = "usage.list_charges"
    user_id: int
    turn_id: TurnId | None = None
    session_id: SessionId | None = None
    start_at: datetime | None = None
    end_at: datetime | None = None
    limit: int = 50
    offset: int = 0


class UsageRecorded(Event, frozen=True, kw_only=True):
    """A turn was billed: `cost_usd` is what its user pays."""

    subject: ClassVar[str] = "usage.event.recorded"
    turn_id: TurnId
    user_id: int
    model: str
    cost_usd: Decimal
    input_tokens: int
    output_tokens: int
