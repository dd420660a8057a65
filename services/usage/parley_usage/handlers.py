"""What usage does about each message: reserve, release, settle; tell and set budgets; list charges."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal

import structlog
from prometheus_client import Counter

from parley_contracts.errors import (
    BudgetExceeded,
    IdConflict,
    IdempotencyKeyReused,
    Overloaded,
    Problem,
    ValidationFailed,
)
from parley_contracts.ids import derived_id
from parley_contracts.turns import Attempt, TurnResult, TurnStatus
from parley_contracts.usage import (
    Budget,
    Charge,
    ChargePage,
    GetBudget,
    ListCharges,
    ReleaseBudget,
    Reservation,
    ReserveBudget,
    SetBudget,
    UsageRecorded,
)
from parley_runtime.clock import Clock
from parley_runtime.database import Transaction
from parley_usage.books import Hold, Holding, Ledgered, Money, Standing
from parley_usage.periods import Calendar
from parley_usage.pricing import Prices, count, most_output
from parley_usage.store import UsageStore

log = structlog.get_logger()

KEY_LASTS = timedelta(hours=24)
LEAST_OUTPUT_TOKENS = 16
"""Less than the prompt and this many tokens is no answer: refused rather than cut."""
MOST_CHARGES = 1000
LARGEST_LIMIT_USD = Decimal(10) ** 9

_TRIES = 4

refusals_total = Counter("parley_budget_refusals_total", "Reservations refused because the budget is spent.")


@dataclass(frozen=True, slots=True)
class Handlers:
    prices: Prices
    calendar: Calendar
    clock: Clock

    async def reserve_budget(self, command: ReserveBudget, tx: Transaction) -> Reservation:
        store, hold = UsageStore(tx), self._hold_for(command)
        for _ in range(_TRIES):
            match await store.hold(hold):
                case Holding.HELD:
                    return _reservation(hold)
                case Holding.SHORT:
                    return await self._hold_what_is_left(store, hold, command)
                case Holding.KNOWN:
                    standing = await store.find_standing(hold.turn_id, hold.user_id, hold.request_hash)
                    if standing is not None and not await _makes_way(store, standing, hold):
                        return _replay(standing, hold)
        raise Overloaded  # turns that begin and end on this key faster than we can look

    async def release_budget(self, command: ReleaseBudget, tx: Transaction) -> None:
        await UsageStore(tx).release(command.turn_id, command.user_id)

    async def settle_turn(self, result: TurnResult, tx: Transaction) -> list[Charge] | None:
        """The charges of a result that is settled now; None when it was settled already."""
        store = UsageStore(tx)
        standing = await store.lock_reservation(
            result.turn_id,
            user_id=result.user_id,
            period=self.calendar.period(result.accepted_at),
            at=result.accepted_at,
        )
        if standing.state == "settled":
            log.info("turn_already_settled", turn_id=result.turn_id)  # delivered again
            return None
        charges = [self._charge(result, attempt, standing.user_id) for attempt in result.attempts]
        day = self.calendar.day(result.ended_at)
        await store.settle(
            standing,
            [Ledgered(charge=charge, period=standing.period, day=day) for charge in charges],
            frees_key=result.status in {TurnStatus.CANCELED, TurnStatus.ERROR},
        )
        billed = [charge for charge in charges if charge.is_billable]
        tx.announce(
            UsageRecorded(
                turn_id=result.turn_id,
                user_id=standing.user_id,
                model=billed[0].model if billed else result.model,
                cost_usd=sum((charge.cost_usd for charge in billed), Decimal(0)),
                input_tokens=sum(charge.input_tokens for charge in billed),
                output_tokens=sum(charge.output_tokens for charge in billed),
            )
        )
        return charges

    async def get_budget(self, query: GetBudget, tx: Transaction) -> Budget:
        period = self.calendar.period(self.clock.now())
        return self._budget(query.user_id, period, await UsageStore(tx).get_budget(query.user_id, period))

    async def set_budget(self, command: SetBudget, tx: Transaction) -> Budget:
        limit = command.limit_usd
        if limit is not None and not (limit.is_finite() and 0 <= limit <= LARGEST_LIMIT_USD):
            raise ValidationFailed(problems=(Problem("limit", f"must be between 0 and {LARGEST_LIMIT_USD:,}"),))
        store, period = UsageStore(tx), self.calendar.period(self.clock.now())
        await store.set_limit(command.user_id, limit, from_period=period)
        return self._budget(command.user_id, period, await store.get_budget(command.user_id, period))

    async def list_charges(self, query: ListCharges, tx: Transaction) -> ChargePage:
        return await UsageStore(tx).list_charges(query, most=MOST_CHARGES)

    # --- parts of the stories above

    def _hold_for(self, command: ReserveBudget) -> Hold:
        now = self.clock.now()
        output_tokens = count(command.max_output_tokens)
        return Hold(
            turn_id=command.turn_id,
            user_id=command.user_id,
            period=self.calendar.period(now),
            estimate_usd=self._estimate(command, output_tokens, now),
            max_output_tokens=output_tokens,
            request_hash=command.request_hash,
            body_hash=command.body_hash,
            at=now,
        )

    async def _hold_what_is_left(self, store: UsageStore, hold: Hold, command: ReserveBudget) -> Reservation:
        """Decide with the budget locked: all of the estimate, what is left, or nothing."""
        money = await store.lock_budget(hold.user_id, hold.period)
        left = None if money.limit_usd is None else money.limit_usd - money.spent_usd - money.held_usd
        if left is None or hold.estimate_usd <= left:  # the month's first turn, or some was given back meanwhile
            await store.hold_locked(hold, is_limited=False)
            return _reservation(hold)
        tokens = most_output(left, hold.max_output_tokens, lambda output: self._estimate(command, output, hold.at))
        if tokens < min(LEAST_OUTPUT_TOKENS, hold.max_output_tokens):
            refusals_total.inc()
            raise BudgetExceeded(
                remaining_usd=_plain(max(left, Decimal(0))),
                resets_at=self.calendar.resets_at(hold.period).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            )
        rest = replace(hold, estimate_usd=left, max_output_tokens=tokens)
        await store.hold_locked(rest, is_limited=True)
        return _reservation(rest, is_limited=True)

    def _estimate(self, command: ReserveBudget, output_tokens: int, at: datetime) -> Decimal:
        return self.prices.estimate(
            provider=command.provider,
            model=command.model,
            input_tokens=command.input_tokens,
            output_tokens=output_tokens,
            at=at,
        )

    def _charge(self, result: TurnResult, attempt: Attempt, user_id: int) -> Charge:
        # By the price of the moment that the reservation was made at; its id is the same when RESULTS is replayed.
        cost_usd, price_version = self.prices.charge(attempt, at=result.accepted_at)
        usage = attempt.usage
        return Charge(
            id=derived_id("charge", result.turn_id, str(attempt.attempt)),
            turn_id=result.turn_id,
            user_id=user_id,
            session_id=result.session_id,
            attempt=attempt.attempt,
            provider=attempt.provider,
            model=attempt.model,
            input_tokens=count(usage.input_tokens),
            cached_tokens=count(usage.cached_tokens),
            output_tokens=count(usage.output_tokens),
            reasoning_tokens=count(usage.reasoning_tokens),
            total_tokens=count(usage.total),
            cost_usd=cost_usd,
            price_version=price_version,
            is_billable=attempt.is_billable,
            is_estimated=attempt.is_estimated,
            method=attempt.method,
            is_success=attempt.is_success,
            error_code=attempt.error_code,
            response_time_ms=count(attempt.duration_ms),
            first_token_ms=attempt.first_token_ms,
            created_at=result.ended_at,
        )

    def _budget(self, user_id: int, period: str, money: Money) -> Budget:
        return Budget(
            user_id=user_id,
            period=period,
            limit_usd=money.limit_usd,
            spent_usd=money.spent_usd,
            held_usd=money.held_usd,
            resets_at=self.calendar.resets_at(period),
        )


async def _makes_way(store: UsageStore, standing: Standing, hold: Hold) -> bool:
    """Whether what stood in the way of a hold is gone now, so that it can be tried again."""
    if standing.turn_id == hold.turn_id:
        if standing.user_id != hold.user_id:
            raise IdConflict
        if standing.state == "released":  # a turn that did not begin, and is begun again
            await store.forget_released(hold.turn_id)
            return True
        return False
    if standing.created_at <= hold.at - KEY_LASTS:
        await store.free_key(standing.turn_id)
        return True
    if standing.body_hash != hold.body_hash:
        raise IdempotencyKeyReused
    return False


def _reservation(hold: Hold, *, is_limited: bool = False) -> Reservation:
    return Reservation(
        turn_id=hold.turn_id,
        held_usd=hold.estimate_usd,
        max_output_tokens=hold.max_output_tokens,
        is_limited=is_limited,
    )


def _replay(standing: Standing, hold: Hold) -> Reservation:
    return Reservation(
        turn_id=standing.turn_id,
        held_usd=standing.estimate_usd,
        max_output_tokens=standing.max_output_tokens,
        is_limited=standing.is_limited,
        is_replay=standing.turn_id != hold.turn_id,
    )


def _plain(money: Decimal) -> str:
    """`0.001`, never `1E-3` or `0.001000000000`."""
    text = f"{money:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
