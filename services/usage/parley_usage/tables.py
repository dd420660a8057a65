"""Tables of usage: limits, one budget a user and month, reservations, and the ledger that is only ever added to."""

from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar

from sqlalchemy import BigInteger, Column, DateTime, Index, MetaData, Numeric, String, UniqueConstraint, false, text
from sqlmodel import Field, SQLModel

metadata = MetaData(schema="usage")


def _key(kind: Any, **options: Any) -> Any:
    return Field(sa_column=Column(kind, primary_key=True, autoincrement=False, **options))


def _column(kind: Any, *, nullable: bool = False, **options: Any) -> Any:
    return Field(sa_column=Column(kind, nullable=nullable, **options))


def _money(*, nullable: bool = False, **options: Any) -> Any:
    return _column(Numeric(24, 12), nullable=nullable, **options)


def _instant(*, nullable: bool = False) -> Any:
    return _column(DateTime(timezone=True), nullable=nullable)


class UsageTable(SQLModel):
    """In the schema `usage`, which no other service reads."""

    metadata: ClassVar[MetaData] = metadata


class BudgetLimit(UsageTable, table=True):
    """What a user may spend a month; carries over from month to month. NULL or no row: no limit."""

    __tablename__ = "budget_limits"

    user_id: int = _key(BigInteger)
    limit_usd: Decimal | None = _money(nullable=True)


class BudgetRow(UsageTable, table=True):
    """A user's month. `spent` is the sum of its billable charges, `held` that of its open reservations."""

    __tablename__ = "budgets"

    user_id: int = _key(BigInteger)
    period: str = _key(String(7))
    limit_usd: Decimal | None = _money(nullable=True)
    spent_usd: Decimal = _money(server_default=text("0"))
    held_usd: Decimal = _money(server_default=text("0"))


class ReservationRow(UsageTable, table=True):
    """What was set aside for a turn: `held`, then `settled` or `released`.

    `is_key_free`: the Idempotency-Key may begin another turn. The sweeper's notes: when it asked, how often nobody knew the
    turn, since when chat calls it ended.
    """

    __tablename__ = "reservations"
    __table_args__ = (
        Index(
            "reservations_key",
            "user_id",
            "request_hash",
            unique=True,
            postgresql_where=text("request_hash IS NOT NULL AND NOT is_key_free"),
        ),
        Index("reservations_held", "created_at", postgresql_where=text("state = 'held'")),
    )

    turn_id: str = _key(String(26))
    user_id: int = _column(BigInteger)
    period: str = _column(String(7))
    state: str = _column(String(8))
    estimate_usd: Decimal = _money()
    max_output_tokens: int = _column(BigInteger)
    is_limited: bool = Field(default=False)
    request_hash: str | None = Field(default=None)
    body_hash: str
    is_key_free: bool = Field(default=False, sa_column_kwargs={"server_default": false()})
    created_at: datetime = _instant()
    asked_at: datetime | None = _instant(nullable=True)
    times_unknown: int = Field(default=0, sa_column_kwargs={"server_default": text("0")})
    ended_since: datetime | None = _instant(nullable=True)


class ChargeRow(UsageTable, table=True):
    """The ledger: one row an attempt. `period` is the month that pays, `day` the day of TIMEZONE it is counted under."""

    __tablename__ = "charges"
    __table_args__ = (
        UniqueConstraint("turn_id", "attempt", name="charges_turn_id_attempt_key"),
        Index("charges_user_id_created_at", "user_id", "created_at"),
        Index("charges_user_id_day", "user_id", "day"),
        Index("charges_user_id_period", "user_id", "period"),
    )

    id: str = _key(String(26))
    turn_id: str = _column(String(26))
    user_id: int = _column(BigInteger)
    session_id: str | None = _column(String(26), nullable=True)
    attempt: int
    period: str = _column(String(7))
    day: str = _column(String(10))
    provider: str
    model: str
    input_tokens: int = _column(BigInteger)
    cached_tokens: int = _column(BigInteger)
    output_tokens: int = _column(BigInteger)
    reasoning_tokens: int = _column(BigInteger)
    total_tokens: int = _column(BigInteger)
    cost_usd: Decimal = _money()
    price_version: str = _column(String(128))
    is_billable: bool
    is_estimated: bool
    method: str
    is_success: bool
    error_code: str | None = Field(default=None)
    response_time_ms: int = _column(BigInteger)
    first_token_ms: int | None = _column(BigInteger, nullable=True)
    created_at: datetime = _instant()
