from typing import Any

import pytest

from parley_contracts.errors import ServiceUnavailable
from parley_contracts.ids import new_id
from parley_contracts.turns import FindTurn, Generate


async def find(chat: Any, turn_id: str) -> str:
    return str(await chat.ask(FindTurn(turn_id=turn_id)))


async def test_a_stored_turn_is_open_until_it_has_ended_whatever_the_bus_lost(chat: Any) -> None:
    turn = await chat.start((await chat.new_session()).id)
    chat.hub.cut()
    chat.hub.is_cut = False  # asking needs it, the log does not
    result = chat.result(turn.turn_id)
    chat.lose_commands()
    assert await find(chat, turn.turn_id) == "open"
    await chat.gateway.publish(result)
    await chat.ended(turn.turn_id)
    assert await find(chat, turn.turn_id) == "ended"


async def test_a_turn_nobody_knows_is_unknown(chat: Any) -> None:
    assert await find(chat, new_id()) == "unknown"


async def test_a_stateless_turn_is_open_while_its_command_stands(chat: Any) -> None:
    now, turn_id = chat.clock.now(), new_id()
    await chat.gateway.publish(
        Generate(
            turn_id=turn_id,
            user_id=1,
            prompt=(),
            model_config_id=new_id(),
            model="m",
            provider="p",
            max_output_tokens=1,
            accepted_at=now,
            deadline_at=now,
            store=False,
            restart_after_text=False,
        )
    )
    assert await find(chat, turn_id) == "open"
    chat.lose_commands()
    assert await find(chat, turn_id) == "unknown"


async def test_a_stateless_turn_is_open_from_its_claim_to_its_final(chat: Any) -> None:
    turn_id = new_id()
    seq = await chat.claim(turn_id)
    assert await find(chat, turn_id) == "open"
    await chat.gateway.turns.append_control(chat.final(turn_id), expected_seq=seq)
    assert await find(chat, turn_id) == "ended"


async def test_a_stateless_turn_is_open_when_only_its_text_is_left(chat: Any) -> None:
    turn_id = new_id()
    chat.say(turn_id, "x")
    assert await find(chat, turn_id) == "open"


async def test_nobody_is_told_unknown_because_the_log_cannot_be_read(chat: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    log = chat.service.bus.turns

    async def cut_off(_turn_id: str) -> Any:
        chat.hub.cut()
        try:
            return await type(log).last_control(log, _turn_id)
        finally:
            chat.hub.is_cut = False

    monkeypatch.setattr(log, "last_control", cut_off)
    with pytest.raises(ServiceUnavailable):
        await find(chat, new_id())
