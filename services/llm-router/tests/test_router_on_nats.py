"""The same router on real NATS: an answer, a stop, and a server that is killed in the middle of both."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest_asyncio

from parley.embedded import EmbeddedServers
from parley_contracts.parts import FinishReason
from parley_contracts.reader import Ended, Reset, Shown
from parley_contracts.turns import Generate, StopGeneration, TurnResult, TurnStatus
from parley_llm_router.service import LlmRouterService
from parley_runtime.bus import LogUnreadable
from parley_runtime.follow import Follower
from parley_runtime.nats_bus import NatsBus, provision

Make = Callable[..., Awaitable[Any]]


@pytest_asyncio.fixture
async def gateway(nats_url: str, make_house: Make) -> AsyncIterator[NatsBus]:
    """A gateway's bus; a router listens on another."""
    await provision(nats_url)
    house = await make_house()
    router = LlmRouterService(house.settings(llm_router_drain_s=0.1), NatsBus("llm_router", url=nats_url, drain_s=1))
    gateway = NatsBus("gateway", url=nats_url)
    await router.start()
    await gateway.start()
    yield gateway
    await gateway.close()
    await router.stop()


async def result_of(gateway: NatsBus, turn_id: str) -> TurnResult:
    async with asyncio.timeout(15):
        while True:
            try:
                found = await gateway.turns.find_result(turn_id)
                if found is not None and not await gateway.turns.find_command(turn_id):
                    return found
            except LogUnreadable:
                pass
            await asyncio.sleep(0.05)


async def followed(
    gateway: NatsBus, command: Generate, *, at: int = -1, then: Callable[[], Awaitable[Any]] | None = None
) -> Any:
    """All that a client is shown; once part `at` is shown, `then` happens."""
    shown: list[Any] = []
    async with asyncio.timeout(30), Follower(gateway, command.turn_id) as follower:
        gateway.on_reconnect(follower.look)
        await gateway.publish(command)
        async for batch in follower.batches(is_new=True):
            shown += batch
            if then is not None and any(isinstance(event, Shown) and event.n >= at for event in batch):
                act, then = then, None
                await act()
    return shown


def text_of(shown: list[Any]) -> str:
    last_reset = max((place for place, event in enumerate(shown) if isinstance(event, Reset)), default=0)
    return "".join(event.part.text for event in shown[last_reset:] if isinstance(event, Shown))


async def test_an_answer_is_followed_stated_and_acknowledged(gateway: NatsBus, make_house: Make) -> None:
    command = (await make_house()).command("tokens=20 delay_ms=5")
    shown = await followed(gateway, command)
    result = await result_of(gateway, command.turn_id)
    assert isinstance(shown[-1], Ended)
    assert text_of(shown) == result.answer.text == shown[-1].answer.text
    assert (result.status, result.usage.output_tokens if result.usage else 0) == (TurnStatus.DONE, 20)


async def test_a_stop_is_answered_by_the_router_that_runs_the_turn(gateway: NatsBus, make_house: Make) -> None:
    command = (await make_house()).command("tokens=500 delay_ms=20")

    async def stop() -> None:
        assert await gateway.ask(StopGeneration(turn_id=command.turn_id))

    shown = await followed(gateway, command, at=5, then=stop)
    assert shown[-1].reason is FinishReason.CANCELED
    assert (await result_of(gateway, command.turn_id)).status is TurnStatus.CANCELED


async def test_a_killed_nats_server_costs_a_turn_nothing_but_time(
    gateway: NatsBus, make_house: Make, servers: EmbeddedServers
) -> None:
    house = await make_house()
    command = house.command("tokens=150 delay_ms=20")

    async def bounce() -> None:
        await servers.kill("nats")
        await servers.restart("nats")

    shown = await followed(gateway, command, at=5, then=bounce)
    result = await result_of(gateway, command.turn_id)
    assert result.status is TurnStatus.DONE
    assert text_of(shown) == result.answer.text
    assert len(result.answer.text.split()) == 150
    assert len(house.provider.calls(command.turn_id)) == 1
