"""What the suite is made of: the hub it asks for, short times, messages to say, ways to wait."""
# ruff: noqa: S101 - a test suite asserts, and numbers are the expectation

import asyncio
import contextvars
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Protocol

import msgspec.structs

from parley_contracts.ids import new_id
from parley_contracts.parts import Answer, FinishReason, Text
from parley_contracts.reader import Reset, Shown, Snapshot, StreamEvent
from parley_contracts.streams import CONSUMERS, Stream
from parley_contracts.turns import (
    Generate,
    TurnClaim,
    TurnCommitted,
    TurnDelta,
    TurnFinal,
    TurnResult,
    TurnStatus,
    result_of,
)
from parley_runtime.bus import Bus

ACK_WAIT_S = 1.0
MAX_DELIVER = 3
KEEP_ALIVE_S = 0.3
TEST_CONSUMERS = tuple(
    replace(spec, ack_wait_s=ACK_WAIT_S, max_deliver=MAX_DELIVER) if spec.stream is Stream.COMMANDS else spec
    for spec in CONSUMERS
)
INJECTED = ("*", ">", "a.b", "a b", "", "a\r\nb", "ü" * 26, "x" * 5000, "turn.*.control", "A" * 26)

TRACE: contextvars.ContextVar[str] = contextvars.ContextVar("trace", default="")


def inject() -> dict[str, str]:
    return {"traceparent": TRACE.get()} if TRACE.get() else {}


@contextmanager
def extract(headers: Mapping[str, str]) -> Iterator[None]:
    token = TRACE.set(headers.get("traceparent", ""))
    try:
        yield
    finally:
        TRACE.reset(token)


class TestHub(Protocol):
    """Makes buses that hear each other. Buses it made are closed by the fixture."""

    __test__: ClassVar[bool] = False

    def bus(self, service: str, **options: Any) -> Bus:
        """A bus, not started, with `inject`, `extract` and the short times above."""
        ...

    async def kill(self, bus: Bus) -> None:
        """As by `kill -9` of its process."""
        ...


async def until(condition: Callable[[], object], *, within_s: float = 10.0) -> None:
    """Wait until `condition` holds; fails when it does not in time."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.005)


async def quiet(seconds: float = 0.1) -> None:
    """Wait for what must not happen."""
    await asyncio.sleep(seconds)


# --- messages -------------------------------------------------------------------------------------------------------


def now() -> datetime:
    return datetime.now(UTC)


def command(turn_id: str, *, dispatch: int = 0) -> Generate:
    return Generate(
        turn_id=turn_id,
        user_id=1,
        prompt=(),
        model_config_id=new_id(),
        model="test",
        provider="test",
        max_output_tokens=100,
        accepted_at=now(),
        deadline_at=now() + timedelta(minutes=10),
        dispatch=dispatch,
        store=True,
        restart_after_text=True,
    )


def claim(turn_id: str, attempt: int, *, nonce: str = "") -> TurnClaim:
    return TurnClaim(
        turn_id=turn_id,
        attempt=attempt,
        run=1,
        nonce=nonce or f"nonce-{attempt}",
        provider="test",
        model="test",
        claimed_at=now(),
    )


def delta(turn_id: str, attempt: int, n: int, *texts: str) -> TurnDelta:
    return TurnDelta(turn_id=turn_id, attempt=attempt, n=n, parts=tuple(Text(text) for text in texts))


def final(turn_id: str, attempt: int, n: int, text: str) -> TurnFinal:
    return TurnFinal(
        turn_id=turn_id,
        attempt=attempt,
        n=n,
        answer=Answer(text=text),
        finish_reason=FinishReason.STOP,
        ended_at=now(),
    )


def result(turn_id: str) -> TurnResult:
    return result_of(command(turn_id), final(turn_id, 1, 1, "hello"))


def committed(turn_id: str) -> TurnCommitted:
    return TurnCommitted(turn_id=turn_id, session_id=new_id(), status=TurnStatus.DONE)


def shown_text(events: list[StreamEvent]) -> str:
    """What a client has on its screen, by the grammar of stream events."""
    text = ""
    for event in events:
        match event:
            case Shown(part=Text(text=more)):
                text += more
            case Reset():
                text = ""
            case Snapshot(answer=answer):
                text = answer.text
            case _:
                pass
    return text


async def gone(bus: Bus, turn_id: str) -> bool:
    return not await bus.turns.find_command(turn_id)


async def until_async(condition: Callable[[], Any], *, within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not await condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


def replace_text(said: TurnResult, text: str) -> TurnResult:

    return msgspec.structs.replace(said, answer=Answer(text=text))
