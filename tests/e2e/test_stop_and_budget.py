"""Stop closes the provider call at once and bills what was generated; budgets hold under any parallelism."""

import asyncio
import secrets
import time

from tests.e2e.harness import Person, RunningParley, eventually


async def test_stop_closes_the_provider_call_within_300_ms_and_keeps_the_partial_answer(
    parley: RunningParley, person: Person
) -> None:
    session = await person.session()
    key = secrets.token_hex(6)
    async with person.asks(session, f"[sim tokens=500 delay_ms=20 key={key}]") as stream:
        await stream.reads_words(10)
        async with person.on(1) as other:
            asked_at = time.time()
            stopped = await other.post(f"/chat/turns/{stream.reader.turn_id}/stop")
        assert stopped.status_code == 200, stopped.text
        reader = await stream.reads_to_the_end()
    [call] = await parley.meter(key)
    assert call["closed_at"] - asked_at < 0.3
    assert reader.ended is not None
    assert (reader.ended["type"], reader.ended["finishReason"]) == ("done", "canceled")
    [answer] = await person.answers(session)
    assert (answer["status"], answer["content"]) == ("CANCELED", reader.text)
    again = await person.client.post(f"/chat/turns/{reader.turn_id}/stop")
    assert again.json()["data"]["status"] == "canceled"
    turn_id = str(reader.turn_id)

    async def is_billed() -> bool:
        return len(await person.charges(turn_id)) == 1 and (await person.budget())["reserved"] == 0

    await eventually(is_billed, within_s=5)
    [charge] = await person.charges(turn_id)
    assert charge["billable"]
    assert charge["completionTokens"] > 0
    assert (await person.budget())["spent"] == charge["cost"]


async def test_a_stop_before_the_first_token_ends_the_turn_at_once(parley: RunningParley, person: Person) -> None:
    session = await person.session()
    key = secrets.token_hex(6)
    async with person.asks(session, f"[sim tokens=5 first_delay_ms=20000 key={key}]") as stream:
        await stream.next()

        async def is_called() -> bool:
            return bool(await parley.meter(key))

        await eventually(is_called, within_s=3)
        await person.client.post(f"/chat/turns/{stream.reader.turn_id}/stop")
        async with asyncio.timeout(5):
            reader = await stream.reads_to_the_end()
    assert reader.ended is not None
    assert reader.ended["finishReason"] == "canceled"
    [call] = await parley.meter(key)
    assert call["how"] == "client_closed"


async def test_leaving_a_stateless_stream_closes_the_provider_call_within_300_ms(parley: RunningParley, person: Person) -> None:
    key = secrets.token_hex(6)
    async with person.asks(None, f"[sim tokens=500 delay_ms=20 key={key}]", model="simulator") as stream:
        await stream.reads_words(5)
        left_at = time.time()

    async def is_closed() -> bool:
        return (await parley.meter(key))[0]["closed_at"] is not None

    await eventually(is_closed, within_s=3, every_s=0.02)
    [call] = await parley.meter(key)
    assert call["closed_at"] - left_at < 0.3
    turn_id = str(stream.reader.turn_id)

    async def is_billed() -> bool:
        return len(await person.charges(turn_id)) == 1 and (await person.budget())["reserved"] == 0

    await eventually(is_billed, within_s=5)


async def test_50_parallel_requests_on_a_budget_for_10_admit_exactly_10(parley: RunningParley, person: Person) -> None:
    assert parley.admin is not None
    # One request costs prompt + max_tokens at the default price: learn it from what one reserves.
    key = secrets.token_hex(6)
    text = f"[sim tokens=40 delay_ms=50 key={key}]"
    async with person.asks(None, text, model="simulator", max_tokens=100) as stream:
        await stream.reads_words(1)
        cost_of_one = (await person.budget())["reserved"]
        await stream.reads_to_the_end()
    assert cost_of_one > 0

    async def is_settled() -> bool:
        return (await person.budget())["reserved"] == 0

    await eventually(is_settled, within_s=5)
    spent = (await person.budget())["spent"]
    limit = round(spent + cost_of_one * 10 + cost_of_one * 0.01, 10)
    answer = await parley.admin.client.put(f"/api/usage/budgets/{person.id}", json={"limit": limit})
    assert answer.status_code == 200, answer.text

    body = {"model": "simulator", "messages": [{"role": "user", "content": text}], "max_tokens": 100}
    async with person.on(1) as other:
        answers = await asyncio.gather(
            *((person.client, other)[number % 2].post("/v1/chat/completions", json=body) for number in range(50))
        )
    codes = [answer.status_code for answer in answers]
    assert codes.count(200) == 10, codes
    assert codes.count(402) == 40, codes
    refusal = next(answer for answer in answers if answer.status_code == 402).json()["error"]
    assert (refusal["code"], refusal["type"]) == ("budget_exceeded", "insufficient_quota")
    assert len(await parley.meter(key)) == 11
    await eventually(is_settled, within_s=5)
    assert (await person.budget())["spent"] <= limit
