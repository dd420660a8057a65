import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import httpx
import pytest

from parley import simulator

PROMPT_S = 0.25  # a closed connection is seen within some 20 ms; a busy machine is given more


@pytest.fixture(scope="module")
async def url() -> AsyncIterator[str]:
    port = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(simulator.serve(listening=port.set_result))
    yield f"http://127.0.0.1:{await port}"
    serving.cancel()
    with suppress(asyncio.CancelledError):
        await serving


@pytest.fixture
async def client(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=5) as client:
        yield client


def question(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "simulator", "stream": True, "messages": [{"role": "user", "content": text}]} | fields


class Heard:
    """What one call was answered with, also when it broke."""

    def __init__(self) -> None:
        self.status = 0
        self.headers = httpx.Headers()
        self.body = b""
        self.broken: type[Exception] | None = None

    @property
    def events(self) -> list[Any]:
        blocks = self.body.decode().removesuffix("\n\n").split("\n\n")
        return [json.loads(block.removeprefix("data: ")) for block in blocks if block and block != "data: [DONE]"]

    @property
    def choices(self) -> list[Any]:
        return [event["choices"][0] for event in self.events if event.get("choices")]

    @property
    def deltas(self) -> list[str]:
        return [choice["delta"]["content"] for choice in self.choices if choice["delta"].get("content")]

    @property
    def text(self) -> str:
        return "".join(self.deltas)

    @property
    def finish_reason(self) -> str | None:
        return str(reason) if (reason := self.choices[-1]["finish_reason"]) else None


async def ask(
    client: httpx.AsyncClient,
    text: str,
    *,
    until: Callable[[Heard], bool] = lambda _heard: False,
    **fields: Any,
) -> Heard:
    heard = Heard()
    try:
        async with client.stream("POST", "/v1/chat/completions", json=question(text, **fields)) as response:
            heard.status, heard.headers = response.status_code, response.headers
            async for data in response.aiter_bytes():
                heard.body += data
                if until(heard):
                    break
    except httpx.TransportError as error:
        heard.broken = type(error)
    return heard


async def metered(client: httpx.AsyncClient, key: str, *, calls: int = 1) -> list[dict[str, Any]]:
    """The group's calls, once all of them are over."""
    async with asyncio.timeout(5):
        while True:
            report: list[dict[str, Any]] = (await client.get("/meter", params={"key": key})).json()["calls"]
            if len(report) == calls and all(call["closed_at"] for call in report):
                return report
            await asyncio.sleep(0.01)


async def test_an_answer_says_that_it_is_simulated_and_is_the_same_for_the_same_prompt(client: httpx.AsyncClient) -> None:
    first, second, other = [await ask(client, text) for text in ("Good day 你好", "Good day 你好", "Good night")]
    assert first.text.startswith("[simulated] You said: Good day 你好\n")
    assert first.text == second.text
    assert first.text != other.text
    assert first.finish_reason == "stop"
    assert first.body.endswith(b"data: [DONE]\n\n")


async def test_the_whole_answer_is_the_streamed_one(client: httpx.AsyncClient) -> None:
    prompt = "[sim tokens=4 reasoning=2 tool=get_weather,get_time]"
    streamed = await ask(client, prompt)
    whole = json.loads((await ask(client, prompt, stream=False)).body)
    message = whole["choices"][0]["message"]
    assert message["content"] == streamed.text == "word1 word2 word3 word4 "
    assert message["reasoning_content"] == "think1 think2 "
    assert [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in message["tool_calls"]] == [
        ("get_weather", {"city": "Paris"}),
        ("get_time", {"city": "Paris"}),
    ]
    assert whole["choices"][0]["finish_reason"] == streamed.finish_reason == "tool_calls"
    assert whole["usage"]["completion_tokens"] == 4 + 2 + 8


async def test_a_tool_that_has_answered_is_not_called_again(client: httpx.AsyncClient) -> None:
    asked = {"role": "user", "content": "[sim tool=get_weather tokens=2]"}
    heard = await ask(client, "", messages=[asked, {"role": "tool", "tool_call_id": "call_1_0", "content": "sunny"}])
    assert (heard.text, heard.finish_reason) == ("word1 word2 ", "stop")


async def test_usage_counts_words_in_and_deltas_out_and_is_sent_only_when_asked_for(client: httpx.AsyncClient) -> None:
    options = {"include_usage": True}
    asked = await ask(client, "three words [sim tokens=9]", stream_options=options)
    unasked = await ask(client, "[sim tokens=9]")
    refused = await ask(client, "[sim tokens=9 no_usage=1]", stream_options=options)
    usage = asked.events[-1]["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (4, 9, 13)
    assert not any("usage" in event for event in unasked.events + refused.events)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_an_answer_is_cut_short_with_reason_length_at_the_token_limit(client: httpx.AsyncClient, name: str) -> None:
    limits: list[dict[str, Any]] = [{name: 3}, {name: 5}]
    short, exact = [await ask(client, "[sim tokens=5]", **limit) for limit in limits]
    assert (short.text, short.finish_reason) == ("word1 word2 word3 ", "length")
    assert exact.finish_reason == "stop"


async def test_deltas_come_at_the_pace_asked_for(client: httpx.AsyncClient) -> None:
    started = time.monotonic()
    heard = await ask(client, "[sim tokens=5 delay_ms=50 first_delay_ms=100]")
    assert 0.3 <= time.monotonic() - started < 1
    assert len(heard.deltas) == 5


async def test_slow_sends_ten_tokens_a_second_and_says_that_it_is_simulated(client: httpx.AsyncClient) -> None:
    started = time.monotonic()
    heard = await ask(client, "Hi [sim key=slow]", model="simulator/slow", until=lambda heard: len(heard.deltas) == 4)
    assert 0.3 <= time.monotonic() - started < 1
    assert heard.deltas == ["[simulated] ", "word2 ", "word3 ", "word4 "]
    (call,) = await metered(client, "slow")
    assert call["how"] == "client_closed"


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
async def test_fail_refuses_with_its_status_and_the_openai_envelope(client: httpx.AsyncClient, status: int) -> None:
    heard = await ask(client, f"[sim key=fail-{status}]", model=f"simulator/fail-{status}")
    assert heard.status == status
    assert set(json.loads(heard.body)["error"]) == {"message", "type", "param", "code"}
    assert heard.headers.get("retry-after") == ("1" if status == 429 else None)
    (call,) = await metered(client, f"fail-{status}")
    assert (call["how"], call["tokens_generated"]) == ("refused", 0)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_stall_sends_headers_and_then_nothing(client: httpx.AsyncClient, stream: bool) -> None:  # noqa: FBT001 - a parameter
    key = f"stall-{stream}"
    with suppress(TimeoutError):
        async with asyncio.timeout(0.3):
            async with client.stream(
                "POST",
                "/v1/chat/completions",
                json=question(f"[sim key={key}]", model="simulator/stall", stream=stream),
            ) as response:
                assert response.status_code == 200
                assert await anext(response.aiter_bytes()) == b"never"
    (call,) = await metered(client, key)
    assert call["how"] == "client_closed"


@pytest.mark.parametrize("deltas", [0, 1, 7])
async def test_cut_breaks_the_connection_after_its_deltas_at_every_attempt(client: httpx.AsyncClient, deltas: int) -> None:
    key = f"cut-{deltas}"
    for _ in range(3):
        heard = await ask(client, f"[sim key={key}]", model=f"simulator/cut-{deltas}")
        assert heard.status == 200
        assert heard.broken in {httpx.ReadError, httpx.RemoteProtocolError}
        assert len(heard.deltas) == deltas
    calls = await metered(client, key, calls=3)
    assert {(call["how"], call["tokens_generated"]) for call in calls} == {("cut", deltas)}


async def test_a_whole_answer_can_be_cut_too(client: httpx.AsyncClient) -> None:
    heard = await ask(client, "[sim cut_after=2]", stream=False)
    assert heard.status == 200
    assert heard.broken in {httpx.ReadError, httpx.RemoteProtocolError}


@pytest.mark.parametrize("where", ["delay_ms=60000 tokens=3", "stall_after=2", "endless=1", "endless=1 delay_ms=5"])
async def test_a_client_that_goes_is_noticed_at_once(client: httpx.AsyncClient, where: str) -> None:
    key = where.replace("=", "_").replace(" ", "-")
    heard = await ask(client, f"[sim {where} key={key}]", until=lambda heard: bool(heard.deltas))
    left = time.time()
    (call,) = await metered(client, key)
    assert call["how"] == "client_closed"
    assert call["closed_at"] - left < PROMPT_S
    assert call["text"].startswith(heard.text)


async def test_a_client_that_goes_while_a_whole_answer_is_made_is_noticed_at_once(client: httpx.AsyncClient) -> None:
    body = question("[sim tokens=9 delay_ms=60000 key=whole-gone]", stream=False)
    with suppress(httpx.ReadTimeout):
        await client.post("/v1/chat/completions", json=body, timeout=0.1)
    left = time.time()
    (call,) = await metered(client, "whole-gone")
    assert (call["how"], call["tokens_generated"]) == ("client_closed", 1)
    assert call["closed_at"] - left < PROMPT_S


async def test_an_error_comes_inside_the_stream_after_the_deltas_asked_for(client: httpx.AsyncClient) -> None:
    heard = await ask(client, "[sim tokens=9 error_after=5 error=429 key=mid]")
    assert (heard.status, len(heard.deltas)) == (200, 5)
    assert heard.events[-1]["error"]["code"] == "rate_limit_exceeded"
    assert b"[DONE]" not in heard.body
    (call,) = await metered(client, "mid")
    assert (call["how"], call["text"]) == ("error", heard.text)


async def test_an_error_without_a_place_refuses_the_call(client: httpx.AsyncClient) -> None:
    heard = await ask(client, "[sim error=503 retry_after=2]")
    assert (heard.status, heard.headers["retry-after"]) == (503, "2")


async def test_the_first_calls_of_a_key_fail_and_then_it_works(client: httpx.AsyncClient) -> None:
    statuses = [(await ask(client, "[sim tokens=1 fail_first=2:503 key=first]")).status for _ in range(4)]
    assert statuses == [503, 503, 200, 200]
    assert (await ask(client, "[sim tokens=1 fail_first=2:503 key=another]")).status == 503


async def test_a_stream_can_lack_its_finish_and_its_done(client: httpx.AsyncClient) -> None:
    unfinished = await ask(client, "[sim tokens=2 no_finish=1]")
    undone = await ask(client, "[sim tokens=2 no_done=1]")
    assert unfinished.finish_reason is None
    assert unfinished.body.endswith(b"data: [DONE]\n\n")
    assert undone.finish_reason == "stop"
    assert b"[DONE]" not in undone.body


async def test_a_stream_can_hold_broken_json_and_broken_utf8_between_its_deltas(client: httpx.AsyncClient) -> None:
    bad_json = await ask(client, "[sim tokens=4 bad_json_after=3]")
    with pytest.raises(json.JSONDecodeError):
        _ = bad_json.events
    assert bad_json.body.index(b"word3") < bad_json.body.index(b'"bro\n\n') < bad_json.body.index(b"word4")
    bad_utf8 = await ask(client, "[sim tokens=4 bad_utf8_after=3]")
    with pytest.raises(UnicodeDecodeError):
        _ = bad_utf8.events


async def test_marks_differ_between_calls_and_seeds_between_texts(client: httpx.AsyncClient) -> None:
    marks = {(await ask(client, "[sim tokens=2 mark=1]")).text for _ in range(3)}
    assert len(marks) == 3
    assert all(mark.startswith("<call-") and mark.endswith("> word2 ") for mark in marks)
    assert (await ask(client, "[sim tokens=2 seed=abc]")).text == "word1.abc word2.abc "


async def test_the_meter_tells_what_was_generated_for_whom(client: httpx.AsyncClient) -> None:
    client.headers["authorization"] = "Bearer sk-secret-7890"
    body = question("[sim tokens=3 mark=1 key=meter]")
    await client.post("/v1/chat/completions", json=body)
    report = (await client.get("/meter", params={"key": "meter"})).json()
    (call,) = report["calls"]
    assert call["text"] == f"<call-{call['id']}> word2 word3 "
    assert call["opened_at"] <= call["closed_at"] <= time.time()
    assert call["request"] == body
    wanted = {
        "model": "simulator",
        "key": "meter",
        "how": "finished",
        "prompt_tokens": 4,
        "tokens_generated": 3,
        "stream": True,
    }
    assert {name: call[name] for name in wanted} == wanted
    assert call["authorization_last4"] == "7890"
    assert report["totals"] == {"calls": 1, "prompt_tokens": 4, "tokens_generated": 3, "how": {"finished": 1}}


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'{"model": "simulator"}',
        b'{"model": "simulator", "messages": []}',
        b'{"model": "simulator", "messages": [{"role": "user", "content": "[sim tokns=3]"}]}',
        b'{"model": "simulator", "messages": [{"role": "user", "content": "[sim tokens=x]"}]}',
        b'{"model": "simulator", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 0}',
    ],
)
async def test_a_request_that_cannot_be_read_is_refused_with_400(client: httpx.AsyncClient, body: bytes) -> None:
    response = await client.post("/v1/chat/completions", content=body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


async def test_the_models_are_listed_as_simulated(client: httpx.AsyncClient) -> None:
    models = (await client.get("/v1/models")).json()["data"]
    assert {"simulator", "simulator/slow", "simulator/stall"} <= {model["id"] for model in models}
    assert {model["owned_by"] for model in models} == {"simulated"}


async def test_as_a_process_it_prints_its_address_cuts_exactly_and_ends_at_sigterm() -> None:
    command = [sys.executable, "-m", "parley.simulator", "--port", "0"]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    line = (await process.stdout.readline()).decode()
    assert line.startswith("listening on http://127.0.0.1:")
    async with httpx.AsyncClient(base_url=line.split()[-1], trust_env=False, timeout=5) as client:
        cuts = await asyncio.gather(*(ask(client, "Hi", model="simulator/cut-5") for _ in range(20)))
        assert {(len(heard.deltas), heard.broken is None) for heard in cuts} == {(5, False)}
        assert (await client.delete("/meter")).json()["totals"]["calls"] == 0
        begun = asyncio.Event()

        def hears(_heard: Heard) -> bool:
            begun.set()
            return False

        stalled = asyncio.create_task(ask(client, "[sim stall_after=1]", until=hears))
        await begun.wait()
        process.send_signal(signal.SIGTERM)
        assert (await stalled).broken is not None
    assert await asyncio.wait_for(process.wait(), timeout=5) == 0
