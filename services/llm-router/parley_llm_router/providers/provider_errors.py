"""What providers say when something is wrong, in all the shapes they say it in."""

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from parley_contracts.parts import ProviderSaidError

_MESSAGE_LIMIT = 4096

# What an error inside a 200 stream means where it names no status. Words of OpenAI, Anthropic-like relays and DeepSeek.
_STATUS_OF_WORD = {
    "invalid_request_error": 400,
    "context_length_exceeded": 400,
    "authentication_error": 401,
    "invalid_api_key": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "model_not_found": 404,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "server_error": 500,
    "api_error": 500,
    "insufficient_system_resource": 503,
    "overloaded_error": 529,
}


def error_of_answer(status: int, headers: Mapping[str, str], body: bytes) -> ProviderSaidError:
    """The error an HTTP answer of status 400 and up states: JSON of any shape, HTML or plain text."""
    text = body.decode("utf-8", "replace").strip()
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = text
    code, kind, message = _read(said)
    return ProviderSaidError(status=status, code=code, kind=kind, message=message, retry_after_s=_retry_after_s(headers))


def error_in_stream(said: Any) -> ProviderSaidError:
    """The error an object inside a 200 answer states. Its status is 200 where neither a number nor a known word tells."""
    code, kind, message = _read(said)
    return ProviderSaidError(status=_status_in(said, code, kind), code=code, kind=kind, message=message)


def _read(said: Any) -> tuple[str | None, str | None, str]:
    """Code, kind and message of `{"error": {…}}`, `{"error": "…"}`, `{"detail": …}`, `[{…}]`, a flat object, or text."""
    if isinstance(said, list) and said:
        return _read(said[0])
    if not isinstance(said, dict):
        return None, None, _text(said)
    inner = said.get("error")
    if isinstance(inner, dict) and inner:
        return _read(inner)
    message = next((said[name] for name in ("message", "detail", "msg", "error", "errors") if said.get(name)), said)
    return _word(said.get("code")), _word(said.get("type")), _text(message)


def _word(value: Any) -> str | None:
    """A code, which some providers give as a number."""
    return str(value)[:128] if isinstance(value, str | int) and value != "" and not isinstance(value, bool) else None


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text[:_MESSAGE_LIMIT]


def _status_in(said: Any, code: str | None, kind: str | None) -> int:
    inner = said.get("error") if isinstance(said, dict) else None
    fields = inner if isinstance(inner, dict) else said if isinstance(said, dict) else {}
    for value in (fields.get("status_code"), fields.get("status"), code):
        if isinstance(value, int | str) and str(value) in _STATUSES:
            return int(value)
    return _STATUS_OF_WORD.get(code or "", _STATUS_OF_WORD.get(kind or "", 200))


_STATUSES = frozenset(str(status) for status in range(400, 600))


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """How long to wait: `retry-after-ms`, or `retry-after` in seconds or as a date (against the answer's own `date`)."""
    if (ms := _number(headers.get("retry-after-ms"))) is not None:
        return ms / 1000
    said = headers.get("retry-after")
    if said is None or (seconds := _number(said)) is not None:
        return seconds if said is not None else None
    try:
        until = parsedate_to_datetime(said)
        now = parsedate_to_datetime(headers["date"]) if "date" in headers else datetime.now(UTC)
        return max(0.0, (until - now).total_seconds())
    except (ValueError, TypeError):
        return None


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None
