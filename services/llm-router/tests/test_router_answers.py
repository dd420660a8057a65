"""A turn that goes well, and one that ends at a limit: what is said, counted and stated."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from parley_contracts.parts import FinishReason, ToolCall
from parley_contracts.reader import Ended, Shown, Started
from parley_contracts.turns import TurnDelta, TurnStatus

Make = Callable[..., Awaitable[Any]]


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
