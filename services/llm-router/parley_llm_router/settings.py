"""What the llm-router alone needs to know: which models there are, how long they may take, what seals their keys."""

from typing import Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from parley_runtime.settings import Settings


class LlmRouterSettings(Settings):
    # An error of these fields would print its input, and the input holds keys.
    model_config = SettingsConfigDict(hide_input_in_errors=True)

    simulator_url: str = Field(
        default="", description="Where the simulated provider listens; set by `parley up`. Empty: there is none."
    )
    openai_api_key: SecretStr = Field(default=SecretStr(""), description="Key of OpenAI, or of whatever OPENAI_BASE_URL names.")
    openai_base_url: str = Field(default="", description="An OpenAI-compatible API, e.g. http://127.0.0.1:11434/v1.")
    openai_models: str = Field(
        default="",
        description="Models offered from there, comma-separated, the default one first. Empty, with a key only: OpenAI's own.",
    )
    seal_keys: SecretStr = Field(
        default=SecretStr(""),
        description="Seals provider keys in the database: `<id>:<base64 of 32 bytes>`, newest first, comma-separated."
        " Unset in development: made by `parley up`.",
    )
    model_url_allow: str = Field(
        default="", description="Origins that users' model URLs may have although they are not public, comma-separated."
    )
    max_output_tokens: int = Field(default=32_000, ge=1, description="The most `max_tokens` a request may ask for.")
    llm_router_max_turns: int = Field(default=200, ge=1, description="Turns one llm-router runs at once.")
    provider_timeout_ms: int = Field(default=300_000, ge=1, description="The most one answer may take at the provider.")
    provider_max_idle_ms: int = Field(default=60_000, ge=1, description="A provider that is silent this long has failed.")
    provider_request_timeout_ms: int = Field(
        default=30_000, ge=1, description="The most a request without streaming may take, which follows failed streams."
    )
    provider_user_agent: str = Field(default="Parley/0.1.0", description="How the llm-router names itself to providers.")
    retry_after_429_s: float = Field(
        default=15.0, ge=0, description="Pause after a 429 that names none, before the model is called once more."
    )
    retry_after_5xx_s: float = Field(
        default=2.0, ge=0, description="Pause after a failed call, before the model is called once more."
    )
    llm_router_drain_s: float = Field(
        default=300.0, ge=0, description="An llm-router that stops lets its running turns go on this long."
    )

    @model_validator(mode="after")
    def _has_seal_keys(self) -> Self:
        if not self.seal_keys.get_secret_value():
            raise ValueError("SEAL_KEYS is missing. Make one with: echo k1:$(openssl rand -base64 32)")
        return self

    @property
    def openai_model_names(self) -> tuple[str, ...]:
        return names_in(self.openai_models)

    @property
    def allowed_origins(self) -> tuple[str, ...]:
        return names_in(self.model_url_allow)


def names_in(text: str) -> tuple[str, ...]:
    """The names of a comma-separated list, each once."""
    return tuple(dict.fromkeys(name for part in text.split(",") if (name := part.strip())))
