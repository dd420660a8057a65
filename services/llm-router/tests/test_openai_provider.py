"""The provider suite: every recorded exchange of a protocol we speak, and what no recording holds."""

import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from parley_contracts.errors import ProviderAuth, UnsupportedParameter
from parley_contracts.model_configs import ModelConfig
from parley_contracts.parts import (
    Answer,
    Finished,
    FinishReason,
    ProviderEvent,
    ProviderSaidError,
    Reasoning,
    Text,
    TokenUsage,
    ToolCall,
)
from parley_contracts.prompts import (
    Content,
    ImageContent,
    Params,
    PromptMessage,
    ResponseFormat,
    TextContent,
    Tool,
    ToolChoice,
)
from parley_llm_router.providers import PROVIDERS
from parley_llm_router.providers.openai import OpenAI
from parley_llm_router.providers.provider import Decoder, HttpRequest

RECORDINGS = {path.stem: json.loads(path.read_text()) for path in sorted((Path(__file__).parent / "recordings").glob("*.json"))}
SPOKEN = [name for name, recording in RECORDINGS.items() if recording["protocol"].split("-")[0] in PROVIDERS]
ANSWERED = [name for name in SPOKEN if RECORDINGS[name]["expected"]["outcome"] != "error"]
REFUSED = [name for name in SPOKEN if RECORDINGS[name]["expected"]["outcome"] == "error"]
ASKED = [
    name
    for name in SPOKEN
    if RECORDINGS[name]["protocol"] == "openai-chat" and (RECORDINGS[name]["request"] or {}).get("body") is not None
]

# Fields of recorded requests that Parley has no word for and never sends.
NOT_OURS = {
    "audio",
    "modalities",
    "prediction",
    "service_tier",
    "store",
    "web_search_options",
    "thinking",
    "n",
    "stream_options",
}


# --- requests -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ASKED)
def test_a_recorded_request_is_rebuilt_from_our_own_words(name: str) -> None:
    request = RECORDINGS[name]["request"]
    body, path = request["body"], request["path"]
    origin = "" if path.startswith("<") else f"https://{RECORDINGS[name]['host'] or 'x'}"
    url = (origin + path).replace("<GPUSTACK_API_BASE>", "https://gpustack.example/v1")
    config = config_of(RECORDINGS[name]["provider"], body["model"], url.replace("/chat/completions", ""))
    built = OpenAI().build_request(
        config,
        "sk-1",
        tuple(message_of(message) for message in body["messages"]),
        params_of(body),
        max_output_tokens=body.get("max_tokens") or body.get("max_completion_tokens") or 4096,
        is_stream=body.get("stream", False),
    )
    assert (built.method, built.url) == (request["method"], url)
    ours, theirs = meaning(json.loads(built.body)), meaning(body)
    if "max_tokens" not in theirs:
        del ours["max_tokens"]  # we always say what the reservation pays for
    assert ours == theirs


def meaning(body: dict[str, Any]) -> dict[str, Any]:
    """A body without what does not change it: fields we do not send, `stream: false`, the limit's other name."""
    said = {key: value for key, value in body.items() if key not in NOT_OURS}
    said.setdefault("stream", False)
    if "max_completion_tokens" in said:
        said["max_tokens"] = said.pop("max_completion_tokens")
    return said


def config_of(provider: str = "openai", model: str = "m", base_url: str = "https://x.example/v1", **rest: Any) -> ModelConfig:
    return ModelConfig(id="0" * 26, name="n", provider=provider, model=model, base_url=base_url, **rest)


def message_of(said: dict[str, Any]) -> PromptMessage:
    content = said.get("content")
    return PromptMessage(
        role=said["role"],
        content=tuple(content_of(piece) for piece in content) if isinstance(content, list) else content,
        name=said.get("name"),
        tool_calls=tuple(
            ToolCall(index, call["id"], call["function"]["name"], call["function"]["arguments"])
            for index, call in enumerate(said.get("tool_calls") or ())
        ),
        tool_call_id=said.get("tool_call_id"),
    )


def content_of(piece: dict[str, Any]) -> Content:
    return TextContent(piece["text"]) if piece["type"] == "text" else ImageContent(**piece["image_url"])


def params_of(body: dict[str, Any]) -> Params:
    plain = ("temperature", "top_p", "frequency_penalty", "presence_penalty", "seed", "user", "parallel_tool_calls")
    said: dict[str, Any] = {name: body.get(name) for name in plain}
    said["stop"] = tuple(body["stop"]) if "stop" in body else None
    said["metadata"] = raw(body.get("metadata"))
    if "tools" in body:
        said["tools"] = tuple(
            Tool(**{**tool["function"], "parameters": raw(tool["function"]["parameters"])}) for tool in body["tools"]
        )
    if choice := body.get("tool_choice"):
        is_named = isinstance(choice, dict)
        said["tool_choice"] = ToolChoice(mode="named", name=choice["function"]["name"]) if is_named else ToolChoice(mode=choice)
    if "response_format" in body:
        form = body["response_format"]
        said["response_format"] = ResponseFormat(kind=form["type"], json_schema=raw(form.get("json_schema")))
    return Params(**said)


def raw(value: Any) -> msgspec.Raw | None:
    return None if value is None else msgspec.Raw(json.dumps(value).encode())


def build(config: ModelConfig, *, key: str | None = "sk-1", params: Params = Params(), is_stream: bool = True) -> HttpRequest:  # noqa: B008 — frozen
    prompt = (PromptMessage(role="user", content="Hi"),)
    return OpenAI().build_request(config, key, prompt, params, max_output_tokens=7, is_stream=is_stream)


@pytest.mark.parametrize(
    ("provider", "model", "field"),
    [
        ("OPENAI", "gpt-4o", "max_tokens"),
        ("OPENAI", "o3-mini", "max_completion_tokens"),
        ("OPENAI", "gpt-5.4", "max_completion_tokens"),
        ("CUSTOM", "gpt-5.4", "max_tokens"),
    ],
)
def test_the_limit_has_the_name_that_the_model_takes(provider: str, model: str, field: str) -> None:
    body = json.loads(build(config_of(provider, model)).body)
    assert {key: value for key, value in body.items() if key.startswith("max_")} == {field: 7}


@pytest.mark.parametrize(
    ("auth", "key", "header"),
    [
        ("bearer", "sk-1", {"authorization": "Bearer sk-1"}),
        ("x-api-key", "sk-1", {"x-api-key": "sk-1"}),
        ("api-key", "sk-1", {"api-key": "sk-1"}),
        ("none", "sk-1", {}),
        ("bearer", None, {}),
    ],
)
def test_the_key_goes_where_the_config_says(auth: str, key: str | None, header: dict[str, str]) -> None:
    headers = build(config_of(auth=auth), key=key).headers
    assert {name: value for name, value in headers.items() if name not in {"accept", "content-type"}} == header


@pytest.mark.parametrize("key", ["sk-\r\nx: y", "sk-…", "sk-\x00"])
def test_a_key_that_fits_in_no_header_is_refused_before_it_is_sent(key: str) -> None:
    with pytest.raises(ProviderAuth):
        build(config_of(), key=key)


@pytest.mark.parametrize(
    ("base_url", "url"),
    [
        ("https://x.example/v1/", "https://x.example/v1/chat/completions"),
        ("https://x.example", "https://x.example/chat/completions"),
        ("https://x.example/v1/chat/completions", "https://x.example/v1/chat/completions"),
        ("https://x.example/openai?api-version=p", "https://x.example/openai/chat/completions?api-version=p"),
    ],
)
def test_the_path_is_added_once_and_a_query_stays(base_url: str, url: str) -> None:
    assert build(config_of(base_url=base_url)).url == url


def test_zero_is_sent_and_what_was_not_said_is_not() -> None:
    body = json.loads(build(config_of("custom"), params=Params(temperature=0.0, top_k=0, logprobs=False)).body)
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 7,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.0,
        "top_k": 0,
        "logprobs": False,
    }


def test_a_parameter_the_provider_is_known_to_refuse_is_refused_and_not_dropped() -> None:
    with pytest.raises(UnsupportedParameter) as refusal:
        build(config_of("openai"), params=Params(top_k=5))
    assert refusal.value.fields["param"] == "top_k"


def test_mistral_gets_its_own_name_of_the_seed_and_no_stream_options() -> None:
    body = json.loads(build(config_of("mistral"), params=Params(seed=0)).body)
    assert body["random_seed"] == 0
    assert not {"seed", "stream_options"} & set(body)


def test_an_assistant_message_of_calls_only_has_null_content_and_arguments_that_are_json() -> None:
    prompt = (PromptMessage(role="assistant", tool_calls=(ToolCall(0, "c1", "now"),)),)
    built = OpenAI().build_request(config_of(), None, prompt, Params(), max_output_tokens=1, is_stream=False)
    call = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    assert json.loads(built.body)["messages"] == [{"role": "assistant", "content": None, "tool_calls": [call]}]


# --- answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", ["whole", "1 byte", "7 bytes", "random"])
@pytest.mark.parametrize("name", ANSWERED)
def test_a_recorded_answer_is_read_as_the_vendors_own_sdk_reads_it(name: str, cut: str) -> None:
    recording = RECORDINGS[name]
    expected, response = recording["expected"], recording["response"]
    decoder = decoder_of(recording)
    events = decode(decoder, pieces(response["body"].encode(), cut, seed=name))
    answer = Answer.of(event for event in events if isinstance(event, Text | Reasoning | ToolCall))

    assert answer.text == expected["text"]
    assert answer.reasoning == expected["reasoning"]
    assert [(call.id, call.name, call.arguments) for call in answer.tool_calls] == [
        (call["id"], call["name"], call["arguments"]) for call in expected["tool_calls"]
    ]
    assert last(events, Finished) == (
        Finished(FinishReason(expected["finish_reason_openai"])) if expected["finish_reason_openai"] else None
    )
    error = last(events, ProviderSaidError)
    assert (error is not None) == (expected["outcome"] == "error_midstream")
    if error is not None:
        assert (error.code, error.kind, error.message) == (
            expected["error"]["code"],
            expected["error"]["type"],
            expected["error"]["message"],
        )
        assert error.status == 400  # both recordings say so inside
        assert events[-1] == error
    else:
        assert last(events, TokenUsage) == usage_of(expected)
    assert decoder.bad_lines == 0


def usage_of(expected: dict[str, Any]) -> TokenUsage | None:
    if said := expected.get("usage"):
        return TokenUsage(
            input_tokens=said["input_tokens"],
            output_tokens=said["output_tokens"],
            cached_tokens=said["cached_input_tokens"],
            reasoning_tokens=said["reasoning_tokens"],
            total_tokens=said["total_tokens"],
        )
    for said in (expected.get("usage_nonstandard") or {}).values():
        return TokenUsage(
            input_tokens=said["prompt_tokens"], output_tokens=said["completion_tokens"], total_tokens=said["total_tokens"]
        )
    return None


@pytest.mark.parametrize("name", REFUSED)
def test_a_recorded_refusal_is_read_as_the_vendors_own_sdk_reads_it(name: str) -> None:
    expected, response = RECORDINGS[name]["expected"]["error"], RECORDINGS[name]["response"]
    error = OpenAI().decode_error(response["status"], response["headers"], response["body"].encode())
    said = expected["body"]
    assert (error.status, error.code, error.kind) == (expected["http_status"], expected["code"], expected["type"])
    assert error.message == (said.get("message") or said["detail"])
    assert error.retry_after_s == (None if expected["retry_after"] is None else float(expected["retry_after"]))


def test_usage_that_rides_on_an_error_is_still_read() -> None:
    recording = RECORDINGS["openrouter__midstream-error"]
    events = decode(decoder_of(recording), [recording["response"]["body"].encode()])
    assert events[-2] == TokenUsage(input_tokens=43, output_tokens=10, cached_tokens=0, reasoning_tokens=11, total_tokens=53)


@pytest.mark.parametrize("name", [name for name in ANSWERED if "-stream" in name])
def test_a_stream_cut_before_its_finish_never_looks_complete(name: str) -> None:
    body = RECORDINGS[name]["response"]["body"].encode()
    cut = body.find(b'"finish_reason":"')
    assert cut > 0
    assert last(decode(decoder_of(RECORDINGS[name]), [body[:cut].rpartition(b"\n")[0]]), Finished) is None


def decoder_of(recording: dict[str, Any]) -> Decoder:
    provider = PROVIDERS[recording["protocol"].split("-")[0]]
    return provider.decoder(content_type=recording["response"]["headers"].get("content-type", ""))


def decode(decoder: Decoder, data: Iterable[bytes]) -> list[ProviderEvent]:
    events = [event for piece in data for event in decoder.feed(piece)]
    return events + list(decoder.end())


def pieces(body: bytes, cut: str, seed: str) -> Iterator[bytes]:
    dice = random.Random(seed)  # noqa: S311 — repeatable cuts, no secret
    at = 0
    while at < len(body):
        size = {"whole": len(body), "1 byte": 1, "7 bytes": 7, "random": dice.randint(1, 600)}[cut]
        yield body[at : at + size]
        at += size


def last(events: list[ProviderEvent], kind: type[Any]) -> Any:
    return next((event for event in reversed(events) if isinstance(event, kind)), None)
