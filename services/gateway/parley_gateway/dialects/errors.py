"""Error bodies: one shape for all routes but OpenAI's (requirements 2.3)."""

from typing import Any

import msgspec

from parley_contracts.errors import ParleyError, TurnInProgress

OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    404: "invalid_request_error",
    409: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
}


def common_error(error: ParleyError) -> bytes:
    """`{success: false, error, code, data: null, details?}`."""
    body: dict[str, Any] = {"success": False, "error": error.message, "code": error.code, "data": None}
    if error.problems:
        body["details"] = list(error.problems)
    elif isinstance(error, TurnInProgress):
        body["details"] = {"turnId": error.fields.get("turnId")}
    return msgspec.json.encode(body)


def openai_status(error: ParleyError) -> int:
    """OpenAI's clients know 400 where ours know 422."""
    return 400 if error.http_status == 422 else error.http_status  # noqa: PLR2004 - HTTP's own number


def openai_error(error: ParleyError) -> bytes:
    """`{error: {message, type, param, code}}`."""
    param = error.problems[0].field if error.problems else error.fields.get("param")
    message = error.message
    if error.problems:
        message = "; ".join(f"{problem.field}: {problem.problem}" for problem in error.problems)
    kind = OPENAI_TYPES.get(openai_status(error), "server_error")
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": error.code}})
