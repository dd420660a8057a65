"""One place where a failure becomes an answer: any exception in, the dialect's own error shape out."""

import math

import structlog
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from parley_contracts.errors import (
    InvalidJson,
    MethodNotAllowed,
    NotFound,
    ParleyError,
    Problem,
    ServiceUnavailable,
    UnsupportedParameter,
    ValidationFailed,
)
from parley_gateway.dialects.errors import common_error, openai_error, openai_status
from parley_gateway.responses import ClientLeft
from parley_runtime.bus import LogUnreadable

log = structlog.get_logger()

_CLIENT_CLOSED_REQUEST = 499


def is_openai(path: str) -> bool:
    """Whether a path speaks OpenAI's format, errors included."""
    return path.removeprefix("/api").startswith(("/v1/", "/chat/v1/"))


def as_parley_error(error: Exception, *, openai: bool) -> ParleyError:
    """What went wrong, in our own words. A bug is `internal`, logged with its trace."""
    match error:
        case ParleyError():
            return error
        case RequestValidationError():
            return _validation(error, openai=openai)
        case HTTPException():
            if isinstance(error.__cause__, ParleyError):
                return error.__cause__
            if error.status_code == 404:  # noqa: PLR2004 - HTTP's own number
                return NotFound()
            if error.status_code == 405:  # noqa: PLR2004 - HTTP's own number
                return MethodNotAllowed(method="this method")
            return InvalidJson(reason="it could not be read")
        case LogUnreadable():
            return ServiceUnavailable(service="turn log")
        case OSError() | TimeoutError():
            log.warning("request_failed", error=f"{type(error).__name__}: {error}"[:300])
            return ServiceUnavailable(service="gateway")
        case _:
            log.error("request_broke", exc_info=error)
            return ParleyError()


def _validation(error: RequestValidationError, *, openai: bool) -> ParleyError:
    problems: list[Problem] = []
    for detail in error.errors():
        field = ".".join(str(name) for name in detail["loc"] if name not in {"body", "query", "path", "header"}) or "body"
        if detail["type"] == "extra_forbidden" and openai:
            return UnsupportedParameter(param=field[:100], reason="")
        problems.append(Problem(field[:100], str(detail["msg"])[:200]))
    return ValidationFailed(problems=tuple(problems[:20]))


def render(error: ParleyError, path: str) -> Response:
    openai = is_openai(path)
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if error.http_status == 401:  # noqa: PLR2004 - HTTP's own number
        headers["WWW-Authenticate"] = "Bearer"
    body = openai_error(error) if openai else common_error(error)
    status = openai_status(error) if openai else error.http_status
    return Response(body, status_code=status, media_type="application/json", headers=headers)


class FailureMiddleware:
    """Answers for whatever escaped the routes; nothing is added once an answer has begun."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_begun = False

        async def watched(message: Message) -> None:
            nonlocal has_begun
            has_begun = has_begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except ClientLeft:
            if not has_begun:
                await Response(status_code=_CLIENT_CLOSED_REQUEST)(scope, receive, send)
        except Exception as error:
            if has_begun:
                log.exception("stream_broke")
                raise
            failure = as_parley_error(error, openai=is_openai(scope["path"]))
            await render(failure, scope["path"])(scope, receive, send)
