"""Every bus: the turn log, and following it."""
# ruff: noqa: S101, PLR2004 - a test suite asserts, and numbers are the expectation

import asyncio
import contextlib
import random

import pytest

from parley_contracts.errors import (
    InvalidId,
)
from parley_contracts.ids import new_id
from parley_contracts.reader import Ended, StreamEvent
from parley_contracts.turns import (
    Control,
    StopGeneration,
)
from parley_runtime.bus import Bus, ControlRefused, LiveMessage
from parley_runtime.follow import Follower
from parley_runtime.testing.scene import (
    INJECTED,
    TestHub,
    claim,
    command,
    committed,
    delta,
    final,
    quiet,
    result,
    shown_text,
    until,
)


class TurnLogConformance:
    """The turn log: one order, one winner, live copies."""

    async def test_of_twenty_claims_at_once_one_is_stored(self, hub: TestHub) -> None:
        routers = [hub.bus("llm_router") for _ in range(4)]
        for bus in routers:
            await bus.start()
        turn_id = new_id()
        claims = [claim(turn_id, 1, nonce=str(i)) for i in range(20)]
        outcomes = await asyncio.gather(
            *(routers[i % 4].turns.append_control(claims[i], expected_seq=0) for i in range(20)), return_exceptions=True
        )
        won = [i for i, outcome in enumerate(outcomes) if isinstance(outcome, int)]
        assert len(won) == 1
        assert all(isinstance(outcome, ControlRefused) for i, outcome in enumerate(outcomes) if i != won[0])
        assert await routers[0].turns.read(turn_id) == [claims[won[0]]]
        last = await routers[1].turns.last_control(turn_id)
        assert last.entry == claims[won[0]]
        assert last.seq == outcomes[won[0]]

    async def test_deltas_between_do_not_disturb_the_chain_of_control(self, hub: TestHub) -> None:
        router = hub.bus("llm_router")
        await router.start()
        turn_id = new_id()
        assert (await router.turns.last_control(turn_id)).seq == 0
        seq = await router.turns.append_control(claim(turn_id, 1), expected_seq=0)
        router.turns.say(delta(turn_id, 1, 0, "a", "b"))
        router.turns.say(delta(turn_id, 1, 2, "c"))
        end = final(turn_id, 1, 3, "abc")
        last = await router.turns.append_control(end, expected_seq=seq)
        assert await router.turns.last_control(turn_id) == type(await router.turns.last_control(turn_id))(last, end)
        with pytest.raises(ControlRefused):
            await router.turns.append_control(claim(turn_id, 2), expected_seq=seq)

    async def test_a_refused_claim_is_heard_live_but_not_read(self, hub: TestHub) -> None:
        router, gateway = hub.bus("llm_router"), hub.bus("gateway")
        await router.start()
        await gateway.start()
        turn_id = new_id()
        live: list[LiveMessage] = []
        control: list[Control] = []
        await gateway.turns.watch(turn_id, live.append)
        await gateway.turns.watch_control(turn_id, control.append)
        first, second = claim(turn_id, 1), claim(turn_id, 1, nonce="late")
        await router.turns.append_control(first, expected_seq=0)
        router.turns.say(delta(turn_id, 1, 0, "a"))
        with pytest.raises(ControlRefused):
            await router.turns.append_control(second, expected_seq=0)
        await until(lambda: len(live) == 3 and len(control) == 2)
        assert live == [first, delta(turn_id, 1, 0, "a"), second]
        assert control == [first, second]
        assert await gateway.turns.read(turn_id) == [first, delta(turn_id, 1, 0, "a")]

    async def test_deltas_arrive_and_are_stored_in_the_order_they_were_said(self, hub: TestHub) -> None:
        router, gateway = hub.bus("llm_router"), hub.bus("gateway")
        await router.start()
        await gateway.start()
        turn_id = new_id()
        live: list[LiveMessage] = []
        await gateway.turns.watch(turn_id, live.append)
        said = [delta(turn_id, 1, n, f"part {n} é 你好") for n in range(500)]
        for one in said:
            router.turns.say(one)
        end = final(turn_id, 1, 500, "…")
        await router.turns.append_control(end, expected_seq=0)  # its acknowledgement covers the deltas before it
        assert await gateway.turns.read(turn_id) == [*said, end]
        await until(lambda: len(live) == 501)
        assert live == [*said, end]

    async def test_a_watch_is_in_force_when_it_returns(self, hub: TestHub) -> None:
        router, gateway = hub.bus("llm_router"), hub.bus("gateway")
        await router.start()
        await gateway.start()
        for _ in range(50):
            turn_id = new_id()
            live: list[LiveMessage] = []
            watching = await gateway.turns.watch(turn_id, live.append)
            router.turns.say(delta(turn_id, 1, 0, "first"))
            await until(lambda live=live: live)  # type: ignore[misc]
            await watching.close()

    async def test_a_closed_watch_hears_nothing_more(self, hub: TestHub) -> None:
        router, gateway = hub.bus("llm_router"), hub.bus("gateway")
        await router.start()
        await gateway.start()
        turn_id = new_id()
        live: list[LiveMessage] = []
        watching = await gateway.turns.watch(turn_id, live.append)
        await watching.close()
        await watching.close()
        router.turns.say(delta(turn_id, 1, 0, "a"))
        await quiet()
        assert live == []

    async def test_a_commit_is_heard_by_who_watches_the_turn_and_a_result_is_not(self, hub: TestHub) -> None:
        chat, gateway = hub.bus("chat"), hub.bus("gateway")
        await chat.start()
        await gateway.start()
        turn_id = new_id()
        live: list[LiveMessage] = []
        await gateway.turns.watch(turn_id, live.append)
        await chat.publish(result(turn_id))
        said = committed(turn_id)
        await chat.publish(said)
        await chat.publish(committed(new_id()))
        await until(lambda: live)
        await quiet(0.05)
        assert live == [said]

    @pytest.mark.parametrize("count", [0, 1, 1000, 2501])
    async def test_a_log_of_any_length_is_read_whole(self, hub: TestHub, count: int) -> None:
        router = hub.bus("llm_router")
        await router.start()
        turn_id, other = new_id(), new_id()
        said = [delta(turn_id, 1, n, str(n)) for n in range(count)]
        for n, one in enumerate(said):
            router.turns.say(one)
            if n % 10 == 0:
                router.turns.say(delta(other, 1, n, "another turn's"))
        await router.turns.append_control(claim(other, 1), expected_seq=0)
        assert await router.turns.read(turn_id) == said

    async def test_an_id_that_is_none_is_refused_before_anything_is_said(self, hub: TestHub) -> None:
        gateway = hub.bus("gateway")
        await gateway.start()
        for bad in INJECTED:
            with pytest.raises(InvalidId):
                await gateway.ask(StopGeneration(turn_id=bad))
            with pytest.raises(InvalidId):
                await gateway.publish(committed(bad))
            with pytest.raises(InvalidId):
                await gateway.publish(command(bad))
            with pytest.raises(InvalidId):
                await gateway.turns.append_control(claim(bad, 1), expected_seq=0)
            with pytest.raises(InvalidId):
                gateway.turns.say(delta(bad, 1, 0, "x"))
            for read in (gateway.turns.read, gateway.turns.last_control, gateway.turns.find_command, gateway.turns.find_result):
                with pytest.raises(InvalidId):
                    await read(bad)
            with pytest.raises(InvalidId):
                await gateway.turns.watch(bad, lambda _message: None)
        assert await gateway.check() < 1.0


class FollowConformance:
    """Following a turn from any moment, with whatever was missed, shows what was stored."""

    @pytest.mark.parametrize("seed", range(6))
    async def test_whoever_follows_from_any_moment_shows_the_final_s_text(self, hub: TestHub, seed: int) -> None:
        dice = random.Random(seed)  # noqa: S311 - the same faults for the same seed
        router, gateway = hub.bus("llm_router"), hub.bus("gateway")
        await router.start()
        await gateway.start()
        turn_id = new_id()
        followers = [asyncio.create_task(_follow(gateway, turn_id, dice.random() * 0.3)) for _ in range(5)]
        text = await _speak(router, turn_id, dice)
        async with asyncio.timeout(10):
            for follower in followers:
                events = await follower
                assert shown_text(events) == text
                assert isinstance(events[-1], Ended)


async def _follow(bus: Bus, turn_id: str, after_s: float) -> list[StreamEvent]:
    await asyncio.sleep(after_s)
    events: list[StreamEvent] = []
    async with Follower(bus, turn_id) as follower:
        async for batch in follower.batches():
            events += batch
    return events


async def _speak(bus: Bus, turn_id: str, dice: random.Random) -> str:
    """Three attempts, of which two die; stale ones speak on, claims are refused, parts are said again."""
    seq, text, n = 0, "", 0
    for attempt in (1, 2, 3):
        seq = await bus.turns.append_control(claim(turn_id, attempt), expected_seq=seq)
        words = [f"{attempt}.{i} " for i in range(dice.randint(0, 25))]
        n, text = len(words), "".join(words)
        for i, word in enumerate(words):
            bus.turns.say(delta(turn_id, attempt, i, word))
            if dice.random() < 0.2:
                first = dice.randint(0, i)
                bus.turns.say(delta(turn_id, attempt, first, *words[first : i + 1]))
            if dice.random() < 0.2:
                bus.turns.say(delta(turn_id, attempt - 1, i, "stale "))
            if dice.random() < 0.1:
                with contextlib.suppress(ControlRefused):
                    await bus.turns.append_control(claim(turn_id, attempt + 1, nonce="refused"), expected_seq=seq - 1)
            await asyncio.sleep(dice.random() * 0.01)
    with pytest.raises(ControlRefused):
        await bus.turns.append_control(final(turn_id, 3, 1, "not this"), expected_seq=seq + 1_000_000)
    await bus.turns.append_control(final(turn_id, 3, n, text), expected_seq=seq)
    return text
