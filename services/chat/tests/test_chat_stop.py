import asyncio
from typing import Any

import pytest

from parley_contracts.errors import TurnNotFound
from parley_contracts.ids import new_id
from parley_contracts.parts import Answer, FinishReason
from parley_contracts.sessions import MessageStatus
from parley_contracts.streams import Stream
from parley_contracts.turns import StopTurn, Turn, TurnFinal, TurnStatus, result_of


async def stop(chat: Any, turn_id: str) -> Turn:
    turn: Turn = await chat.ask(StopTurn(turn_id=turn_id, user_id=chat.user_id))
    return turn


async def finals(chat: Any, turn_id: str) -> list[TurnFinal]:
    return [entry for entry in await chat.gateway.turns.read(turn_id) if isinstance(entry, TurnFinal)]


async def test_a_router_that_obeys_ends_the_turn_itself(chat: Any) -> None:
    session = await chat.new_session()
    turn = await chat.start(session.id)
    seq = await chat.claim(turn.turn_id)
    final = chat.final(turn.turn_id, "Half", reason=FinishReason.CANCELED)

    async def obey() -> bool:
        async def end() -> None:
            await asyncio.sleep(0.05)
            await chat.gateway.turns.append_control(final, expected_seq=seq)
            await chat.gateway.publish(result_of(chat.commands(turn.turn_id)[0], final))

        ending.append(asyncio.create_task(end()))
        return True

    ending: list[asyncio.Task[None]] = []
    running = await chat.obeys(turn.turn_id, obey)
    stopped = await stop(chat, turn.turn_id)
    assert (stopped.status, stopped.finish_reason, stopped.answer.text) == (TurnStatus.CANCELED, FinishReason.CANCELED, "Half")
    assert len(ending) == 1
    assert len(await finals(chat, turn.turn_id)) == 1
    await running.close()


async def test_a_turn_that_nobody_claimed_is_stopped_at_once(chat: Any) -> None:
    session = await chat.new_session()
    turn = await chat.start(session.id)
    async with asyncio.timeout(0.9):  # nobody is asked for a second
        stopped = await stop(chat, turn.turn_id)
    assert (stopped.status, stopped.attempt, stopped.answer) == (TurnStatus.CANCELED, 0, Answer())
    assert (await chat.messages(session.id))[-1].status is MessageStatus.CANCELED
    (result,) = chat.results(turn.turn_id)
    assert (result.attempts, result.usage) == ((), None)


async def test_without_a_router_the_text_in_the_log_is_kept_and_billed(chat: Any) -> None:
    session = await chat.new_session()
    turn = await chat.start(session.id, "x" * 40)
    await chat.claim(turn.turn_id, 1)
    chat.say(turn.turn_id, "Lost", attempt=1)
    await chat.claim(turn.turn_id, 2)
    chat.say(turn.turn_id, "Once upon", " a time", attempt=2)
    chat.say(turn.turn_id, " late", attempt=1, n=1)
    stopped = await stop(chat, turn.turn_id)
    assert (stopped.status, stopped.attempt, stopped.answer.text) == (TurnStatus.CANCELED, 2, "Once upon a time")
    message = (await chat.messages(session.id))[-1]
    assert (message.status, message.answer.text, message.model) == (MessageStatus.CANCELED, "Once upon a time", "gpt")
    (result,) = chat.results(turn.turn_id)
    lost, named = result.attempts
    assert (lost.attempt, lost.is_billable, lost.usage.output_tokens) == (1, False, 3)
    assert (named.attempt, named.is_billable, named.usage.input_tokens, named.usage.output_tokens) == (2, True, 14, 4)
    assert (named.is_estimated, named.method, named.model, named.provider) == (True, "heuristic", "gpt", "OPENAI")
    (final,) = await finals(chat, turn.turn_id)
    assert (final.attempt, final.n) == (2, 2)


async def test_an_attempt_that_said_nothing_is_not_billed(chat: Any) -> None:
    turn = await chat.start((await chat.new_session()).id)
    await chat.claim(turn.turn_id)
    chat.say(turn.turn_id)
    await stop(chat, turn.turn_id)
    (result,) = chat.results(turn.turn_id)
    assert [attempt.is_billable for attempt in result.attempts] == [False]


async def test_a_stop_that_comes_after_the_routers_final_takes_that_final(chat: Any) -> None:
    """The router died between its final and its result."""
    turn = await chat.start((await chat.new_session()).id)
    seq = await chat.claim(turn.turn_id)
    await chat.gateway.turns.append_control(chat.final(turn.turn_id, "Whole"), expected_seq=seq)
    stopped = await stop(chat, turn.turn_id)
    assert (stopped.status, stopped.answer.text) == (TurnStatus.DONE, "Whole")
    assert len(await finals(chat, turn.turn_id)) == 1


async def test_of_a_stop_and_a_routers_final_at_once_one_stands(chat: Any) -> None:
    """The router does not hear the stop, and ends while chat makes up its mind."""
    turn = await chat.start((await chat.new_session()).id)
    seq = await chat.claim(turn.turn_id)
    chat.say(turn.turn_id, "Who")
    turns, append = chat.service.bus.turns, chat.service.bus.turns.append_control

    async def beaten(entry: Any, *, expected_seq: int) -> int:
        turns.append_control = append
        await append(chat.final(turn.turn_id, "Whole"), expected_seq=seq)
        return int(await append(entry, expected_seq=expected_seq))

    turns.append_control = beaten
    stopped = await stop(chat, turn.turn_id)
    assert (stopped.status, stopped.answer.text) == (TurnStatus.DONE, "Whole")
    (result,) = chat.results(turn.turn_id)
    assert result.attempts == chat.final(turn.turn_id).attempts
    assert len(await finals(chat, turn.turn_id)) == 1


async def test_a_stop_races_a_claim_and_the_claim_is_stopped(chat: Any) -> None:
    turn = await chat.start((await chat.new_session()).id)
    turns, append = chat.service.bus.turns, chat.service.bus.turns.append_control

    async def beaten(entry: Any, *, expected_seq: int) -> int:
        turns.append_control = append
        await chat.claim(turn.turn_id)
        chat.say(turn.turn_id, "Just begun")
        return int(await append(entry, expected_seq=expected_seq))

    turns.append_control = beaten
    stopped = await stop(chat, turn.turn_id)
    assert (stopped.status, stopped.attempt, stopped.answer.text) == (TurnStatus.CANCELED, 1, "Just begun")


async def test_a_lost_acknowledgement_of_the_final_leaves_one_final(chat: Any) -> None:
    turn = await chat.start((await chat.new_session()).id)
    chat.hub.lose_acks = 1
    assert (await stop(chat, turn.turn_id)).status is TurnStatus.CANCELED
    assert len(await finals(chat, turn.turn_id)) == 1


async def test_many_stops_at_once_have_one_end(chat: Any) -> None:
    await chat.add_replica()
    turn = await chat.start((await chat.new_session()).id)
    await chat.claim(turn.turn_id)
    chat.say(turn.turn_id, "Half")
    ends = await asyncio.gather(*(stop(chat, turn.turn_id) for _ in range(8)))
    assert {(end.status, end.answer.text) for end in ends} == {(TurnStatus.CANCELED, "Half")}
    assert len(await finals(chat, turn.turn_id)) == 1
    assert len(chat.results(turn.turn_id)) == 1


async def test_a_stop_after_the_end_changes_nothing(chat: Any) -> None:
    session = await chat.new_session()
    turn = await chat.exchange(session.id)
    assert await stop(chat, turn.turn_id) == turn
    again = await chat.start(session.id)
    first = await stop(chat, again.turn_id)
    assert await stop(chat, again.turn_id) == first
    assert first.status is TurnStatus.CANCELED


async def test_a_stop_of_a_foreign_turn_is_not_found_and_stops_nothing(chat: Any) -> None:
    turn = await chat.start((await chat.new_session()).id)
    for command in (StopTurn(turn_id=turn.turn_id, user_id=10**9), StopTurn(turn_id=new_id(), user_id=chat.user_id)):
        with pytest.raises(TurnNotFound):
            await chat.ask(command)
    assert (await chat.turn(turn.turn_id)).status is TurnStatus.QUEUED
    assert await finals(chat, turn.turn_id) == []


async def test_a_stop_whose_command_is_still_unsent_ends_the_turn(chat: Any) -> None:
    chat.hub.full(Stream.COMMANDS)
    turn = await chat.start((await chat.new_session()).id)
    assert (await stop(chat, turn.turn_id)).status is TurnStatus.CANCELED
    chat.hub.full(Stream.COMMANDS, is_full=False)
    chat.clock.advance(10)
    await chat.service.outbox.send_due()
    assert chat.commands(turn.turn_id) == []


async def test_a_stop_that_cannot_be_finished_is_finished_by_the_sweeper(chat: Any) -> None:
    turn = await chat.start((await chat.new_session()).id)
    await chat.claim(turn.turn_id)
    chat.say(turn.turn_id, "Half")
    chat.hub.full(Stream.RESULTS)
    assert (await stop(chat, turn.turn_id)).status in {TurnStatus.QUEUED, TurnStatus.RUNNING}
    chat.hub.full(Stream.RESULTS, is_full=False)
    for _ in range(3):
        chat.clock.advance(6)
        await chat.service.sweeper.sweep()
    ended = await chat.ended(turn.turn_id)
    assert (ended.status, ended.answer.text) == (TurnStatus.CANCELED, "Half")
