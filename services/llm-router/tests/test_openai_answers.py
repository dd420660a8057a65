"""What providers say that no recording holds: odd shapes, broken streams, errors."""

import json
from collections.abc import Iterable
from typing import Any

import pytest

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
from parley_llm_router.providers.openai import OpenAI
from parley_llm_router.providers.openai_answers import BODY_LIMIT_BYTES
from parley_llm_router.providers.provider import Decoder
from parley_llm_router.providers.sse import LINE_LIMIT_BYTES


def decode(decoder: Decoder, data: Iterable[bytes]) -> list[ProviderEvent]:
    events = [event for piece in data for event in decoder.feed(piece)]
    return events + list(decoder.end())


def chunk(**said: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, **said}]}).encode() + b"\n\n"


def read(*data: bytes) -> list[ProviderEvent]:
    return decode(OpenAI().decoder(content_type="text/event-stream"), data)


def calls(*fragments: dict[str, Any], finish_reason: str | None = "tool_calls") -> tuple[ToolCall, ...]:
    events = read(*(chunk(delta={"tool_calls": [it]}) for it in fragments), chunk(delta={}, finish_reason=finish_reason))
    return Answer.of(event for event in events if isinstance(event, ToolCall)).tool_calls


def test_a_call_without_arguments_gets_empty_ones_when_it_is_complete() -> None:
    fragment = {"index": 0, "id": "c1", "function": {"name": "now", "arguments": ""}}
    assert calls(fragment) == (ToolCall(0, "c1", "now", "{}"),)
    assert calls(fragment, finish_reason="stop") == (ToolCall(0, "c1", "now", "{}"),)


@pytest.mark.parametrize("reason", [None, "length", "content_filter"])
def test_a_call_that_was_cut_is_not_made_to_look_complete(reason: str | None) -> None:
    fragment = {"index": 0, "id": "c1", "function": {"name": "now"}}
    assert calls(fragment, finish_reason=reason) == (ToolCall(0, "c1", "now"),)


def test_calls_that_share_an_index_are_told_apart_by_their_ids() -> None:
    one, two = ({"index": 0, "id": i, "function": {"name": i, "arguments": f'"{i}"'}} for i in "ab")
    assert calls(one, two) == (ToolCall(0, "a", "a", '"a"'), ToolCall(1, "b", "b", '"b"'))


def test_fragments_without_index_join_the_call_that_is_open() -> None:
    said: list[dict[str, Any]] = [
        {"id": "a", "function": {"name": "f", "arguments": "{"}},
        {"function": {"arguments": "}"}},
        {"id": "b"},
    ]
    assert calls(*said) == (ToolCall(0, "a", "f", "{}"), ToolCall(1, "b", "", "{}"))


def test_a_name_that_is_repeated_with_each_fragment_is_said_once() -> None:
    said = [{"index": 0, "id": "a", "function": {"name": "f", "arguments": part}} for part in ("{", "}")]
    assert calls(*said) == (ToolCall(0, "a", "f", "{}"),)


def test_arguments_given_as_an_object_become_text() -> None:
    assert calls({"index": 0, "id": "a", "function": {"name": "f", "arguments": {"x": 1}}})[0].arguments == '{"x":1}'


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("function_call", FinishReason.TOOL_CALLS),
        ("eos", FinishReason.STOP),
        ("end_turn", FinishReason.STOP),
        ("STOP", FinishReason.STOP),
        ("max_tokens", FinishReason.LENGTH),
        ("sensitive", FinishReason.CONTENT_FILTER),
        ("something_new", FinishReason.STOP),
    ],
)
def test_every_word_for_the_end_is_an_end(word: str, reason: FinishReason) -> None:
    assert read(chunk(delta={}, finish_reason=word)) == [Finished(reason)]


@pytest.mark.parametrize("word", ["error", "network_error", "insufficient_system_resource", "abort"])
def test_a_finish_reason_that_means_failure_is_an_error(word: str) -> None:
    (error,) = read(chunk(delta={}, finish_reason=word), chunk(delta={"content": "more"}))
    assert isinstance(error, ProviderSaidError)
    assert error.code == word


@pytest.mark.parametrize("word", ["", "null", None])
def test_an_empty_finish_reason_is_none(word: str | None) -> None:
    assert read(chunk(delta={"content": "a"}, finish_reason=word)) == [Text("a")]


def test_done_without_a_finish_reason_is_no_end_and_nothing_is_read_after_it() -> None:
    decoder = OpenAI().decoder(content_type="text/event-stream")
    events = decode(decoder, [chunk(delta={"content": "a"}) + b"data: [DONE]\n\n" + chunk(delta={"content": "b"})])
    assert events == [Text("a")]
    assert decoder.is_done


def test_crlf_comments_missing_space_and_missing_last_line_end_are_read() -> None:
    lines = [b": ping", b"", b'event: message\r\ndata:{"choices":[{"delta":{"content":"a"}}]}', b"", b"id: 3"]
    lines.append(b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}')
    assert read(b"\xef\xbb\xbf" + b"\r\n".join(lines)) == [Text("a"), Finished(FinishReason.STOP)]


def test_lines_that_hold_no_object_are_skipped_and_counted() -> None:
    decoder = OpenAI().decoder(content_type="text/event-stream")
    data = [b"data: keep-alive\n\n", b"data:\n\n", b"data: 42\n\n", b"data: []\n\n", chunk(delta={"content": "a"})]
    assert decode(decoder, data) == [Text("a")]
    assert decoder.bad_lines == 4


def test_a_broken_object_is_an_error_for_it_may_have_held_text() -> None:
    events = read(chunk(delta={"content": "a"}), b'data: {"choices":[{"del\n\n', chunk(delta={"content": "b"}))
    assert events[0] == Text("a")
    assert [event.code for event in events[1:] if isinstance(event, ProviderSaidError)] == ["bad_json"]
    assert len(events) == 2


@pytest.mark.parametrize("is_fed_in_pieces", [True, False])
def test_a_line_without_end_is_an_error_and_not_kept(is_fed_in_pieces: bool) -> None:  # noqa: FBT001 — a parameter of the test
    line = b"data: " + b"x" * (LINE_LIMIT_BYTES + 1)
    data = [line[at : at + 65536] for at in range(0, len(line), 65536)] if is_fed_in_pieces else [line + b"\n"]
    (error,) = read(*data, chunk(delta={"content": "a"}))
    assert isinstance(error, ProviderSaidError)
    assert error.code == "line_too_long"


def test_one_odd_field_does_not_cost_the_text_beside_it() -> None:
    odd = {
        "id": 7,
        "usage": "none",
        "x_groq": [],
        "choices": [None, {"index": "0", "delta": {"content": "a", "reasoning": 1, "tool_calls": {}}, "finish_reason": 3}],
    }
    assert read(b"data: " + json.dumps(odd).encode() + b"\n\n") == [Text("a")]


def test_a_negative_figure_is_no_usage() -> None:
    usage = {"prompt_tokens": -5, "completion_tokens": 1}
    assert read(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n") == []


def test_usage_that_is_repeated_on_every_chunk_is_told_when_it_changes() -> None:
    first, second = ({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": n}} for n in (1, 2))
    data = [b"data: " + json.dumps(said).encode() + b"\n\n" for said in (first, first, second)]
    assert read(*data) == [TokenUsage(input_tokens=1, output_tokens=n) for n in (1, 2)]


def test_half_a_character_and_nan_are_mended() -> None:
    data = b'data: {"choices":[{"delta":{"content":"a\\ud83d"},"logprobs":{"content":[{"logprob":-Infinity}]}}]}\n\n'
    (text,) = read(data)
    assert isinstance(text, Text)
    assert text.text == "a�"
    assert json.loads(bytes(text.logprobs or b"")) == {"content": [{"logprob": None}]}


def test_logprobs_are_passed_on_untouched() -> None:
    (text,) = read(b'data: {"choices":[{"delta":{"content":"a"},"logprobs":{"content": [1.50]}}]}\n\n')
    assert isinstance(text, Text)
    assert bytes(text.logprobs or b"") == b'{"content": [1.50]}'


def test_content_in_typed_pieces_is_told_apart() -> None:
    pieces = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "a"}]
    assert read(chunk(delta={"content": pieces})) == [Reasoning("hm"), Text("a")]


@pytest.mark.parametrize(
    ("said", "status", "code", "message"),
    [
        ('{"error":{"message":"m","type":"server_error","code":null}}', 500, None, "m"),
        ('{"error":{"message":"m","code":"rate_limit_exceeded"}}', 429, "rate_limit_exceeded", "m"),
        ('{"error":{"message":"m","code":529}}', 529, "529", "m"),
        ('{"error":"out of memory"}', 200, None, "out of memory"),
        ('{"message":"m","code":"c"}', 200, "c", "m"),
        ('{"detail":"m"}', 200, None, "m"),
        ('{"choices":null,"base_resp":{"status_code":1002,"status_msg":"m"}}', 429, "1002", "m"),
        ('{"choices":[{"delta":{},"finish_reason":"error","error":{"code":502,"message":"m"}}]}', 502, "502", "m"),
    ],
)
@pytest.mark.parametrize("framing", ["data: {}\n\n", "event: error\ndata: {}\n\n", "{}\n"])
def test_an_error_inside_a_stream_is_read_in_every_shape(
    said: str, status: int, code: str | None, message: str, framing: str
) -> None:
    (error,) = read(framing.replace("{}", said).encode())
    assert isinstance(error, ProviderSaidError)
    assert (error.status, error.code, error.message) == (status, code, message)


@pytest.mark.parametrize("said", ["null", '""', "{}", "false"])
def test_an_empty_error_is_none(said: str) -> None:
    assert read(f'data: {{"error":{said},"choices":[{{"delta":{{"content":"a"}}}}]}}\n\n'.encode()) == [Text("a")]


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (b"<html><h1>502 Bad Gateway</h1></html>", None, "<html><h1>502 Bad Gateway</h1></html>"),
        (b"upstream connect error", None, "upstream connect error"),
        (b"", None, ""),
        (b'"busy"', None, "busy"),
        (b"\xff\xfe", None, "��"),
        (b'{"detail":[{"loc":["body"],"msg":"Extra"}]}', None, '[{"loc":["body"],"msg":"Extra"}]'),
        (b'{"object":"error","message":"m","code":3001}', "3001", "m"),
        (b'[{"error":{"code":400,"message":"m"}}]', "400", "m"),
        (b'{"error":"model not found"}', None, "model not found"),
        (b"{}", None, "{}"),
        (b"[" * 100_000, None, "[" * 4096),
    ],
)
def test_an_error_body_of_any_shape_gives_an_error(body: bytes, code: str | None, message: str) -> None:
    assert OpenAI().decode_error(502, {}, body) == ProviderSaidError(status=502, code=code, message=message)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:10 GMT", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 10.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({}, None),
    ],
)
def test_how_long_to_wait_is_read_in_every_form(headers: dict[str, str], seconds: float | None) -> None:
    assert OpenAI().decode_error(429, headers, b"").retry_after_s == seconds


# --- whole answers --------------------------------------------------------------------------------------------------


def whole(*data: bytes, content_type: str = "application/json; charset=utf-8") -> list[ProviderEvent]:
    return decode(OpenAI().decoder(content_type=content_type), data)


def test_a_whole_answer_gives_its_calls_in_order_though_they_have_no_index() -> None:
    made = [{"id": i, "type": "function", "function": {"name": "f", "arguments": ""}} for i in "ab"]
    body = {"choices": [{"message": {"content": None, "tool_calls": made}, "finish_reason": "tool_calls"}]}
    events = whole(json.dumps(body).encode())
    assert events[-1] == Finished(FinishReason.TOOL_CALLS)
    found = Answer.of(event for event in events if isinstance(event, ToolCall)).tool_calls
    assert found == (ToolCall(0, "a", "f", "{}"), ToolCall(1, "b", "f", "{}"))


def test_a_whole_answer_that_is_no_object_is_an_error() -> None:
    for body in (b"<html>", b'{"choices":[', b"[]"):
        (error,) = whole(body)
        assert isinstance(error, ProviderSaidError)
        assert error.code == "bad_json"


def test_a_whole_answer_without_choices_is_no_end() -> None:
    assert whole(b"{}") == []
    assert whole() == []


def test_a_body_without_end_is_an_error_and_not_kept() -> None:
    (error,) = whole(*[b" " * (1 << 20)] * (BODY_LIMIT_BYTES // (1 << 20) + 2))
    assert isinstance(error, ProviderSaidError)
    assert error.code == "body_too_large"


def test_a_stream_may_carry_a_whole_message_on_its_last_chunk_without_saying_it_twice() -> None:
    events = read(chunk(delta={"content": "a"}), chunk(message={"content": "a"}, finish_reason="stop"))
    assert events == [Text("a"), Finished(FinishReason.STOP)]
