"""Errors: each crosses the bus as itself, with its fields; codes are unique and stay what they are."""

import re

import msgspec
import pytest

from parley_contracts.errors import (
    ERRORS,
    BudgetExceeded,
    ErrorBody,
    NotFound,
    ParleyError,
    Problem,
    RateLimited,
    ServiceUnavailable,
    UnknownError,
    ValidationFailed,
    error_from,
)


def over_the_bus(error: ParleyError) -> ParleyError:
    return error_from(msgspec.json.decode(msgspec.json.encode(error.body()), type=ErrorBody))


@pytest.mark.parametrize("kind", ERRORS.values(), ids=ERRORS.keys())
def test_every_error_crosses_the_bus_as_itself(kind: type[ParleyError]) -> None:
    names = re.findall(r"\{(\w+)\}", kind.__doc__ or "")
    error = kind(**{name: f"the {name}" for name in names if name != "retry_after_s"}, retry_after_s=3.0)
    arrived = over_the_bus(error)
    assert type(arrived) is kind
    assert arrived.body() == error.body()
    assert str(arrived) == error.message


@pytest.mark.parametrize("kind", ERRORS.values(), ids=ERRORS.keys())
def test_every_error_has_a_text_a_sensible_status_and_says_when_to_come_back_only_if_that_helps(
    kind: type[ParleyError],
) -> None:
    assert kind.__doc__
    assert 400 <= kind.status < 600
    assert re.fullmatch("[a-z_]+", kind.code)
    assert kind.retry_after_s is None or kind.retryable


def test_fields_and_problems_arrive() -> None:
    arrived = over_the_bus(ValidationFailed(problems=(Problem("email", "is missing"),)))
    assert arrived.problems == (Problem("email", "is missing"),)
    budget = over_the_bus(BudgetExceeded(remaining_usd="0.50", resets_at="2026-02-01"))
    assert budget.fields == {"remaining_usd": "0.50", "resets_at": "2026-02-01"}


def test_a_field_is_no_template() -> None:
    assert "{service}" in ServiceUnavailable(service="{service}").message


def test_the_time_to_wait_is_the_class_s_own_unless_said_otherwise() -> None:
    assert ServiceUnavailable(service="chat").retry_after_s == ServiceUnavailable.retry_after_s
    assert over_the_bus(RateLimited(retry_after_s=0.25)).retry_after_s == 0.25


def test_a_newer_version_s_error_keeps_its_code_status_and_text() -> None:
    body = ErrorBody(code="quantum_flux", message="Try tomorrow.", status=418, retryable=True, retry_after_s=9.0)
    error = error_from(body)
    assert isinstance(error, UnknownError)
    assert (error.http_status, error.message, error.retry_after_s) == (418, "Try tomorrow.", 9.0)
    assert over_the_bus(error).body() == body


def test_a_code_cannot_be_taken_twice() -> None:
    with pytest.raises(TypeError, match="is taken by NotFound"):
        type("NotFoundAgain", (ParleyError,), {"code": NotFound.code})
