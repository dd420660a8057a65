"""The same service over the real server: what the memory bus promised holds there, too."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from parley_chat.service import ChatService
from parley_chat.settings import ChatSettings
from parley_contracts.ids import new_id
from parley_contracts.parts import Answer, FinishReason
from parley_contracts.sessions import CreateSession, Session
from parley_contracts.turns import FindTurn, Generate, GetTurn, StartTurn, StopTurn, Turn, TurnStatus, result_of
from parley_runtime.nats_bus import NatsBus, provision


class Running:
    """Chat between two scripted services, all on NATS. `commands`: what a router took."""

    def __init__(self, url: str, database_url: str, around: Any) -> None:
        self.gateway = NatsBus("gateway", url=url)
        self.router = NatsBus("llm_router", url=url)
        self.usage = NatsBus("usage", url=url)
        self.around = around
        self.commands: dict[str, Generate] = {}
        settings = ChatSettings(_env_file=None, database_url=database_url)
        self.chat = ChatService(settings, NatsBus("chat", url=url))

    async def take(self, command: Generate) -> None:
        self.commands[command.turn_id] = command

    async def start(self) -> None:
        for bus in (self.gateway, self.router, self.usage):
            await bus.start()
        await self.chat.start()

    async def stop(self) -> None:
        await self.chat.stop()
        for bus in (self.gateway, self.router, self.usage):
            await bus.close()

    async def new_turn(self) -> Turn:
        session: Session = await self.gateway.ask(CreateSession(user_id=7))
        question = StartTurn(
            turn_id=new_id(),
            user_message_id=new_id(),
            message_id=new_id(),
            user_id=7,
            session_id=session.id,
            content="Hello",
            dialect="s0",
        )
        return await self.gateway.ask(question)

    async def command(self, turn_id: str) -> Generate:
        async def taken() -> Generate | None:
            return self.commands.get(turn_id)

        command: Generate = await self.around.eventually(taken)
        return command

    async def ended(self, turn_id: str) -> Turn:
        async def has_ended() -> Turn | None:
            turn = await self.gateway.ask(GetTurn(turn_id=turn_id, user_id=7))
            return turn if turn.status.is_terminal else None

        turn: Turn = await self.around.eventually(has_ended)
        return turn


@pytest.fixture
async def running(chat: Any, nats_url: str, chat_database_url: str) -> AsyncIterator[Running]:
    """`chat` lends its scripts: how models and budgets are answered."""
    await provision(nats_url)
    system = Running(nats_url, chat_database_url, chat)
    chat.models.register(system.router)
    chat.books.register(system.usage)
    system.router.take(Generate, system.take)
    await system.start()
    yield system
    await system.stop()


async def test_a_turn_over_nats_is_accepted_sent_stored_and_found(running: Running) -> None:
    turn = await running.new_turn()
    assert await running.gateway.ask(FindTurn(turn_id=turn.turn_id)) == "open"
    command = await running.command(turn.turn_id)
    await running.router.publish(result_of(command, running.around.final(turn.turn_id, "Hi")))
    ended = await running.ended(turn.turn_id)
    assert (ended.status, ended.answer) == (TurnStatus.DONE, Answer(text="Hi"))
    assert await running.gateway.ask(FindTurn(turn_id=turn.turn_id)) == "ended"


async def test_a_stop_over_nats_without_a_router_keeps_the_text_of_the_log(running: Running) -> None:
    turn = await running.new_turn()
    await running.command(turn.turn_id)
    await running.around.claim(turn.turn_id, log=running.router.turns)
    running.around.say(turn.turn_id, "Once", " upon", log=running.router.turns)
    stopped = await running.gateway.ask(StopTurn(turn_id=turn.turn_id, user_id=7))
    assert (stopped.status, stopped.finish_reason) == (TurnStatus.CANCELED, FinishReason.CANCELED)
    assert stopped.answer == Answer(text="Once upon")
    again = await running.gateway.ask(StopTurn(turn_id=turn.turn_id, user_id=7))
    assert again == stopped
