"""Replies: what becomes of a handler's answer or error on its way back to the asker. The same on every bus."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
import structlog

from parley_contracts.errors import ErrorBody, ParleyError, PayloadTooLarge, Problem, ValidationFailed, error_from
from parley_runtime.bus import MAX_PAYLOAD_BYTES, Asks

log = structlog.get_logger()

R = TypeVar("R")
M = TypeVar("M")

ERROR_HEADER = "Parley-Error"
_BODY = msgspec.json.Decoder(ErrorBody)


def sized(payload: bytes) -> bytes:
    """`payload`, if it may be published: refused here, it does not fail in the middle of a turn (N22)."""
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise PayloadTooLarge(limit_bytes=MAX_PAYLOAD_BYTES)
    return payload


def error_reply(error: ParleyError) -> tuple[bytes, dict[str, str]]:
    return msgspec.json.encode(error.body()), {ERROR_HEADER: error.code}


async def reply_to(kind: Asks[M, R], handler: Callable[[M], Awaitable[R]], data: bytes) -> tuple[bytes, dict[str, str] | None]:
    """The payload and headers that answer a question. Raises nothing: whatever goes wrong is answered, typed (N24)."""
    try:
        return sized(kind.encode_reply(await handler(kind.decode(data)))), None
    except ParleyError as error:
        return error_reply(error)
    except msgspec.ValidationError as error:
        log.warning("question_refused", question=kind.pattern(), error=str(error))
        return error_reply(ValidationFailed(problems=(Problem("", str(error)),)))
    except Exception:
        log.exception("answer_failed", question=kind.pattern())
        return error_reply(ParleyError())


def read_reply(kind: Asks[Any, R], data: bytes, headers: dict[str, str] | None) -> R:
    """The answer; raises the error that the other side raised."""
    if headers and ERROR_HEADER in headers:
        raise error_from(_BODY.decode(data))
    return kind.decode_reply(data)
