import asyncio
from typing import Any

import pytest

from parley_contracts.errors import Overloaded, ServiceUnavailable
from parley_contracts.prompts import Params
from parley_contracts.streams import Stream
from parley_contracts.turns import Generate, TurnStatus
from parley_runtime.memory_bus import MemoryBus


async def unsent(chat: Any) -> int:
    return len(await chat.sql("SELECT 1 FROM chat.outbox"))


async def emptied(chat: Any) -> None:
    """A new replica's own relay may be sending, too."""

    async def is_empty() -> bool:
        return await unsent(chat) == 0

    await chat.eventually(is_empty)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`failing(error)`: commands are not published but raise `error`; `failing(None)`: they are again."""
    publish = MemoryBus.publish

    def fail(error: Exception | None) -> None:
        async def refuse(bus: MemoryBus, message: Any) -> None:
            if isinstance(message, Generate) and error is not None:
                raise error
            await publish(bus, message)

        monkeypatch.setattr(MemoryBus, "publish", refuse)

    return fail


async def relay(chat: Any, after_s: float = 1.1) -> None:
    chat.clock.advance(after_s)
    await chat.service.outbox.send_due()


async def test_a_crash_between_commit_and_publish_delays_a_turn_and_loses_nothing(chat: Any, failing: Any) -> None:
    chat.models.add("m", params=Params(temperature=0), context_limit=8_000, max_output_tokens=50)
    session = await chat.new_session(system_prompt="Be kind.")
    await chat.exchange(session.id, "One?", "One.")
    question = chat.question(session.id, "Two?", model="m", params=Params(top_p=0.5))
    failing(RuntimeError("killed"))
    with pytest.raises(Exception, match="wrong inside Parley"):
        await chat.ask(question)
    failing(None)
    assert (await chat.turn(question.turn_id)).status is TurnStatus.QUEUED
    assert chat.commands(question.turn_id) == []
    await relay(chat, after_s=0.2)
    assert chat.commands(question.turn_id) == [], "whoever accepted it may still be sending it"
    await relay(chat)
    (command,) = chat.commands(question.turn_id)
    assert [message.content for message in command.prompt] == ["Be kind.", "One?", "One.", "Two?"]
    assert (command.params, command.model, command.max_output_tokens) == (Params(temperature=0, top_p=0.5), "m", 50)
    assert command.dispatch == 0
    assert await unsent(chat) == 0


async def test_a_repeated_command_equals_the_first(chat: Any) -> None:
    chat.books.pays = 20
    config = chat.models.add("m", context_limit=400, max_output_tokens=50)
    session = await chat.new_session(model_config_id=config.id, params=Params(temperature=0.5, seed=3))
    for number in range(4):
        await chat.exchange(session.id, f"{number}? " + "x" * 200, "y" * 200)
    turn = await chat.start(session.id, "Last?", system_prompt="Once.")
    (first,) = chat.commands(turn.turn_id)
    assert len(first.prompt) < 1 + 8 + 1, "some of the history did not fit"
    await chat.sql("INSERT INTO chat.outbox VALUES ($1, now())", turn.turn_id)
    chat.hub.streams[Stream.COMMANDS]._ids.clear()
    await relay(chat)
    _, again = chat.commands(turn.turn_id)
    assert again == first


@pytest.mark.parametrize("error", [ServiceUnavailable(service="nats"), TimeoutError()])
async def test_an_accepted_turn_stays_accepted_when_its_command_cannot_be_sent(
    chat: Any, failing: Any, error: Exception
) -> None:
    failing(error)
    turn = await chat.start((await chat.new_session()).id)
    assert turn.status is TurnStatus.QUEUED
    assert await unsent(chat) == 1
    await relay(chat)
    assert await unsent(chat) == 1
    failing(None)
    await relay(chat, after_s=5)
    assert len(chat.commands(turn.turn_id)) == 1
    assert await unsent(chat) == 0


async def test_a_full_stream_keeps_what_was_accepted_and_refuses_what_is_new(chat: Any) -> None:
    chat.hub.full(Stream.COMMANDS)
    question = chat.question((await chat.new_session()).id)
    turn = await chat.ask(question)
    other = await chat.new_session()
    with pytest.raises(Overloaded):
        await chat.start(other.id)
    assert await chat.messages(other.id) == []
    assert await chat.ask(question) == turn, "what was accepted is found all the same"
    await relay(chat)
    with pytest.raises(Overloaded):
        await chat.start(other.id)
    chat.hub.full(Stream.COMMANDS, is_full=False)
    await relay(chat, after_s=5)
    assert len(chat.commands(turn.turn_id)) == 1
    assert (await chat.start(other.id)).status is TurnStatus.QUEUED
    assert list(chat.books.held) == [turn.turn_id, *(command.turn_id for command in chat.commands()[1:])]


async def test_a_replica_takes_new_turns_again_when_another_sent_its_commands(chat: Any) -> None:
    chat.hub.full(Stream.COMMANDS)
    await chat.start((await chat.new_session()).id)
    chat.hub.full(Stream.COMMANDS, is_full=False)
    other = await chat.add_replica()
    chat.clock.advance(5)
    await other.outbox.send_due()
    await emptied(chat)
    assert chat.service.outbox.is_full
    await relay(chat)
    assert not chat.service.outbox.is_full


async def test_two_relays_send_a_command_once(chat: Any, failing: Any) -> None:
    failing(ServiceUnavailable(service="nats"))
    turn_ids = {(await chat.start((await chat.new_session()).id)).turn_id for _ in range(5)}
    failing(None)
    other = await chat.add_replica()
    chat.clock.advance(2)
    await asyncio.gather(chat.service.outbox.send_due(), other.outbox.send_due())
    await emptied(chat)
    said = [message.turn_id for message in chat.hub.said if isinstance(message, Generate)]
    assert sorted(said) == sorted(turn_ids)
