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
from tests.e2e.replay import ReplayServer, openai_recordings, sdk_outcome, streamed, to_openai_messages

RECORDINGS = Path(__file__).parents[2] / "services" / "llm-router" / "tests" / "recordings"
ALL = openai_recordings(RECORDINGS)
ACCEPTED = {
    "messages", "temperature", "top_p", "top_k", "max_tokens", "max_completion_tokens", "stop", "presence_penalty",
    "frequency_penalty", "logit_bias", "seed", "user", "tools", "tool_choice", "parallel_tool_calls", "response_format",
    "reasoning_effort",
}  # fmt: skip
OUR_STATUS = {400: (400, "provider_refused"), 401: (502, "provider_auth"), 404: (503, "model_unavailable"), 429: (429, None)}


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=[None, 7], ids=["whole", "in 7-byte pieces"])
async def replaying(request: pytest.FixtureRequest) -> AsyncIterator[tuple[RunningParley, Person]]:
    folder = Path(tempfile.mkdtemp(prefix="parley-replay-"))
    async with ReplayServer(RECORDINGS, piece_size=request.param) as server:
        parley = await RunningParley.start(
            folder,
            OPENAI_BASE_URL=server.url,
            OPENAI_API_KEY="sk-replay",
            OPENAI_MODELS=",".join(f"rec/{name}" for name in ALL),
            RETRY_AFTER_429_S="0.1",
            RETRY_AFTER_5XX_S="0.1",
        )
        person = await parley.register()
        yield parley, person
        await person.close()
        await parley.stop()
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", ALL)
async def test_the_sdk_reads_through_parley_what_it_read_from_the_provider(
    replaying: tuple[RunningParley, Person], name: str
) -> None:
    parley, person = replaying
    recording = ALL[name]
    body = {field: value for field, value in to_openai_messages(recording).items() if field in ACCEPTED}
    is_stream = streamed(recording)
    if is_stream:
        body["stream_options"] = {"include_usage": True}
    outcome = await sdk_outcome(
        f"{parley.gateways[0]}/v1",
        body,
        model=f"rec/{name}",
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
