"""Credentials at the doors: stream tokens and cookies open events only, a spent budget shuts every door."""

import httpx

from parley_contracts.ids import new_id
from tests.e2e.answers import bearer, data, refused
from tests.e2e.harness import PASSWORD, Person, RunningParley, eventually


async def a_turn(person: Person) -> tuple[str, str]:
    """A session, and an ended turn of it."""
    session = await person.session()
    async with person.asks(session, "[sim tokens=3]") as stream:
        reader = await stream.reads_to_the_end()
    return session, str(reader.turn_id)


async def test_a_stream_token_opens_the_events_of_its_conversation_and_nothing_else(
    parley: RunningParley, person: Person
) -> None:
    session, turn = await a_turn(person)
    _, other_turn = await a_turn(person)
    made = (await person.client.post("/api/chat/stream-token", json={"conversationId": session})).json()
    assert made.keys() == {"token", "expiresIn"}
    assert made["expiresIn"] == 300
    any_session = (await person.client.post("/api/chat/stream-token")).json()["token"]
    async with httpx.AsyncClient(base_url=parley.gateways[1], timeout=60, trust_env=False) as source:
        events = f"/chat/turns/{turn}/events"
        for _ in range(2):  # reusable, for reconnects
            answer = await source.get(events, params={"token": made["token"]})
            assert answer.status_code == 200, answer.text
            assert "word3" in answer.text
        refused(await source.get(f"/chat/turns/{other_turn}/events", params={"token": made["token"]}), 403, "forbidden")
        assert (await source.get(f"/chat/turns/{other_turn}/events", params={"token": any_session})).status_code == 200
        refused(await source.get(events, params={"token": "nonsense"}), 401, "unauthenticated")
        refused(await source.get(events, params={"token": person.tokens["access_token"]}), 401, "unauthenticated")
        refused(await source.get(events), 401, "unauthenticated")
        refused(await source.get("/chat/sessions", params={"token": made["token"]}), 401, "unauthenticated")
        refused(await source.get("/user/me", headers=bearer(made["token"])), 401, "unauthenticated")
    assert made["token"] not in parley.launcher_log()
    answer = await person.client.post("/api/chat/stream-token", json={"conversationId": new_id()})
    refused(answer, 404, "session_not_found")
    answer = await person.client.post("/api/chat/stream-token", json={"conversationId": "x"})
    refused(answer, 422, "validation_failed")
    stranger = await parley.register()
    answer = await stranger.client.post("/api/chat/stream-token", json={"conversationId": session})
    refused(answer, 404, "session_not_found")
    await stranger.close()


async def test_the_cookie_opens_event_streams_only_and_for_no_foreign_page(parley: RunningParley, person: Person) -> None:
    _, turn = await a_turn(person)
    async with httpx.AsyncClient(base_url=parley.gateways[0], timeout=60, trust_env=False) as browser:
        await browser.post("/user/login", json={"email": person.email, "password": PASSWORD})
        assert browser.cookies.get("parley_access")
        events = f"/chat/turns/{turn}/events"
        assert (await browser.get(events)).status_code == 200
        assert (await browser.get(events, headers={"Origin": parley.gateways[0]})).status_code == 200
        for origin in ("https://evil.example", "null", parley.gateways[0] + ".evil.example"):
            refused(await browser.get(events, headers={"Origin": origin}), 403, "origin_refused")
        for method, path in (("GET", "/chat/sessions"), ("GET", "/user/me"), ("POST", f"/chat/turns/{turn}/stop")):
            refused(await browser.request(method, path), 401, "unauthenticated")
        answer = await browser.post("/user/logout", headers=bearer(person.tokens["refresh_token"]))
        assert answer.status_code == 200
        assert browser.cookies.get("parley_access") is None


async def test_a_stream_token_of_an_ended_login_is_refused(parley: RunningParley, person: Person) -> None:
    _, turn = await a_turn(person)
    token = (await person.client.post("/api/chat/stream-token")).json()["token"]
    await person.client.post("/user/logout", headers=bearer(person.tokens["refresh_token"]))
    async with httpx.AsyncClient(base_url=parley.gateways[1], timeout=60, trust_env=False) as source:

        async def is_refused() -> bool:
            answer = await source.get(f"/chat/turns/{turn}/events", params={"token": token})
            return answer.status_code == 401 and answer.json()["code"] == "token_revoked"

        await eventually(is_refused, within_s=5)


async def test_a_spent_budget_shuts_every_door_that_begins_a_turn(parley: RunningParley, person: Person) -> None:
    session = await person.session()
    key = data(await person.client.post("/api/keys", json={"name": "A door", "scopes": ["openai", "chat"]}), 201)["key"]
    assert parley.admin is not None
    assert (await parley.admin.client.put(f"/api/usage/budgets/{person.id}", json={"limit": 0})).status_code == 200
    question = [{"role": "user", "content": "Hello"}]
    for token in (person.tokens["access_token"], key):
        for path, body in (
            ("/v1/chat/completions", {"model": "simulator", "messages": question}),
            ("/chat/v1/chat/completions", {"model": "simulator", "messages": question, "stream": True}),
            ("/chat/completions", {"model": "simulator", "messages": question}),
            ("/chat/completions", {"sessionId": session, "messages": question, "stream": True}),
        ):
            answer = await person.client.post(path, json=body, headers=bearer(token))
            assert answer.status_code == 402, (path, answer.text)
