"""Errors of turns: what may be asked, what it may cost, and what providers do."""

from parley_contracts.errors.error import ParleyError


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


class BudgetExceeded(ParleyError):
    """Your budget is spent: {remaining_usd} USD are left until {resets_at}. An administrator can raise it."""

    code = "budget_exceeded"
    status = 402


class BudgetExhausted(ParleyError):
    """The answer was cut because the budget is spent. An administrator can raise it."""

    code = "budget_exhausted"
    status = 402


class TurnInProgress(ParleyError):
    """The session is still answering turn {turnId}. Wait for its end or stop it."""

    code = "turn_in_progress"
    status = 409


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
