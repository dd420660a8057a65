"""Routers that die, stop or lose: who goes on, what a reader sees, what is billed."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from parley_contracts.errors import ModelConfigNotFound
from parley_contracts.ids import new_id
from parley_contracts.parts import Answer, FinishReason, Text
from parley_contracts.reader import Ended, Reset, Shown, Started
from parley_contracts.streams import Stream
from parley_contracts.turns import Generate, TurnClaim, TurnDelta, TurnFinal, TurnStatus
from parley_llm_router import claims as claims_module

Make = Callable[..., Awaitable[Any]]
Until = Callable[..., Awaitable[Any]]


def kinds(house: Any, command: Generate) -> list[str]:
    names: list[str] = []
    for event in house.shown(command.turn_id):
        if not names or names[-1] != type(event).__name__:
            names.append(type(event).__name__)
    return names


async def claimed_by_the_dead(house: Any, command: Generate, *, text: str = "", run: int = 1, attempt: int = 1) -> TurnClaim:
    """What a router that died has left in the log."""
    claim = TurnClaim(
        turn_id=command.turn_id,
        attempt=attempt,
        run=run,
        nonce=f"dead {attempt}",
        provider="SIMULATOR",
        model="simulator",
        model_config_id=command.model_config_id,
        claimed_at=datetime.now(UTC),
    )
    last = house.hub.controls.get(command.turn_id)
    await house.gateway.turns.append_control(claim, expected_seq=last.seq if last else 0)
    if text:
        parts = tuple(Text(word) for word in text.split())
        house.gateway.turns.say(TurnDelta(turn_id=command.turn_id, attempt=attempt, n=0, parts=parts))
    return claim


async def test_a_router_killed_before_the_first_text_is_replaced_and_nobody_notices(make_house: Make) -> None:
    house = await make_house()
    await house.router()
    command = await house.say(house.command("tokens=4 first_delay_ms=400"))
    await house.calls(command)
    await house.router()
    await house.buses[0].kill()
    result = await house.result(command.turn_id)
    assert result.answer.text == "word1 word2 word3 word4 "
    assert kinds(house, command) == ["Started", "Shown", "Ended"]
    assert [(claim.attempt, claim.run) for claim in house.claims(command.turn_id)] == [(1, 1), (2, 2)]


async def test_a_router_killed_after_text_is_replaced_by_one_that_begins_anew(make_house: Make) -> None:
    house = await make_house()
    await house.router()
    command = await house.say(house.command("tokens=30 delay_ms=20 mark=1"))
    await house.hears(command, 5)
    await house.router()
    await house.buses[0].kill()
    result = await house.result(command.turn_id)
    assert kinds(house, command) == ["Started", "Shown", "Reset", "Shown", "Ended"]
    first, second = house.provider.calls(command.turn_id)
    assert result.answer.text == "".join(second.pieces)
    assert f"<call-{first.id}>" not in result.answer.text
    abandoned, ours = result.attempts
    assert (abandoned.attempt, abandoned.is_billable, abandoned.is_success) == (1, False, False)
    assert (abandoned.error_code, abandoned.is_estimated) == ("upstream_interrupted", True)
    assert abandoned.usage.output_tokens > 0
    assert (ours.attempt, ours.is_billable, ours.usage.output_tokens) == (2, True, 30)


async def test_shown_text_that_may_not_be_replaced_ends_the_turn_without_a_call(house: Any) -> None:
    command = house.command("tokens=4", restart_after_text=False, store=False)
    await claimed_by_the_dead(house, command, text="Once upon")
    result = await house.ended(command)
    assert (result.status, result.error.code) == (TurnStatus.ERROR, "upstream_interrupted")
    assert (result.attempt, result.answer.text) == (1, "Onceupon")
    assert house.provider.calls(command.turn_id) == []
    (abandoned,) = result.attempts
    assert not abandoned.is_billable


async def test_a_turn_that_may_not_restart_is_taken_over_while_nothing_was_shown(house: Any) -> None:
    command = house.command("tokens=2", restart_after_text=False, store=False)
    await claimed_by_the_dead(house, command)
    result = await house.ended(command)
    assert (result.status, result.attempt) == (TurnStatus.DONE, 2)


async def test_a_turn_that_three_routers_died_of_ends_with_its_partial_text(house: Any) -> None:
    command = house.command("tokens=4")
    for run in (1, 2, 3):
        await claimed_by_the_dead(house, command, text=f"run{run}", run=run, attempt=run)
    result = await house.ended(command)
    assert (result.status, result.error.code) == (TurnStatus.ERROR, "upstream_interrupted")
    assert (result.attempt, result.answer.text) == (3, "run3")
    assert house.provider.calls(command.turn_id) == []
    assert [row.attempt for row in result.attempts] == [1, 2, 3]
    events = house.shown(command.turn_id)
    assert isinstance(events[-1], Ended)


async def test_the_result_is_stated_again_when_the_final_stands_already(house: Any) -> None:
    command = house.command("tokens=4")
    final = TurnFinal(
        turn_id=command.turn_id,
        attempt=0,
        n=0,
        answer=Answer(text="as it was"),
        finish_reason=FinishReason.STOP,
        ended_at=datetime.now(UTC),
        nonce="another's",
    )
    await house.gateway.turns.append_control(final, expected_seq=0)
    result = await house.ended(command)
    assert (result.answer, result.status) == (final.answer, TurnStatus.DONE)
    assert house.provider.calls(command.turn_id) == []
    assert house.log(command.turn_id) == [final]


async def test_of_twenty_routers_that_find_a_turn_unclaimed_one_claims_it(make_house: Make) -> None:
    house = await make_house()
    all_have_read = asyncio.Barrier(20)

    def read_together(turns: Any) -> None:
        last_control = turns.last_control
        waits = iter([all_have_read.wait])

        async def read(turn_id: str) -> Any:
            last = await last_control(turn_id)
            if (wait := next(waits, None)) is not None:
                await wait()
            return last

        turns.last_control = read

    for _ in range(20):
        await house.router()
        read_together(house.buses[-1].turns)
    command = house.command("tokens=3 first_delay_ms=200")
    for dispatch in range(20):
        await house.gateway.publish(msgspec.structs.replace(command, dispatch=dispatch))
    await house.calls(command)
    await asyncio.sleep(0.1)
    assert len(house.claims(command.turn_id)) == 1
    assert len(house.provider.calls(command.turn_id)) == 1


async def test_a_second_delivery_to_the_router_that_runs_the_turn_begins_nothing_anew(house: Any) -> None:
    command = house.command("tokens=10 delay_ms=20")
    await house.say(command)
    await house.hears(command, 2)
    await house.gateway.publish(msgspec.structs.replace(command, dispatch=1))
    result = await house.result(command.turn_id)
    assert len(house.claims(command.turn_id)) == 1
    assert len(house.provider.calls(command.turn_id)) == 1
    assert len(result.answer.text.split()) == 10


async def test_what_a_stale_router_says_is_never_shown_and_its_final_is_refused(make_house: Make, until: Until) -> None:
    house = await make_house()
    stale = await house.router(keep_alive_s=60.0)  # as if it were stopped: nobody hears that it lives
    command = await house.say(house.command("tokens=60 delay_ms=20 mark=1"))
    await house.hears(command, 3)
    (running,) = stale._serves[0]._running.values()
    running.generation._hold.is_foreign = lambda _control: False  # and it does not see its successor
    await house.router()
    await until(lambda: len(house.claims(command.turn_id)) == 2)
    result = await house.result(command.turn_id)
    second = house.provider.calls(command.turn_id)[1]
    assert result.answer.text == "".join(second.pieces)
    late = [entry for entry in house.log(command.turn_id) if isinstance(entry, TurnDelta) and entry.attempt == 1]
    after_claim = house.log(command.turn_id).index(house.claims(command.turn_id)[1])
    assert any(house.log(command.turn_id).index(entry) > after_claim for entry in late)
    shown = [event for event in house.shown(command.turn_id) if isinstance(event, Shown) and event.attempt == 2]
    assert "".join(event.part.text for event in shown) == result.answer.text
    assert len(house.finals(command.turn_id)) == 1
    assert Reset(2) in house.shown(command.turn_id)


async def test_a_fenced_router_closes_its_provider_call_and_leaves_the_command(make_house: Make, until: Until) -> None:
    house = await make_house()
    await house.router(keep_alive_s=60.0)
    command = await house.say(house.command("tokens=400 delay_ms=20"))
    await house.hears(command, 3)
    await house.router()
    await until(lambda: len(house.provider.calls(command.turn_id)) == 2)
    first, second = house.provider.calls(command.turn_id)
    await until(lambda: first.closed_at, 1.0)
    assert (first.how, second.how) == ("client_closed", "open")
    assert house.hub.streams[Stream.COMMANDS].last(command.route()) is not None
    assert await house.stop(command)
    assert (await house.result(command.turn_id)).attempt == 2


# --- what ends before it begins -------------------------------------------------------------------------------------


async def test_a_past_deadline_ends_the_turn_without_a_call(house: Any) -> None:
    command = house.command("tokens=2", deadline_at=datetime.now(UTC) - timedelta(seconds=1))
    result = await house.ended(command)
    assert (result.status, result.error.code, result.attempt) == (TurnStatus.ERROR, "timeout", 0)
    assert house.provider.calls(command.turn_id) == []
    assert house.shown(command.turn_id)[-1].error == result.error


async def test_a_config_that_cannot_be_found_ends_the_turn(make_house: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    house = await make_house()
    service = await house.router()

    async def nothing(_config_id: str) -> None:
        return None

    monkeypatch.setattr(service._serves[0]._registry, "stored", nothing)
    command = house.command(model_config_id=new_id())
    result = await house.ended(command)
    assert result.error.code == ModelConfigNotFound.code


async def test_a_command_that_breaks_the_router_ends_in_an_error_and_blocks_nobody(
    house: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise ZeroDivisionError("nobody thought of this")

    registry = house.services[0]._serves[0]._registry
    monkeypatch.setattr(registry, "open", broken)
    assert (await house.ended(house.command())).error.code == "internal"
    monkeypatch.undo()
    assert (await house.ended(house.command("tokens=1"))).status is TurnStatus.DONE


async def test_a_turn_that_breaks_the_router_half_way_ends_with_what_was_said(
    house: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("nobody thought of this")

    command = await house.say(house.command("tokens=5 delay_ms=20 cut_after=4"))
    await house.hears(command, 2)
    monkeypatch.setattr("parley_llm_router.generate.next_call", broken)
    result = await house.result(command.turn_id)
    assert result.error.code == "internal"
    assert result.answer.text.startswith("word1 word2 ")


async def test_a_full_results_stream_keeps_the_command_until_the_result_is_stored(house: Any, until: Until) -> None:
    house.hub.full(Stream.RESULTS)
    command = await house.say(house.command("tokens=2"))
    await until(lambda: house.finals(command.turn_id))
    await asyncio.sleep(0.7)
    assert house.hub.streams[Stream.COMMANDS].last(command.route()) is not None
    house.hub.full(Stream.RESULTS, is_full=False)
    assert (await house.result(command.turn_id)).answer.text == "word1 word2 "
    assert len(house.provider.calls(command.turn_id)) == 1


# --- drain ----------------------------------------------------------------------------------------------------------


async def test_a_router_that_stops_lets_its_turns_end(make_house: Make) -> None:
    house = await make_house()
    service = await house.router(llm_router_drain_s=10)
    command = await house.say(house.command("tokens=20 delay_ms=20"))
    await house.hears(command, 2)
    await service.stop()
    result = await house.result(command.turn_id)
    assert (result.status, result.attempt, len(result.answer.text.split())) == (TurnStatus.DONE, 1, 20)


async def test_a_router_that_stops_hands_over_what_takes_too_long(make_house: Make) -> None:
    house = await make_house()
    service = await house.router(llm_router_drain_s=0.1)
    command = await house.say(house.command("tokens=50 delay_ms=20"))
    await house.hears(command, 2)
    await house.router()
    began_at = asyncio.get_running_loop().time()
    await service.stop()
    (first, *_) = house.provider.calls(command.turn_id)
    assert first.closed_at
    result = await house.result(command.turn_id)
    assert (result.attempt, result.status) == (2, TurnStatus.DONE)
    assert house.claims(command.turn_id)[1].claimed_at.timestamp() - first.closed_at < 0.5
    assert asyncio.get_running_loop().time() - began_at < 10
    assert house.shown(command.turn_id)[0] == Started(1)


async def test_a_bus_that_comes_back_late_delivers_the_turn_again(house: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(house.services[0]._serves[0]._means.claims, "_patience_s", 0.1)
    monkeypatch.setattr(claims_module, "_LONGEST_PAUSE_S", 0.05)
    original = house.buses[0].turns.last_control
    failures = iter(range(8))

    async def unreadable(turn_id: str) -> Any:
        if next(failures, None) is not None:
            raise claims_module.LogUnreadable("no leader")
        return await original(turn_id)

    monkeypatch.setattr(house.buses[0].turns, "last_control", unreadable)
    assert (await house.ended(house.command("tokens=2"))).status is TurnStatus.DONE
