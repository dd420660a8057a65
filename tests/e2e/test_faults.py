"""Kill any process, cut any connection: an accepted turn still ends, is stored once and billed once (F1–F11, F17).

The short form of the chaos suite: each fault once, on a system whose every service is a process of its own.
"""

import asyncio
import contextlib
import json
import os
import secrets
import signal

import httpx
import pytest

from tests.e2e.harness import Person, RunningParley, eventually, words
from tests.e2e.sse import Reader, SseEvent, sse_events

pytestmark = pytest.mark.timeout(180)


async def whole(person: Person, session: str, reader: Reader, text: str) -> None:
    """One stored answer equal to what was streamed, one charge, zero held."""
    assert reader.ended is not None, reader.kinds
    assert reader.ended["type"] == "done", reader.ended
    assert reader.text == text
    [answer] = await person.answers(session)
    assert (answer["status"], answer["content"]) == ("SENT", text)
    await billed_once(person, str(reader.turn_id))


async def billed_once(person: Person, turn_id: str) -> None:
    async def is_settled() -> bool:
        with contextlib.suppress(AssertionError, httpx.TransportError):
            charges = await person.charges(turn_id)
            return sum(charge["billable"] for charge in charges) == 1 and (await person.budget())["reserved"] == 0
        return False

    await eventually(is_settled, within_s=60)
    billed = [charge["cost"] for charge in await person.charges(turn_id) if charge["billable"]]
    assert (await person.budget())["spent"] == pytest.approx(sum(billed), abs=1e-9)


async def is_called(parley: RunningParley, key: str) -> bool:
    return bool(await parley.meter(key))


async def test_nobody_notices_a_router_killed_before_the_first_token(parley: RunningParley, person: Person) -> None:
    session = await person.session()
    key = secrets.token_hex(6)
    async with person.asks(session, f"[sim tokens=10 first_delay_ms=1500 key={key}]") as stream:
        await eventually(lambda: is_called(parley, key), within_s=5)
        parley.kill_all("llm-router")
        reader = await stream.reads_to_the_end()
    assert reader.resets == 0
    assert "error" not in reader.kinds
    await whole(person, session, reader, words(10))


async def test_an_openai_client_does_not_notice_a_router_killed_before_the_first_token(
    parley: RunningParley, person: Person
) -> None:
    key = secrets.token_hex(6)
    body = {
        "model": "simulator",
        "stream": True,
        "messages": [{"role": "user", "content": f"[sim tokens=10 first_delay_ms=1500 key={key}]"}],
    }
    async with person.client.stream("POST", "/v1/chat/completions", json=body) as response:
        killing = asyncio.create_task(kill_once_called(parley, key))
        seen = [event async for event in sse_events(response) if isinstance(event, SseEvent)]
        await killing
    assert seen[-1].data == {"type": "[DONE]"}
    text = "".join(choice["delta"].get("content") or "" for event in seen[:-1] for choice in event.data.get("choices", []))
    assert text == words(10)
    await billed_once(person, response.headers["x-turn-id"])


async def kill_once_called(parley: RunningParley, key: str) -> None:
    await eventually(lambda: is_called(parley, key), within_s=5, every_s=0.05)
    parley.kill_all("llm-router")


async def test_a_router_killed_after_ten_tokens_means_a_reset_and_the_whole_answer(
    parley: RunningParley, person: Person
) -> None:
    session = await person.session()
    async with person.asks(session, "[sim tokens=40 delay_ms=50]") as stream:
        await stream.reads_words(10)
        parley.kill_all("llm-router")
        reader = await stream.reads_to_the_end()
    assert reader.resets == 1
    await whole(person, session, reader, words(40))
    charges = await person.charges(str(reader.turn_id))
    assert sorted((charge["attempt"], charge["billable"]) for charge in charges) == [(1, False), (2, True)]


async def test_an_openai_stream_whose_router_died_says_so_and_never_done(parley: RunningParley, person: Person) -> None:
    body = {
        "model": "simulator",
        "stream": True,
        "messages": [{"role": "user", "content": "[sim tokens=40 delay_ms=50]"}],
    }
    async with person.client.stream("POST", "/v1/chat/completions", json=body) as response:
        seen: list[SseEvent] = []
        async for event in sse_events(response):
            if isinstance(event, SseEvent):
                seen.append(event)
                if len(seen) == 12:
                    parley.kill_all("llm-router")
    assert seen[-1].data["error"]["code"] == "upstream_interrupted"
    assert "[DONE]" not in [event.data.get("type") for event in seen]
    assert not any(choice["finish_reason"] for event in seen[:-1] for choice in event.data["choices"])
    turn_id = response.headers["x-turn-id"]

    async def is_closed() -> bool:
        charges = await person.charges(turn_id)
        return bool(charges) and (await person.budget())["reserved"] == 0

    await eventually(is_closed, within_s=20)
    assert not any(charge["billable"] for charge in await person.charges(turn_id))


async def test_a_second_gateway_resumes_at_the_exact_event_when_the_first_is_killed(
    parley: RunningParley, person: Person
) -> None:
    session = await person.session()
    key = secrets.token_hex(6)
    reader = Reader()
    with contextlib.suppress(httpx.TransportError):
        async with person.asks(session, f"[sim tokens=60 delay_ms=30 key={key}]") as stream:
            reader = stream.reader
            await stream.reads_words(10)
            parley.kill(parley.names("gateway")[0])
            await stream.reads_to_the_end()
    assert reader.ended is None
    async with person.resumes(str(reader.turn_id), reader.last_id, gateway=1, reader=reader) as stream:
        await stream.reads_to_the_end()
    assert reader.resets == 0
    await parley.until_ready()
    await whole(person, session, reader, words(60))
    assert len(await parley.meter(key)) == 1


async def test_no_stale_token_is_shown_when_a_router_sleeps_ten_seconds_and_wakes(
    parley: RunningParley, person: Person
) -> None:
    session = await person.session()
    key = secrets.token_hex(6)
    async with person.asks(session, f"[sim tokens=150 delay_ms=100 mark=1 key={key}]") as stream:
        await stream.reads_words(10)
        sleepers = [parley.pid(name) for name in parley.names("llm-router")]
        # Which one runs the turn is not known from outside: all sleep, and a fresh one takes over.
        parley.kill_all("llm-router", signal.SIGSTOP)
        waking = asyncio.create_task(wake(sleepers))
        reader = await stream.reads_to_the_end()
        await waking
    calls = await parley.meter(key)
    assert reader.text in {call["text"] for call in calls}
    [answer] = await person.answers(session)
    assert answer["content"] == reader.text
    await billed_once(person, str(reader.turn_id))


async def wake(sleepers: list[int]) -> None:
    await asyncio.sleep(10)
    for pid in sleepers:
        os.kill(pid, signal.SIGCONT)


async def test_a_turn_survives_the_bus_server_killed_and_restarted_mid_stream(parley: RunningParley, person: Person) -> None:
    session = await person.session()
    async with person.asks(session, "[sim tokens=80 delay_ms=50]") as stream:
        await stream.reads_words(10)
        parley.kill("nats")
        reader = await stream.reads_to_the_end()
    await whole(person, session, reader, words(80))


async def test_a_result_is_stored_and_billed_once_when_chat_and_usage_die_before_they_acknowledge(
    parley: RunningParley, person: Person
) -> None:
    session = await person.session()
    async with person.asks(session, "[sim tokens=20 delay_ms=30]") as stream:
        await stream.reads_words(10)
        for service in ("chat", "usage"):
            parley.kill_all(service, signal.SIGSTOP)  # the result is delivered to a process that will never say so
        await stream.reads_words(20)
        await asyncio.sleep(1)
        for service in ("chat", "usage"):
            parley.kill_all(service)
        reader = await stream.reads_to_the_end()
    await whole(person, session, reader, words(20))


async def test_tokens_flow_and_the_end_waits_while_chat_is_away(parley: RunningParley, person: Person) -> None:
    session = await person.session()
    async with person.asks(session, "[sim tokens=20 delay_ms=30]") as stream:
        await stream.reads_words(5)
        parley.kill_all("chat")
        await stream.reads_words(20)
        reader = await stream.reads_to_the_end()
    await whole(person, session, reader, words(20))


async def test_a_router_that_is_told_to_stop_finishes_what_it_runs(parley: RunningParley, person: Person) -> None:
    session = await person.session()
    key = secrets.token_hex(6)
    async with person.asks(session, f"[sim tokens=60 delay_ms=50 key={key}]") as stream:
        await stream.reads_words(5)
        parley.kill_all("llm-router", signal.SIGTERM)
        reader = await stream.reads_to_the_end()
    assert reader.resets == 0
    await whole(person, session, reader, words(60))
    assert len(await parley.meter(key)) == 1


async def test_a_key_finds_one_turn_however_often_chat_is_killed_around_its_commit(
    parley: RunningParley, person: Person
) -> None:
    turns: list[str] = []
    for delay_ms in (0, 2, 5, 10, 20, 40):
        session = await person.session()
        key = secrets.token_hex(6)
        text = f"[sim tokens=5 key={key}]"
        body = {"sessionId": session, "messages": [{"role": "USER", "content": text}], "stream": False}
        asking = asyncio.create_task(until_answered(person, body, key))
        await asyncio.sleep(delay_ms / 1000)
        parley.kill_all("chat")
        answer = await asking
        assert answer["message"]["content"] == words(5)
        assert [stored["content"] for stored in await person.answers(session)] == [words(5)]
        turns.append(str(answer["turnId"]))

    async def is_settled() -> bool:
        charges = [await person.charges(turn_id) for turn_id in turns]
        return [len(rows) for rows in charges] == [1] * len(turns) and (await person.budget())["reserved"] == 0

    # What was set aside for a question that chat did not live to accept is given back within a minute.
    await eventually(is_settled, within_s=70)


async def until_answered(person: Person, body: dict[str, object], key: str) -> dict[str, dict[str, str]]:
    """As a careful client: the same key again, until there is an answer."""
    for _ in range(60):
        with contextlib.suppress(httpx.TransportError):
            answer = await person.client.post("/chat/completions", json=body, headers={"Idempotency-Key": key})
            if answer.status_code == 200:
                data: dict[str, dict[str, str]] = json.loads(answer.content)["data"]
                return data
            assert answer.status_code in {409, 503, 504}, answer.text
        await asyncio.sleep(0.5)
    raise AssertionError("never answered")


async def test_forty_open_streams_survive_a_gateway_restart(parley: RunningParley, person: Person) -> None:
    sessions = [await person.session() for _ in range(40)]
    readers: list[Reader] = []

    async def follow(session: str) -> Reader:
        reader = Reader()
        with contextlib.suppress(httpx.TransportError):
            async with person.asks(session, "[sim tokens=60 delay_ms=100]") as stream:
                reader = stream.reader
                readers.append(reader)
                await stream.reads_to_the_end()
        while reader.ended is None:
            with contextlib.suppress(httpx.TransportError):
                async with person.resumes(str(reader.turn_id), reader.last_id, gateway=1, reader=reader) as stream:
                    await stream.reads_to_the_end()
        return reader

    following = [asyncio.create_task(follow(session)) for session in sessions]

    async def all_read() -> bool:
        return len(readers) == 40 and all(len(reader.text.split()) >= 3 for reader in readers)

    await eventually(all_read, within_s=30)
    parley.kill(parley.names("gateway")[0])
    done = await asyncio.gather(*following)
    assert [reader.text for reader in done] == [words(60)] * 40
    assert all(reader.resets == 0 for reader in done)
    await parley.until_ready()
