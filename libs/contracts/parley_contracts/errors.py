"""Errors: one class for each thing that can go wrong, with the code, status and advice a client gets.

The docstring is the message; `{names}` in it are filled from keyword arguments. Errors travel over the bus as
`ErrorBody` and come out as the same class on the other side (requirements 2.3).
"""

from typing import Any, ClassVar

import msgspec
from typing_extensions import override

ERRORS: dict[str, type["ParleyError"]] = {}


class Problem(msgspec.Struct, frozen=True):
    """What is wrong with one field of a request."""

    field: str
    problem: str


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """A `ParleyError` on the bus. `status` and `message` serve a receiver that does not know the code yet."""

    code: str
    message: str
    status: int
    retryable: bool = False
    fields: dict[str, str] = {}
    problems: tuple[Problem, ...] = ()
    retry_after_s: float | None = None


class ParleyError(Exception):
    """Something went wrong inside Parley. Try again; tell your administrator the request id if it stays."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    retry_after_s: float | None = None

    def __init__(self, *, problems: tuple[Problem, ...] = (), retry_after_s: float | None = None, **fields: object) -> None:
        self.fields = {name: str(value) for name, value in fields.items()}
        self.problems = problems
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s
        self.message = _fill(type(self).__doc__ or "", self.fields)
        super().__init__(self.message)

    @override
    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "code" in cls.__dict__:
            if cls.code in ERRORS:
                raise TypeError(f"error code {cls.code} is taken by {ERRORS[cls.code].__name__}")
            ERRORS[cls.code] = cls

    @property
    def http_status(self) -> int:
        return self.status

    def body(self) -> ErrorBody:
        return ErrorBody(
            code=self.code,
            message=self.message,
            status=self.http_status,
            retryable=self.retryable,
            fields=self.fields,
            problems=self.problems,
            retry_after_s=self.retry_after_s,
        )


class UnknownError(ParleyError):
    """{message}"""  # an error of a newer version: code, status and text are the sender's

    def __init__(self, body: ErrorBody) -> None:
        super().__init__(problems=body.problems, retry_after_s=body.retry_after_s, message=body.message)
        self._body = body

    @property
    @override
    def http_status(self) -> int:
        return self._body.status

    @override
    def body(self) -> ErrorBody:
        return self._body


def error_from(body: ErrorBody) -> ParleyError:
    """The error a peer raised, as the same class here."""
    kind = ERRORS.get(body.code)
    if kind is None:
        return UnknownError(body)
    fields: dict[str, Any] = dict(body.fields)
    return kind(problems=body.problems, retry_after_s=body.retry_after_s, **fields)


def _fill(text: str, fields: dict[str, str]) -> str:
    message = " ".join(text.split())
    for name, value in fields.items():
        message = message.replace("{" + name + "}", value)
    return message


ERRORS["internal"] = ParleyError


class InvalidJson(ParleyError):
    """The body is not JSON that can be read: {reason}."""

    code = "invalid_json"
    status = 400


class UnsupportedParameter(ParleyError):
    """The parameter {param} is not supported{reason}. Leave it out."""

    code = "unsupported_parameter"
    status = 400


class ValidationFailed(ParleyError):
    """Some fields are wrong, missing or unknown; see details."""

    code = "validation_failed"
    status = 422


class InvalidId(ParleyError):
    """{value} is not an id. Ids are 26 lower-case letters and digits."""

    code = "invalid_id"
    status = 422


class InvalidEmail(ParleyError):
    """This is not an e-mail address."""

    code = "invalid_email"
    status = 422


class PasswordPolicy(ParleyError):
    """The password {reason}. It needs 8 to 128 characters, with at least one letter and one digit."""

    code = "password_policy"
    status = 422


class EmptyMessages(ParleyError):
    """Messages array cannot be empty"""

    code = "empty_messages"
    status = 422


class InvalidMessage(ParleyError):
    """Invalid message at index {index}"""

    code = "invalid_message"
    status = 422


class MessagesTooLong(ParleyError):
    """Messages too long"""

    code = "messages_too_long"
    status = 422


class MessageTooLong(ParleyError):
    """The message has {length} characters; {limit} are allowed. Shorten it or send it in parts."""

    code = "message_too_long"
    status = 422


class ApiKeyRequired(ParleyError):
    """A model URL was given without its key. Send the key with it: a stored key never goes to another URL."""

    code = "api_key_required"
    status = 422


class BaseUrlRefused(ParleyError):
    """The model URL is refused: {reason}. Use https to a public address; an administrator can list others."""

    code = "base_url_refused"
    status = 422


class ImageRefused(ParleyError):
    """The image is refused: {reason}."""

    code = "image_refused"
    status = 422


class Unauthenticated(ParleyError):
    """No valid access token. Send `Authorization: Bearer <access token>`; log in to get one."""

    code = "unauthenticated"
    status = 401


class TokenExpired(ParleyError):
    """The access token has expired. Refresh it and try again."""

    code = "token_expired"
    status = 401


class TokenRevoked(ParleyError):
    """The token was revoked or used twice. Log in again."""

    code = "token_revoked"
    status = 401


class InvalidCredentials(ParleyError):
    """E-mail or password is wrong."""

    code = "invalid_credentials"
    status = 401


class BudgetExceeded(ParleyError):
    """Your budget is spent: {remaining_usd} USD are left until {resets_at}. An administrator can raise it."""

    code = "budget_exceeded"
    status = 402


class BudgetExhausted(ParleyError):
    """The answer was cut because the budget is spent. An administrator can raise it."""

    code = "budget_exhausted"
    status = 402


class Forbidden(ParleyError):
    """Your role does not allow this."""

    code = "forbidden"
    status = 403


class OriginRefused(ParleyError):
    """Requests from the origin {origin} are not allowed here."""

    code = "origin_refused"
    status = 403


class RegistrationClosed(ParleyError):
    """Registration is closed. Ask an administrator for an account."""

    code = "registration_closed"
    status = 403


class NotFound(ParleyError):
    """There is nothing here. Check the path and the method."""

    code = "not_found"
    status = 404


class MethodNotAllowed(ParleyError):
    """This path does not take {method}."""

    code = "method_not_allowed"
    status = 405


class SessionNotFound(ParleyError):
    """The session does not exist, or it is not yours."""

    code = "session_not_found"
    status = 404


class MessageNotFound(ParleyError):
    """The message does not exist, or it is not yours."""

    code = "message_not_found"
    status = 404


class TurnNotFound(ParleyError):
    """The turn does not exist, or it is not yours."""

    code = "turn_not_found"
    status = 404


class ModelNotFound(ParleyError):
    """Model {model} not found"""

    code = "model_not_found"
    status = 404


class ModelConfigNotFound(ParleyError):
    """The model config does not exist, or it is not yours."""

    code = "model_config_not_found"
    status = 404


class UserNotFound(ParleyError):
    """The user does not exist."""

    code = "user_not_found"
    status = 404


class ShareNotFound(ParleyError):
    """This share link does not exist, or it was withdrawn."""

    code = "share_not_found"
    status = 404


class EmailTaken(ParleyError):
    """This e-mail is registered already. Log in, or use another."""

    code = "email_taken"
    status = 409


class TurnInProgress(ParleyError):
    """The session is still answering turn {turnId}. Wait for its end or stop it."""

    code = "turn_in_progress"
    status = 409


class IdempotencyKeyReused(ParleyError):
    """This Idempotency-Key was used with another body. Use a new key for a new request."""

    code = "idempotency_key_reused"
    status = 409


class IdConflict(ParleyError):
    """This id is in use with other content. Make a new one."""

    code = "id_conflict"
    status = 409


class PayloadTooLarge(ParleyError):
    """The body is larger than {limit_bytes} bytes."""

    code = "payload_too_large"
    status = 413


class UnsupportedMediaType(ParleyError):
    """The content type {content_type} is not understood. Send application/json."""

    code = "unsupported_media_type"
    status = 415


class RateLimited(ParleyError):
    """Too many requests. Wait {retry_after_s} seconds."""

    code = "rate_limited"
    status = 429
    retryable = True


class ModelRateLimited(ParleyError):
    """Rate limit exceeded for model {model}"""

    code = "model_rate_limited"
    status = 429
    retryable = True


class ProviderFailed(ParleyError):
    """The model's provider failed. Try again, or choose another model."""

    code = "provider_error"
    status = 502
    retryable = True


class ProviderAuth(ParleyError):
    """The model's provider refused its key. Check the key of this model."""

    code = "provider_auth"
    status = 502


class ProviderRefused(ParleyError):
    """The model's provider refused the request: {reason}."""

    code = "provider_refused"
    status = 422


class AllModelsFailed(ParleyError):
    """All AI models failed after maximum attempts"""

    code = "all_models_failed"
    status = 502
    retryable = True


class UpstreamInterrupted(ParleyError):
    """The answer broke off after it had begun. Ask again."""

    code = "upstream_interrupted"
    status = 502
    retryable = True


class ModelUnavailable(ParleyError):
    """The model {model} cannot be used now. Try again later, or choose another."""

    code = "model_unavailable"
    status = 503
    retryable = True
    retry_after_s = 30.0


class Overloaded(ParleyError):
    """Parley has more work than it can take. Try again in a moment."""

    code = "overloaded"
    status = 503
    retryable = True
    retry_after_s = 5.0


class ServiceUnavailable(ParleyError):
    """A part of Parley does not answer ({service}). Try again in a moment."""

    code = "service_unavailable"
    status = 503
    retryable = True
    retry_after_s = 2.0


class ProviderTimeout(ParleyError):
    """The model's provider did not answer in time. Try again, or choose another model."""

    code = "provider_timeout"
    status = 504
    retryable = True


class DeadlinePassed(ParleyError):
    """The answer was not ready in time. Try again."""

    code = "timeout"
    status = 504
    retryable = True
