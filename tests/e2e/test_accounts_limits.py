"""Limits through the public API, on a small installation that allows little."""

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest_asyncio

from tests.e2e.harness import PASSWORD, Person, RunningParley, eventually


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def strict() -> AsyncIterator[RunningParley]:
    folder = Path(tempfile.mkdtemp(prefix="parley-limits-"))
    running = await RunningParley.start(
        folder, RATE_REQUESTS_PER_MIN="40", RATE_LOGIN_PER_MIN="10", RATE_TURNS_PER_MIN="6", MAX_RUNNING_TURNS="2"
    )
    running.admin = await running.register()
    yield running
    await running.admin.close()
    await running.stop()
    shutil.rmtree(folder)


@pytest_asyncio.fixture(loop_scope="session")
async def user(strict: RunningParley) -> AsyncIterator[Person]:
    someone = await strict.register()
    yield someone
    await someone.close()


def question(text: str, **fields: object) -> dict[str, object]:
    return {"model": "simulator", "messages": [{"role": "user", "content": text}], **fields}


def limited(answer: httpx.Response, code: str = "rate_limited") -> None:
    error = answer.json()["error"]
    assert (answer.status_code, error["code"] if isinstance(error, dict) else answer.json()["code"]) == (429, code), answer.text
    assert 1 <= int(answer.headers["retry-after"]) <= 60


async def test_a_user_over_their_requests_is_told_to_wait_and_others_are_not(strict: RunningParley, user: Person) -> None:
    answers = [await user.client.get("/v1/models") for _ in range(45)]
    assert 30 <= sum(answer.is_success for answer in answers) <= 42
    limited(answers[-1])
    other = await strict.register()
    assert (await other.client.get("/v1/models")).status_code == 200
    await other.close()


async def test_turns_are_limited_and_every_answer_tells_what_is_left(user: Person) -> None:
    answers = [await user.client.post("/v1/chat/completions", json=question("[sim tokens=1]")) for _ in range(8)]
    assert [answer.status_code for answer in answers[:6]] == [200] * 6
    assert [answer.headers["x-ratelimit-remaining"] for answer in answers[:6]] == ["5", "4", "3", "2", "1", "0"]
    assert {answer.headers["x-ratelimit-limit"] for answer in answers[:6]} == {"6"}
    assert all(1 <= int(answer.headers["x-ratelimit-reset"]) <= 60 for answer in answers[:6])
    limited(answers[-1])


async def test_two_turns_run_at_once_and_an_ended_one_makes_room(user: Person) -> None:
    session = await user.session()
    slow = question("[sim tokens=600 delay_ms=50]", stream=True)
    async with (
        user.asks(session, "[sim tokens=600 delay_ms=50]") as left,
        user.client.stream("POST", "/v1/chat/completions", json=slow) as stateless,
    ):
        await left.reads_words(2)
        assert stateless.status_code == 200
        assert stateless.headers["x-ratelimit-limit"] == "6"
        limited(await user.client.post("/v1/chat/completions", json=question("Hello")), "too_many_turns")

    async def there_is_room() -> bool:
        return (await user.client.post("/v1/chat/completions", json=question("Hello"))).status_code == 200

    # Both clients have left: the stateless turn stops and makes room, the stored one runs on and holds its place.
    await eventually(there_is_room, within_s=10, every_s=0.5)
    async with user.client.stream("POST", "/v1/chat/completions", json=slow) as again:
        assert again.status_code == 200
        limited(await user.client.post("/v1/chat/completions", json=question("Hello")), "too_many_turns")
        stopped = await user.client.post(f"/chat/turns/{left.reader.turn_id}/stop")
        assert stopped.json()["data"]["status"] == "canceled"
        await eventually(there_is_room, within_s=10, every_s=0.5)


async def test_passwords_are_tried_ten_times_a_minute(strict: RunningParley, user: Person) -> None:
    async with httpx.AsyncClient(base_url=strict.gateways[0], timeout=60, trust_env=False) as guesser:
        bodies = [{"email": user.email, "password": f"guess {number} of many"} for number in range(11)]
        answers = [await guesser.post(path, json=body) for body in bodies for path in ("/user/login",)]
        limited(answers[-1])
        limited(await guesser.post("/api/auth/login", json={"email": user.email, "password": PASSWORD}))
        limited(await guesser.post("/user/refresh", headers={"Authorization": f"Bearer {user.tokens['refresh_token']}"}))
        assert (await guesser.get("/healthz")).status_code == 200
    assert (await user.client.get("/user/me")).status_code == 200


async def test_without_redis_turns_go_on_and_passwords_are_still_counted(strict: RunningParley) -> None:
    user = strict.admin
    assert user is not None
    strict.kill_all("valkey")
    for _ in range(3):
        answer = await user.client.post("/v1/chat/completions", json=question("[sim tokens=1]"))
        assert answer.status_code == 200, answer.text
    async with httpx.AsyncClient(base_url=strict.gateways[0], timeout=60, trust_env=False) as guesser:
        answers = [await guesser.post("/user/login", json={"email": user.email, "password": "a guess 1"}) for _ in range(25)]
    limited(answers[-1])
