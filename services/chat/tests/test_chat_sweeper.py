import asyncio
from typing import Any

import pytest

from parley_contracts.errors import DeadlinePassed
from parley_contracts.parts import FinishReason
from parley_contracts.sessions import MessageStatus
from parley_contracts.streams import Stream
from parley_contracts.turns import Generate, StopTurn, TurnFinal, TurnResult, TurnStatus


async def sweep(chat: Any, after_s: float = 6.0) -> None:
    chat.clock.advance(after_s)
    await chat.service.sweeper.sweep()


def sent(chat: Any, turn_id: str) -> list[str]:
    said = [message for message in chat.hub.said if isinstance(message, Generate) and message.turn_id == turn_id]
    return [message.dedup_id() for message in said]


async def control(chat: Any, turn_id: str) -> Any:
    return (await chat.gateway.turns.last_control(turn_id)).entry


async def test_a_final_without_a_result_is_stated_once_it_stood_for_5_s(chat: Any) -> None:
    session = await chat.new_session()
    turn = await chat.start(session.id)
    seq = await chat.claim(turn.turn_id)
    await chat.gateway.turns.append_control(chat.final(turn.turn_id, "Whole"), expected_seq=seq)
    await sweep(chat)
    assert chat.results(turn.turn_id) == [], "its router is about to state it"
    await sweep(chat, after_s=2)
    assert chat.results(turn.turn_id) == []
    await sweep(chat)
    ended = await chat.ended(turn.turn_id)
    assert (ended.status, ended.answer.text) == (TurnStatus.DONE, "Whole")
    assert chat.results(turn.turn_id) == [chat.result(turn.turn_id, "Whole", ended_at=ended.ended_at)]


async def test_a_stop_without_a_final_is_finished_after_3_s(chat: Any) -> None:
    turn = await chat.start((await chat.new_session()).id)
    await chat.claim(turn.turn_id)
    chat.say(turn.turn_id, "Half")
    await chat.sql("UPDATE chat.turns SET stop_requested_at = $2 WHERE id = $1", turn.turn_id, chat.clock.now())
    await sweep(chat, after_s=2)
    assert not isinstance(await control(chat, turn.turn_id), TurnFinal)
    await sweep(chat)
    ended = await chat.ended(turn.turn_id)
    assert (ended.status, ended.answer.text) == (TurnStatus.CANCELED, "Half")


async def test_a_turn_past_its_deadline_ends_in_error_with_its_text_and_no_bill(chat: Any) -> None:
    session = await chat.new_session()
    turn = await chat.start(session.id)
    await chat.claim(turn.turn_id)
    chat.say(turn.turn_id, "Half")
    await sweep(chat, after_s=599)
    assert not isinstance(await control(chat, turn.turn_id), TurnFinal)
    await sweep(chat, after_s=2.5)
    ended = await chat.ended(turn.turn_id)
    assert (ended.status, ended.error, ended.answer.text) == (TurnStatus.ERROR, DeadlinePassed().body(), "Half")
    assert (await chat.messages(session.id))[-1].status is MessageStatus.ERROR
    (result,) = chat.results(turn.turn_id)
    assert [(attempt.is_billable, attempt.error_code) for attempt in result.attempts] == [(False, "timeout")]
    assert (await chat.start(session.id)).status is TurnStatus.QUEUED


async def test_a_lost_command_is_dispatched_again_when_missed_twice_5_s_apart(chat: Any) -> None:
    session = await chat.new_session(system_prompt="Be kind.")
    turn = await chat.start(session.id)
    (first,) = chat.commands(turn.turn_id)
    chat.lose_commands()
    await sweep(chat)
    assert sent(chat, turn.turn_id) == [turn.turn_id]
    await sweep(chat)
    assert sent(chat, turn.turn_id) == [turn.turn_id, f"{turn.turn_id}:r1"]
    (again,) = chat.commands(turn.turn_id)
    assert (again.dispatch, again.prompt) == (1, first.prompt)
    await sweep(chat)
    await sweep(chat)
    assert len(sent(chat, turn.turn_id)) == 2, "its command stands in COMMANDS"
    chat.lose_commands()
    await sweep(chat)
    await sweep(chat)
    assert sent(chat, turn.turn_id)[2:] == [f"{turn.turn_id}:r2"]


async def test_a_turn_whose_router_spoke_within_15_s_is_left_to_it(chat: Any) -> None:
    turn = await chat.start((await chat.new_session()).id)
    await chat.claim(turn.turn_id)
    chat.lose_commands()
    for n in range(6):
        chat.say(turn.turn_id, "x", n=n)
        await sweep(chat)
    assert len(sent(chat, turn.turn_id)) == 1
    for _ in range(2):
        await sweep(chat)
    assert len(sent(chat, turn.turn_id)) == 1
    await sweep(chat)
    assert len(sent(chat, turn.turn_id)) == 2


async def test_a_turn_whose_command_stands_is_left_to_jetstream(chat: Any) -> None:
    turn = await chat.start((await chat.new_session()).id)
    for _ in range(10):
        await sweep(chat)
    assert sent(chat, turn.turn_id) == [turn.turn_id]
    assert (await chat.turn(turn.turn_id)).status is TurnStatus.QUEUED


async def test_an_unsent_command_is_left_to_the_relay(chat: Any) -> None:
    chat.hub.full(Stream.COMMANDS)
    turn = await chat.start((await chat.new_session()).id)
    for _ in range(4):
        await sweep(chat)
    assert sent(chat, turn.turn_id) == [turn.turn_id]


async def test_a_claimed_turn_is_seen_to_run(chat: Any) -> None:
    turn = await chat.start((await chat.new_session()).id)
    await chat.claim(turn.turn_id)
    await sweep(chat)
    seen = await chat.turn(turn.turn_id)
    assert (seen.status, seen.attempt) == (TurnStatus.RUNNING, 1)


async def test_a_healthy_turn_is_not_looked_at_before_5_s(chat: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    await chat.start((await chat.new_session()).id)
    looks = counted(chat.service, monkeypatch)
    await sweep(chat, after_s=4)
    assert looks == []
    await sweep(chat, after_s=2)
    assert len(looks) == 1


async def test_of_two_replicas_one_looks_at_a_turn(chat: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    other = await chat.add_replica()
    turn_ids = [(await chat.start((await chat.new_session()).id)).turn_id for _ in range(10)]
    looks = [counted(service, monkeypatch) for service in (chat.service, other)]
    chat.clock.advance(6)
    await asyncio.gather(chat.service.sweeper.sweep(), other.sweeper.sweep())
    assert sorted(looks[0] + looks[1]) == sorted(turn_ids)


def counted(service: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The turns that this replica looks at from now on."""
    looks: list[str] = []
    turns, last_control = service.bus.turns, service.bus.turns.last_control

    async def count(turn_id: str) -> Any:
        looks.append(turn_id)
        return await last_control(turn_id)

    monkeypatch.setattr(turns, "last_control", count)
    return looks


async def test_one_turns_trouble_is_not_the_others(chat: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = await chat.start((await chat.new_session()).id)
    good = await chat.start((await chat.new_session()).id)
    find_command = chat.service.bus.turns.find_command

    async def fail(turn_id: str) -> bool:
        if turn_id == bad.turn_id:
            raise RuntimeError("broken")
        return bool(await find_command(turn_id))

    monkeypatch.setattr(chat.service.bus.turns, "find_command", fail)
    chat.lose_commands()
    await sweep(chat)
    await sweep(chat)
    assert len(sent(chat, good.turn_id)) == 2
    assert len(sent(chat, bad.turn_id)) == 1


async def test_the_sweeper_goes_on_when_the_bus_comes_back(chat: Any) -> None:
    turn = await chat.start((await chat.new_session()).id)
    chat.hub.cut()
    await sweep(chat, after_s=601)
    chat.hub.restore()
    assert (await chat.turn(turn.turn_id)).status is TurnStatus.QUEUED
    await sweep(chat)
    assert (await chat.ended(turn.turn_id)).status is TurnStatus.ERROR


async def test_an_accepted_turn_ends_within_10_s_of_its_deadline_though_all_of_nats_was_lost(chat: Any) -> None:
    began_at = chat.clock.now()
    turn = await chat.start((await chat.new_session()).id)
    seconds = 0.0
    while seconds < 610:
        chat.lose_commands()
        chat.hub.logs.clear()
        chat.hub.controls.clear()
        await sweep(chat, after_s=2)
        seconds += 2
        if any(isinstance(said, TurnResult) and said.turn_id == turn.turn_id for said in chat.hub.said):
            break
    ended = await chat.ended(turn.turn_id)
    assert (ended.status, ended.finish_reason) == (TurnStatus.ERROR, FinishReason.ERROR)
    assert (chat.clock.now() - began_at).total_seconds() >= 600  # this clock also goes on by itself


async def test_a_deleted_sessions_turn_ends_though_the_stop_was_not_finished(chat: Any) -> None:
    session = await chat.new_session()
    turn = await chat.start(session.id)
    await chat.sql("UPDATE chat.turns SET stop_requested_at = $2 WHERE id = $1", turn.turn_id, chat.clock.now())
    await chat.sql("DELETE FROM chat.sessions WHERE id = $1", session.id)
    await sweep(chat)

    async def forgotten() -> bool:
        return not await chat.sql("SELECT 1 FROM chat.turns WHERE id = $1", turn.turn_id)

    await chat.eventually(forgotten)
    assert [result.status for result in chat.results(turn.turn_id)] == [TurnStatus.CANCELED]


async def test_a_stop_is_stored_before_anybody_is_asked(chat: Any) -> None:
    turn = await chat.start((await chat.new_session()).id)
    chat.service.bus.turns.last_control = None  # whatever comes next kills it
    with pytest.raises(Exception, match="wrong inside Parley"):
        await chat.ask(StopTurn(turn_id=turn.turn_id, user_id=chat.user_id))
    del chat.service.bus.turns.last_control
    await sweep(chat)
    assert (await chat.ended(turn.turn_id)).status is TurnStatus.CANCELED
