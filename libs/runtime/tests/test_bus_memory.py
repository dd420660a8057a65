"""What the memory bus can do to those who use it: cut them off, lose acknowledgements, be full."""

import asyncio
from typing import Any

import pytest

from parley_contracts.errors import Overloaded, ServiceUnavailable
from parley_contracts.ids import new_id
from parley_contracts.streams import Stream
from parley_contracts.turns import FindTurn, GatewayAlive, Generate, TurnResult, TurnWhereabouts
from parley_runtime.bus import LogUnreadable, OutcomeUnknown
from parley_runtime.testing.scene import claim, command, delta, quiet, result, until


async def find_turn(_query: FindTurn) -> TurnWhereabouts:
    return "open"


async def test_who_is_cut_off_learns_what_is_known_and_is_told_when_it_is_over(memory_hub: Any) -> None:
    hub = memory_hub.hub
    chat, gateway = memory_hub.bus("chat"), memory_hub.bus("gateway")
    chat.answer(FindTurn, find_turn)
    reconnects: list[bool] = []
    gateway.on_reconnect(lambda: reconnects.append(True))
    await chat.start()
    await gateway.start()
    turn_id = new_id()
    live: list[Any] = []
    await gateway.turns.watch(turn_id, live.append)
    hub.cut()
    outcomes = await asyncio.gather(
        chat.turns.append_control(claim(turn_id, 1), expected_seq=0),
        gateway.turns.last_control(turn_id),
        gateway.turns.read(turn_id),
        gateway.turns.find_command(turn_id),
        gateway.turns.find_result(turn_id),
        gateway.turns.watch(turn_id, lambda _message: None),
        gateway.ask(FindTurn(turn_id=turn_id)),
        gateway.publish(result(turn_id)),
        gateway.check(),
        return_exceptions=True,
    )
    kinds = [OutcomeUnknown, *[LogUnreadable] * 4, *[ServiceUnavailable] * 3, ConnectionError]
    assert [type(outcome) for outcome in outcomes] == kinds  # the same as on NATS: test_bus_nats_faults.py
    await gateway.publish(GatewayAlive(gateway_id=new_id()))
    chat.turns.say(delta(turn_id, 1, 0, "lost"))
    hub.restore()
    assert reconnects == [True]
    assert await gateway.ask(FindTurn(turn_id=turn_id)) == "open"
    assert await gateway.turns.read(turn_id) == live == []


async def test_a_lost_acknowledgement_leaves_the_writer_to_recognise_its_nonce(memory_hub: Any) -> None:
    router = memory_hub.bus("llm_router")
    await router.start()
    turn_id = new_id()
    mine = claim(turn_id, 1, nonce="mine")
    memory_hub.hub.lose_acks = 1
    with pytest.raises(OutcomeUnknown):
        await router.turns.append_control(mine, expected_seq=0)
    assert (await router.turns.last_control(turn_id)).entry == mine


async def test_a_full_stream_is_overload(memory_hub: Any) -> None:
    chat = memory_hub.bus("chat")
    await chat.start()
    memory_hub.hub.full(Stream.COMMANDS)
    with pytest.raises(Overloaded):
        await chat.publish(command(new_id()))
    memory_hub.hub.full(Stream.COMMANDS, is_full=False)
    said = command(new_id())
    await chat.publish(said)
    assert memory_hub.hub.said[-1] == said


async def test_live_messages_may_be_lost_and_are_stored_all_the_same(memory_hub: Any) -> None:
    memory_hub.hub.lose_live = 1.0
    router = memory_hub.bus("llm_router")
    await router.start()
    turn_id = new_id()
    live: list[Any] = []
    await router.turns.watch(turn_id, live.append)
    await router.turns.append_control(claim(turn_id, 1), expected_seq=0)
    router.turns.say(delta(turn_id, 1, 0, "a"))
    await quiet(0.01)
    assert live == []
    assert len(await router.turns.read(turn_id)) == 2


async def test_a_late_acknowledgement_deletes_the_command_under_its_successor(memory_hub: Any) -> None:
    """Reliability fact 1, kept: this is what claims are for."""
    gates = [asyncio.Event(), asyncio.Event()]
    taken: list[int] = []

    async def generate(_command: Any) -> None:
        number = len(taken)
        taken.append(number)
        await gates[number].wait()

    router = memory_hub.bus("llm_router", drain_s=0.0)
    router.take(Generate, generate)
    await router.start()
    turn_id = new_id()
    await router.publish(command(turn_id))
    await until(lambda: len(taken) == 2)  # nobody said that the first one lives
    gates[0].set()
    await quiet(0.05)
    assert not await router.turns.find_command(turn_id)


async def test_handlers_do_not_see_the_asker_s_objects(memory_hub: Any) -> None:
    seen: list[TurnResult] = []

    async def settle(said: TurnResult) -> None:
        seen.append(said)

    usage = memory_hub.bus("usage")
    usage.take(TurnResult, settle)
    await usage.start()
    said = result(new_id())
    await usage.publish(said)
    await until(lambda: seen)
    assert seen[0] == said
    assert seen[0] is not said
