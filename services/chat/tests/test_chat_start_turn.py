import asyncio
from typing import Any

import pytest

from parley_contracts.errors import (
    BudgetExceeded,
    IdConflict,
    IdempotencyKeyReused,
    MessagesTooLong,
    MessageTooLong,
    ModelNotFound,
    ServiceUnavailable,
    SessionNotFound,
    TurnInProgress,
)
from parley_contracts.ids import new_id
from parley_contracts.parts import FinishReason
from parley_contracts.prompts import Params
from parley_contracts.sessions import GetSession, MessageStatus, SessionChanges, UpdateSession
from parley_contracts.turns import TurnStatus


async def test_an_accepted_turn_is_stored_with_both_messages_and_its_command_is_published(chat: Any) -> None:
    session = await chat.new_session(system_prompt="Be kind.")
    turn = await chat.start(session.id, "Hello")
    assert turn.status is TurnStatus.QUEUED
    question, answer = await chat.messages(session.id)
    assert (question.id, question.role, question.answer.text) == (turn.user_message_id, "user", "Hello")
    assert (answer.id, answer.role, answer.status) == (turn.message_id, "assistant", MessageStatus.SENDING)
    assert question.status is MessageStatus.SENT
    (command,) = chat.commands()
    assert [(message.role, message.content) for message in command.prompt] == [("system", "Be kind."), ("user", "Hello")]
    assert (command.turn_id, command.message_id, command.user_id) == (turn.turn_id, turn.message_id, chat.user_id)
    assert command.store
    assert command.restart_after_text
    assert (command.deadline_at - command.accepted_at).total_seconds() == 600
    running = (await chat.ask(GetSession(user_id=chat.user_id, session_id=session.id))).running_turn
    assert running is not None
    assert running.turn_id == turn.turn_id
    assert await chat.sql("SELECT * FROM chat.outbox") == []


async def test_the_model_is_shown_the_conversation_so_far(chat: Any) -> None:
    session = await chat.new_session()
    await chat.exchange(session.id, "One?", "One.")
    failed = await chat.start(session.id, "Two?")
    await chat.answer(failed.turn_id, "", reason=FinishReason.ERROR)
    turn = await chat.start(session.id, "Three?", system_prompt="Count.")
    (command,) = chat.commands(turn.turn_id)
    said = [(message.role, message.content) for message in command.prompt]
    assert said == [("system", "Count."), ("user", "One?"), ("assistant", "One."), ("user", "Two?"), ("user", "Three?")]


async def test_the_same_turn_id_finds_the_same_turn(chat: Any) -> None:
    session = await chat.new_session()
    question = chat.question(session.id)
    first, *others = await asyncio.gather(*(chat.ask(question) for _ in range(10)))
    assert all(turn == first for turn in others)
    await chat.answer(first.turn_id)
    assert (await chat.ask(question)).status is TurnStatus.DONE
    assert len(await chat.messages(session.id)) == 2
    assert list(chat.books.held) == [first.turn_id]


@pytest.mark.parametrize("change", [{"content": "Other"}, {"user_id": 10**9}, {"params": Params(temperature=0)}])
async def test_a_turn_id_of_another_user_or_question_is_refused(chat: Any, change: dict[str, Any]) -> None:
    session = await chat.new_session()
    turn = await chat.start(session.id)
    same = {name: getattr(turn, name) for name in ("turn_id", "user_message_id", "message_id")}
    with pytest.raises(IdConflict):
        await chat.start(session.id, **{**same, **change})


async def test_a_message_id_in_use_is_refused_and_nothing_stays_reserved(chat: Any) -> None:
    first = await chat.exchange((await chat.new_session()).id)
    session = await chat.new_session()
    with pytest.raises(IdConflict):
        await chat.start(session.id, message_id=first.message_id)
    assert await chat.messages(session.id) == []
    assert list(chat.books.held) == [first.turn_id]


async def test_20_starts_with_one_key_are_one_turn(chat: Any) -> None:
    session = await chat.new_session()
    turns = await asyncio.gather(*(chat.start(session.id, request_hash="key", body_hash="body") for _ in range(20)))
    assert len({turn.turn_id for turn in turns}) == 1
    assert len(await chat.messages(session.id)) == 2
    assert [command.turn_id for command in chat.commands()] == [turns[0].turn_id]
    assert list(chat.books.held) == [turns[0].turn_id]


async def test_one_key_in_20_sessions_at_once_is_one_turn(chat: Any) -> None:
    sessions = [await chat.new_session() for _ in range(20)]
    turns = await asyncio.gather(*(chat.start(each.id, request_hash="key", body_hash="body") for each in sessions))
    assert len({turn.turn_id for turn in turns}) == 1
    assert list(chat.books.held) == [turns[0].turn_id]


async def test_a_key_with_another_body_is_refused(chat: Any) -> None:
    session = await chat.new_session()
    turn = await chat.start(session.id, request_hash="key", body_hash="one")
    with pytest.raises(IdempotencyKeyReused):
        await chat.start(session.id, request_hash="key", body_hash="two")
    assert list(chat.books.held) == [turn.turn_id]


async def test_a_key_of_another_user_is_another_key(chat: Any) -> None:
    turn = await chat.start((await chat.new_session()).id, request_hash="key")
    chat.user_id = 10**9
    assert (await chat.start((await chat.new_session()).id, request_hash="key")).turn_id != turn.turn_id


async def test_a_turn_that_ended_well_keeps_its_key_for_24_hours(chat: Any) -> None:
    session = await chat.new_session()
    turn = await chat.exchange(session.id, request_hash="key")
    again = await chat.start(session.id, request_hash="key")
    assert (again.turn_id, again.answer.text) == (turn.turn_id, "Hi")
    chat.clock.advance(24 * 3600 + 1)
    assert (await chat.start(session.id, request_hash="key")).turn_id != turn.turn_id


@pytest.mark.parametrize("reason", [FinishReason.CANCELED, FinishReason.BUDGET_EXHAUSTED, FinishReason.ERROR])
async def test_a_turn_that_ended_canceled_or_in_error_frees_its_key(chat: Any, reason: FinishReason) -> None:
    session = await chat.new_session()
    turn = await chat.start(session.id, request_hash="key")
    await chat.answer(turn.turn_id, reason=reason)
    assert (await chat.start(session.id, request_hash="key")).turn_id != turn.turn_id


async def test_of_20_questions_at_once_in_one_session_one_runs_and_no_budget_stays_held(chat: Any) -> None:
    session = await chat.new_session()
    await chat.add_replica()
    answers = await asyncio.gather(*(chat.start(session.id) for _ in range(20)), return_exceptions=True)
    (turn,) = [answer for answer in answers if not isinstance(answer, Exception)]
    refused = [answer for answer in answers if isinstance(answer, TurnInProgress)]
    assert len(refused) == 19
    assert {error.fields["turnId"] for error in refused} == {turn.turn_id}
    assert list(chat.books.held) == [turn.turn_id]
    assert len(await chat.messages(session.id)) == 2


async def test_the_next_question_is_taken_once_the_turn_has_ended(chat: Any) -> None:
    session = await chat.new_session()
    turn = await chat.start(session.id)
    with pytest.raises(TurnInProgress):
        await chat.start(session.id)
    await chat.answer(turn.turn_id)
    assert (await chat.start(session.id)).status is TurnStatus.QUEUED


async def test_a_foreign_session_is_answered_like_a_missing_one(chat: Any) -> None:
    session = await chat.new_session()
    with pytest.raises(SessionNotFound):
        await chat.start(session.id, user_id=10**9)
    with pytest.raises(SessionNotFound):
        await chat.start(new_id())
    assert chat.books.asked == []


async def test_the_model_is_the_requests_else_the_sessions_else_the_default(chat: Any) -> None:
    mine, other = chat.models.add("mine"), chat.models.add("other")
    session = await chat.new_session(model_config_id=mine.id)
    for fields, expected in (({"model": "other"}, other), ({}, mine)):
        turn = await chat.exchange(session.id, **fields)
        assert turn.model == expected.name
    assert (await chat.start((await chat.new_session()).id)).model == "simulator"
    with pytest.raises(ModelNotFound):
        await chat.start(session.id, model="nothing")


async def test_parameters_are_the_requests_over_the_sessions_over_the_configs(chat: Any) -> None:
    config = chat.models.add("m", params=Params(temperature=1.0, top_p=0.5, top_k=3))
    session = await chat.new_session(model_config_id=config.id, params=Params(temperature=0.5, top_p=0))
    turn = await chat.start(session.id, params=Params(temperature=0.0))
    assert chat.commands(turn.turn_id)[0].params == Params(temperature=0.0, top_p=0, top_k=3)


async def test_a_reservation_is_for_the_prompt_and_the_answers_longest_length(chat: Any) -> None:
    config = chat.models.add("m", max_output_tokens=100)
    session = await chat.new_session(model_config_id=config.id)
    await chat.exchange(session.id, "x" * 40)
    await chat.exchange(session.id, params=Params(max_tokens=7))
    turn = await chat.start(session.id, params=Params(max_tokens=10**6))
    default, asked, most = chat.books.asked
    assert (default.model, default.provider, default.session_id) == ("m", "OPENAI", session.id)
    assert (default.input_tokens, default.max_output_tokens) == (14, 100)
    assert (asked.max_output_tokens, most.max_output_tokens) == (7, 32_000)
    assert chat.commands(turn.turn_id)[0].max_output_tokens == 32_000


async def test_a_turn_is_cut_where_its_reservation_ends(chat: Any) -> None:
    chat.books.pays = 16
    turn = await chat.start((await chat.new_session()).id)
    command = chat.commands(turn.turn_id)[0]
    assert (command.max_output_tokens, command.is_budget_limited) == (16, True)


async def test_nothing_is_stored_when_the_budget_is_spent_or_usage_is_away(chat: Any) -> None:
    session = await chat.new_session()
    chat.books.is_spent = True
    with pytest.raises(BudgetExceeded):
        await chat.start(session.id)
    await chat.books.bus.stop_taking()
    with pytest.raises(ServiceUnavailable):
        await chat.start(session.id)
    assert await chat.messages(session.id) == []


async def test_a_question_that_is_too_long_is_refused_before_anything_is_asked(chat: Any) -> None:
    session = await chat.new_session()
    with pytest.raises(MessageTooLong) as refused:
        await chat.start(session.id, "x" * 10_001)
    assert refused.value.fields == {"length": "10001", "limit": "10000"}
    small = chat.models.add("small", context_limit=1_000, max_output_tokens=500)
    with pytest.raises(MessagesTooLong):
        await chat.start(session.id, "x" * 3_000, model=small.name)
    assert chat.books.asked == []


async def test_a_turn_that_ran_between_reading_and_accepting_is_in_the_prompt(chat: Any) -> None:
    session = await chat.new_session()
    question = chat.question(session.id, "Second?")
    chat.books.meanwhile = lambda: chat.exchange(session.id, "First?", "First.")
    turn = await chat.ask(question)
    (command,) = chat.commands(turn.turn_id)
    assert [message.content for message in command.prompt] == ["First?", "First.", "Second?"]


async def test_a_session_deleted_meanwhile_leaves_no_turn_and_no_hold(chat: Any) -> None:
    session = await chat.new_session()
    chat.books.meanwhile = lambda: chat.sql("DELETE FROM chat.sessions WHERE id = $1", session.id)
    with pytest.raises(SessionNotFound):
        await chat.start(session.id)
    assert chat.books.held == {}


async def test_a_sessions_order_is_kept_when_a_replicas_clock_is_behind(chat: Any) -> None:
    session = await chat.new_session()
    await chat.exchange(session.id, "One?", "One.")
    chat.clock.advance(-3600)
    await chat.exchange(session.id, "Two?", "Two.")
    assert [message.answer.text for message in await chat.messages(session.id)] == ["One?", "One.", "Two?", "Two."]


async def test_a_changed_session_prompt_counts_from_the_next_turn(chat: Any) -> None:
    session = await chat.new_session(system_prompt="Old.")
    changes = SessionChanges(system_prompt="New.")
    await chat.ask(UpdateSession(user_id=chat.user_id, session_id=session.id, changes=changes))
    turn = await chat.start(session.id)
    assert chat.commands(turn.turn_id)[0].prompt[0].content == "New."


async def test_a_character_postgres_cannot_hold_is_replaced(chat: Any) -> None:
    session = await chat.new_session(title="a\x00b")
    turn = await chat.exchange(session.id, "c\x00d", "e\x00f")
    assert [message.answer.text for message in await chat.messages(session.id)] == ["c\ufffdd", "e\ufffdf"]
    assert turn.status is TurnStatus.DONE
