"""Every bus: questions and events."""
# ruff: noqa: S101, PLR2004 - a test suite asserts, and numbers are the expectation

import asyncio
import time
from typing import Any

import pytest

from parley_contracts.errors import (
    BudgetExceeded,
    ParleyError,
    PayloadTooLarge,
    ServiceUnavailable,
    ValidationFailed,
)
from parley_contracts.ids import new_id
from parley_contracts.turns import (
    FindTurn,
    GatewayAlive,
    StopGeneration,
    TurnResult,
    TurnWhereabouts,
)
from parley_runtime.bus import Bus
from parley_runtime.testing.scene import TRACE, TestHub, final, quiet, replace_text, result, until


class AskConformance:
    """Questions and their answers."""

    async def test_an_answer_reaches_its_asker(self, hub: TestHub) -> None:
        async def find_turn(query: FindTurn) -> TurnWhereabouts:
            return "open" if query.turn_id == turn_id else "unknown"

        turn_id = new_id()
        chat, usage = hub.bus("chat"), hub.bus("usage")
        chat.answer(FindTurn, find_turn)
        await chat.start()
        await usage.start()
        assert await usage.ask(FindTurn(turn_id=turn_id)) == "open"
        assert await usage.ask(FindTurn(turn_id=new_id())) == "unknown"

    async def test_a_typed_error_reaches_the_asker_with_its_fields(self, hub: TestHub) -> None:
        async def find_turn(_query: FindTurn) -> TurnWhereabouts:
            raise BudgetExceeded(remaining_usd="0.01", resets_at="tomorrow", retry_after_s=7.5)

        chat, usage = hub.bus("chat"), hub.bus("usage")
        chat.answer(FindTurn, find_turn)
        await chat.start()
        await usage.start()
        with pytest.raises(BudgetExceeded) as raised:
            await usage.ask(FindTurn(turn_id=new_id()))
        assert raised.value.fields == {"remaining_usd": "0.01", "resets_at": "tomorrow"}
        assert raised.value.retry_after_s == 7.5
        assert "0.01 USD are left until tomorrow" in raised.value.message

    async def test_what_a_handler_did_not_expect_is_internal_to_the_asker_and_tells_nothing(self, hub: TestHub) -> None:
        async def find_turn(_query: FindTurn) -> TurnWhereabouts:
            raise RuntimeError("password=secret")

        chat, usage = hub.bus("chat"), hub.bus("usage")
        chat.answer(FindTurn, find_turn)
        await chat.start()
        await usage.start()
        with pytest.raises(ParleyError) as raised:
            await usage.ask(FindTurn(turn_id=new_id()))
        assert type(raised.value) is ParleyError
        assert "secret" not in str(raised.value.body())

    async def test_a_question_that_breaks_its_contract_is_refused_and_the_next_one_answered(self, hub: TestHub) -> None:
        async def alive(query: FindTurn) -> TurnWhereabouts:
            return "open" if query else "unknown"

        class AskWrongly(FindTurn, frozen=True, kw_only=True):
            turn_id: Any = "no id"

        chat, usage = hub.bus("chat"), hub.bus("usage")
        chat.answer(FindTurn, alive)
        await chat.start()
        await usage.start()
        with pytest.raises(ValidationFailed):
            await usage.ask(AskWrongly())
        assert await usage.ask(FindTurn(turn_id=new_id())) == "open"

    async def test_nobody_there_is_said_at_once(self, hub: TestHub) -> None:
        usage = hub.bus("usage")
        await usage.start()
        began = time.monotonic()
        with pytest.raises(ServiceUnavailable) as raised:
            await usage.ask(FindTurn(turn_id=new_id()))
        assert time.monotonic() - began < 0.5
        assert raised.value.fields == {"service": "chat"}

    async def test_an_answer_that_does_not_come_is_service_unavailable_in_time(self, hub: TestHub) -> None:
        async def find_turn(_query: FindTurn) -> TurnWhereabouts:
            await asyncio.sleep(1.0)
            return "open"

        chat, usage = hub.bus("chat"), hub.bus("usage")
        chat.answer(FindTurn, find_turn)
        await chat.start()
        await usage.start()
        began = time.monotonic()
        with pytest.raises(ServiceUnavailable):
            await usage.ask(FindTurn(turn_id=new_id()), timeout_s=0.1)
        assert time.monotonic() - began < 0.6

    async def test_two_replicas_share_the_questions(self, hub: TestHub) -> None:
        answered: list[int] = []

        def replica(number: int) -> Bus:
            async def find_turn(_query: FindTurn) -> TurnWhereabouts:
                answered.append(number)
                return "open"

            bus = hub.bus("chat")
            bus.answer(FindTurn, find_turn)
            return bus

        usage = hub.bus("usage")
        for bus in (replica(1), replica(2), usage):
            await bus.start()
        for _ in range(60):
            assert await usage.ask(FindTurn(turn_id=new_id())) == "open"
        assert len(answered) == 60
        assert set(answered) == {1, 2}

    async def test_questions_are_answered_side_by_side(self, hub: TestHub) -> None:
        async def find_turn(_query: FindTurn) -> TurnWhereabouts:
            await asyncio.sleep(0.2)
            return "open"

        chat, usage = hub.bus("chat"), hub.bus("usage")
        chat.answer(FindTurn, find_turn)
        await chat.start()
        await usage.start()
        began = time.monotonic()
        await asyncio.gather(*(usage.ask(FindTurn(turn_id=new_id())) for _ in range(10)))
        assert time.monotonic() - began < 1.0

    async def test_one_turn_s_question_is_answered_only_while_its_router_runs_it(self, hub: TestHub) -> None:
        async def stop() -> bool:
            return True

        router, chat = hub.bus("llm_router"), hub.bus("chat")
        await router.start()
        await chat.start()
        turn_id = new_id()
        running = await router.answer_one(StopGeneration, turn_id, stop)
        assert await chat.ask(StopGeneration(turn_id=turn_id)) is True
        with pytest.raises(ServiceUnavailable):
            await chat.ask(StopGeneration(turn_id=new_id()))
        await running.close()
        await running.close()
        await quiet()
        with pytest.raises(ServiceUnavailable):
            await chat.ask(StopGeneration(turn_id=turn_id))

    async def test_a_message_too_large_is_refused_before_it_is_said(self, hub: TestHub) -> None:
        chat = hub.bus("chat")
        await chat.start()
        turn_id = new_id()
        with pytest.raises(PayloadTooLarge):
            await chat.turns.append_control(final(turn_id, 0, 0, "x" * (7 * 1024 * 1024)), expected_seq=0)
        with pytest.raises(PayloadTooLarge):
            await chat.publish(replace_text(result(turn_id), "x" * (7 * 1024 * 1024)))
        assert await chat.turns.read(turn_id) == []
        assert await chat.check() < 1.0

    async def test_the_context_of_a_request_goes_with_its_messages(self, hub: TestHub) -> None:
        seen: dict[str, str] = {}

        async def find_turn(_query: FindTurn) -> TurnWhereabouts:
            seen["ask"] = TRACE.get()
            await chat.publish(GatewayAlive(gateway_id=new_id()))
            return "open"

        async def hear(_event: GatewayAlive) -> None:
            seen["event"] = TRACE.get()

        async def settle(_result: TurnResult) -> None:
            seen["durable"] = TRACE.get()

        chat, usage = hub.bus("chat"), hub.bus("usage")
        chat.answer(FindTurn, find_turn)
        usage.on(GatewayAlive, hear)
        usage.take(TurnResult, settle)
        await chat.start()
        await usage.start()
        token = TRACE.set("trace-1")
        try:
            await usage.ask(FindTurn(turn_id=new_id()))
            await chat.publish(result(new_id()))
        finally:
            TRACE.reset(token)
        await until(lambda: len(seen) == 3)
        assert seen == {"ask": "trace-1", "event": "trace-1", "durable": "trace-1"}
        await usage.ask(FindTurn(turn_id=new_id()))
        assert seen["ask"] == ""


class EventConformance:
    """Events: at most once, to everyone."""

    async def test_an_event_reaches_every_replica_in_order(self, hub: TestHub) -> None:
        heard: dict[int, list[str]] = {1: [], 2: []}

        def replica(number: int) -> Bus:
            async def hear(event: GatewayAlive) -> None:
                await asyncio.sleep(0)
                heard[number].append(event.gateway_id)

            bus = hub.bus("llm_router")
            bus.on(GatewayAlive, hear)
            return bus

        gateway = hub.bus("gateway")
        for bus in (replica(1), replica(2), gateway):
            await bus.start()
        ids = [new_id() for _ in range(20)]
        for gateway_id in ids:
            await gateway.publish(GatewayAlive(gateway_id=gateway_id))
        await until(lambda: len(heard[1]) == len(heard[2]) == 20)
        assert heard == {1: ids, 2: ids}

    async def test_a_handler_that_raises_does_not_stop_later_events(self, hub: TestHub) -> None:
        heard: list[str] = []

        async def hear(event: GatewayAlive) -> None:
            heard.append(event.gateway_id)
            raise RuntimeError("the handler failed")

        router, gateway = hub.bus("llm_router"), hub.bus("gateway")
        router.on(GatewayAlive, hear)
        await router.start()
        await gateway.start()
        for _ in range(3):
            await gateway.publish(GatewayAlive(gateway_id=new_id()))
        await until(lambda: len(heard) == 3)

    async def test_a_slow_event_handler_keeps_no_question_waiting(self, hub: TestHub) -> None:
        async def hear(_event: GatewayAlive) -> None:
            await asyncio.sleep(1.0)

        async def find_turn(_query: FindTurn) -> TurnWhereabouts:
            return "open"

        chat, gateway = hub.bus("chat", drain_s=0.1), hub.bus("gateway")
        chat.on(GatewayAlive, hear)
        chat.answer(FindTurn, find_turn)
        await chat.start()
        await gateway.start()
        await gateway.publish(GatewayAlive(gateway_id=new_id()))
        assert await gateway.ask(FindTurn(turn_id=new_id()), timeout_s=0.5) == "open"
