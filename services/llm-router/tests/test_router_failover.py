"""Failed calls: what they mean, what is tried next, and what each attempt is stated as."""

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from parley_contracts.errors import BaseUrlRefused, ParleyError, ProviderFailed
from parley_contracts.ids import new_id
from parley_contracts.model_configs import ModelConfig
from parley_contracts.parts import ProviderSaidError
from parley_contracts.turns import TurnDelta, TurnStatus
from parley_llm_router.failover import Failure, Kind, Pauses, Retry, failure_raised, failure_said, next_call, reason_of

Make = Callable[..., Awaitable[Any]]
PAUSES = Pauses(busy_s=15.0, broken_s=2.0)
CONFIG = ModelConfig(id=new_id(), name="m", provider="OPENAI", base_url="https://example.org", model="m")
BUSY, BROKEN, REFUSED = (Failure(ProviderFailed(), kind) for kind in Kind)


def after(*failures: Failure, has_text: bool = False, left_s: float = 300.0) -> Retry | None:
    return next_call(failures, has_text=has_text, left_s=left_s, pauses=PAUSES)


def busy(retry_after_s: float) -> Failure:
    return Failure(ProviderFailed(), Kind.BUSY, retry_after_s)


def test_a_busy_provider_is_asked_again_when_it_says_else_after_fifteen_seconds() -> None:
    assert after(BUSY) == Retry(15.0, is_stream=True)
    assert after(busy(3.0)) == Retry(3.0, is_stream=True)
    assert after(busy(0.0)) == Retry(0.0, is_stream=True)


def test_a_broken_call_is_repeated_after_two_seconds_then_asked_without_streaming() -> None:
    assert after(BROKEN) == Retry(2.0, is_stream=True)
    assert after(BROKEN, BROKEN) == Retry(0.0, is_stream=False)
    assert after(BUSY, BROKEN) == Retry(0.0, is_stream=False)
    assert after(BROKEN, busy(4.0)) == Retry(4.0, is_stream=False)
    assert after(BROKEN, BROKEN, BROKEN) is None


@pytest.mark.parametrize("failures", [(REFUSED,), (BUSY, REFUSED), (BROKEN, REFUSED), (BROKEN, BROKEN, REFUSED)])
def test_a_refusal_is_never_repeated(failures: tuple[Failure, ...]) -> None:
    assert after(*failures) is None


@pytest.mark.parametrize("failure", [BUSY, BROKEN, REFUSED])
def test_nothing_is_tried_after_text_was_shown(failure: Failure) -> None:
    assert after(failure, has_text=True) is None


def test_a_pause_beyond_the_turns_time_ends_it_at_once() -> None:
    assert after(busy(3600.0)) is None
    assert after(BROKEN, left_s=1.5) is None


@pytest.mark.parametrize(
    ("said", "code", "kind"),
    [
        (ProviderSaidError(status=400, message="no"), "provider_refused", Kind.REFUSED),
        (ProviderSaidError(status=413), "provider_refused", Kind.REFUSED),
        (ProviderSaidError(status=422), "provider_refused", Kind.REFUSED),
        (ProviderSaidError(status=401), "provider_auth", Kind.REFUSED),
        (ProviderSaidError(status=403), "provider_auth", Kind.REFUSED),
        (ProviderSaidError(status=402), "provider_refused", Kind.REFUSED),
        (ProviderSaidError(status=404), "model_unavailable", Kind.REFUSED),
        (ProviderSaidError(status=408), "provider_timeout", Kind.REFUSED),
        (ProviderSaidError(status=307), "provider_refused", Kind.REFUSED),
        (ProviderSaidError(status=429, retry_after_s=3.0), "model_rate_limited", Kind.BUSY),
        (ProviderSaidError(status=429, code="insufficient_quota"), "provider_refused", Kind.REFUSED),
        (ProviderSaidError(status=500), "provider_error", Kind.BROKEN),
        (ProviderSaidError(status=529), "provider_error", Kind.BROKEN),
        (ProviderSaidError(status=200, code="bad_json"), "provider_error", Kind.BROKEN),
    ],
)
def test_what_a_provider_says_is_an_error_of_ours(said: ProviderSaidError, code: str, kind: Kind) -> None:
    failure = failure_said(said, CONFIG)
    assert (failure.error.code, failure.kind) == (code, kind)


def test_a_rate_limit_tells_the_client_when_to_come_back() -> None:
    error = failure_said(ProviderSaidError(status=429, retry_after_s=7.0), CONFIG).error
    assert (error.message, error.retry_after_s) == ("Rate limit exceeded for model m", 7.0)


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        (httpx.ConnectTimeout("x"), "provider_timeout", Kind.BROKEN),
        (httpx.ReadError("x"), "provider_error", Kind.BROKEN),
        (ValueError("x"), "provider_error", Kind.BROKEN),
        (BaseUrlRefused(reason="its address is not public"), "base_url_refused", Kind.REFUSED),
    ],
)
def test_what_a_connection_raises_is_an_error_of_ours(error: Exception, code: str, kind: Kind) -> None:
    failure = failure_raised(error, is_charged=True)
    assert (failure.error.code, failure.kind) == (code, kind)


def test_a_reason_holds_no_key_no_page_and_no_novel() -> None:
    assert reason_of("Incorrect API key provided: sk-abcdefghijklmnop.") == "Incorrect API key provided: [hidden]"
    assert reason_of("<html><body>Bad Gateway</body></html>") == "it gives no reason"
    assert reason_of("") == "it gives no reason"
    assert len(reason_of("long " * 500)) == 300
    context = "This model's maximum context length is 8192 tokens."
    assert reason_of(context) == context.rstrip(".")


# --- with a provider that fails -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "calls", "codes", "streams"),
    [
        ("fail_first=1:429 tokens=3", 2, ["model_rate_limited", None], [True, True]),
        ("fail_first=1:500 tokens=3", 2, ["provider_error", None], [True, True]),
        ("fail_first=2:503 tokens=3", 3, ["provider_error", "provider_error", None], [True, True, False]),
        ("fail_first=2:429 tokens=3", 3, ["model_rate_limited", "model_rate_limited", None], [True, True, False]),
    ],
)
async def test_a_call_that_failed_is_made_again_as_an_attempt_of_its_own(
    house: Any, script: str, calls: int, codes: list[str | None], streams: list[bool]
) -> None:
    command = house.command(f"{script} retry_after=0" if "429" not in script else script)
    result = await house.ended(command)
    assert result.status is TurnStatus.DONE
    assert result.answer.text == "word1 word2 word3 "
    assert [call.stream for call in house.provider.calls(command.turn_id)] == streams
    assert [attempt.error_code for attempt in result.attempts] == codes
    assert [attempt.is_billable for attempt in result.attempts] == [code is None for code in codes]
    assert [claim.attempt for claim in house.claims(command.turn_id)] == list(range(1, calls + 1))
    assert {claim.run for claim in house.claims(command.turn_id)} == {1}
    assert result.attempt == calls
    assert [type(event).__name__ for event in house.shown(command.turn_id)].count("Reset") == 0


@pytest.mark.parametrize(
    ("status", "code", "calls"),
    [
        (400, "validation_failed", 1),
        (401, "provider_auth", 1),
        (403, "provider_auth", 1),
        (404, "model_unavailable", 1),
        (429, "model_rate_limited", 3),
        (500, "provider_error", 3),
    ],
)
async def test_a_provider_that_always_fails_ends_the_turn_with_its_own_code(
    house: Any, status: int, code: str, calls: int
) -> None:
    command = house.command(model=f"simulator/fail-{status}")
    result = await house.ended(command)
    assert (result.status, result.error.code) == (TurnStatus.ERROR, code)
    assert len(house.provider.calls(command.turn_id)) == calls
    assert len(result.attempts) == calls
    assert not any(attempt.is_billable or attempt.is_success for attempt in result.attempts)
    assert all(attempt.usage.total == 0 for attempt in result.attempts)  # a refused prompt costs nothing


async def test_the_whole_text_of_a_request_without_streaming_is_one_delta(house: Any) -> None:
    command = house.command("fail_first=2:500 tokens=300")
    result = await house.ended(command)
    deltas = [entry for entry in house.log(command.turn_id) if isinstance(entry, TurnDelta) and entry.parts]
    assert len(deltas) == 1
    assert all(len(part.text) <= 512 for part in deltas[0].parts)
    assert "".join(part.text for part in deltas[0].parts) == result.answer.text
    assert len(result.answer.text.split()) == 300


@pytest.mark.parametrize("fault", ["cut_after=3", "bad_json_after=3", "error_after=3", "no_finish=1"])
async def test_a_stream_that_breaks_after_text_is_an_error_that_keeps_the_text(house: Any, fault: str) -> None:
    command = house.command(f"tokens=6 {fault} delay_ms=1")
    result = await house.ended(command)
    assert (result.status, result.error.code) == (TurnStatus.ERROR, "provider_error")
    assert result.answer.text.startswith("word1 word2 word3 ")
    assert len(house.provider.calls(command.turn_id)) == 1
    (attempt,) = result.attempts
    assert not attempt.is_billable
    assert attempt.usage.output_tokens > 0


@pytest.mark.parametrize("fault", ["cut_after=0", "bad_json_after=0", "error_after=0"])
async def test_a_stream_that_breaks_before_text_is_tried_three_times(house: Any, fault: str) -> None:
    command = house.command(f"tokens=6 {fault}")
    result = await house.ended(command)
    assert result.error.code == "provider_error"
    assert [call.stream for call in house.provider.calls(command.turn_id)] == [True, True, False]


async def test_a_provider_that_nobody_reaches_is_a_provider_error(make_house: Make) -> None:
    house = await make_house(provider_url="http://127.0.0.1:9")
    await house.router()
    result = await house.ended(house.command())
    assert (result.error.code, len(result.attempts)) == ("provider_error", 3)


def test_all_failures_are_errors_with_a_code() -> None:
    assert all(issubclass(type(failure.error), ParleyError) for failure in (BUSY, BROKEN, REFUSED))
