"""One turn, end to end: what a client reads is what is stored, and what is stored is billed once."""

import asyncio
import secrets

from tests.e2e.harness import Person, RunningParley, eventually, words


async def test_what_is_streamed_is_what_is_stored_and_is_billed_once(parley: RunningParley, person: Person) -> None:
    session = await person.session()
    key = secrets.token_hex(6)
    async with person.asks(session, f"[sim tokens=20 delay_ms=5 key={key}]") as stream:
        reader = await stream.reads_to_the_end()
    assert reader.ended is not None
    assert reader.ended["type"] == "done"
    assert reader.text == words(20)
    [answer] = await person.answers(session)
    assert answer["content"] == reader.text
    assert answer["status"] == "SENT"
    assert reader.turn_id is not None
    turn_id = reader.turn_id

    async def is_billed() -> bool:
        return len(await person.charges(turn_id)) == 1 and (await person.budget())["reserved"] == 0

    await eventually(is_billed, within_s=5)
    [charge] = await person.charges(turn_id)
    [call] = await parley.meter(key)
    assert (charge["promptTokens"], charge["completionTokens"]) == (call["prompt_tokens"], call["tokens_generated"])
    assert charge["billable"]
    assert not charge["estimated"]
    assert reader.ended["usage"]["completion_tokens"] == 20


async def test_done_is_sent_only_after_the_answer_can_be_read(person: Person) -> None:
    session = await person.session()
    for round_ in range(1, 21):
        async with person.asks(session, "[sim tokens=3]") as stream:
            await stream.reads_to_the_end()
        answers = await person.answers(session)
        assert len(answers) == round_
        assert all(answer["status"] == "SENT" for answer in answers)


async def test_a_whole_answer_equals_a_streamed_one(person: Person) -> None:
    session = await person.session()
    body = {"sessionId": session, "messages": [{"role": "user", "content": "[sim tokens=5]"}], "stream": False}
    answer = await person.client.post("/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert data["message"]["content"] == words(5)
    assert data["usage"]["completion_tokens"] == 5
    [stored] = await person.answers(session)
    assert stored["id"] == data["message"]["id"]
    assert {name: stored[name] for name in ("content", "status", "turnId")} == {
        name: data["message"][name] for name in ("content", "status", "turnId")
    }


async def test_the_history_of_a_session_reaches_the_model(parley: RunningParley, person: Person) -> None:
    session = await person.session(systemPrompt="Be brief.")
    key = secrets.token_hex(6)
    for text in ("[sim tokens=2]", f"[sim tokens=2 key={key}]"):
        async with person.asks(session, text) as stream:
            await stream.reads_to_the_end()
    [call] = await parley.meter(key)
    asked = [(message["role"], message["content"]) for message in call["request"]["messages"]]
    assert asked == [
        ("system", "Be brief."),
        ("user", "[sim tokens=2]"),
        ("assistant", words(2)),
        ("user", f"[sim tokens=2 key={key}]"),
    ]


async def test_closing_the_tab_does_not_stop_a_stored_turn(parley: RunningParley, person: Person) -> None:
    session = await person.session()
    key = secrets.token_hex(6)
    async with person.asks(session, f"[sim tokens=30 delay_ms=30 key={key}]") as stream:
        await stream.reads_words(3)

    async def is_stored() -> bool:
        answers = await person.answers(session)
        return answers[0]["status"] == "SENT" and answers[0]["content"] == words(30)

    await eventually(is_stored, within_s=10)
    [call] = await parley.meter(key)
    assert call["how"] == "finished"


async def test_a_stream_is_resumed_on_another_gateway_at_the_exact_event(parley: RunningParley, person: Person) -> None:
    session = await person.session()
    key = secrets.token_hex(6)
    async with person.asks(session, f"[sim tokens=60 delay_ms=20 key={key}]") as stream:
        await stream.reads_words(10)
        reader = stream.reader
    assert reader.turn_id is not None
    shown = reader.text
    async with person.resumes(reader.turn_id, reader.last_id, gateway=1, reader=reader) as stream:
        await stream.reads_words(20)
    assert reader.text.startswith(shown)
    async with person.resumes(reader.turn_id, reader.last_id, gateway=0, reader=reader) as stream:
        await stream.reads_to_the_end()
    assert reader.text == words(60)
    assert reader.resets == 0
    assert [answer["content"] for answer in await person.answers(session)] == [words(60)]
    assert len(await parley.meter(key)) == 1


async def test_an_ended_turn_is_replayed_in_either_dialect_from_any_event(person: Person) -> None:
    session = await person.session()
    async with person.asks(session, "[sim tokens=12]") as stream:
        first = await stream.reads_to_the_end()
    assert first.turn_id is not None
    for n in range(12):
        async with person.resumes(first.turn_id, f"1.{n}", gateway=n % 2, reader=type(first)()) as stream:
            rest = await stream.reads_to_the_end()
        assert rest.text == "".join(f"word{number} " for number in range(n + 2, 13))
        assert rest.ended == first.ended
    answer = await person.client.get(f"/chat/turns/{first.turn_id}/events", params={"format": "openai"})
    assert answer.text.endswith("data: [DONE]\n\n")


async def test_heartbeats_start_before_the_provider_has_said_anything(person: Person) -> None:
    session = await person.session()
    async with person.asks(session, "[sim tokens=2 first_delay_ms=2500]") as stream:
        reader = await stream.reads_to_the_end()
    assert stream.pings >= 2
    assert reader.text == words(2)


async def test_one_turn_at_a_time_in_a_session(person: Person) -> None:
    session = await person.session()
    async with person.asks(session, "[sim tokens=20 delay_ms=50]") as stream:
        await stream.reads_words(1)
        body = {"sessionId": session, "messages": [{"role": "USER", "content": "And?"}]}
        refused = await person.client.post("/chat/completions", json=body)
        assert refused.status_code == 409
        assert refused.json()["code"] == "turn_in_progress"
        assert refused.json()["details"] == {"turnId": stream.reader.turn_id}
        await stream.reads_to_the_end()


async def test_the_same_key_finds_the_same_turn_while_it_runs_and_afterwards(parley: RunningParley, person: Person) -> None:
    session = await person.session()
    key = secrets.token_hex(6)
    headers = {"Idempotency-Key": key}
    body = {
        "sessionId": session,
        "messages": [{"role": "USER", "content": f"[sim tokens=10 delay_ms=30 key={key}]"}],
        "stream": False,
    }
    async with person.on(1) as other:
        answers = await asyncio.gather(
            *(client.post("/chat/completions", json=body, headers=headers) for client in (person.client, other) * 3)
        )
    later = await person.client.post("/chat/completions", json=body, headers=headers)
    for answer in (*answers, later):
        assert answer.status_code == 200, answer.text
        assert answer.json()["data"]["turnId"] == later.json()["data"]["turnId"]
        assert answer.json()["data"]["message"]["content"] == words(10)
    assert len(await parley.meter(key)) == 1
    assert len(await person.answers(session)) == 1
    body["messages"] = [{"role": "USER", "content": "Something else"}]
    reused = await person.client.post("/chat/completions", json=body, headers=headers)
    assert (reused.status_code, reused.json()["code"]) == (409, "idempotency_key_reused")


async def test_a_turn_without_a_session_is_answered_billed_and_not_stored(person: Person) -> None:
    async with person.asks(None, "[sim tokens=4]", model="simulator") as stream:
        reader = await stream.reads_to_the_end()
    assert reader.text == words(4)
    assert reader.session_id is None
    assert reader.turn_id is not None
    turn_id = reader.turn_id

    async def is_billed() -> bool:
        return len(await person.charges(turn_id)) == 1

    await eventually(is_billed, within_s=5)
    sessions = (await person.client.get("/chat/sessions")).json()
    assert sessions["meta"]["total"] == 0


async def test_whoever_streams_is_present_and_whoever_leaves_is_not(person: Person) -> None:
    async def online() -> list[int]:
        answer = await person.client.get("/activity/status/all")
        assert answer.status_code == 200, answer.text
        return [presence["userId"] for presence in answer.json()["data"]]

    async def is_online() -> bool:
        return person.id in await online()

    async def is_gone() -> bool:
        return person.id not in await online()

    session = await person.session()
    async with person.asks(session, "[sim tokens=40 delay_ms=50]") as stream:
        await stream.reads_words(1)
        await eventually(is_online, within_s=2)
        await stream.reads_to_the_end()
    await eventually(is_gone, within_s=20)  # ten seconds after the last stream closed
