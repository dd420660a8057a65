import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from tests.e2e.replay import (
    PREFIX,
    Json,
    ReplayServer,
    differences,
    openai_recordings,
    sdk_outcome,
    streamed,
    to_openai_messages,
)

HOME = Path(__file__).parents[2] / "services/llm-router/tests/recordings"
DIRECTORY = Path(os.environ.get("PARLEY_RECORDINGS", HOME))
RECORDINGS = openai_recordings(DIRECTORY)
LARGE = 60_000  # bytes; the recordings' own results were made with 997-byte pieces above it


@pytest.fixture(scope="module")
async def servers() -> AsyncIterator[dict[int | None, ReplayServer]]:
    """By piece size; None: whole."""
    async with AsyncExitStack() as stack:
        yield {size: await stack.enter_async_context(ReplayServer(DIRECTORY, piece_size=size)) for size in (None, 7, 997)}


@pytest.mark.parametrize("delivery", ["whole", "pieces"])
@pytest.mark.parametrize("name", RECORDINGS)
async def test_the_official_sdk_makes_of_a_replay_what_it_made_of_the_recording(
    name: str,
    delivery: str,
    servers: dict[int | None, ReplayServer],
) -> None:
    recording = RECORDINGS[name]
    large = len(recording["response"]["body"].encode()) > LARGE
    server = servers[None if delivery == "whole" else 997 if large else 7]
    outcome = await sdk_outcome(
        server.url,
        to_openai_messages(recording),
        model=f"{PREFIX}{name}",
        stream=streamed(recording),
    )
    assert differences(outcome, recording["expected"]) == {}


async def test_a_replay_is_the_recorded_status_headers_and_body_in_pieces_of_the_size_asked_for() -> None:
    recorded = RECORDINGS["openai__text-stream"]["response"]
    async with ReplayServer(DIRECTORY, piece_size=7) as server, httpx.AsyncClient(trust_env=False) as client:
        request = {"model": "rec/openai__text-stream", "messages": []}
        async with client.stream("POST", f"{server.url}/chat/completions", json=request) as response:
            pieces = [piece async for piece in response.aiter_raw()]
    assert response.status_code == recorded["status"]
    assert {name: response.headers[name] for name in recorded["headers"]} == recorded["headers"]
    assert b"".join(pieces) == recorded["body"].encode()
    assert len(pieces) == -(-len(recorded["body"].encode()) // 7)


async def test_the_requests_received_can_be_read_back() -> None:
    request: Json = {"model": "rec/openai__error-401-key", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    async with ReplayServer(DIRECTORY) as server, httpx.AsyncClient(trust_env=False) as client:
        refused = await client.post(f"{server.url}/chat/completions", json=request, headers={"authorization": "Bearer k"})
        unknown = await client.post(f"{server.url}/chat/completions", json={"model": "rec/nothing"})
        seen = (await client.get(f"{server.url}/requests")).json()
    assert (refused.status_code, unknown.status_code) == (401, 404)
    assert [one["body"] for one in seen] == [request, {"model": "rec/nothing"}]
    assert seen[0]["headers"]["authorization"] == "Bearer k"


async def test_a_wrong_answer_is_seen_as_a_difference() -> None:
    recording = RECORDINGS["openai__text-stream"]
    async with ReplayServer(DIRECTORY) as server:
        outcome = await sdk_outcome(
            server.url,
            to_openai_messages(recording),
            model="rec/mistral__text-stream",
            stream=True,
        )
    assert outcome["outcome"] == "ok"
    assert {"text", "usage", "model"} <= set(differences(outcome, recording["expected"]))
