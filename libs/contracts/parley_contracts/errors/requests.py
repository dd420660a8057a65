"""Errors of any request: its JSON, its fields, its size, its rate, and what is down."""

from parley_contracts.errors.error import ParleyError


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


class MethodNotAllowed(ParleyError):
    """This path does not take {method}."""

    code = "method_not_allowed"
    status = 405


class IdempotencyKeyReused(ParleyError):
    """This Idempotency-Key was used with another body. Use a new key for a new request."""

    code = "idempotency_key_reused"
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
    """Too many requests. Wait {seconds} seconds."""

    code = "rate_limited"
    status = 429
    retryable = True


class TooManyTurns(ParleyError):
    """{most} of your turns run already. Wait until one has ended, or stop one."""

    code = "too_many_turns"
    status = 429
    retryable = True


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
