import asyncio
from typing import Any

import msgspec
import pytest

from parley_contracts.errors import ProviderFailed, TurnInProgress, TurnNotFound
from parley_contracts.ids import new_id
from parley_contracts.parts import Answer, FinishReason, Reasoning, Text, TokenUsage, ToolCall
from parley_contracts.sessions import GetSession, MessageStatus
from parley_contracts.turns import GetTurn, TurnCommitted, TurnStatus, result_of

REASONS = [
    (FinishReason.STOP, TurnStatus.DONE, MessageStatus.SENT),
    (FinishReason.LENGTH, TurnStatus.DONE, MessageStatus.SENT),
    (FinishReason.TOOL_CALLS, TurnStatus.DONE, MessageStatus.SENT),
    (FinishReason.CONTENT_FILTER, TurnStatus.DONE, MessageStatus.SENT),
    (FinishReason.CANCELED, TurnStatus.CANCELED, MessageStatus.CANCELED),
    (FinishReason.BUDGET_EXHAUSTED, TurnStatus.CANCELED, MessageStatus.CANCELED),
    (FinishReason.ERROR, TurnStatus.ERROR, MessageStatus.ERROR),
]


@pytest.mark.parametrize(("reason", "status", "message_status"), REASONS)
async def test_whatever_text_there_is_is_kept_however_a_turn_ends(
    chat: Any, reason: FinishReason, status: TurnStatus, message_status: MessageStatus
) -> None:
    session = await chat.new_session()
    turn = await chat.start(session.id)
    ended = await chat.answer(turn.turn_id, "As far as it", reason=reason)
    assert (ended.status, ended.finish_reason, ended.answer) == (status, reason, Answer(text="As far as it"))
    message = (await chat.messages(session.id))[-1]
    assert (message.status, message.finish_reason, message.answer.text) == (message_status, reason, "As far as it")


async def test_an_answer_is_stored_with_all_that_is_known_of_it(chat: Any) -> None:
    session = await chat.new_session()
    turn = await chat.start(session.id)
    parts = (Reasoning("Hm"), Text("Hi"), ToolCall(index=0, id="c", name="f", arguments='{"a":"\x00"}'))
    usage = TokenUsage(input_tokens=3, output_tokens=4, cached_tokens=1)
    chat.clock.advance(2)
    ended = await chat.answer(turn.turn_id, answer=Answer.of(parts), usage=usage)
    assert (ended.answer, ended.usage, ended.attempt) == (Answer.of(parts), usage, 1)
    assert ended.ended_at > ended.created_at
    message = (await chat.messages(session.id))[-1]
    assert (message.answer, message.usage, message.turn_id) == (Answer.of(parts), usage, turn.turn_id)
    assert (message.model, message.provider) == ("gpt", "OPENAI"), "of the attempt that answered"
    assert 2_000 <= message.response_time_ms < 10_000
    stored = await chat.ask(GetSession(user_id=chat.user_id, session_id=session.id))
    assert stored.running_turn is None
    assert stored.updated_at > session.updated_at


async def test_an_error_is_kept_with_its_turn(chat: Any) -> None:
    turn = await chat.start((await chat.new_session()).id)
    error = ProviderFailed().body()
    ended = await chat.answer(turn.turn_id, "", reason=FinishReason.ERROR, error=error)
    assert ended.error == error


async def test_the_end_is_announced_only_after_it_can_be_read(chat: Any) -> None:
    turn = await chat.start((await chat.new_session()).id)
    read: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def hear(message: Any) -> None:
        if isinstance(message, TurnCommitted):
            read.set_result(asyncio.ensure_future(chat.turn(turn.turn_id)))

    watch = await chat.gateway.turns.watch(turn.turn_id, hear)
    await chat.gateway.publish(chat.result(turn.turn_id, "Hi"))
    seen = await (await asyncio.wait_for(read, 5))
    assert (seen.status, seen.answer.text) == (TurnStatus.DONE, "Hi")
    await watch.close()


async def test_a_result_delivered_twice_is_stored_once(chat: Any) -> None:
    session = await chat.new_session()
    turn = await chat.start(session.id)
    command = chat.commands(turn.turn_id)[0]
    await chat.answer(turn.turn_id, "First")
    forged = result_of(command, chat.final(turn.turn_id, "Second", reason=FinishReason.ERROR))
    results = chat.hub.streams["RESULTS"]
    for _ in range(3):
        results.store(forged.route(), forged.encode(), {})
    await chat.exchange(session.id)  # the results before it were taken
    assert (await chat.turn(turn.turn_id)).answer.text == "First"
    assert (await chat.messages(session.id))[1].answer.text == "First"
    committed = [said for said in chat.hub.said if isinstance(said, TurnCommitted) and said.turn_id == turn.turn_id]
    assert len(committed) == 1


async def test_a_result_that_is_not_stored_by_chat_is_taken_and_forgotten(chat: Any) -> None:
    session = await chat.new_session()
    turn = await chat.start(session.id)
    result = chat.result(turn.turn_id)
    stateless = msgspec.structs.replace(result, turn_id=new_id(), session_id=None, message_id=None, store=False)
    await chat.gateway.publish(stateless)
    await chat.answer(turn.turn_id)
    assert await chat.sql("SELECT 1 FROM chat.turns WHERE id = $1", stateless.turn_id) == []


async def test_questions_and_results_of_one_session_never_deadlock(chat: Any) -> None:
    session = await chat.new_session()

    async def insist() -> str:
        while True:
            try:
                turn = await chat.start(session.id)
            except TurnInProgress:
                continue
            await chat.gateway.publish(chat.result(turn.turn_id))
            return str(turn.turn_id)

    turn_ids = await asyncio.wait_for(asyncio.gather(*(insist() for _ in range(12))), 60)
    for turn_id in turn_ids:
        assert (await chat.ended(turn_id)).status is TurnStatus.DONE
    assert len(await chat.messages(session.id)) == 24
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    assert (await chat.sql(deadlocks))[0]["deadlocks"] == 0


async def test_a_turn_is_its_owners_alone(chat: Any) -> None:
    turn = await chat.start((await chat.new_session()).id)
    for query in (GetTurn(turn_id=turn.turn_id, user_id=10**9), GetTurn(turn_id=new_id(), user_id=chat.user_id)):
        with pytest.raises(TurnNotFound):
            await chat.ask(query)
