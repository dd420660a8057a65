"""What breaks between a service and NATS, and what must still be true (rules N1, N2, N7-N10, N16)."""

import asyncio
import time
from typing import Any

import nats
import pytest

from parley_contracts.errors import ServiceUnavailable
from parley_contracts.ids import new_id
from parley_contracts.turns import FindTurn, GatewayAlive, Generate, TurnResult, TurnWhereabouts
from parley_runtime.bus import LogUnreadable, OutcomeUnknown
from parley_runtime.follow import MAILBOX_BYTES, Follower, ReaderTooSlow
from parley_runtime.nats_bus import NatsBus
from parley_runtime.testing.scene import claim, command, delta, final, quiet, result, shown_text, until


async def find_turn(_query: FindTurn) -> TurnWhereabouts:
    return "open"


async def test_everything_goes_on_by_itself_after_the_server_was_killed_and_came_back(bus_server: Any, nats_hub: Any) -> None:
    taken: list[str] = []
    heard: list[str] = []
    reconnects: list[str] = []

    async def generate(said: Generate) -> None:
        taken.append(said.turn_id)

    async def hear(event: GatewayAlive) -> None:
        heard.append(event.gateway_id)

    router, gateway = nats_hub.bus("llm_router"), nats_hub.bus("gateway")
    router.take(Generate, generate, keep_alive=True)
    router.on(GatewayAlive, hear)
    router.answer(FindTurn, find_turn)
    router.on_reconnect(lambda: reconnects.append("router"))
    gateway.on_reconnect(lambda: 1 / 0)  # one that raises keeps nobody from hearing
    gateway.on_reconnect(lambda: reconnects.append("gateway"))
    await router.start()
    await gateway.start()
    turn_id = new_id()
    live: list[Any] = []
    watching = await gateway.turns.watch(turn_id, live.append)
    seq = await router.turns.append_control(claim(turn_id, 1), expected_seq=0)
    bus_server.kill()
    await quiet(1.0)
    with pytest.raises(ConnectionError):
        await gateway.check()
    await bus_server.start()
    await until(lambda: sorted(reconnects) == ["gateway", "router"])
    began = time.monotonic()
    commanded = new_id()
    await gateway.publish(command(commanded))
    await until(lambda: taken)
    assert time.monotonic() - began < 2.0
    gateway_id = new_id()
    await gateway.publish(GatewayAlive(gateway_id=gateway_id))
    await until(lambda: heard == [gateway_id])
    assert taken == [commanded]
    assert (await gateway.turns.last_control(turn_id)).seq == seq
    router.turns.say(delta(turn_id, 1, 0, "a"))
    await until(lambda: delta(turn_id, 1, 0, "a") in live)
    await watching.close()
    assert await gateway.check() < 1.0


async def test_durable_messages_said_while_the_server_dies_are_each_stored_once(bus_server: Any, nats_hub: Any) -> None:
    bus: NatsBus = nats_hub.bus("chat")
    await bus.start()
    ids = [new_id() for _ in range(300)]

    async def say() -> None:
        for turn_id in ids:
            await bus.publish(result(turn_id))

    saying = asyncio.create_task(say())
    for _ in range(3):
        await quiet(0.1)
        bus_server.kill()
        await quiet(0.1)
        await bus_server.start()
    await saying
    client = await nats.connect(nats_hub.url)
    info = await client.jetstream().stream_info("RESULTS")
    await client.close()
    assert info.state.messages == 300
    assert all([await bus.turns.find_result(turn_id) is not None for turn_id in ids])


async def test_a_command_of_a_server_killed_while_it_was_handled_is_kept(bus_server: Any, nats_hub: Any) -> None:
    taken: list[str] = []

    async def generate(said: Generate) -> None:
        taken.append(said.turn_id)
        await asyncio.sleep(1.0)

    router: NatsBus = nats_hub.bus("llm_router")
    router.take(Generate, generate, keep_alive=True)
    await router.start()
    turn_id = new_id()
    await router.publish(command(turn_id))
    await until(lambda: taken)
    bus_server.kill()
    await bus_server.start()
    for _ in range(100):
        if not await router.turns.find_command(turn_id):
            break
        await quiet(0.1)
    assert not await router.turns.find_command(turn_id)
    assert set(taken) == {turn_id}


async def test_without_a_server_every_call_ends_in_time_and_says_what_is_known(bus_server: Any, nats_hub: Any) -> None:
    bus: NatsBus = nats_hub.bus("chat")
    await bus.start()
    turn_id = new_id()
    bus_server.kill()
    try:
        await until(lambda: not bus._connection.client.is_connected)
        began = time.monotonic()
        outcomes = await asyncio.gather(
            bus.turns.append_control(claim(turn_id, 1), expected_seq=0),
            bus.turns.last_control(turn_id),
            bus.turns.read(turn_id),
            bus.turns.find_command(turn_id),
            bus.turns.find_result(turn_id),
            bus.turns.watch(turn_id, lambda _message: None),
            bus.ask(FindTurn(turn_id=turn_id), timeout_s=1.0),
            bus.publish(result(turn_id)),
            bus.check(),
            return_exceptions=True,
        )
        assert time.monotonic() - began < 11.0
        kinds = [OutcomeUnknown, *[LogUnreadable] * 4, *[ServiceUnavailable] * 3, ConnectionError]
        assert [type(outcome) for outcome in outcomes] == kinds
        await bus.publish(GatewayAlive(gateway_id=new_id()))
        bus.turns.say(delta(turn_id, 1, 0, "lost or late"))
    finally:
        await bus_server.start()


async def test_closing_without_a_server_neither_raises_nor_waits_for_long(bus_server: Any, nats_hub: Any) -> None:
    bus: NatsBus = nats_hub.bus("chat")
    bus.answer(FindTurn, find_turn)
    bus.take(TurnResult, ignore)
    await bus.start()
    bus_server.kill()
    try:
        await until(lambda: not bus._connection.client.is_connected)
        began = time.monotonic()
        await bus.close()
        await bus.close()
        assert time.monotonic() - began < 9.0
    finally:
        await bus_server.start()


async def ignore(_result: TurnResult) -> None:
    pass


async def test_a_service_that_starts_before_its_server_waits_for_it(bus_server: Any, nats_hub: Any) -> None:
    bus: NatsBus = nats_hub.bus("chat")
    bus_server.kill()
    starting = asyncio.create_task(bus.start())
    await quiet(0.5)
    assert not starting.done()
    await bus_server.start()
    await asyncio.wait_for(starting, 5.0)
    assert await bus.check() < 1.0


async def test_a_black_hole_is_noticed_and_left(bus_server: Any, nats_hub: Any) -> None:
    hole = asyncio.Event()
    server = await asyncio.start_server(lambda r, w: pipe(r, w, bus_server.port, hole), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    nats_hub.url = f"nats://127.0.0.1:{port}"
    bus: NatsBus = nats_hub.bus("chat")
    reconnects: list[bool] = []
    bus.on_reconnect(lambda: reconnects.append(True))
    await bus.start()
    assert await bus.check() < 1.0
    hole.set()
    with pytest.raises(TimeoutError):
        await bus.check(0.5)
    await until(lambda: not bus._connection.client.is_connected, within_s=8.0)  # N2: with the defaults, minutes
    hole.clear()
    await until(lambda: reconnects, within_s=6.0)
    assert await bus.check() < 1.0
    await bus.close()
    server.close()
    for task in list(PIPES):
        task.cancel()
    await asyncio.gather(*PIPES, return_exceptions=True)


PIPES: set[asyncio.Task[None]] = set()


async def open_again(hole: asyncio.Event) -> None:
    for _ in range(1000):
        if not hole.is_set():
            return
        await asyncio.sleep(0.02)


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int, hole: asyncio.Event) -> None:
    """A proxy that swallows everything while `hole` is set."""
    far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                await open_again(hole)
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            sink.close()

    for task in (asyncio.create_task(pump(reader, far_writer)), asyncio.create_task(pump(far_reader, writer))):
        PIPES.add(task)
        task.add_done_callback(PIPES.discard)


async def test_a_turn_followed_while_the_server_dies_ends_with_the_final_s_text(bus_server: Any, nats_hub: Any) -> None:
    router, gateway = nats_hub.bus("llm_router"), nats_hub.bus("gateway")
    await router.start()
    await gateway.start()
    turn_id = new_id()
    words = [f"{i} " for i in range(100)]
    events: list[Any] = []

    async def read() -> None:
        async with Follower(gateway, turn_id) as follower:
            gateway.on_reconnect(follower.look)
            async for batch in follower.batches():
                events.extend(batch)

    reading = asyncio.create_task(read())
    back = asyncio.Event()
    router.on_reconnect(back.set)
    seq = await router.turns.append_control(claim(turn_id, 1), expected_seq=0)
    for n, word in enumerate(words):
        router.turns.say(delta(turn_id, 1, n, word))
        await asyncio.sleep(0.002)
        if n == 50:
            bus_server.kill()
            await bus_server.start()
            await back.wait()
            router.turns.say(delta(turn_id, 1, 0, *words[: n + 1]))  # reliability §6: after a reconnect, all of it again
    await router.turns.append_control(final(turn_id, 1, len(words), "".join(words)), expected_seq=seq)
    await asyncio.wait_for(reading, 10.0)
    assert shown_text(events) == "".join(words)


async def test_n14_a_reader_that_does_not_read_is_cut_and_costs_no_more_than_its_mailbox(memory_hub: Any) -> None:
    router, gateway = memory_hub.bus("llm_router"), memory_hub.bus("gateway")
    await router.start()
    await gateway.start()
    turn_id = new_id()
    await router.turns.append_control(claim(turn_id, 1), expected_seq=0)
    async with Follower(gateway, turn_id) as follower:
        batches = follower.batches()
        await anext(batches)  # and then reads no more
        for n in range(100):
            router.turns.say(delta(turn_id, 1, n, "x" * (MAILBOX_BYTES // 20)))
        await quiet()
        assert len(follower._mailbox) <= 21
        with pytest.raises(ReaderTooSlow):
            await anext(batches)
