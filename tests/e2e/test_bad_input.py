"""Whatever a client sends, it gets a 4xx in the dialect's shape; no service restarts and no bus connection closes."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from parley_contracts.ids import new_id
from tests.e2e.harness import Person, RunningParley

MALFORMED_IDS = ["*", ">", "a.b", "turn.*.delta", "x" * 5_000, "ü" * 26, "0" * 25, "0" * 27, "A" * 26, "%00", "a b", "..%2f"]
S0_BODY = {"messages": [{"role": "USER", "content": "Hello"}]}
OA_BODY = {"model": "simulator", "messages": [{"role": "user", "content": "Hello"}]}


@pytest_asyncio.fixture(loop_scope="session", autouse=True)
async def _nothing_breaks(parley: RunningParley) -> AsyncIterator[None]:
    """Every process is the same one before and after, and still connected to the bus."""
    await parley.until_ready()
    before = {name: parley.pid(name) for name in parley.services}
    yield
    assert {name: parley.pid(name) for name in parley.services} == before
    async with httpx.AsyncClient(trust_env=False) as client:
        for name, known in parley.services.items():
            if known.get("health_port"):
                ready = await client.get(f"http://127.0.0.1:{known['health_port']}/readyz")
                assert ready.status_code == 200, (name, ready.text)


def common(answer: httpx.Response, status: int, code: str) -> None:
    body = answer.json()
    assert (answer.status_code, body["code"]) == (status, code), answer.text[:500]
    assert body["success"] is False
    assert body["data"] is None
    assert body["error"]


def openai(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code), answer.text[:500]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"NaN", b'{"messages": NaN}', b"\xff\xfe", b'"text"', b"[" * 100_000, b'{"a":' * 100 + b"1"],
    ids=repr,
)
async def test_what_is_no_json_object_is_refused_in_each_dialect(person: Person, content: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    for path in ("/chat/completions", "/v1/chat/completions", "/user/login", "/chat/sessions"):
        answer = await person.client.post(path, content=content, headers=headers)
        if path == "/chat/sessions" and content in {b"", b"null"}:
            continue  # every field is optional there
        assert 400 <= answer.status_code < 500, (path, answer.status_code, answer.text[:300])
        assert answer.json().keys() >= ({"error"} if path.startswith("/v1") else {"success", "error", "code"})


async def test_fields_that_are_not_listed_are_refused(person: Person) -> None:
    for name in ("role", "user_id", "budget", "id"):
        common(await person.client.post("/chat/completions", json={**S0_BODY, name: 1}), 422, "validation_failed")
        account = {"email": f"{secrets.token_hex(4)}@example.org", "username": "x", "password": "longenough1", name: 1}
        common(await person.client.post("/user/register", json=account), 422, "validation_failed")
    for name in ("functions", "api_key", "api_base", "base_url", "extra_headers"):
        error = openai(
            await person.client.post("/v1/chat/completions", json={**OA_BODY, name: "x"}), 400, "unsupported_parameter"
        )
        assert error["param"] == name
    openai(await person.client.post("/v1/chat/completions", json={**OA_BODY, "n": 2}), 400, "unsupported_parameter")


async def test_bodies_of_five_megabytes_are_refused_before_they_are_read(person: Person) -> None:
    big = "x" * 5 * 1024 * 1024
    body = {"messages": [{"role": "USER", "content": big}]}
    common(await person.client.post("/chat/completions", json=body), 413, "payload_too_large")
    common(await person.client.post("/chat/sessions", json={"name": big}), 413, "payload_too_large")

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(8):
            yield b"x" * 1024 * 1024

    # Without a length header, too; the OpenAI dialect takes 6 MiB.
    openai(await person.client.post("/v1/chat/completions", content=pieces()), 413, "payload_too_large")


async def test_a_prompt_longer_than_the_model_reads_is_refused_clearly(person: Person) -> None:
    session = await person.session()
    body = {"sessionId": session, "messages": [{"role": "USER", "content": "x" * 10_001}]}
    common(await person.client.post("/chat/completions", json=body), 422, "message_too_long")


@pytest.mark.parametrize("bad", MALFORMED_IDS, ids=lambda bad: bad[:12])
async def test_a_malformed_id_is_404_in_a_path_and_422_in_a_body(person: Person, bad: str) -> None:
    for method, path in (
        ("GET", "/chat/sessions/{}"),
        ("PATCH", "/chat/sessions/{}"),
        ("DELETE", "/chat/sessions/{}"),
        ("GET", "/chat/turns/{}"),
        ("GET", "/chat/turns/{}/events"),
        ("POST", "/chat/turns/{}/stop"),
    ):
        url = f"{person.client.base_url}{path.format(bad)}"
        answer = await person.client.request(method, url, json={} if method == "PATCH" else None)
        assert answer.status_code == 404, (method, path, answer.text)
    common(await person.client.post("/chat/completions", json={**S0_BODY, "sessionId": bad}), 422, "validation_failed")
    charges = await person.client.get("/api/usage/charges", params={"turnId": bad})
    common(charges, 422, "validation_failed")


async def test_a_foreign_id_is_answered_exactly_like_a_missing_one(parley: RunningParley, person: Person) -> None:
    stranger = await parley.register(gateway=1)
    session = await person.session()
    async with person.asks(session, "[sim tokens=3]") as stream:
        turn = str((await stream.reads_to_the_end()).turn_id)
    for method, path, body in (
        ("GET", "/chat/sessions/{}", None),
        ("PATCH", "/chat/sessions/{}", {"name": "mine"}),
        ("DELETE", "/chat/sessions/{}", None),
    ):
        foreign = await stranger.client.request(method, path.format(session), json=body)
        missing = await stranger.client.request(method, path.format(new_id()), json=body)
        common(foreign, 404, "session_not_found")
        assert foreign.json() == missing.json()
    for method, path in (("GET", "/chat/turns/{}"), ("GET", "/chat/turns/{}/events"), ("POST", "/chat/turns/{}/stop")):
        foreign = await stranger.client.request(method, path.format(turn))
        missing = await stranger.client.request(method, path.format(new_id()))
        common(foreign, 404, "turn_not_found")
        assert foreign.json() == missing.json()
    asked = await stranger.client.post("/chat/completions", json={**S0_BODY, "sessionId": session})
    common(asked, 404, "session_not_found")
    assert (await stranger.client.get("/api/usage/charges", params={"turnId": turn})).json()["total"] == 0
    assert [answer["content"] for answer in await person.answers(session)] == ["word1 word2 word3 "]
    await stranger.close()


async def test_tokens_that_are_missing_nonsense_or_of_the_wrong_kind_are_refused(person: Person) -> None:
    refresh = person.tokens["refresh_token"]
    access = person.tokens["access_token"]
    head, payload, signature = access.split(".")
    for token in ("nonsense", "x" * 5_000, refresh, f"{head}.{payload}.{signature[:-4]}AAAA", f"{head}..", "a.b.c"):
        headers = {"Authorization": f"Bearer {token}"}
        common(await person.client.get("/chat/sessions", headers=headers), 401, "unauthenticated")
        openai(await person.client.get("/v1/models", headers=headers), 401, "unauthenticated")
    async with httpx.AsyncClient(base_url=person.client.base_url, trust_env=False) as anonymous:
        common(await anonymous.get("/chat/sessions"), 401, "unauthenticated")
        common(await anonymous.post("/user/refresh", headers={"Authorization": f"Bearer {access}"}), 401, "unauthenticated")


async def test_numbers_out_of_range_are_refused_and_zero_is_a_value(person: Person) -> None:
    for name, value in (("temperature", 3), ("top_p", -1), ("max_tokens", 0), ("max_tokens", 10**9), ("top_k", -1)):
        common(await person.client.post("/chat/completions", json={**S0_BODY, name: value}), 422, "validation_failed")
    session = await person.session()
    changed = await person.client.patch(f"/chat/sessions/{session}", json={"modelConfig": {"temperature": 0}})
    assert changed.json()["data"]["temperature"] == 0
    kept = await person.client.patch(f"/chat/sessions/{session}", json={"modelConfig": {"topP": 0.5}})
    assert (kept.json()["data"]["temperature"], kept.json()["data"]["topP"]) == (0, 0.5)


async def test_an_unknown_model_is_404_at_once_and_reserves_nothing(person: Person) -> None:
    error = openai(await person.client.post("/v1/chat/completions", json={**OA_BODY, "model": "nope"}), 404, "model_not_found")
    assert error["message"] == "Model nope not found"
    common(await person.client.post("/chat/completions", json={**S0_BODY, "model": "nope"}), 404, "model_not_found")
    assert (await person.budget())["reserved"] == 0


async def test_headers_of_a_megabyte_or_with_nonsense_harm_nobody(person: Person) -> None:
    for headers in (
        {"X-Request-ID": "x" * 5_000},
        {"X-Request-ID": "a b.c>*"},
        {"traceparent": "00-" + "0" * 60_000},
        {"Idempotency-Key": "x" * 256},
    ):
        answer = await person.client.post("/v1/chat/completions", json=OA_BODY, headers=headers)
        assert answer.status_code in {200, 400, 431}, answer.text
        assert len(answer.headers.get("x-request-id", "")) <= 64


async def test_text_that_postgres_or_json_cannot_hold_gets_an_answer_or_a_clear_error(person: Person) -> None:
    session = await person.session()
    headers = {"Content-Type": "application/json"}
    for text in ('"a\\u0000b"', '"\\ud800"', '"<|endoftext|>"', '"\\u2028 \\u0085"'):
        content = f'{{"sessionId": "{session}", "messages": [{{"role": "USER", "content": {text}}}]}}'
        answer = await person.client.post("/chat/completions", content=content.encode(), headers=headers)
        assert answer.status_code in {200, 400, 422}, answer.text
        content = f'{{"model": "simulator", "messages": [{{"role": "user", "content": {text}}}]}}'
        answer = await person.client.post("/v1/chat/completions", content=content.encode(), headers=headers)
        assert answer.status_code in {200, 400}, answer.text


async def test_a_provider_that_refuses_or_fails_is_told_in_our_own_words(person: Person) -> None:
    for model, status, code in (
        ("simulator/fail-400", 400, "validation_failed"),
        ("simulator/fail-401", 502, "provider_auth"),
    ):
        error = openai(await person.client.post("/v1/chat/completions", json={**OA_BODY, "model": model}), status, code)
        assert "sk-" not in json.dumps(error)
    session = await person.session("simulator/fail-401")
    async with person.asks(session, "Hello") as stream:
        reader = await stream.reads_to_the_end()
    assert reader.ended is not None
    assert (reader.ended["type"], reader.ended["code"]) == ("error", "provider_auth")
    [answer] = await person.answers(session)
    assert answer["status"] == "ERROR"


async def test_a_hundred_bad_requests_at_once_do_not_slow_a_good_one_down(person: Person) -> None:
    bad = [person.client.post("/v1/chat/completions", content=b"[" * 50_000) for _ in range(100)]
    good = person.client.post("/v1/chat/completions", json=OA_BODY)
    answers = await asyncio.gather(*bad, good)
    assert {answer.status_code for answer in answers[:-1]} == {400}
    assert answers[-1].status_code == 200
