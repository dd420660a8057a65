from typing import Any

import msgspec
import pytest

from parley_chat.dead_letters import DEAD_LETTERS
from parley_contracts.errors import ParleyError
from parley_contracts.ids import new_id
from parley_contracts.parts import FinishReason
from parley_contracts.sessions import MessageStatus
from parley_contracts.streams import Stream
from parley_contracts.turns import FindTurn, Generate, TurnFinal, TurnStatus

INTERNAL = ParleyError().body()


def buried() -> float:
    return float(DEAD_LETTERS._value.get())


def advise(chat: Any, seq: int) -> None:
    """The server's advisory that a command was delivered too often."""
    chat.hub.streams[Stream.DEAD_LETTERS].store("x", msgspec.json.encode({"stream_seq": seq}), {})


async def gone(chat: Any, seq: int) -> None:
    async def is_gone() -> bool:
        return seq not in chat.hub.streams[Stream.COMMANDS].messages

    await chat.eventually(is_gone)


def last_seq(chat: Any) -> int:
    return int(max(chat.hub.streams[Stream.COMMANDS].messages))


async def test_a_dead_command_ends_its_turn_in_error_and_is_deleted(chat: Any) -> None:
    session = await chat.new_session()
    turn = await chat.start(session.id)
    await chat.claim(turn.turn_id)
    chat.say(turn.turn_id, "Half")
    before, seq = buried(), last_seq(chat)
    advise(chat, seq)
    ended = await chat.ended(turn.turn_id)
    assert (ended.status, ended.error, ended.answer.text) == (TurnStatus.ERROR, INTERNAL, "Half")
    assert (await chat.messages(session.id))[-1].status is MessageStatus.ERROR
    await gone(chat, seq)
    assert [attempt.is_billable for attempt in chat.results(turn.turn_id)[0].attempts] == [False]

    async def is_counted() -> bool:
        return buried() == before + 1

    await chat.eventually(is_counted)


async def test_a_stateless_turn_ends_too(chat: Any) -> None:
    now, turn_id = chat.clock.now(), new_id()
    command = Generate(
        turn_id=turn_id, user_id=chat.user_id, prompt=(), model_config_id=new_id(), model="m", provider="p",
        max_output_tokens=1, accepted_at=now, deadline_at=now, store=False, restart_after_text=False,
    )  # fmt: skip
    await chat.gateway.publish(command)
    seq = last_seq(chat)
    assert await chat.ask(FindTurn(turn_id=turn_id)) == "open"
    advise(chat, seq)
    await gone(chat, seq)
    (result,) = chat.results(turn_id)
    assert (result.status, result.error, result.user_id, result.store) == (TurnStatus.ERROR, INTERNAL, chat.user_id, False)
    assert await chat.ask(FindTurn(turn_id=turn_id)) == "ended"


async def test_a_dead_command_whose_turn_has_a_final_states_that_final(chat: Any) -> None:
    turn = await chat.start((await chat.new_session()).id)
    seq = await chat.claim(turn.turn_id)
    await chat.gateway.turns.append_control(chat.final(turn.turn_id, "Whole"), expected_seq=seq)
    advise(chat, last_seq(chat))
    ended = await chat.ended(turn.turn_id)
    assert (ended.status, ended.answer.text) == (TurnStatus.DONE, "Whole")


@pytest.mark.parametrize("is_stored", [True, False])
async def test_a_command_that_cannot_be_read_ends_its_turn_and_is_deleted(chat: Any, is_stored: bool) -> None:  # noqa: FBT001
    turn_id = (await chat.start((await chat.new_session()).id)).turn_id if is_stored else new_id()
    chat.lose_commands()
    chat.hub.streams[Stream.COMMANDS].store(Generate.subject_for(turn_id=turn_id), b"{", {})
    seq = last_seq(chat)
    advise(chat, seq)
    await gone(chat, seq)
    final = (await chat.gateway.turns.last_control(turn_id)).entry
    assert isinstance(final, TurnFinal)
    assert (final.finish_reason, final.error) == (FinishReason.ERROR, INTERNAL)
    if is_stored:
        assert (await chat.ended(turn_id)).status is TurnStatus.ERROR


async def test_a_letter_about_nothing_is_counted_and_harmless(chat: Any) -> None:
    before = buried()
    advise(chat, 10**6)

    async def is_counted() -> bool:
        return buried() == before + 1

    await chat.eventually(is_counted)


async def test_a_letter_that_cannot_be_buried_now_comes_again(chat: Any) -> None:
    turn = await chat.start((await chat.new_session()).id)
    chat.hub.full(Stream.RESULTS)
    seq = last_seq(chat)
    advise(chat, seq)

    async def has_final() -> bool:
        return isinstance((await chat.gateway.turns.last_control(turn.turn_id)).entry, TurnFinal)

    await chat.eventually(has_final)
    assert seq in chat.hub.streams[Stream.COMMANDS].messages
    chat.hub.full(Stream.RESULTS, is_full=False)
    assert (await chat.ended(turn.turn_id)).status is TurnStatus.ERROR
    await gone(chat, seq)
