"""Stop: answered at once, the provider closed at once, what was generated stated and billed."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from parley_contracts.errors import ServiceUnavailable
from parley_contracts.parts import Answer, FinishReason
from parley_contracts.turns import StopGeneration, TurnFinal, TurnStatus

Make = Callable[..., Awaitable[Any]]
Until = Callable[..., Awaitable[Any]]
AT_ONCE_S = 0.3


async def stopped(house: Any, command: Any, until: Until) -> Any:
    """Stop it; the provider must see the connection end within 300 ms of the answer."""
    assert await house.stop(command)
    answered_at = time.time()
    calls = house.provider.calls(command.turn_id)
    await until(lambda: all(call.closed_at for call in calls), AT_ONCE_S)
    assert all(call.closed_at - answered_at < AT_ONCE_S for call in calls)
    result = await house.result(command.turn_id)
    assert (result.status, result.finish_reason, result.error) == (TurnStatus.CANCELED, FinishReason.CANCELED, None)
    assert len(house.finals(command.turn_id)) == 1
    return result


async def test_stop_after_five_tokens_keeps_and_bills_what_was_generated(house: Any, until: Until) -> None:
    command = await house.say(house.command("tokens=100 delay_ms=20"))
    await house.hears(command, 5)
    result = await stopped(house, command, until)
    (call,) = house.provider.calls(command.turn_id)
    assert call.how == "client_closed"
    assert "".join(call.pieces).startswith(result.answer.text)
    assert len(result.answer.text.split()) >= 5
    (attempt,) = result.attempts
    assert (attempt.method, attempt.is_estimated, attempt.is_billable, attempt.is_success) == ("heuristic", True, True, True)
    assert attempt.usage.output_tokens > 0
    assert house.shown(command.turn_id)[-1].answer == result.answer


async def test_stop_before_the_first_token_closes_a_provider_that_answered(house: Any, until: Until) -> None:
    command = await house.say(house.command("tokens=5 first_delay_ms=5000"))
    await house.calls(command)
    result = await stopped(house, command, until)
    assert (result.answer, result.attempts[0].usage.output_tokens) == (Answer(), 0)


async def test_stop_of_a_stalled_provider_closes_it(house: Any, until: Until) -> None:
    command = await house.say(house.command(model="simulator/stall"))
    await house.calls(command)
    await stopped(house, command, until)


async def test_stop_during_the_wait_for_a_retry_makes_no_second_call_and_bills_nothing(make_house: Make, until: Until) -> None:
    house = await make_house()
    await house.router(retry_after_5xx_s=30)
    command = await house.say(house.command(model="simulator/fail-500"))
    await until(lambda: [call for call in house.provider.calls(command.turn_id) if call.closed_at])
    await asyncio.sleep(0.05)
    result = await stopped(house, command, until)
    assert len(house.provider.calls(command.turn_id)) == 1
    assert [(row.is_billable, row.error_code) for row in result.attempts] == [(False, "provider_error")]


async def test_stop_of_a_turn_that_nobody_runs_finds_nobody(house: Any) -> None:
    command = house.command("tokens=2")
    await house.ended(command)
    with pytest.raises(ServiceUnavailable):
        await house.gateway.ask(StopGeneration(turn_id=command.turn_id))


async def test_of_a_hundred_stops_nearly_all_close_the_provider_within_300_ms(house: Any, until: Until) -> None:
    commands = [await house.say(house.command("tokens=1000 delay_ms=20")) for _ in range(100)]
    for command in commands:
        await house.hears(command, 2)
    took: list[float] = []

    async def stop(command: Any) -> None:
        began_at = time.time()
        assert await house.stop(command)
        (call,) = house.provider.calls(command.turn_id)
        await until(lambda: call.closed_at)
        took.append(call.closed_at - began_at)

    await asyncio.gather(*(stop(command) for command in commands))
    assert sorted(took)[98] < AT_ONCE_S
    print(f"100 stops: p50 {sorted(took)[50] * 1000:.0f} ms, p99 {sorted(took)[98] * 1000:.0f} ms")  # noqa: T201
    for command in commands:
        assert (await house.result(command.turn_id)).status is TurnStatus.CANCELED


async def test_a_final_that_chat_wrote_stands_and_closes_the_provider(house: Any, until: Until) -> None:
    command = await house.say(house.command("tokens=100 delay_ms=20"))
    await house.hears(command, 3)
    theirs = TurnFinal(
        turn_id=command.turn_id,
        attempt=1,
        n=3,
        answer=Answer(text="word1 word2 word3 "),
        finish_reason=FinishReason.CANCELED,
        ended_at=datetime.now(UTC),
    )
    await house.gateway.turns.append_control(theirs, expected_seq=house.hub.controls[command.turn_id].seq)
    (call,) = house.provider.calls(command.turn_id)
    await until(lambda: call.closed_at, 1.0)
    result = await house.result(command.turn_id)
    assert result.answer == theirs.answer
    assert house.finals(command.turn_id) == [theirs]
