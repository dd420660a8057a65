"""Failover: what a failed provider call means, and what is tried next. Pure (requirements 2.7.10-11).

A model without fallbacks: once more after a pause, then one request without streaming; never after text was shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import httpx

from parley_contracts.errors import (
    ModelRateLimited,
    ModelUnavailable,
    ParleyError,
    Problem,
    ProviderAuth,
    ProviderFailed,
    ProviderRefused,
    ProviderTimeout,
    ValidationFailed,
)
from parley_contracts.model_configs import ModelConfig
from parley_contracts.parts import ProviderSaidError
from parley_runtime.telemetry import hide_secrets

MAX_CALLS = 3
_REASON_LIMIT = 300
_SPENT = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
_BAD_REQUEST, _PAYMENT, _NOT_FOUND, _TIMEOUT, _TOO_MANY = 400, 402, 404, 408, 429


class Kind(Enum):
    BUSY = "busy"
    """429: the provider asks to wait."""
    BROKEN = "broken"
    """5xx, a timeout, a lost connection, an answer that broke off."""
    REFUSED = "refused"
    """Asking again would be answered the same."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a call failed. `is_charged`: the provider took the prompt, so its tokens may have been spent."""

    error: ParleyError
    kind: Kind
    retry_after_s: float | None = None
    is_charged: bool = False


@dataclass(frozen=True, slots=True)
class Pauses:
    busy_s: float
    broken_s: float


@dataclass(frozen=True, slots=True)
class Retry:
    wait_s: float
    is_stream: bool


def next_call(failures: Sequence[Failure], *, has_text: bool, left_s: float, pauses: Pauses) -> Retry | None:
    """The next call after `failures`; None: the last failure ends the turn. What a provider asks to wait is waited."""
    last = failures[-1]
    if has_text or last.kind is Kind.REFUSED or len(failures) >= MAX_CALLS:
        return None
    is_repeat = len(failures) == 1
    wait_s = last.retry_after_s or 0.0
    if is_repeat and last.kind is Kind.BROKEN:
        wait_s = max(wait_s, pauses.broken_s)
    elif is_repeat and last.retry_after_s is None:
        wait_s = pauses.busy_s
    return Retry(wait_s, is_stream=is_repeat) if wait_s < left_s else None


def failure_said(said: ProviderSaidError, config: ModelConfig, *, is_charged: bool = False) -> Failure:
    """The failure that a provider stated, as an HTTP answer or inside a stream."""
    status = said.status
    if status == _TOO_MANY and not _SPENT & {said.code, said.kind}:
        error: ParleyError = ModelRateLimited(model=config.name, retry_after_s=said.retry_after_s)
        return Failure(error, Kind.BUSY, said.retry_after_s)
    if 400 <= status < 500:  # noqa: PLR2004 - a status class
        return Failure(_refusal(status, said, config), Kind.REFUSED)
    if 300 <= status < 400:  # noqa: PLR2004 - a status class
        return Failure(ProviderRefused(reason="it answers with a redirect; set the final URL"), Kind.REFUSED)
    return Failure(ProviderFailed(), Kind.BROKEN, said.retry_after_s, is_charged)


def _refusal(status: int, said: ProviderSaidError, config: ModelConfig) -> ParleyError:
    if status in {401, 403}:
        return ProviderAuth()
    if status == _NOT_FOUND:
        return ModelUnavailable(model=config.name)
    if status == _TIMEOUT:
        return ProviderTimeout()
    if status in {_PAYMENT, _TOO_MANY}:
        return ProviderRefused(reason="the account at the provider has no credit left")
    reason = reason_of(said.message)
    if config.is_simulated and status == _BAD_REQUEST:
        return ValidationFailed(problems=(Problem("messages", reason),))
    return ProviderRefused(reason=reason)


def reason_of(message: str) -> str:
    """A provider's own words as far as a client may see them: one short line without anything that looks like a key."""
    text = " ".join(hide_secrets(message).split()).rstrip(".")
    if not text or text.startswith("<"):  # a proxy's HTML page says nothing to a client
        return "it gives no reason"
    return text if len(text) <= _REASON_LIMIT else text[: _REASON_LIMIT - 1] + "…"


def failure_raised(error: Exception, *, is_charged: bool) -> Failure:
    """The failure behind what opening or reading a connection raised."""
    if isinstance(error, ParleyError):  # an address that is refused, a parameter the provider is known not to take
        return Failure(error, Kind.REFUSED)
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return Failure(ProviderTimeout(), Kind.BROKEN, is_charged=is_charged)
    return Failure(ProviderFailed(), Kind.BROKEN, is_charged=is_charged)


def broke_off() -> Failure:
    """The answer ended without the provider's word that it is complete."""
    return Failure(ProviderFailed(), Kind.BROKEN, is_charged=True)


def fell_silent(*, is_charged: bool = True) -> Failure:
    return Failure(ProviderTimeout(), Kind.BROKEN, is_charged=is_charged)
