"""Chat on the bus in memory and a real PostgreSQL, between a scripted llm-router and a scripted usage."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from parley_chat.service import ChatService
from parley_chat.settings import ChatSettings
from parley_contracts.errors import BudgetExceeded, ModelConfigNotFound, ModelNotFound
from parley_contracts.ids import new_id
from parley_contracts.model_configs import GetModelConfig, ModelConfig
from parley_contracts.parts import Answer, FinishReason, Part, Text, TokenUsage
from parley_contracts.sessions import CreateSession, ListMessages, Session
from parley_contracts.streams import Stream
from parley_contracts.turns import (
    Attempt,
    Generate,
    GetTurn,
    StartTurn,
    StopGeneration,
    Turn,
    TurnClaim,
    TurnDelta,
    TurnFinal,
    TurnResult,
    result_of,
)
from parley_contracts.usage import ReleaseBudget, Reservation, ReserveBudget
from parley_runtime.bus import Bus, Closable, TurnLog
from parley_runtime.clock import SystemClock
from parley_runtime.database import migrate
from parley_runtime.memory_bus import MemoryBus, MemoryHub

_users = count(1)


class HeldClock(SystemClock):
    """Time goes on, and jumps by `advance`; chat's loops run once and then wait, for tests sweep and relay themselves."""

    def __init__(self) -> None:
        self.offset = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.offset

    def advance(self, seconds: float) -> None:
        self.offset += timedelta(seconds=seconds)

    async def sleep(self, seconds: float) -> None:
        await (asyncio.Event().wait() if seconds >= 1.0 else asyncio.sleep(seconds))


class Models:
    """The llm-router's answers about models. `configs`: by name; the first is the default."""

    def __init__(self, hub: MemoryHub) -> None:
        self.configs = {"simulator": ModelConfig(id=new_id(), name="simulator", provider="SIMULATOR", base_url="", model="m")}
        self.bus = MemoryBus(hub, "llm_router")
        self.register(self.bus)

    def register(self, bus: Bus) -> None:
        bus.answer(GetModelConfig, self.get_model_config)

    def add(self, name: str, **fields: Any) -> ModelConfig:
        self.configs[name] = ModelConfig(id=new_id(), name=name, provider="OPENAI", base_url="", model=name, **fields)
        return self.configs[name]

    async def get_model_config(self, query: GetModelConfig) -> ModelConfig:
        if query.id is not None:
            for config in self.configs.values():
                if config.id == query.id:
                    return config
            raise ModelConfigNotFound
        if query.name is None:
            return next(iter(self.configs.values()))
        if query.name not in self.configs:
            raise ModelNotFound(model=query.name)
        return self.configs[query.name]


class Books:
    """Usage's answers about budgets. `held`: the turns something is set aside for; `pays`: the tokens left, if few are."""

    def __init__(self, hub: MemoryHub) -> None:
        self.held: dict[str, ReserveBudget] = {}
        self.asked: list[ReserveBudget] = []
        self.pays: int | None = None
        self.is_spent = False
        self.meanwhile: Callable[[], Awaitable[Any]] | None = None
        self.bus = MemoryBus(hub, "usage")
        self.register(self.bus)

    def register(self, bus: Bus) -> None:
        bus.answer(ReserveBudget, self.reserve_budget)
        bus.answer(ReleaseBudget, self.release_budget)

    async def reserve_budget(self, command: ReserveBudget) -> Reservation:
        self.asked.append(command)
        if self.is_spent:
            raise BudgetExceeded(remaining_usd=0, resets_at="later")
        is_replay = command.turn_id in self.held
        self.held[command.turn_id] = command
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            await meanwhile()
        tokens = command.max_output_tokens if self.pays is None else min(self.pays, command.max_output_tokens)
        return Reservation(
            turn_id=command.turn_id,
            held_usd=Decimal(1),
            max_output_tokens=tokens,
            is_limited=tokens < command.max_output_tokens,
            is_replay=is_replay,
        )

    async def release_budget(self, command: ReleaseBudget) -> None:
        self.held.pop(command.turn_id, None)


class Chat:
    """One user's view of a running chat service, and of everything around it."""

    def __init__(self, database_url: str) -> None:
        self.database_url = database_url
        self.hub = MemoryHub()
        self.clock = HeldClock()
        self.models = Models(self.hub)
        self.books = Books(self.hub)
        self.gateway = MemoryBus(self.hub, "gateway")
        self.user_id = next(_users)
        self.services: list[ChatService] = []

    @property
    def service(self) -> ChatService:
        return self.services[0]

    async def open(self) -> None:
        for bus in (self.models.bus, self.books.bus, self.gateway):
            await bus.start()
        await self.add_replica()

    async def add_replica(self, bus: MemoryBus | None = None, **settings: Any) -> ChatService:
        known = ChatSettings(_env_file=None, database_url=self.database_url, database_pool_size=10, **settings)
        service = ChatService(known, bus or MemoryBus(self.hub, "chat"), self.clock)
        await service.start()
        self.services.append(service)
        return service

    async def close(self) -> None:
        for service in self.services:
            await service.stop()
        for bus in (self.gateway, self.models.bus, self.books.bus):
            await bus.close()
        self.hub.close()

    async def ask(self, question: Any) -> Any:
        return await self.gateway.ask(question)

    # --- what a user does ---

    async def new_session(self, **fields: Any) -> Session:
        session: Session = await self.ask(CreateSession(user_id=self.user_id, **fields))
        return session

    def question(self, session_id: str, content: str = "Hello", **fields: Any) -> StartTurn:
        ids = {"turn_id": new_id(), "user_message_id": new_id(), "message_id": new_id(), "user_id": self.user_id}
        return StartTurn(**{**ids, "session_id": session_id, "content": content, "dialect": "s0", **fields})

    async def start(self, session_id: str, content: str = "Hello", **fields: Any) -> Turn:
        turn: Turn = await self.ask(self.question(session_id, content, **fields))
        return turn

    async def turn(self, turn_id: str) -> Turn:
        turn: Turn = await self.ask(GetTurn(turn_id=turn_id, user_id=self.user_id))
        return turn

    async def messages(self, session_id: str) -> list[Any]:
        page = await self.ask(ListMessages(user_id=self.user_id, session_id=session_id))
        return list(page.messages)

    # --- what a router does ---

    def commands(self, turn_id: str | None = None) -> list[Generate]:
        """Every command that was stored, in order."""
        stored = [Generate.decode(message.data) for message in self.hub.streams[Stream.COMMANDS].messages.values()]
        return [command for command in stored if turn_id in {None, command.turn_id}]

    def lose_commands(self) -> None:
        self.hub.streams[Stream.COMMANDS].messages.clear()

    def results(self, turn_id: str) -> list[TurnResult]:
        stored = [TurnResult.decode(message.data) for message in self.hub.streams[Stream.RESULTS].messages.values()]
        return [result for result in stored if result.turn_id == turn_id]

    async def claim(self, turn_id: str, attempt: int = 1, *, log: TurnLog | None = None) -> int:
        turns = log or self.gateway.turns
        seq = (await turns.last_control(turn_id)).seq
        claim = TurnClaim(
            turn_id=turn_id,
            attempt=attempt,
            run=1,
            nonce=new_id(),
            provider="OPENAI",
            model="gpt",
            claimed_at=self.clock.now(),
        )
        return await turns.append_control(claim, expected_seq=seq)

    def say(self, turn_id: str, *parts: Part | str, attempt: int = 1, n: int = 0, log: TurnLog | None = None) -> None:
        said = tuple(Text(part) if isinstance(part, str) else part for part in parts)
        (log or self.gateway.turns).say(TurnDelta(turn_id=turn_id, attempt=attempt, n=n, parts=said))

    def final(self, turn_id: str, text: str = "Hi", *, reason: FinishReason = FinishReason.STOP, **fields: Any) -> TurnFinal:
        usage = TokenUsage(input_tokens=5, output_tokens=2)
        attempt = Attempt(
            attempt=1,
            provider="OPENAI",
            model="gpt",
            usage=usage,
            is_estimated=False,
            method="provider",
            is_billable=True,
            is_success=True,
        )
        return TurnFinal(
            **{
                "turn_id": turn_id,
                "attempt": 1,
                "n": 1,
                "answer": Answer(text=text),
                "finish_reason": reason,
                "usage": usage,
                "attempts": (attempt,),
                "ended_at": self.clock.now(),
                **fields,
            }
        )

    def result(self, turn_id: str, text: str = "Hi", **fields: Any) -> TurnResult:
        return result_of(self.commands(turn_id)[0], self.final(turn_id, text, **fields))

    async def answer(self, turn_id: str, text: str = "Hi", **fields: Any) -> Turn:
        """A whole turn at the router: its result, and the turn once it is stored."""
        await self.gateway.publish(self.result(turn_id, text, **fields))
        self.hub.streams[Stream.COMMANDS].messages = {
            seq: message
            for seq, message in self.hub.streams[Stream.COMMANDS].messages.items()
            if not message.subject.endswith(turn_id)
        }
        return await self.ended(turn_id)

    async def exchange(self, session_id: str, content: str = "Hello", text: str = "Hi", **fields: Any) -> Turn:
        turn = await self.start(session_id, content, **fields)
        return await self.answer(turn.turn_id, text)

    async def obeys(self, turn_id: str, obey: Callable[[], Awaitable[bool]]) -> Closable:
        """A router that runs the turn."""
        return await self.gateway.answer_one(StopGeneration, turn_id, obey)

    # --- waiting and looking ---

    async def ended(self, turn_id: str) -> Turn:
        async def has_ended() -> Turn | None:
            turn = await self.turn(turn_id)
            return turn if turn.status.is_terminal else None

        turn: Turn = await self.eventually(has_ended)
        return turn

    async def eventually(self, what: Callable[[], Awaitable[Any]], *, within_s: float = 30.0) -> Any:
        async with asyncio.timeout(within_s):
            while not (found := await what()):  # noqa: ASYNC110 - what is waited for is in a database
                await asyncio.sleep(0.01)
        return found

    async def sql(self, statement: str, *values: Any) -> list[Any]:
        connection = await asyncpg.connect(self.database_url)
        try:
            return list(await connection.fetch(statement, *values))
        finally:
            await connection.close()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def chat_database_url(database_url: str) -> str:
    await migrate(database_url, "parley_chat", "chat")
    return database_url


@pytest.fixture
async def chat(chat_database_url: str) -> AsyncIterator[Chat]:
    running = Chat(chat_database_url)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(running.close)
        await running.open()
        yield running
