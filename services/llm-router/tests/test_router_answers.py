"""A turn that goes well, and one that ends at a limit: what is said, when, counted and stated."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from parley_contracts.parts import Answer, FinishReason, Reasoning, Text, TokenUsage, ToolCall
from parley_contracts.prompts import PromptMessage
from parley_contracts.reader import Ended, Shown, Started
from parley_contracts.turns import TurnClaim, TurnDelta, TurnFinal, TurnStatus
from parley_llm_router import provider_call as provider_call_module
from parley_llm_router.attempts import abandoned, counted
from parley_llm_router.publisher import MAX_PARTS, Publisher, Speaker, split

Make = Callable[..., Awaitable[Any]]
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


def chunk(text: str = "", *, finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice], **more}).encode() + b"\n\n"


@asynccontextmanager
async def saying(chunks: Sequence[bytes | asyncio.Event]) -> AsyncIterator[str]:
    """A provider that says these bytes, whatever it is asked, and waits where an event stands."""
    serving: set[asyncio.Task[Any] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
            writer.write(HEAD)
            for each in chunks:
                if isinstance(each, bytes):
                    writer.write(each)
                    await writer.drain()
                else:
                    await each.wait()
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in serving:
            if task is not None:
                task.cancel()


async def test_an_answer_is_streamed_stated_and_its_command_acknowledged(house: Any) -> None:
    command = house.command("tokens=5")
    result = await house.ended(command)
    assert (result.status, result.finish_reason, result.error) == (TurnStatus.DONE, FinishReason.STOP, None)
    assert result.answer.text == "word1 word2 word3 word4 word5 "
    (call,) = house.provider.calls(command.turn_id)
    (attempt,) = result.attempts
    assert (attempt.usage.output_tokens, attempt.method, attempt.is_estimated) == (5, "provider", False)
    assert attempt.usage.input_tokens == call.prompt_tokens
    assert attempt.is_billable
    assert attempt.is_success
    assert attempt.first_token_ms is not None
    events = house.shown(command.turn_id)
    assert events[0] == Started(1)
    assert "".join(event.part.text for event in events if isinstance(event, Shown)) == result.answer.text
    assert isinstance(events[-1], Ended)
    assert call.how == "finished"


async def test_a_delta_is_said_before_the_provider_says_the_next_one(make_house: Make) -> None:
    wait = asyncio.Event()
    async with saying([chunk("one "), wait, chunk("two", finish="stop"), b"data: [DONE]\n\n"]) as url:
        house = await make_house(provider_url=url)
        await house.router()
        command = await house.say(house.command())
        await house.hears(command, 1)
        assert house.parts(command.turn_id) == [Text("one ")]
        wait.set()
        assert (await house.result(command.turn_id)).answer.text == "one two"


async def test_reasoning_and_tool_calls_are_parts_of_their_own(make_house: Make) -> None:
    house = await make_house()
    await house.router()
    result = await house.ended(house.command("reasoning=2 tokens=1 tool=weather"))
    assert result.finish_reason is FinishReason.TOOL_CALLS
    assert result.answer.reasoning == "think1 think2 "
    (call,) = result.answer.tool_calls
    assert (call.name, call.arguments) == ("weather", '{"city": "Paris"}')


async def test_the_models_own_limit_ends_a_turn_as_length(house: Any) -> None:
    command = house.command("tokens=100", max_output_tokens=7)
    result = await house.ended(command)
    assert (result.status, result.finish_reason) == (TurnStatus.DONE, FinishReason.LENGTH)
    assert len(result.answer.text.split()) == 7
    assert house.provider.calls(command.turn_id)[0].limit == 7


async def test_a_budgets_limit_ends_a_turn_as_budget_exhausted_and_bills_it(house: Any) -> None:
    command = house.command("endless=1", max_output_tokens=16, is_budget_limited=True)
    result = await house.ended(command)
    assert (result.status, result.finish_reason) == (TurnStatus.CANCELED, FinishReason.BUDGET_EXHAUSTED)
    assert result.attempts[0].usage.output_tokens == 16
    assert result.attempts[0].is_billable
    assert len(result.answer.text.split()) == 16


@pytest.mark.parametrize("is_limited", [True, False])
async def test_a_provider_that_ignores_its_limit_is_cut(make_house: Make, is_limited: bool) -> None:  # noqa: FBT001 - a parameter
    async with saying([chunk("word ")] * 5000) as url:
        house = await make_house(provider_url=url)
        await house.router()
        result = await house.ended(house.command(max_output_tokens=100, is_budget_limited=is_limited))
    assert result.finish_reason is (FinishReason.BUDGET_EXHAUSTED if is_limited else FinishReason.LENGTH)
    assert 100 * 4 < len(result.answer.text) <= 100 * 12 + 512
    assert result.attempts[0].method == "heuristic"


async def test_usage_after_the_finish_reason_is_waited_for(make_house: Make) -> None:
    figures = {"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12}
    late = b"data: " + json.dumps({"choices": [], "usage": figures}).encode() + b"\n\n"
    wait = asyncio.Event()
    asyncio.get_running_loop().call_later(0.2, wait.set)
    async with saying([chunk("hi", finish="stop"), wait, late]) as url:
        house = await make_house(provider_url=url)
        await house.router()
        result = await house.ended(house.command())
    assert result.usage == TokenUsage(input_tokens=3, output_tokens=9, total_tokens=12)
    assert not result.attempts[0].is_estimated


async def test_a_provider_that_finished_and_then_says_nothing_does_not_hold_up_the_end(
    make_house: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider_call_module, "USAGE_GRACE_S", 0.1)
    async with saying([chunk("hi", finish="stop"), asyncio.Event()]) as url:
        house = await make_house(provider_url=url)
        await house.router(provider_max_idle_ms=150)
        result = await house.ended(house.command(), 3.0)
    assert (result.status, result.answer.text) == (TurnStatus.DONE, "hi")
    assert result.attempts[0].is_estimated


@pytest.mark.parametrize("end", [b"", b"data: [DONE]\n\n"])
async def test_a_stream_without_a_finish_reason_is_never_a_stop(make_house: Make, end: bytes) -> None:
    async with saying([chunk("half an ans"), end]) as url:
        house = await make_house(provider_url=url)
        await house.router()
        result = await house.ended(house.command())
    assert (result.finish_reason, result.error.code) == (FinishReason.ERROR, "provider_error")
    assert result.answer.text == "half an ans"


async def test_connections_are_used_again(house: Any) -> None:
    for _ in range(3):
        await house.ended(house.command("tokens=3"))
    client = house.services[0]._serves[0]._means.clients
    connections = client._open._transport.client.connector._conns
    assert [len(free) for free in connections.values()] == [1]


# --- the publisher --------------------------------------------------------------------------------------------------


class Said:
    """A turn log that only listens."""

    def __init__(self) -> None:
        self.deltas: list[TurnDelta] = []

    def say(self, delta: TurnDelta) -> None:
        self.deltas.append(delta)


@pytest.fixture
def said() -> Said:
    return Said()


async def test_parts_that_come_together_are_said_together_and_in_order(said: Said) -> None:
    publisher = Publisher(said)  # type: ignore[arg-type]  # as much of a log as it uses
    ann, bob = Speaker(publisher, "ann", 1), Speaker(publisher, "bob", 1)
    for n in range(3):
        ann.add(Text(f"a{n}"))
        bob.add(Text(f"b{n}"))
    await asyncio.sleep(0)
    ann.add(Text("a3"))
    await asyncio.sleep(0)
    assert [(delta.turn_id, delta.n, len(delta.parts)) for delta in said.deltas] == [
        ("ann", 0, 3),
        ("bob", 0, 3),
        ("ann", 3, 1),
    ]


async def test_a_message_holds_200_parts_or_64_kib_and_another_turn_is_heard_between(said: Said) -> None:
    publisher = Publisher(said)  # type: ignore[arg-type]
    long, short = Speaker(publisher, "long", 1), Speaker(publisher, "short", 1)
    for _ in range(450):
        long.add(Text("x"))
    short.add(Text("y"))
    for _ in range(5):
        await asyncio.sleep(0)
    assert [(delta.turn_id, len(delta.parts)) for delta in said.deltas] == [
        ("long", MAX_PARTS),
        ("short", 1),
        ("long", MAX_PARTS),
        ("long", 50),
    ]
    said.deltas.clear()
    for _ in range(200):
        long.add(Text("字" * 512))
    long.flush()
    assert all(len(delta.encode()) <= 64 * 1024 for delta in said.deltas)
    assert [delta.n for delta in said.deltas] == [
        450 + sum(len(d.parts) for d in said.deltas[:i]) for i in range(len(said.deltas))
    ]


async def test_a_flush_says_everything_now_and_nothing_twice(said: Said) -> None:
    speaker = Speaker(Publisher(said), "turn", 1)  # type: ignore[arg-type]
    speaker.add(Text("a"))
    speaker.flush()
    assert len(said.deltas) == 1
    await asyncio.sleep(0)
    assert len(said.deltas) == 1
    speaker.say_again()
    await asyncio.sleep(0)
    assert [(delta.n, delta.parts) for delta in said.deltas] == [(0, (Text("a"),))] * 2


@pytest.mark.parametrize(
    "part",
    [
        Text("字😀" * 700),
        Text("x" * 600, msgspec.Raw(b'{"content":[]}')),
        Reasoning("r" * 1025),
        ToolCall(0, "id", "name", "a" * 2000),
        Text("", msgspec.Raw(b"{}")),
    ],
)
def test_a_long_part_is_split_into_pieces_that_add_up(part: Any) -> None:
    pieces = list(split(part))
    assert Answer.of(pieces) == Answer.of([part])
    assert all(len(piece.arguments if isinstance(piece, ToolCall) else piece.text) <= 512 for piece in pieces)
    assert [getattr(piece, "logprobs", None) for piece in pieces[1:]] == [None] * (len(pieces) - 1)


# --- counting -------------------------------------------------------------------------------------------------------


def test_abandoned_attempts_are_counted_from_the_log_without_counting_twice() -> None:
    now = msgspec.json.decode(b'"2026-01-01T00:00:00Z"', type=__import__("datetime").datetime)

    def claim(attempt: int) -> TurnClaim:
        return TurnClaim(turn_id="t", attempt=attempt, run=attempt, nonce=str(attempt), provider="P", model="m", claimed_at=now)

    def delta(attempt: int, n: int, *texts: str) -> TurnDelta:
        return TurnDelta(turn_id="t", attempt=attempt, n=n, parts=tuple(Text(text) for text in texts))

    prompt = (PromptMessage(role="user", content="x" * 40),)
    log = [
        claim(1),
        delta(1, 0, "abcd", "efgh"),
        delta(1, 0, "abcd", "efgh"),
        delta(1, 3, "lost"),
        claim(2),
        delta(1, 2, "late"),
    ]
    first, second = abandoned(log, prompt)
    assert (first.attempt, first.usage.output_tokens, first.usage.input_tokens) == (1, 3, 14)
    assert (second.attempt, second.usage.output_tokens) == (2, 0)
    assert not any(row.is_billable for row in (first, second))


def test_all_that_was_generated_is_counted() -> None:
    answer = Answer(text="abcd", reasoning="efgh", tool_calls=(ToolCall(0, "id", "ab", "cd"),))
    assert counted((), answer).output_tokens == 3


def test_a_final_names_what_it_ends() -> None:
    assert TurnFinal.subject == TurnClaim.subject
