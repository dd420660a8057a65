"""Books: the values that go into the store and come out of it."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import Enum

from parley_contracts.usage import Charge


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """What is to be set aside."""

    turn_id: str
    user_id: int
    period: str
    estimate_usd: Decimal
    max_output_tokens: int
    request_hash: str | None
    body_hash: str
    at: datetime


class Holding(Enum):
    HELD = "held"
    SHORT = "short"
    """The reservation is there, the money is not, or there is no budget row yet: decide under `lock_budget`."""
    KNOWN = "known"
    """This turn, or this key, has a reservation already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A reservation as it stands."""

    turn_id: str
    user_id: int
    period: str
    state: str
    estimate_usd: Decimal
    max_output_tokens: int
    is_limited: bool
    body_hash: str
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Money:
    """A user's month."""

    limit_usd: Decimal | None
    spent_usd: Decimal
    held_usd: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledgered:
    """A charge as the ledger keeps it: with the month that pays and the day it is counted under."""

    charge: Charge
    period: str
    day: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StaleHold:
    turn_id: str
    user_id: int
    times_unknown: int
    ended_since: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DayUsage:
    """What a user used of one model on one day: turns, and the tokens and money they pay for."""

    user_id: int
    day: str
    model: str
    requests: int
    tokens: int
    cost_usd: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """A month whose sums are not those of its rows."""

    user_id: int
    period: str
    spent_usd: Decimal
    billed_usd: Decimal
    held_usd: Decimal
    open_holds_usd: Decimal
