"""Being heard and hearing: beats, reconnects, and gateways that are gone."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from parley_contracts.ids import new_id
from parley_contracts.reader import Shown
from parley_contracts.turns import GatewayAlive, TurnDelta, TurnStatus
from parley_llm_router import gateways as gateways_module
from parley_llm_router import generate as generate_module

Make = Callable[..., Awaitable[Any]]
Until = Callable[..., Awaitable[Any]]


def beats(house: Any, turn_id: str) -> list[TurnDelta]:
    return [entry for entry in house.log(turn_id) if isinstance(entry, TurnDelta) and not entry.parts]


async def test_a_silent_turn_is_heard_all_the_same(house: Any, until: Until, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate_module, "BEAT_S", 0.05)
    command = await house.say(house.command("tokens=9 stall_after=3"))
    await until(lambda: len(beats(house, command.turn_id)) > 3)
    assert {(beat.attempt, beat.n) for beat in beats(house, command.turn_id)[1:]} == {(1, 3)}
    assert await house.stop(command)
    await house.result(command.turn_id)


async def test_a_turn_that_waits_for_a_retry_is_heard_too(
    make_house: Make, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate_module, "BEAT_S", 0.05)
    house = await make_house()
    await house.router(retry_after_5xx_s=0.5)
    command = await house.say(house.command("fail_first=1:500 tokens=2"))
    await until(lambda: len(beats(house, command.turn_id)) > 3)
    assert (await house.result(command.turn_id)).status is TurnStatus.DONE


async def test_a_provider_silent_for_too_long_is_closed_and_the_turn_ends(make_house: Make) -> None:
    house = await make_house()
    await house.router(provider_max_idle_ms=200)
    command = house.command("tokens=9 stall_after=3")
    result = await house.ended(command)
    assert (result.status, result.error.code) == (TurnStatus.ERROR, "provider_timeout")
    assert result.answer.text == "word1 word2 word3 "
    (call,) = house.provider.calls(command.turn_id)
    assert call.how == "client_closed"
    assert 0.15 < call.closed_at - call.opened_at < 1.2


async def test_a_provider_that_never_answers_is_tried_within_the_turns_time(make_house: Make) -> None:
    house = await make_house()
    await house.router(provider_timeout_ms=600, provider_max_idle_ms=200)
    command = house.command(model="simulator/stall")
    began_at = asyncio.get_running_loop().time()
    result = await house.ended(command)
    assert result.error.code == "provider_timeout"
    assert asyncio.get_running_loop().time() - began_at < 2
    assert len(house.provider.calls(command.turn_id)) == 3


async def test_a_slow_stream_that_never_pauses_is_not_idle(make_house: Make) -> None:
    house = await make_house()
    await house.router(provider_max_idle_ms=2000)
    result = await house.ended(house.command("tokens=8 delay_ms=400"))
    assert result.status is TurnStatus.DONE


# --- reconnects -----------------------------------------------------------------------------------------------------


async def test_after_a_reconnect_every_part_is_said_again_and_the_turn_goes_on(house: Any) -> None:
    command = await house.say(house.command("tokens=30 delay_ms=20"))
    await house.hears(command, 3)
    house.hub.cut()
    await asyncio.sleep(0.15)  # what is said now reaches nobody
    house.hub.restore()
    result = await house.result(command.turn_id)
    assert (result.status, result.attempt) == (TurnStatus.DONE, 1)
    shown = [event for event in house.shown(command.turn_id) if isinstance(event, Shown)]
    assert [event.part.text for event in shown] == [f"word{n} " for n in range(1, 31)]
    starts = [entry.n for entry in house.log(command.turn_id) if isinstance(entry, TurnDelta)]
    assert starts.count(0) == 2


async def test_a_turn_whose_log_is_lost_is_claimed_and_said_again(house: Any) -> None:
    command = await house.say(house.command("tokens=30 delay_ms=20"))
    await house.hears(command, 3)
    house.hub.cut()
    house.hub.controls.clear()
    house.hub.logs.clear()
    house.hub.restore()
    result = await house.result(command.turn_id)
    shown = [event for event in house.shown(command.turn_id) if isinstance(event, Shown)]
    assert "".join(event.part.text for event in shown) == result.answer.text
    assert len(shown) == 30
    assert len(house.claims(command.turn_id)) == 1


async def test_the_end_of_a_turn_waits_for_the_bus(house: Any, until: Until) -> None:
    command = await house.say(house.command("tokens=10 delay_ms=20"))
    await house.hears(command, 3)
    house.hub.cut()
    (call,) = house.provider.calls(command.turn_id)
    await until(lambda: call.closed_at)
    await asyncio.sleep(0.3)
    house.hub.restore()
    result = await house.result(command.turn_id)
    assert len(result.answer.text.split()) == 10
    assert (len(house.finals(command.turn_id)), len(house.claims(command.turn_id))) == (1, 1)


# --- gateways -------------------------------------------------------------------------------------------------------


@pytest.fixture
def _quick_death(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateways_module, "DEAD_AFTER_S", 0.5)


async def keep_alive(house: Any, gateway_id: str, *adopted: str) -> None:
    while True:
        await house.gateway.publish(GatewayAlive(gateway_id=gateway_id, adopted=adopted))
        await asyncio.sleep(0.1)


@pytest.mark.usefixtures("_quick_death")
async def test_a_stateless_turn_ends_when_nobody_hears_its_gateway(house: Any, until: Until) -> None:
    gateway_id = new_id()
    speaking = asyncio.create_task(keep_alive(house, gateway_id))
    command = await house.say(house.command("tokens=2000 delay_ms=20", store=False, gateway_id=gateway_id))
    await house.hears(command, 2)
    await asyncio.sleep(1.5)
    assert not house.finals(command.turn_id)
    speaking.cancel()
    (call,) = house.provider.calls(command.turn_id)
    await until(lambda: call.closed_at, 4.0)
    result = await house.result(command.turn_id)
    assert (result.status, result.attempts[0].is_billable) == (TurnStatus.CANCELED, True)


@pytest.mark.usefixtures("_quick_death")
async def test_a_turn_that_another_gateway_adopted_goes_on(house: Any) -> None:
    command = await house.say(house.command("tokens=100 delay_ms=20", store=False, gateway_id=new_id()))
    speaking = asyncio.create_task(keep_alive(house, new_id(), command.turn_id))
    assert (await house.result(command.turn_id)).status is TurnStatus.DONE
    speaking.cancel()


@pytest.mark.usefixtures("_quick_death")
async def test_a_stored_turn_needs_no_gateway(house: Any) -> None:
    result = await house.ended(house.command("tokens=100 delay_ms=20", gateway_id=new_id()))
    assert result.status is TurnStatus.DONE


@pytest.mark.usefixtures("_quick_death")
async def test_a_router_that_was_cut_off_blames_no_gateway(house: Any) -> None:
    gateway_id = new_id()
    speaking = asyncio.create_task(keep_alive(house, gateway_id))
    command = await house.say(house.command("tokens=150 delay_ms=20", store=False, gateway_id=gateway_id))
    await house.hears(command, 2)
    house.hub.cut()
    await asyncio.sleep(2.0)
    house.hub.restore()
    result = await house.result(command.turn_id)
    speaking.cancel()
    assert (result.status, len(result.answer.text.split())) == (TurnStatus.DONE, 150)
