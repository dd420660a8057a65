"""Every SQL statement of the books. Locks are taken in one order: reservation, then limit, then budget.

`text` rather than expressions: what is locked, and what a condition sees, is the point here, and this is how reliability.md
states it. Under READ COMMITTED each statement sees what committed before it, and an UPDATE that waited checks its WHERE again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import ColumnElement, RowMapping, Select, func, select, text

from parley_contracts.usage import Charge, ChargePage, ListCharges
from parley_runtime.database import Transaction
from parley_usage.books import DayUsage, Hold, Holding, Ledgered, Mismatch, Money, StaleHold, Standing
from parley_usage.tables import metadata

_charges = metadata.tables["usage.charges"]

# Both halves of 9.1 in one round trip. The budget moves only if the reservation is new.
_HOLD = text("""
    WITH reserved AS (
        INSERT INTO usage.reservations (turn_id, user_id, period, state, estimate_usd, max_output_tokens, is_limited,
                                        request_hash, body_hash, created_at)
        VALUES (:turn_id, :user_id, :period, 'held', :estimate_usd, :max_output_tokens, FALSE, :request_hash, :body_hash, :at)
        ON CONFLICT DO NOTHING RETURNING turn_id
    ), held AS (
        UPDATE usage.budgets SET held_usd = held_usd + :estimate_usd
        WHERE user_id = :user_id AND period = :period AND EXISTS (SELECT FROM reserved)
          AND (limit_usd IS NULL OR spent_usd + held_usd + :estimate_usd <= limit_usd)
        RETURNING user_id
    )
    SELECT EXISTS (SELECT FROM reserved) AS is_new, EXISTS (SELECT FROM held) AS is_held
""")

_STANDING = text("""
    SELECT turn_id, user_id, period, state, estimate_usd, max_output_tokens, is_limited, body_hash, created_at
    FROM usage.reservations
    WHERE turn_id = :turn_id OR (user_id = :user_id AND request_hash = :request_hash AND NOT is_key_free)
    ORDER BY turn_id = :turn_id DESC LIMIT 1
""")

_FREE_KEY = text("UPDATE usage.reservations SET is_key_free = TRUE WHERE turn_id = :turn_id AND NOT is_key_free")

_FORGET = text("DELETE FROM usage.reservations WHERE turn_id = :turn_id AND state = 'released'")

# The limit's row is locked, so that a limit set at midnight is not lost between two months.
_OPEN_BUDGET = text("""
    WITH known AS (
        INSERT INTO usage.budget_limits (user_id, limit_usd) VALUES (:user_id, NULL)
        ON CONFLICT (user_id) DO UPDATE SET user_id = EXCLUDED.user_id RETURNING limit_usd
    )
    INSERT INTO usage.budgets (user_id, period, limit_usd) SELECT :user_id, :period, limit_usd FROM known
    ON CONFLICT DO NOTHING
""")

_LOCK_BUDGET = text("""
    SELECT limit_usd, spent_usd, held_usd FROM usage.budgets WHERE user_id = :user_id AND period = :period FOR UPDATE
""")

_MOVE_BUDGET = text("""
    UPDATE usage.budgets SET held_usd = held_usd + :held_usd, spent_usd = spent_usd + :spent_usd
    WHERE user_id = :user_id AND period = :period RETURNING user_id
""")

_LIMIT_HOLD = text("""
    UPDATE usage.reservations
    SET estimate_usd = :estimate_usd, max_output_tokens = :max_output_tokens, is_limited = :is_limited
    WHERE turn_id = :turn_id
""")

_RELEASE = text("""
    UPDATE usage.reservations SET state = 'released', is_key_free = TRUE
    WHERE turn_id = :turn_id AND user_id = :user_id AND state = 'held' RETURNING period, estimate_usd
""")

_LOCK_RESERVATION = text("""
    SELECT turn_id, user_id, period, state, estimate_usd, max_output_tokens, is_limited, body_hash, created_at
    FROM usage.reservations WHERE turn_id = :turn_id FOR UPDATE
""")

_INSERT_MISSING = text("""
    INSERT INTO usage.reservations (turn_id, user_id, period, state, estimate_usd, max_output_tokens, is_limited,
                                    body_hash, created_at)
    VALUES (:turn_id, :user_id, :period, 'released', 0, 0, FALSE, '', :at) ON CONFLICT DO NOTHING
""")

_SETTLE = text("""
    UPDATE usage.reservations SET state = 'settled', is_key_free = is_key_free OR :frees_key WHERE turn_id = :turn_id
""")

_CHARGE_FIELDS = (
    "id, turn_id, user_id, session_id, attempt, period, day, provider, model, input_tokens, cached_tokens, output_tokens,"
    " reasoning_tokens, total_tokens, cost_usd, price_version, is_billable, is_estimated, method, is_success, error_code,"
    " response_time_ms, first_token_ms, created_at"
)
_CHARGE = text(
    f"INSERT INTO usage.charges ({_CHARGE_FIELDS})"  # noqa: S608 - a constant of ours, not input
    f" VALUES ({', '.join(':' + field.strip() for field in _CHARGE_FIELDS.split(','))})"
    " ON CONFLICT (turn_id, attempt) DO NOTHING RETURNING cost_usd"
)

_BUDGET = text("""
    SELECT l.limit_usd, COALESCE(b.spent_usd, 0) AS spent_usd, COALESCE(b.held_usd, 0) AS held_usd
    FROM (SELECT CAST(:user_id AS BIGINT) AS user_id) u
    LEFT JOIN usage.budget_limits l ON l.user_id = u.user_id
    LEFT JOIN usage.budgets b ON b.user_id = u.user_id AND b.period = :period
""")

_SET_LIMIT = text("""
    INSERT INTO usage.budget_limits (user_id, limit_usd) VALUES (:user_id, :limit_usd)
    ON CONFLICT (user_id) DO UPDATE SET limit_usd = EXCLUDED.limit_usd
""")

_LIMIT_BUDGETS = text("""
    UPDATE usage.budgets SET limit_usd = (SELECT limit_usd FROM usage.budget_limits WHERE user_id = :user_id)
    WHERE user_id = :user_id AND period >= :period
""")

_TAKE_STALE = text("""
    UPDATE usage.reservations SET asked_at = :at
    WHERE turn_id IN (
        SELECT turn_id FROM usage.reservations
        WHERE state = 'held' AND created_at <= :held_before AND (asked_at IS NULL OR asked_at <= :asked_before)
        ORDER BY created_at LIMIT :most FOR UPDATE SKIP LOCKED
    ) RETURNING turn_id, user_id, times_unknown, ended_since
""")

_NOTE = text("""
    UPDATE usage.reservations SET times_unknown = :times_unknown, ended_since = :ended_since WHERE turn_id = :turn_id
""")

_COUNT_LOCK = text("SELECT pg_advisory_xact_lock(:key)")

_USAGE_OF_DAYS = text("""
    SELECT c.user_id, c.day, c.model, COUNT(DISTINCT c.turn_id) AS requests,
           COALESCE(SUM(c.total_tokens) FILTER (WHERE c.is_billable), 0) AS tokens,
           COALESCE(SUM(c.cost_usd) FILTER (WHERE c.is_billable), 0) AS cost_usd
    FROM usage.charges c
    JOIN unnest(CAST(:user_ids AS BIGINT[]), CAST(:days AS VARCHAR[])) AS wanted (user_id, day)
      ON c.user_id = wanted.user_id AND c.day = wanted.day
    GROUP BY c.user_id, c.day, c.model
""")

_AUDIT = text("""
    WITH billed AS (
        SELECT user_id, period, SUM(cost_usd) AS usd FROM usage.charges WHERE is_billable GROUP BY user_id, period
    ), open_holds AS (
        SELECT user_id, period, SUM(estimate_usd) AS usd FROM usage.reservations WHERE state = 'held' GROUP BY user_id, period
    )
    SELECT user_id, period, COALESCE(b.spent_usd, 0) AS spent_usd, COALESCE(billed.usd, 0) AS billed_usd,
           COALESCE(b.held_usd, 0) AS held_usd, COALESCE(open_holds.usd, 0) AS open_holds_usd
    FROM usage.budgets b FULL JOIN billed USING (user_id, period) FULL JOIN open_holds USING (user_id, period)
    WHERE COALESCE(b.spent_usd, 0) <> COALESCE(billed.usd, 0) OR COALESCE(b.held_usd, 0) <> COALESCE(open_holds.usd, 0)
    ORDER BY user_id, period
""")

_COUNTERS_KEY = 0x7061726C6501  # replicas write counters in turn, so that no older sum lands on a newer one


class UsageStore:
    """The books, inside one transaction."""

    def __init__(self, tx: Transaction) -> None:
        self._session = tx.session

    # --- reserving

    async def hold(self, hold: Hold) -> Holding:
        row = (await self._session.execute(_HOLD, asdict(hold))).one()
        if row.is_held:
            return Holding.HELD
        return Holding.SHORT if row.is_new else Holding.KNOWN

    async def find_standing(self, turn_id: str, user_id: int, request_hash: str | None) -> Standing | None:
        """The turn's reservation, else the one that has its key. None: it went away since."""
        row = await self._one(_STANDING, turn_id=turn_id, user_id=user_id, request_hash=request_hash)
        return None if row is None else Standing(**row)

    async def free_key(self, turn_id: str) -> None:
        await self._session.execute(_FREE_KEY, {"turn_id": turn_id})

    async def forget_released(self, turn_id: str) -> None:
        """Take away a reservation that holds nothing, so that its turn can reserve again."""
        await self._session.execute(_FORGET, {"turn_id": turn_id})

    async def lock_budget(self, user_id: int, period: str) -> Money:
        """A user's month, made if it is missing, and nobody else's to change until the end of the transaction."""
        month = {"user_id": user_id, "period": period}
        row = await self._one(_LOCK_BUDGET, **month)
        if row is None:
            await self._session.execute(_OPEN_BUDGET, month)
            row = await self._one(_LOCK_BUDGET, **month)
        if row is None:
            raise LookupError(f"the budget of {user_id} for {period} went away")
        return Money(**row)

    async def hold_locked(self, hold: Hold, *, is_limited: bool) -> None:
        """Hold under `lock_budget` for a reservation that was `SHORT`."""
        values = {**asdict(hold), "is_limited": is_limited}
        if is_limited:
            await self._session.execute(_LIMIT_HOLD, values)
        await self._move_budget(hold.user_id, hold.period, held_usd=hold.estimate_usd)

    async def release(self, turn_id: str, user_id: int) -> bool:
        """False: there was no open hold."""
        row = await self._one(_RELEASE, turn_id=turn_id, user_id=user_id)
        if row is None:
            return False
        await self._move_budget(user_id, row["period"], held_usd=-row["estimate_usd"])
        return True

    # --- settling

    async def lock_reservation(self, turn_id: str, *, user_id: int, period: str, at: datetime) -> Standing:
        """The turn's reservation, locked; one that is missing is made up, holding nothing."""
        missing = {"turn_id": turn_id, "user_id": user_id, "period": period, "at": at}
        row = await self._one(_LOCK_RESERVATION, turn_id=turn_id)
        if row is None:
            await self._session.execute(_INSERT_MISSING, missing)
            row = await self._one(_LOCK_RESERVATION, turn_id=turn_id)
        if row is None:
            raise LookupError(f"the reservation of {turn_id} went away")
        return Standing(**row)

    async def settle(self, standing: Standing, charges: Sequence[Ledgered], *, frees_key: bool) -> None:
        """Write the ledger and close a reservation that `lock_reservation` gave. What is spent is what was written."""
        spent = Decimal(0)
        # Billable rows first: should two attempts bear one number, the one that pays is kept.
        for ledgered in sorted(charges, key=lambda ledgered: not ledgered.charge.is_billable):
            written = (await self._session.execute(_CHARGE, _ledger_row(ledgered))).scalar_one_or_none()
            if written is not None and ledgered.charge.is_billable:
                spent += written
        held = standing.estimate_usd if standing.state == "held" else Decimal(0)
        await self._move_budget(standing.user_id, standing.period, held_usd=-held, spent_usd=spent)
        await self._session.execute(_SETTLE, {"turn_id": standing.turn_id, "frees_key": frees_key})

    async def _move_budget(self, user_id: int, period: str, *, held_usd: Decimal, spent_usd: Decimal = Decimal(0)) -> None:
        month = {"user_id": user_id, "period": period}
        if await self._one(_MOVE_BUDGET, **month, held_usd=held_usd, spent_usd=spent_usd) is None:
            await self._session.execute(_OPEN_BUDGET, month)
            await self._session.execute(_MOVE_BUDGET, {**month, "held_usd": held_usd, "spent_usd": spent_usd})

    # --- budgets and charges

    async def get_budget(self, user_id: int, period: str) -> Money:
        row = await self._one(_BUDGET, user_id=user_id, period=period)
        return Money(**(row or {"limit_usd": None, "spent_usd": Decimal(0), "held_usd": Decimal(0)}))

    async def set_limit(self, user_id: int, limit_usd: Decimal | None, *, from_period: str) -> None:
        """From this period on; closed months keep what they had."""
        await self._session.execute(_SET_LIMIT, {"user_id": user_id, "limit_usd": limit_usd})
        await self._session.execute(_LIMIT_BUDGETS, {"user_id": user_id, "period": from_period})

    async def list_charges(self, query: ListCharges, *, most: int) -> ChargePage:
        wanted = _wanted(query)
        rows: Select[Any] = (
            select(*(_charges.c[name] for name in Charge.__struct_fields__))
            .where(*wanted)
            .order_by(_charges.c.created_at.desc(), _charges.c.turn_id.desc(), _charges.c.attempt.desc())
            .limit(min(max(query.limit, 0), most))
            .offset(max(query.offset, 0))
        )
        total = await self._session.scalar(select(func.count()).select_from(_charges).where(*wanted))
        found = (await self._session.execute(rows)).mappings()
        return ChargePage(charges=tuple(Charge(**row) for row in found), total=total or 0)

    # --- the sweeper's rows

    async def take_stale_holds(
        self, *, at: datetime, held_before: datetime, asked_before: datetime, most: int
    ) -> list[StaleHold]:
        """Old holds that nobody asks about now; they are this replica's until `asked_before` passes them."""
        values = {"at": at, "held_before": held_before, "asked_before": asked_before, "most": most}
        return [StaleHold(**row) for row in (await self._session.execute(_TAKE_STALE, values)).mappings()]

    async def note(self, turn_id: str, *, times_unknown: int = 0, ended_since: datetime | None = None) -> None:
        values = {"turn_id": turn_id, "times_unknown": times_unknown, "ended_since": ended_since}
        await self._session.execute(_NOTE, values)

    # --- sums

    async def lock_counters(self) -> None:
        """Until the end of the transaction no other replica writes counters."""
        await self._session.execute(_COUNT_LOCK, {"key": _COUNTERS_KEY})

    async def usage_of_days(self, days: Sequence[tuple[int, str]]) -> list[DayUsage]:
        values = {"user_ids": [user_id for user_id, _ in days], "days": [day for _, day in days]}
        rows = (await self._session.execute(_USAGE_OF_DAYS, values)).mappings()
        return [DayUsage(**{**row, "tokens": int(row["tokens"])}) for row in rows]

    async def audit(self) -> list[Mismatch]:
        """Months where Σ billable rows is not what is spent, or Σ open holds not what is held. Empty: the books are true."""
        return [Mismatch(**row) for row in (await self._session.execute(_AUDIT)).mappings()]

    async def _one(self, statement: Any, **values: object) -> RowMapping | None:
        return (await self._session.execute(statement, values)).mappings().one_or_none()


def _ledger_row(ledgered: Ledgered) -> Mapping[str, object]:
    charge = ledgered.charge
    fields = {name: getattr(charge, name) for name in charge.__struct_fields__}
    return {**fields, "period": ledgered.period, "day": ledgered.day}


def _wanted(query: ListCharges) -> list[ColumnElement[bool]]:
    column = _charges.c
    wanted: list[ColumnElement[bool]] = [column.user_id == query.user_id]
    if query.turn_id is not None:
        wanted.append(column.turn_id == query.turn_id)
    if query.session_id is not None:
        wanted.append(column.session_id == query.session_id)
    if query.start_at is not None:
        wanted.append(column.created_at >= query.start_at)
    if query.end_at is not None:
        wanted.append(column.created_at < query.end_at)
    return wanted
