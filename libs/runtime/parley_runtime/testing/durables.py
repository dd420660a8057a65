"""Every bus: durable messages."""
# ruff: noqa: S101, PLR2004 - a test suite asserts, and numbers are the expectation

import asyncio
import time

import pytest

from parley_contracts.errors import (
    ServiceUnavailable,
)
from parley_contracts.ids import new_id
from parley_contracts.turns import (
    FindTurn,
    Generate,
    TurnResult,
    TurnWhereabouts,
)
from parley_runtime.bus import Bus, DeadLetter, Taken
from parley_runtime.testing.scene import ACK_WAIT_S, MAX_DELIVER, TestHub, command, gone, quiet, result, until, until_async


class DurableConformance:
    """Durable messages: at least once, and what becomes of those that nobody can handle."""

    async def test_a_durable_message_waits_for_its_taker(self, hub: TestHub) -> None:
        taken: list[str] = []

        async def settle(said: TurnResult) -> None:
            taken.append(said.turn_id)

        chat, usage = hub.bus("chat"), hub.bus("usage")
        usage.take(TurnResult, settle)
        await chat.start()
        turn_id = new_id()
        await chat.publish(result(turn_id))
        await usage.start()
        await until(lambda: taken)
        assert taken == [turn_id]

    async def test_every_service_gets_a_result_and_each_once(self, hub: TestHub) -> None:
        taken: list[str] = []

        def taker(service: str) -> Bus:
            async def take(_said: TurnResult) -> None:
                taken.append(service)

            bus = hub.bus(service)
            bus.take(TurnResult, take)
            return bus

        buses = [taker("chat"), taker("chat"), taker("usage"), taker("usage")]
        for bus in buses:
            await bus.start()
        await buses[0].publish(result(new_id()))
        await until(lambda: len(taken) == 2)
        await quiet()
        assert sorted(taken) == ["chat", "usage"]

    async def test_a_message_comes_again_after_its_handler_raised_and_blocks_no_other(self, hub: TestHub) -> None:
        taken: list[str] = []

        async def settle(said: TurnResult) -> None:
            taken.append(said.turn_id)
            if taken.count(bad) == 1 and said.turn_id == bad:
                raise RuntimeError("the database is away")

        bad, good = new_id(), new_id()
        usage = hub.bus("usage")
        usage.take(TurnResult, settle, at_once=1)
        await usage.start()
        await usage.publish(result(bad))
        await usage.publish(result(good))
        await until(lambda: len(taken) == 3)
        assert taken == [bad, good, bad]

    async def test_a_message_said_twice_under_one_id_is_taken_once(self, hub: TestHub) -> None:
        taken: list[str] = []

        async def settle(said: TurnResult) -> None:
            taken.append(said.turn_id)

        usage = hub.bus("usage")
        usage.take(TurnResult, settle)
        await usage.start()
        turn_id = new_id()
        for _ in range(3):
            await usage.publish(result(turn_id))
        await quiet(0.2)
        assert taken == [turn_id]

    async def test_a_command_comes_to_another_after_its_taker_was_killed(self, hub: TestHub) -> None:
        taken: list[str] = []
        survivor = hub.bus("llm_router")

        def router(bus: Bus, name: str, *, hangs: bool) -> None:
            async def generate(_command: Generate) -> None:
                taken.append(name)
                if hangs:
                    await asyncio.sleep(60)

            bus.take(Generate, generate, keep_alive=True)

        victim, chat = hub.bus("llm_router"), hub.bus("chat")
        router(victim, "victim", hangs=True)
        router(survivor, "survivor", hangs=False)
        await victim.start()
        await chat.start()
        turn_id = new_id()
        await chat.publish(command(turn_id))
        await until(lambda: taken == ["victim"])
        await survivor.start()
        await quiet(ACK_WAIT_S + 0.5)
        assert taken == ["victim"], "kept alive, it is its taker's"
        died = time.monotonic()
        await hub.kill(victim)
        await until(lambda: len(taken) == 2)
        assert taken == ["victim", "survivor"]
        assert time.monotonic() - died < ACK_WAIT_S + 1.0
        await until_async(lambda: gone(chat, turn_id))

    async def test_a_message_left_alone_comes_again_only_after_ack_wait(self, hub: TestHub) -> None:
        at: list[float] = []

        async def generate(_command: Generate) -> Taken:
            at.append(time.monotonic())
            return Taken.LEFT if len(at) == 1 else Taken.DONE

        router = hub.bus("llm_router")
        router.take(Generate, generate, keep_alive=True)
        await router.start()
        turn_id = new_id()
        await router.publish(command(turn_id))
        await until(lambda: len(at) == 2)
        assert ACK_WAIT_S - 0.1 < at[1] - at[0] < ACK_WAIT_S + 1.0
        await until_async(lambda: gone(router, turn_id))

    async def test_a_message_given_back_comes_again_at_once(self, hub: TestHub) -> None:
        at: list[float] = []

        async def generate(_command: Generate) -> Taken:
            at.append(time.monotonic())
            return Taken.AGAIN if len(at) == 1 else Taken.DONE

        router = hub.bus("llm_router")
        router.take(Generate, generate)
        await router.start()
        await router.publish(command(new_id()))
        await until(lambda: len(at) == 2)
        assert at[1] - at[0] < 0.3

    async def test_a_message_kept_alive_stays_with_its_handler(self, hub: TestHub) -> None:
        taken: list[str] = []

        async def generate(said: Generate) -> None:
            taken.append(said.turn_id)
            await asyncio.sleep(2.5 * ACK_WAIT_S)

        router = hub.bus("llm_router")
        router.take(Generate, generate, keep_alive=True)
        await router.start()
        turn_id = new_id()
        await router.publish(command(turn_id))
        await until_async(lambda: gone(router, turn_id))
        assert taken == [turn_id]

    async def test_no_more_than_at_once_are_handled_side_by_side(self, hub: TestHub) -> None:
        running = most = done = 0

        async def settle(_said: TurnResult) -> None:
            nonlocal running, most, done
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.01)
            running -= 1
            done += 1

        usage = hub.bus("usage")
        usage.take(TurnResult, settle, at_once=3)
        await usage.start()
        await asyncio.gather(*(usage.publish(result(new_id())) for _ in range(30)))
        await until(lambda: done == 30)
        assert most == 3

    async def test_a_command_delivered_too_often_becomes_a_dead_letter_that_can_be_read_and_forgotten(
        self, hub: TestHub
    ) -> None:
        tries: list[str] = []
        dead: list[DeadLetter] = []

        async def generate(said: Generate) -> Taken:
            tries.append(said.turn_id)
            return Taken.AGAIN if said.turn_id == poison else Taken.DONE

        async def bury(letter: DeadLetter) -> None:
            dead.append(letter)

        poison, healthy = new_id(), new_id()
        router, chat = hub.bus("llm_router"), hub.bus("chat")
        router.take(Generate, generate)
        chat.take_dead_letters(bury)
        await router.start()
        await chat.start()
        said = command(poison)
        await chat.publish(said)
        await chat.publish(command(healthy))
        await until(lambda: dead)
        assert tries.count(poison) == MAX_DELIVER
        assert dead[0].turn_id == poison
        assert dead[0].command == said
        await until(lambda: healthy in tries)
        assert await chat.turns.find_command(poison)
        await chat.turns.forget_command(dead[0].seq)
        assert not await chat.turns.find_command(poison)
        await chat.turns.forget_command(dead[0].seq)

    async def test_a_command_stands_until_it_is_acknowledged_and_a_result_can_be_found_afterwards(self, hub: TestHub) -> None:
        gate = asyncio.Event()

        async def generate(_command: Generate) -> None:
            await gate.wait()

        async def settle(_said: TurnResult) -> None:
            settled.set()

        settled = asyncio.Event()
        router, usage = hub.bus("llm_router"), hub.bus("usage")
        router.take(Generate, generate, keep_alive=True)
        usage.take(TurnResult, settle)
        await router.start()
        await usage.start()
        turn_id = new_id()
        assert not await router.turns.find_command(turn_id)
        await router.publish(command(turn_id))
        assert await router.turns.find_command(turn_id)
        gate.set()
        await until_async(lambda: gone(router, turn_id))
        assert await router.turns.find_result(turn_id) is None
        said = result(turn_id)
        await router.publish(said)
        await settled.wait()
        assert await router.turns.find_result(turn_id) == said

    async def test_after_stop_taking_nothing_new_is_taken_and_what_runs_ends(self, hub: TestHub) -> None:
        began: list[str] = []
        ended: list[str] = []

        async def generate(said: Generate) -> None:
            began.append(said.turn_id)
            await asyncio.sleep(0.5)
            ended.append(said.turn_id)

        async def find_turn(_query: FindTurn) -> TurnWhereabouts:
            await asyncio.sleep(0.3)
            return "open"

        router, chat = hub.bus("llm_router"), hub.bus("chat")
        router.take(Generate, generate, keep_alive=True)
        router.answer(FindTurn, find_turn)
        await router.start()
        await chat.start()
        first, second = new_id(), new_id()
        await chat.publish(command(first))
        await until(lambda: began)
        asked = asyncio.create_task(chat.ask(FindTurn(turn_id=new_id())))
        await quiet(0.05)
        await router.stop_taking()
        await chat.publish(command(second))
        with pytest.raises(ServiceUnavailable):
            await chat.ask(FindTurn(turn_id=new_id()))
        assert await asked == "open"
        await router.close()
        assert ended == [first]
        assert began == [first]
        await until_async(lambda: gone(chat, first))
        assert await chat.turns.find_command(second)

    async def test_a_handler_that_outlives_the_drain_gives_its_message_back(self, hub: TestHub) -> None:
        taken: list[str] = []

        def router(name: str, *, hangs: bool) -> Bus:
            async def generate(_command: Generate) -> None:
                taken.append(name)
                await asyncio.sleep(60 if hangs else 0)

            bus = hub.bus("llm_router", drain_s=0.1)
            bus.take(Generate, generate, keep_alive=True)
            return bus

        leaving, staying = router("leaving", hangs=True), router("staying", hangs=False)
        await leaving.start()
        await leaving.publish(command(new_id()))
        await until(lambda: taken == ["leaving"])
        await staying.start()
        began = time.monotonic()
        await leaving.close()
        await until(lambda: taken == ["leaving", "staying"])
        assert time.monotonic() - began < 0.7
