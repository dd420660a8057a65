"""Recorded provider traffic through the whole running system, read by the official OpenAI SDK: equal to `expected`.

A replay server stands where the provider would be; the system, the dialect and the SDK are the real ones.
"""

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.e2e.harness import Person, RunningParley
from tests.e2e.replay import RECORDINGS, ReplayServer, openai_recordings, sdk_outcome, streamed, to_openai_messages

ALL = openai_recordings(RECORDINGS)
ACCEPTED = {
    "messages", "temperature", "top_p", "top_k", "max_tokens", "max_completion_tokens", "stop", "presence_penalty",
    "frequency_penalty", "logit_bias", "seed", "user", "tools", "tool_choice", "parallel_tool_calls", "response_format",
    "reasoning_effort",
}  # fmt: skip
OUR_STATUS = {400: (400, "provider_refused"), 401: (502, "provider_auth"), 404: (503, "model_unavailable"), 429: (429, None)}
PLAIN = {"messages": [{"role": "user", "content": "Hello"}]}


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=[None, 7], ids=["whole", "in 7-byte pieces"])
async def replaying(request: pytest.FixtureRequest) -> AsyncIterator[tuple[RunningParley, Person]]:
    folder = Path(tempfile.mkdtemp(prefix="parley-replay-"))
    async with ReplayServer(RECORDINGS, piece_size=request.param) as server:
        parley = await RunningParley.start(
            folder,
            OPENAI_BASE_URL=server.url,
            OPENAI_API_KEY="sk-replay",
            OPENAI_MODELS=",".join(f"rec/{recording['id']}" for recording in ALL),
            RETRY_AFTER_429_S="0.1",
            RETRY_AFTER_5XX_S="0.1",
        )
        person = await parley.register()
        yield parley, person
        await person.close()
        await parley.stop()
    shutil.rmtree(folder)


@pytest.mark.parametrize("recording", ALL, ids=[recording["id"] for recording in ALL])
async def test_the_sdk_reads_through_parley_what_it_read_from_the_provider(
    replaying: tuple[RunningParley, Person], recording: dict[str, Any]
) -> None:
    parley, person = replaying
    body = {name: value for name, value in _body(recording).items() if name in ACCEPTED}
    is_stream = streamed(recording)
    if is_stream:
        body["stream_options"] = {"include_usage": True}
    outcome = await sdk_outcome(
        f"{parley.gateways[0]}/v1",
        body,
        model=f"rec/{recording['id']}",
        stream=is_stream,
        api_key=person.tokens["access_token"],
    )
    expected = recording["expected"]
    assert outcome["outcome"] == expected["outcome"], outcome
    if expected["outcome"] == "error":
        status, code = OUR_STATUS[expected["error"]["http_status"]]
        assert outcome["error"]["http_status"] == status
        assert code is None or outcome["error"]["code"] == code
        return
    assert outcome["text"] == expected["text"]
    assert outcome["reasoning"] == expected["reasoning"]
    if expected["outcome"] == "error_midstream":
        return
    assert _calls(outcome) == _calls(expected)
    assert outcome["finish_reason"] == expected["finish_reason_openai"]
    if expected["usage"] is not None:
        assert _usage(outcome["usage_raw"]) == expected["usage"]


def _body(recording: dict[str, Any]) -> dict[str, Any]:
    if recording["request"] is None or not recording["request"]["path"].endswith("/chat/completions"):
        return dict(PLAIN)
    return to_openai_messages(recording)


def _calls(outcome: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(call["id"], call["name"], call["arguments"]) for call in outcome["tool_calls"]]


def _usage(raw: dict[str, Any]) -> dict[str, Any]:
    return {
        "input_tokens": raw["prompt_tokens"],
        "output_tokens": raw["completion_tokens"],
        "total_tokens": raw["total_tokens"],
        "cached_input_tokens": raw["prompt_tokens_details"]["cached_tokens"],
        "reasoning_tokens": raw["completion_tokens_details"]["reasoning_tokens"],
    }
