"""Settlement: charged once, by whoever delivers it how often, and listed as it was."""

import asyncio
import random
from datetime import timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from prometheus_client import REGISTRY

from parley_contracts.errors import BudgetExceeded, ServiceUnavailable
from parley_contracts.ids import new_id
from parley_contracts.parts import FinishReason, TokenUsage
from parley_contracts.turns import TurnResult
from parley_contracts.usage import UsageRecorded
from parley_usage.store import UsageStore


def _metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_a_turn_is_charged_once_when_its_result_is_delivered_three_times(usage: Any) -> None:
    turn_id = (await usage.reserve()).turn_id
    settled = _metric("parley_turns_settled_total")
    for _ in range(3):
        await usage.settle(usage.result(turn_id))
    budget = await usage.budget()
    assert (budget.spent_usd, budget.held_usd) == (Decimal("0.5"), 0)
    assert (await usage.charges()).total == 1
    assert _metric("parley_turns_settled_total") == settled + 1
    assert usage.bus.said == [
        UsageRecorded(
            turn_id=turn_id,
            user_id=usage.user_id,
            model="simulator",
            cost_usd=Decimal("0.5"),
            input_tokens=300_000,
            output_tokens=200_000,
        )
    ]


async def test_a_turn_is_charged_once_when_its_result_is_delivered_ten_times_at_once(usage: Any) -> None:
    turns = [(await usage.reserve()).turn_id, new_id()]  # one reserved, one never seen
    await asyncio.gather(*(usage.settle(usage.result(turn_id)) for turn_id in turns * 10))
    budget = await usage.budget()
    assert (budget.spent_usd, budget.held_usd) == (1, 0)
    assert (await usage.charges()).total == 2


async def test_a_result_before_its_reservation_is_charged_and_the_reservation_then_holds_nothing(usage: Any) -> None:
    turn_id = new_id()
    await usage.settle(usage.result(turn_id))
    reservation = await usage.reserve(turn_id=turn_id)
    assert reservation.turn_id == turn_id
    budget = await usage.budget()
    assert (budget.spent_usd, budget.held_usd) == (Decimal("0.5"), 0)


async def test_reservation_and_result_at_once_leave_nothing_held(usage: Any) -> None:
    turns = [new_id() for _ in range(20)]
    await asyncio.gather(
        *(usage.reserve(turn_id=turn_id) for turn_id in turns), *(usage.settle(usage.result(turn_id)) for turn_id in turns)
    )
    budget = await usage.budget()
    assert (budget.spent_usd, budget.held_usd) == (10, 0)


async def test_a_result_after_the_release_is_charged_and_frees_nothing_twice(usage: Any) -> None:
    turn_id = (await usage.reserve()).turn_id
    await usage.reserve()
    await usage.release(turn_id)
    await usage.settle(usage.result(turn_id))
    budget = await usage.budget()
    assert (budget.spent_usd, budget.held_usd) == (Decimal("0.5"), 1)


async def test_release_and_result_at_once_free_the_hold_once(usage: Any) -> None:
    turns = [(await usage.reserve()).turn_id for _ in range(20)]
    await asyncio.gather(
        *(usage.release(turn_id) for turn_id in turns), *(usage.settle(usage.result(turn_id)) for turn_id in turns)
    )
    budget = await usage.budget()
    assert (budget.spent_usd, budget.held_usd) == (10, 0)


async def test_only_billable_attempts_are_paid_and_all_are_listed(usage: Any) -> None:
    turn_id = (await usage.reserve()).turn_id
    lost = usage.attempt(1, is_billable=False, is_success=False, error_code="provider_error", first_token_ms=80)
    await usage.settle(usage.result(turn_id, lost, usage.attempt(2, model="qwen2.5")))
    paid, unpaid = (await usage.charges()).charges
    assert (paid.attempt, paid.is_billable, paid.price_version[:9]) == (2, True, "registry/")
    assert (unpaid.attempt, unpaid.is_billable, unpaid.error_code, unpaid.first_token_ms) == (1, False, "provider_error", 80)
    assert unpaid.cost_usd == Decimal("0.5")  # the operator's loss, visible
    assert (await usage.budget()).spent_usd == Decimal("0.5")
    assert usage.bus.said[0].model == "qwen2.5"


async def test_a_turn_without_any_attempt_settles_for_nothing(usage: Any) -> None:
    turn_id = (await usage.reserve()).turn_id
    result = msgspec.structs.replace(usage.result(turn_id, finish_reason=FinishReason.ERROR), attempts=())
    await usage.settle(result)
    budget = await usage.budget()
    assert (budget.spent_usd, budget.held_usd) == (0, 0)


async def test_of_two_attempts_with_one_number_the_paid_one_is_kept(usage: Any) -> None:
    turn_id = new_id()
    await usage.settle(usage.result(turn_id, usage.attempt(1, is_billable=False), usage.attempt(1)))
    assert [charge.is_billable for charge in (await usage.charges()).charges] == [True]


async def test_replayed_results_give_the_same_charges_to_the_last_digit(usage: Any) -> None:
    turn_id = (await usage.reserve()).turn_id
    tokens = TokenUsage(input_tokens=1013, output_tokens=7, cached_tokens=512)
    result = usage.result(turn_id, usage.attempt(provider="OPENAI", model="gpt-4o-mini", usage=tokens))
    await usage.settle(result)
    before = (await usage.charges(), (await usage.budget()).spent_usd)
    async with usage.database.transaction() as tx:
        connection = await tx.session.connection()
        for table in ("charges", "reservations", "budgets"):
            await connection.exec_driver_sql(f"TRUNCATE usage.{table}")
    usage.clock.advance(3 * 24 * 3600)
    await usage.settle(result)
    assert (await usage.charges(), (await usage.budget()).spent_usd) == before


async def test_small_prices_add_up_exactly(usage: Any) -> None:
    tokens = TokenUsage(input_tokens=1, output_tokens=0)
    for _ in range(30):
        await usage.settle(usage.result(new_id(), usage.attempt(provider="OPENAI", model="gpt-4o-mini", usage=tokens)))
    assert (await usage.budget()).spent_usd == Decimal("0.0000045")


async def test_absurd_and_negative_counts_neither_earn_money_nor_stop_the_stream(usage: Any) -> None:
    negative = TokenUsage(input_tokens=-5, output_tokens=-7, cached_tokens=-1, reasoning_tokens=-2, total_tokens=-9)
    absurd = TokenUsage(input_tokens=10**30, output_tokens=10**40, cached_tokens=10**50)
    await usage.settle(usage.result(new_id(), usage.attempt(usage=negative)))
    await usage.settle(usage.result(new_id(), usage.attempt(usage=absurd, is_billable=False)))
    charges = (await usage.charges()).charges
    assert min(charge.cost_usd for charge in charges) == 0
    assert (await usage.budget()).spent_usd == 0


def test_a_count_that_is_no_number_is_refused_before_it_is_billed(usage: Any) -> None:
    result = usage.result(new_id()).encode().replace(b'"input_tokens":300000', b'"input_tokens":NaN')
    with pytest.raises(msgspec.DecodeError):
        TurnResult.decode(result)


@pytest.mark.parametrize("change", ["held_usd = held_usd + 0.000000000001", "spent_usd = spent_usd - 0.000000000001"])
async def test_an_audit_finds_a_sum_that_is_off_by_the_smallest_amount(usage: Any, change: str) -> None:
    await usage.reserve()
    await usage.settle(usage.result(new_id()))
    async with usage.database.transaction() as tx:
        connection = await tx.session.connection()
        await connection.exec_driver_sql(f"UPDATE usage.budgets SET {change} WHERE user_id = $1", (usage.user_id,))  # noqa: S608
        assert [mismatch.user_id for mismatch in await UsageStore(tx).audit()] == [usage.user_id]
        await tx.session.rollback()


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_the_books_stay_true_when_everything_happens_at_once(usage: Any, seed: int) -> None:
    choose = random.Random(seed)  # noqa: S311 - a scenario that can be repeated
    await usage.set_budget("12.5")
    turns = [new_id() for _ in range(25)]
    usage.bus.turns.results = {turn_id: usage.result(turn_id) for turn_id in turns[:10]}

    places = asyncio.Semaphore(40)  # four times what the pool has; more would wait out its 5 s on a slow machine

    async def one_thing() -> None:
        async with places:
            await do_one_thing()

    async def do_one_thing() -> None:
        turn_id = choose.choice(turns)
        match choose.randrange(6):
            case 0 | 1:
                await usage.reserve(turn_id=turn_id, request_hash=choose.choice([None, "a", "b"]))
            case 2:
                await usage.release(turn_id)
            case 3:
                reason = choose.choice([FinishReason.STOP, FinishReason.CANCELED])
                await usage.settle(usage.result(turn_id, finish_reason=reason))
            case 4:
                await usage.set_budget(choose.choice(["5", "12.5", "40"]))
            case _:
                usage.clock.advance(5)
                await usage.sweeper.sweep()

    outcomes = await asyncio.gather(*(one_thing() for _ in range(400)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} <= {type(None), BudgetExceeded}
    charges = (await usage.charges(limit=1000)).charges
    assert len({charge.turn_id for charge in charges}) == len(charges)  # the fixture audits the sums


async def test_a_result_waits_while_the_database_is_away(usage: Any) -> None:
    turn_id = (await usage.reserve()).turn_id
    await usage.database.close()
    engine, usage.database._engine = usage.database._engine, None
    with pytest.raises(ServiceUnavailable):
        await usage.settle(usage.result(turn_id))
    usage.database._engine = engine
    await usage.settle(usage.result(turn_id))
    assert (await usage.charges()).total == 1


async def test_charges_are_listed_newest_first_filtered_and_in_pages(usage: Any) -> None:
    session_id, began = new_id(), usage.clock.now()
    turns = []
    for number in range(5):
        usage.clock.advance(60)
        turns.append(new_id())
        await usage.settle(usage.result(turns[-1], session_id=session_id if number % 2 else None))
    everything = await usage.charges()
    assert [charge.turn_id for charge in everything.charges] == turns[::-1]
    assert everything.total == 5
    page = await usage.charges(limit=2, offset=1)
    assert ([charge.turn_id for charge in page.charges], page.total) == ([turns[3], turns[2]], 5)
    assert [charge.turn_id for charge in (await usage.charges(session_id=session_id)).charges] == [turns[3], turns[1]]
    assert [charge.turn_id for charge in (await usage.charges(turn_id=turns[2])).charges] == [turns[2]]
    between = await usage.charges(start_at=began + timedelta(seconds=120), end_at=began + timedelta(seconds=240))
    assert [charge.turn_id for charge in between.charges] == [turns[2], turns[1]]
    assert (await usage.charges(limit=-1, offset=-1)).charges == ()


async def test_nobody_lists_the_charges_of_others(usage: Any) -> None:
    turn_id = new_id()
    await usage.settle(usage.result(turn_id))
    usage.user_id += 4_000_000
    assert (await usage.charges(turn_id=turn_id)).total == 0
