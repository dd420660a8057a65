"""The suite that every bus must pass: `class TestMyBus(BusConformance)` with a fixture `hub` that is a `TestHub`.

Times are short: the hub is provisioned with `ACK_WAIT_S` and `MAX_DELIVER` for commands, buses say "in progress" every
`KEEP_ALIVE_S`.
"""
# ruff: noqa: S101, PLR2004 - a test suite asserts, and numbers are the expectation

import asyncio
import contextlib
import contextvars
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import msgspec.structs
import pytest

from parley_contracts.errors import (
    BudgetExceeded,
    InvalidId,
    ParleyError,
    PayloadTooLarge,
    ServiceUnavailable,
    ValidationFailed,
)
from parley_contracts.ids import new_id
from parley_contracts.parts import Answer, FinishReason, Text
from parley_contracts.reader import Ended, Reset, Shown, Snapshot, StreamEvent
from parley_contracts.streams import CONSUMERS, Stream
from parley_contracts.turns import (
    Control,
    FindTurn,
    GatewayAlive,
    Generate,
    StopGeneration,
    TurnClaim,
    TurnCommitted,
    TurnDelta,
    TurnFinal,
    TurnResult,
    TurnStatus,
    TurnWhereabouts,
    result_of,
)
from parley_runtime.bus import Bus, ControlRefused, DeadLetter, LiveMessage, Taken
from parley_runtime.follow import Follower

ACK_WAIT_S = 1.0
MAX_DELIVER = 3
KEEP_ALIVE_S = 0.3
TEST_CONSUMERS = tuple(
    replace(spec, ack_wait_s=ACK_WAIT_S, max_deliver=MAX_DELIVER) if spec.stream is Stream.COMMANDS else spec
    for spec in CONSUMERS
)
INJECTED = ("*", ">", "a.b", "a b", "", "a\r\nb", "ü" * 26, "x" * 5000, "turn.*.control", "A" * 26)

_TRACE: contextvars.ContextVar[str] = contextvars.ContextVar("trace", default="")


def inject() -> dict[str, str]:
    return {"traceparent": _TRACE.get()} if _TRACE.get() else {}


@contextmanager
def extract(headers: Mapping[str, str]) -> Iterator[None]:
    token = _TRACE.set(headers.get("traceparent", ""))
    try:
        yield
    finally:
        _TRACE.reset(token)


class TestHub(Protocol):
    """Makes buses that hear each other. Buses it made are closed by the fixture."""

    __test__ = False

    def bus(self, service: str, **options: Any) -> Bus:
        """A bus, not started, with `inject`, `extract` and the short times above."""
        ...

    async def kill(self, bus: Bus) -> None:
        """As by `kill -9` of its process."""
        ...


async def until(condition: Callable[[], object], *, within_s: float = 5.0) -> None:
    """Wait until `condition` holds; fails when it does not in time."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.005)


async def quiet(seconds: float = 0.1) -> None:
    """Wait for what must not happen."""
    await asyncio.sleep(seconds)


# --- messages -------------------------------------------------------------------------------------------------------


def now() -> datetime:
    return datetime.now(UTC)


def command(turn_id: str, *, dispatch: int = 0) -> Generate:
    return Generate(
        turn_id=turn_id,
        user_id=1,
        prompt=(),
        model_config_id=new_id(),
        model="test",
        provider="test",
        max_output_tokens=100,
        accepted_at=now(),
        deadline_at=now() + timedelta(minutes=10),
        dispatch=dispatch,
        store=True,
        restart_after_text=True,
    )


def claim(turn_id: str, attempt: int, *, nonce: str = "") -> TurnClaim:
    return TurnClaim(
        turn_id=turn_id,
        attempt=attempt,
        run=1,
        nonce=nonce or f"nonce-{attempt}",
        provider="test",
        model="test",
        claimed_at=now(),
    )


def delta(turn_id: str, attempt: int, n: int, *texts: str) -> TurnDelta:
    return TurnDelta(turn_id=turn_id, attempt=attempt, n=n, parts=tuple(Text(text) for text in texts))


def final(turn_id: str, attempt: int, n: int, text: str) -> TurnFinal:
    return TurnFinal(
        turn_id=turn_id,
        attempt=attempt,
        n=n,
        answer=Answer(text=text),
        finish_reason=FinishReason.STOP,
        ended_at=now(),
    )


def result(turn_id: str) -> TurnResult:
    return result_of(command(turn_id), final(turn_id, 1, 1, "hello"))


def committed(turn_id: str) -> TurnCommitted:
    return TurnCommitted(turn_id=turn_id, session_id=new_id(), status=TurnStatus.DONE)


def shown_text(events: list[StreamEvent]) -> str:
    """What a client has on its screen, by the grammar of stream events."""
    text = ""
    for event in events:
        match event:
            case Shown(part=Text(text=more)):
                text += more
            case Reset():
                text = ""
            case Snapshot(answer=answer):
                text = answer.text
            case _:
                pass
    return text


# --- the suite ------------------------------------------------------------------------------------------------------


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
            seen["ask"] = _TRACE.get()
            await chat.publish(GatewayAlive(gateway_id=new_id()))
            return "open"

        async def hear(_event: GatewayAlive) -> None:
            seen["event"] = _TRACE.get()

        async def settle(_result: TurnResult) -> None:
            seen["durable"] = _TRACE.get()

        chat, usage = hub.bus("chat"), hub.bus("usage")
        chat.answer(FindTurn, find_turn)
        usage.on(GatewayAlive, hear)
        usage.take(TurnResult, settle)
        await chat.start()
        await usage.start()
        token = _TRACE.set("trace-1")
        try:
            await usage.ask(FindTurn(turn_id=new_id()))
            await chat.publish(result(new_id()))
        finally:
            _TRACE.reset(token)
        await until(lambda: len(seen) == 3)
        assert seen == {"ask": "trace-1", "event": "trace-1", "durable": "trace-1"}
        await usage.ask(FindTurn(turn_id=new_id()))
        assert seen["ask"] == ""


def replace_text(said: TurnResult, text: str) -> TurnResult:

    return msgspec.structs.replace(said, answer=Answer(text=text))


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


async def gone(bus: Bus, turn_id: str) -> bool:
    return not await bus.turns.find_command(turn_id)


async def until_async(condition: Callable[[], Any], *, within_s: float = 5.0) -> None:
    deadline = time.monotonic() + within_s
    while not await condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


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


class BusConformance(AskConformance, EventConformance, DurableConformance, TurnLogConformance, FollowConformance):
    """All of it."""
