"""The rules for nats-py, one by one (reliability §11), and what the permission list alone cannot keep (security §3)."""

import asyncio
import dataclasses
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import nats
import pytest
from structlog.testing import capture_logs

import parley_runtime
from parley_contracts.errors import Overloaded, ServiceUnavailable
from parley_contracts.ids import new_id
from parley_contracts.parts import Text
from parley_contracts.streams import CONSUMERS, STREAMS, Stream
from parley_contracts.turns import FindTurn, Generate, TurnDelta, TurnResult, TurnWhereabouts
from parley_runtime import nats_durable
from parley_runtime.bus import DeadLetter, Taken
from parley_runtime.nats_bus import NatsBus, provision
from parley_runtime.nats_client import MAX_HEADER_BYTES, PENDING_BYTES, clean
from parley_runtime.testing.scene import MAX_DELIVER, TEST_CONSUMERS, claim, command, delta, final, quiet, result, until


async def find_turn(_query: FindTurn) -> TurnWhereabouts:
    return "open"


async def test_n3_a_connection_closed_for_good_is_told_and_no_longer_passes_for_alive(nats_hub: Any) -> None:
    closed: list[bool] = []
    bus: NatsBus = nats_hub.bus("chat", on_closed=lambda: closed.append(True))
    await bus.start()
    await bus._connection.client.publish("x" * 5000, b"")
    await until(lambda: closed)
    with pytest.raises(ConnectionError):
        await bus.check()
    with pytest.raises(ServiceUnavailable):
        await bus.ask(FindTurn(turn_id=new_id()))
    with pytest.raises(ServiceUnavailable):
        await bus.turns.watch(new_id(), lambda _message: None)


async def test_n4_errors_are_logged_once_in_a_while_and_never_raised(nats_hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bus: NatsBus = nats_hub.bus("chat")
    with capture_logs() as lines:
        for _ in range(1000):
            await bus._connection._on_error(RuntimeError("slow consumer"))
    assert len(lines) == 1
    monkeypatch.setattr("parley_runtime.nats_client.log", None)
    bus._connection._quiet_until = 0.0
    await bus._connection._on_error(RuntimeError("the log itself fails"))


async def test_n5_a_dead_read_loop_is_noticed_though_the_connection_looks_alive(nats_hub: Any) -> None:
    bus: NatsBus = nats_hub.bus("chat")
    await bus.start()
    assert await bus.check() < 1.0
    reading = bus._connection.client._reading_task
    assert reading is not None
    reading.cancel()
    await asyncio.sleep(0)
    assert bus._connection.client.is_connected
    with pytest.raises((TimeoutError, ConnectionError)):
        await bus.check(0.3)


async def test_n6_a_full_buffer_drops_deltas_at_once_instead_of_waiting(nats_hub: Any) -> None:
    bus: NatsBus = nats_hub.bus("llm_router")
    await bus.start()
    client = bus._connection.client
    assert client._max_pending_size == PENDING_BYTES
    turn_id = new_id()
    large = TurnDelta(turn_id=turn_id, attempt=1, n=0, parts=(Text("x" * 1_000_000),))
    with capture_logs() as lines:
        for _ in range(40):  # nothing leaves as long as this loop does not yield
            bus.turns.say(large)
    assert client.pending_data_size <= PENDING_BYTES
    assert [line["event"] for line in lines] == ["delta_unsaid"]
    assert await bus.check() < 2.0
    bus.turns.say(delta(turn_id, 1, 1, "after"))
    await bus.turns.append_control(claim(turn_id, 1), expected_seq=0)
    assert delta(turn_id, 1, 1, "after") in await bus.turns.read(turn_id)


async def test_n11_a_cancelled_wait_for_a_subscription_does_not_end_the_read_loop(nats_hub: Any) -> None:
    bus: NatsBus = nats_hub.bus("gateway")
    await bus.start()
    reconnects: list[bool] = []
    bus.on_reconnect(lambda: reconnects.append(True))
    for _ in range(20):
        watching = asyncio.create_task(bus.turns.watch(new_id(), lambda _message: None))
        for _ in range(3):
            await asyncio.sleep(0)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        assert await bus.check(1.0) < 1.0
    assert reconnects == []


def test_n12_n15_n19_the_slow_and_broken_parts_of_nats_py_are_not_used() -> None:
    forbidden = re.compile(
        r"next_msg|\.messages\b.*async for|async for .* in .*sub|max_msgs|limit=|ordered_consumer|\.term\(|\+TERM"
    )
    for path in Path(next(iter(parley_runtime.__path__))).glob("nats_*.py"):
        for line in path.read_text().splitlines():
            assert not forbidden.search(line), f"{path.name}: {line}"


async def test_n18_one_pull_request_stands_for_all_free_places(nats_hub: Any) -> None:
    taken: list[str] = []

    async def settle(said: TurnResult) -> None:
        taken.append(said.turn_id)

    usage: NatsBus = nats_hub.bus("usage")
    usage.take(TurnResult, settle, at_once=100)
    pulls = await heard_by_server(nats_hub.url, "$JS.API.CONSUMER.MSG.NEXT.RESULTS.usage")
    await usage.start()
    for _ in range(50):
        await usage.publish(result(new_id()))
    await until(lambda: len(taken) == 50)
    assert len(pulls) == 1


async def test_n21_headers_are_cleaned() -> None:
    assert clean({}) is None
    assert clean({"a": "x\r\ny\x00z\x1b"}) == {"a": "xyz"}
    assert clean({"a": "x" * MAX_HEADER_BYTES, "b": "kept"}) == {"b": "kept"}
    assert clean({"a": "\ud800"}) == {"a": "?"}
    many = clean({str(i): "é" * 100 for i in range(100)})
    assert many is not None
    assert sum(len(name) + len(value.encode()) + 4 for name, value in many.items()) <= MAX_HEADER_BYTES


async def test_n21_headers_that_would_close_the_connection_do_not_reach_it(nats_hub: Any) -> None:
    seen: list[str] = []
    chat: NatsBus = nats_hub.bus("chat", extract=lambda headers: capture(seen, headers))
    usage: NatsBus = nats_hub.bus("usage", inject=lambda: {"big": "x" * 2_000_000, "bad": "a\r\nReply: b\x00"})
    chat.answer(FindTurn, find_turn)
    await chat.start()
    await usage.start()
    assert await usage.ask(FindTurn(turn_id=new_id())) == "open"
    assert seen == ["aReply: b"]


def capture(seen: list[str], headers: Any) -> Any:
    seen.append(headers.get("bad", ""))
    return nullcontext()


async def test_n23_the_last_control_message_is_read_through_the_leader(nats_hub: Any) -> None:
    bus: NatsBus = nats_hub.bus("chat")
    await bus.start()
    asked = await heard_by_server(nats_hub.url, "$JS.API.>")
    await bus.turns.last_control(new_id())
    await until(lambda: asked)
    assert [msg.subject for msg in asked] == ["$JS.API.STREAM.MSG.GET.TURNS"]


async def test_n24_an_error_tells_neither_asker_nor_monitor_what_happened_inside(nats_hub: Any) -> None:
    async def fail(_query: FindTurn) -> TurnWhereabouts:
        raise RuntimeError("password=secret")

    chat: NatsBus = nats_hub.bus("chat")
    chat.answer(FindTurn, fail)
    await chat.start()
    client = await nats.connect(nats_hub.url, inbox_prefix="_INBOX_monitor")
    reply = await client.request("chat.find_turn", FindTurn(turn_id=new_id()).encode(), timeout=5)
    stats = await client.request("$SRV.STATS.chat", b"", timeout=5)
    await client.close()
    assert reply.headers == {"Parley-Error": "internal"}
    assert b'"name": "find_turn"' in stats.data
    assert b"secret" not in reply.data + stats.data


async def test_n25_n26_the_connection_is_opened_as_the_rules_say(nats_hub: Any) -> None:
    bus: NatsBus = nats_hub.bus("chat")
    await bus.start()
    options = bus._connection.client.options
    assert (options["max_reconnect_attempts"], options["reconnect_time_wait"]) == (-1, 0.2)
    assert (options["ping_interval"], options["max_outstanding_pings"]) == (2, 2)
    assert options["skip_subject_validation"]
    assert bus._connection.client.new_inbox().startswith("_INBOX_chat.")


async def test_an_answer_goes_to_inboxes_only(nats_hub: Any) -> None:
    chat: NatsBus = nats_hub.bus("chat")
    chat.answer(FindTurn, find_turn)
    await chat.start()
    turn_id = new_id()
    client = await nats.connect(nats_hub.url)
    for reply in (f"turn.{turn_id}.result", "$JS.API.STREAM.PURGE.TURNS", "_INBOX.someone", ""):
        await client.publish("chat.find_turn", FindTurn(turn_id=turn_id).encode(), reply=reply)
        await client.publish("$SRV.PING", b"", reply=reply)
    await client.flush()
    await until(lambda: chat._asked.refused == 8)
    info = await client.jetstream().stream_info("RESULTS")
    await client.close()
    assert info.state.messages == 0


async def test_too_many_questions_at_once_are_answered_overloaded(nats_hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parley_runtime.nats_bus._AT_ONCE", 2)
    monkeypatch.setattr("parley_runtime.nats_bus._WAITING", 5)
    gate = asyncio.Event()

    async def wait(_query: FindTurn) -> TurnWhereabouts:
        await gate.wait()
        return "open"

    chat, usage = nats_hub.bus("chat"), nats_hub.bus("usage")
    chat.answer(FindTurn, wait)
    await chat.start()
    await usage.start()
    asked = [asyncio.create_task(usage.ask(FindTurn(turn_id=new_id()))) for _ in range(8)]
    await until(lambda: sum(task.done() for task in asked) == 3)
    gate.set()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert answers.count("open") == 5
    assert sum(isinstance(answer, Overloaded) for answer in answers) == 3


# --- streams --------------------------------------------------------------------------------------------------------


async def test_provisioning_again_changes_nothing_and_a_changed_spec_is_applied(nats_hub: Any) -> None:
    created: list[bool] = []
    await provision(nats_hub.url, on_created=lambda: created.append(True))
    assert created == []
    client = await nats.connect(nats_hub.url)
    manager = client.jsm()
    for spec in STREAMS:
        config = (await manager.stream_info(spec.name)).config
        assert (config.subjects, config.max_bytes, config.max_age) == (list(spec.subjects), spec.max_bytes, spec.max_age_s)
        assert (str(config.retention), config.discard, config.allow_direct) == (spec.retention, spec.discard, spec.allow_direct)
    for consumer in CONSUMERS:
        made = (await manager.consumer_info(consumer.stream, consumer.durable)).config
        assert (made.ack_wait, made.max_deliver, made.max_ack_pending) == (consumer.ack_wait_s, consumer.max_deliver, 10_000)
    await manager.delete_stream("ACTIVITY")
    await client.close()
    await provision(nats_hub.url, consumers=TEST_CONSUMERS, on_created=lambda: created.append(True))
    assert created == [True]


async def test_a_full_stream_is_overload_and_not_an_internal_error(nats_hub: Any) -> None:
    small = [dataclasses.replace(spec, max_bytes=2000) if spec.name is Stream.COMMANDS else spec for spec in STREAMS]
    await provision(nats_hub.url, streams=small, consumers=TEST_CONSUMERS)
    chat: NatsBus = nats_hub.bus("chat")
    await chat.start()
    outcomes = [await asyncio.gather(chat.publish(command(new_id())), return_exceptions=True) for _ in range(10)]
    assert outcomes[0] == [None]
    assert isinstance(outcomes[-1][0], Overloaded)


async def test_a_result_that_cannot_be_read_comes_again_and_blocks_no_other(nats_hub: Any) -> None:
    taken: list[str] = []

    async def settle(said: TurnResult) -> None:
        taken.append(said.turn_id)

    usage: NatsBus = nats_hub.bus("usage")
    usage.take(TurnResult, settle, at_once=1)
    await usage.start()
    client = await nats.connect(nats_hub.url)
    await client.jetstream().publish(f"turn.{new_id()}.result", b"not what we say")
    turn_id = new_id()
    with capture_logs() as lines:
        await usage.publish(result(turn_id))
        await until(lambda: taken)
        await until(lambda: sum(line["event"] == "message_failed" for line in lines) >= 2)
    assert taken == [turn_id]
    assert all(line["log_level"] == "error" for line in lines if line["event"] == "message_failed")
    info = await client.jsm().consumer_info("RESULTS", "usage")
    await client.close()
    assert info.num_ack_pending == 1


async def test_a_command_that_cannot_be_read_becomes_a_dead_letter_with_its_turn(
    nats_hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nats_durable, "delay_s", lambda _deliveries: 0.05)
    dead: list[DeadLetter] = []

    async def generate(_said: Generate) -> Taken:
        raise AssertionError("it cannot be read")

    async def bury(letter: DeadLetter) -> None:
        dead.append(letter)

    router, chat = nats_hub.bus("llm_router"), nats_hub.bus("chat")
    router.take(Generate, generate)
    chat.take_dead_letters(bury)
    await router.start()
    await chat.start()
    turn_id = new_id()
    client = await nats.connect(nats_hub.url)
    with capture_logs() as lines:
        await client.jetstream().publish(f"llm_router.generate.{turn_id}", b'{"turn_id": 5}')
        await until(lambda: dead)
    await client.close()
    assert sum(line["event"] == "message_failed" for line in lines) == MAX_DELIVER
    assert (dead[0].turn_id, dead[0].command) == (turn_id, None)
    await chat.turns.forget_command(dead[0].seq)
    assert not await chat.turns.find_command(turn_id)


async def test_what_a_newer_version_says_is_passed_over_in_the_log_and_live(nats_hub: Any) -> None:
    bus: NatsBus = nats_hub.bus("gateway")
    await bus.start()
    turn_id = new_id()
    live: list[Any] = []
    await bus.turns.watch(turn_id, live.append)
    client = await nats.connect(nats_hub.url)
    await client.jetstream().publish(f"turn.{turn_id}.delta", b'{"type":"image"}')
    await client.publish(f"turn.{turn_id}.committed", b"not JSON")
    await client.close()
    bus.turns.say(delta(turn_id, 1, 0, "text"))
    await bus.turns.append_control(final(turn_id, 0, 0, "text"), expected_seq=0)
    assert await bus.turns.read(turn_id) == live
    assert len(live) == 2


async def heard_by_server(url: str, subject: str) -> list[Any]:
    """What is said on a subject from now on. The connection lives as long as the loop holds it, closed by its test's end."""
    heard: list[Any] = []

    async def hear(msg: Any) -> None:
        heard.append(msg)

    client = await nats.connect(url)
    OPEN.append(client)
    await client.subscribe(subject, cb=hear)
    await client.flush()
    await client.flush()
    return heard


OPEN: list[Any] = []


@pytest.fixture(autouse=True)
async def _close_listeners() -> Any:
    yield
    while OPEN:
        await OPEN.pop().close()
    await quiet(0)
