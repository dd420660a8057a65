"""What chat alone needs to know."""

from pydantic import Field

from parley_runtime.settings import Settings


class ChatSettings(Settings):
    chat_max_message_length: int = Field(default=10_000, ge=1, description="Characters one user message may have.")
    chat_max_history_messages: int = Field(
        default=50, ge=1, description="Messages of a session that a model is shown, the new one included."
    )
    max_output_tokens: int = Field(default=32_000, ge=1, description="The most `max_tokens` a request may ask for.")
    provider_timeout_ms: int = Field(default=300_000, ge=1_000, description="The most one answer may take at the provider.")
