"""Routers on a bus in memory, asking the real simulator over real HTTP: its meter is the referee."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio

from parley.simulator import Call, Simulator
from parley.simulator_http import serve_app
from parley_contracts.ids import derived_id, new_id
from parley_contracts.prompts import PromptMessage
from parley_contracts.reader import StreamEvent, read
from parley_contracts.streams import ConsumerSpec, Stream
from parley_contracts.turns import Generate, LogEntry, StopGeneration, TurnClaim, TurnDelta, TurnFinal, TurnResult
from parley_llm_router.sealing import new_seal_keys
from parley_llm_router.service import LlmRouterService
from parley_llm_router.settings import LlmRouterSettings
from parley_runtime.memory_bus import MemoryBus, MemoryHub

GATEWAY = new_id()
CONSUMERS = (
    ConsumerSpec(stream=Stream.COMMANDS, durable="llm_router", ack_wait_s=0.5, max_deliver=6),
    ConsumerSpec(stream=Stream.RESULTS, durable="chat", ack_wait_s=30.0, max_deliver=-1),
)


async def eventually(holds: Callable[[], Any], within_s: float = 30.0) -> Any:
    """What `holds` returns once it is true; a timeout else."""
    async with asyncio.timeout(within_s):
        while not (found := holds()):  # noqa: ASYNC110 - what it waits for happens in the code under test
            await asyncio.sleep(0.002)
        return found


class Provider:
    """The simulator, running, and what it metered."""

    def __init__(self, app: Simulator, url: str) -> None:
        self.url = url
        self._app = app

    def calls(self, key: str) -> list[Call]:
        return [call for call in self._app.meter.calls if call.key == key]


class House:
    """A hub, as many routers as a test starts, and a gateway that asks."""

    def __init__(self, provider: Provider, *, provider_url: str = "") -> None:
        self.provider = provider
        self.hub = MemoryHub(consumers=CONSUMERS)
        self.gateway = MemoryBus(self.hub, "gateway")
        self.services: list[LlmRouterService] = []
        self.buses: list[MemoryBus] = []
        self._url = provider_url or provider.url

    def settings(self, **changes: Any) -> LlmRouterSettings:
        usual = {
            "simulator_url": self._url,
            "seal_keys": new_seal_keys(),
            "node_env": "test",
            "retry_after_429_s": 0.05,
            "retry_after_5xx_s": 0.02,
            "llm_router_drain_s": 0.1,
        }
        return LlmRouterSettings(_env_file=None, **{**usual, **changes})

    async def router(self, *, keep_alive_s: float = 0.1, **changes: Any) -> LlmRouterService:
        bus = MemoryBus(self.hub, "llm_router", drain_s=0.2, keep_alive_s=keep_alive_s)
        service = LlmRouterService(self.settings(**changes), bus)
        self.services.append(service)
        self.buses.append(bus)
        await service.start()
        return service

    def command(self, script: str = "", **changes: Any) -> Generate:
        """A command with this simulator script; `key` in it is the turn's id, by which the meter is read."""
        turn_id = changes.pop("turn_id", new_id())
        name = changes.pop("model", "simulator")
        now = datetime.now(UTC)
        usual: dict[str, Any] = {
            "turn_id": turn_id,
            "user_id": 7,
            "prompt": (PromptMessage(role="user", content=f"[sim key={turn_id} {script}]"),),
            "model_config_id": derived_id("model_config", "SIMULATOR", name),
            "model": name,
            "provider": "SIMULATOR",
            "max_output_tokens": 4096,
            "accepted_at": now,
            "deadline_at": now + timedelta(seconds=600),
            "store": True,
            "restart_after_text": True,
            "gateway_id": GATEWAY,
        }
        return Generate(**{**usual, **changes})

    async def say(self, command: Generate) -> Generate:
        await self.gateway.publish(command)
        return command

    async def ended(self, command: Generate, within_s: float = 30.0) -> TurnResult:
        """Ask, and wait for the result, and for the command to be gone."""
        await self.say(command)
        return await self.result(command.turn_id, within_s)

    async def result(self, turn_id: str, within_s: float = 30.0) -> TurnResult:
        subject = TurnResult.subject_for(turn_id=turn_id)
        stored = await eventually(lambda: self.hub.streams[Stream.RESULTS].last(subject), within_s)
        await eventually(
            lambda: self.hub.streams[Stream.COMMANDS].last(Generate.subject_for(turn_id=turn_id)) is None, within_s
        )
        return TurnResult.decode(stored.data)

    def log(self, turn_id: str) -> list[LogEntry]:
        return self.hub.logs[turn_id]

    def claims(self, turn_id: str) -> list[TurnClaim]:
        return [entry for entry in self.log(turn_id) if isinstance(entry, TurnClaim)]

    def finals(self, turn_id: str) -> list[TurnFinal]:
        return [entry for entry in self.log(turn_id) if isinstance(entry, TurnFinal)]

    def parts(self, turn_id: str) -> list[Any]:
        return [part for entry in self.log(turn_id) if isinstance(entry, TurnDelta) for part in entry.parts]

    def shown(self, turn_id: str) -> list[StreamEvent]:
        return read(self.log(turn_id))

    async def hears(self, command: Generate, count: int) -> None:
        """Wait until `count` parts of the turn are in its log."""
        await eventually(lambda: len(self.parts(command.turn_id)) >= count)

    async def calls(self, command: Generate, count: int = 1) -> list[Call]:
        return await eventually(lambda: len(found := self.provider.calls(command.turn_id)) >= count and found)

    async def stop(self, command: Generate) -> bool:
        return await self.gateway.ask(StopGeneration(turn_id=command.turn_id))

    async def close(self) -> None:
        await asyncio.gather(*(service.stop() for service in self.services))
        await self.gateway.close()
        self.hub.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def provider() -> AsyncIterator[Provider]:
    app, port = Simulator(), asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve_app(app, "127.0.0.1", 0, port.set_result))
    yield Provider(app, f"http://127.0.0.1:{await port}")
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


@pytest_asyncio.fixture
async def make_house(provider: Provider) -> AsyncIterator[Callable[..., Awaitable[House]]]:
    houses: list[House] = []

    async def make(**options: Any) -> House:
        house = House(provider, **options)
        houses.append(house)
        await house.gateway.start()
        return house

    yield make
    for house in houses:
        await house.close()


@pytest_asyncio.fixture
async def house(make_house: Callable[..., Awaitable[House]]) -> House:
    """A house with one router."""
    made = await make_house()
    await made.router()
    return made


@pytest.fixture
def until() -> Callable[..., Awaitable[Any]]:
    return eventually
