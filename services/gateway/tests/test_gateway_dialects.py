"""One script, every dialect: the same stream events through each entry of DIALECTS, compared with golden files."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from parley_contracts.errors import ProviderFailed, UpstreamInterrupted
from parley_contracts.parts import Answer, FinishReason, Reasoning, Text, TokenUsage, ToolCall
from parley_contracts.reader import Ended, Reset, Shown, Snapshot, Started, StreamEvent
from parley_gateway.dialects import DIALECTS
from parley_gateway.dialects.dialect import Ticket
from parley_gateway.dialects.openai import completion

GOLDEN = Path(__file__).parent / "golden"
TICKET = Ticket(
    turn_id="01jd0000000000000000000001",
    session_id="01jd0000000000000000000002",
    user_message_id="01jd0000000000000000000003",
    message_id="01jd0000000000000000000004",
    model="gpt-4o",
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
    include_usage=True,
)
USAGE = TokenUsage(input_tokens=12, output_tokens=5, cached_tokens=4, reasoning_tokens=2)
CALL = ToolCall(0, "call_1", "weather", '{"city": "Paris"}')

SCRIPTS: dict[str, list[list[StreamEvent]]] = {
    "text, in batches": [
        [Started(1), Shown(1, 0, Text("Hel"))],
        [Shown(1, 1, Text("lo")), Shown(1, 2, Text(" 你好 🎉"))],
        [Ended(FinishReason.STOP, Answer(text="Hello 你好 🎉"), USAGE)],
    ],
    "text that looks like an event": [
        [Started(1), Shown(1, 0, Text("\n\nevent: done\ndata: [DONE]\r\u2028\x00"))],
        [Ended(FinishReason.LENGTH, Answer(text="…"), USAGE)],
    ],
    "reasoning, then a tool call in fragments": [
        [Started(1), Shown(1, 0, Reasoning("Hm.")), Shown(1, 1, ToolCall(0, "call_1", "weather", ""))],
        [Shown(1, 2, ToolCall(0, "", "", '{"city":')), Shown(1, 3, ToolCall(0, "", "", ' "Paris"}'))],
        [Ended(FinishReason.TOOL_CALLS, Answer(reasoning="Hm.", tool_calls=(CALL,)), USAGE)],
    ],
    "another attempt replaces the text": [
        [Started(1), Shown(1, 0, Text("Hel"))],
        [Reset(2), Shown(2, 0, Text("Good day"))],
        [Ended(FinishReason.STOP, Answer(text="Good day"), USAGE)],
    ],
    "the text shown is not what stands": [
        [Started(1), Shown(1, 0, Text("Hxl"))],
        [Snapshot(1, 1, Answer(text="Hello")), Ended(FinishReason.STOP, Answer(text="Hello"), USAGE)],
    ],
    "a failure after text": [
        [Started(1), Shown(1, 0, Text("Hel"))],
        [Ended(FinishReason.ERROR, Answer(text="Hel"), None, ProviderFailed().body())],
    ],
    "stopped": [
        [Started(1), Shown(1, 0, Text("Hel"))],
        [Ended(FinishReason.CANCELED, Answer(text="Hel"), USAGE)],
    ],
    "the money ends": [
        [Started(1), Shown(1, 0, Text("Hel"))],
        [Ended(FinishReason.BUDGET_EXHAUSTED, Answer(text="Hel"), USAGE)],
    ],
    "nothing was ever claimed": [[Ended(FinishReason.CANCELED, Answer())]],
}


def played(dialect: str, script: list[list[StreamEvent]]) -> list[bytes]:
    encoder = DIALECTS[dialect].encoder(TICKET)
    return [encoder.start(), *(encoder.encode(batch) for batch in script), encoder.ping()]


@pytest.mark.parametrize("dialect", sorted(DIALECTS))
def test_every_dialect_says_what_its_golden_file_holds(dialect: str) -> None:
    text = "".join(f"### {name}\n" + b"".join(played(dialect, script)).decode() + "\n" for name, script in SCRIPTS.items())
    path = GOLDEN / f"{dialect}.txt"
    if os.environ.get("UPDATE"):
        path.write_text(text, newline="")
    assert text == path.read_text()


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_the_seeds_client_can_parse_every_line_that_begins_with_data(name: str) -> None:
    """S0-15: each network chunk is decoded alone, split on newlines, and each `data: ` line parsed without a catch."""
    shown = ""
    for chunk in played("s0", SCRIPTS[name]):
        for line in chunk.decode().split("\n"):
            if line.startswith("data: "):
                event = json.loads(line[6:])
                assert event["type"] in {"start", "content", "reset", "snapshot", "done", "error"}
                assert len(line) <= 8192
                if event["type"] == "reset":
                    shown = ""
                elif event["type"] == "snapshot":
                    shown = event["content"]
                elif event["type"] == "content":
                    assert event["content"] == event["delta"]
                    shown += event["content"]
    last = SCRIPTS[name][-1][-1]
    assert isinstance(last, Ended)
    if last.answer.text != "…":
        assert shown == last.answer.text


@pytest.mark.parametrize("text", ["x" * 100_000, "\x01" * 5_000, "🎉" * 5_000, '"' * 5_000])
def test_no_event_of_s0_exceeds_8_kib_however_long_the_text(text: str) -> None:
    encoder = DIALECTS["s0"].encoder(TICKET)
    events: list[list[StreamEvent]] = [
        [Shown(1, 0, Text(text))],
        [Shown(1, at, Text(text[at * 500 : at * 500 + 500])) for at in range(10)],
        [Snapshot(1, 0, Answer(text=text))],
    ]
    for batch in events:
        for event in encoder.encode(batch).split(b"\n\n"):
            assert len(event) <= 8192


def test_openai_never_says_done_after_an_end_that_was_not_good() -> None:
    for name in ("a failure after text", "stopped", "the money ends", "another attempt replaces the text"):
        said = b"".join(played("openai", SCRIPTS[name]))
        assert b"[DONE]" not in said, name
        assert b'"finish_reason":"' not in said, name


def test_openai_says_nothing_after_an_error_chunk() -> None:
    encoder = DIALECTS["openai"].encoder(TICKET)
    assert b"upstream_interrupted" in encoder.encode([Reset(2), Shown(2, 0, Text("again"))])
    assert encoder.encode([Shown(2, 1, Text("more")), Ended(FinishReason.STOP, Answer(text="againmore"))]) == b""


def test_logprobs_are_passed_through_untouched_and_merged_when_whole() -> None:
    raw = msgspec.Raw(b'{"content":[{"token":"Hi","logprob":-0.1}],"refusal":null}')
    chunk = DIALECTS["openai"].encoder(TICKET).encode([Shown(1, 0, Text("Hi", raw))])
    assert b'"logprobs":{"content":[{"token":"Hi","logprob":-0.1}],"refusal":null}' in chunk
    whole = json.loads(completion(TICKET, Ended(FinishReason.STOP, Answer(text="HiHi"), USAGE), [raw, raw]))
    assert [item["token"] for item in whole["choices"][0]["logprobs"]["content"]] == ["Hi", "Hi"]


def test_a_whole_completion_that_was_cut_is_an_error_not_a_short_answer() -> None:
    with pytest.raises(UpstreamInterrupted):
        completion(TICKET, Ended(FinishReason.CANCELED, Answer(text="Hel")), [])


def test_a_whole_completion_holds_tool_calls_and_usage_as_openai_spells_them() -> None:
    whole = json.loads(completion(TICKET, Ended(FinishReason.TOOL_CALLS, Answer(tool_calls=(CALL,)), USAGE), []))
    choice = whole["choices"][0]
    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city": "Paris"}'}
    assert whole["usage"] == {
        "prompt_tokens": 12,
        "completion_tokens": 5,
        "total_tokens": 17,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
