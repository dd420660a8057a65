"""What the gateway alone needs to know."""

from pydantic import Field

from parley_runtime.settings import Settings


class GatewaySettings(Settings):
    port: int = Field(default=3000, ge=0, le=65535, description="Port of the public API; 0 takes a free one.")
    host: str = Field(default="127.0.0.1", description="Address the public API listens on; 0.0.0.0 in a container.")
    cors_origin: str = Field(default="", description="Origins whose pages may use the API, comma-separated; empty: every one.")
    enable_cors: bool = Field(default=True, description="Answer cross-origin requests at all.")
    trusted_proxies: str = Field(
        default="", description="Addresses whose X-Forwarded-For is believed, comma-separated, e.g. 10.0.0.0/8."
    )
    sse_heartbeat_interval_ms: int = Field(
        default=15_000, ge=50, description="A comment keeps a silent stream open this often."
    )
    drain_s: float = Field(default=30.0, ge=0, description="A gateway that stops lets streams run this long.")
    max_streams: int = Field(default=2_000, ge=1, description="Answers streamed at once by one gateway; more is 503.")
    max_output_tokens: int = Field(default=32_000, ge=1, description="The most `max_tokens` a request may ask for.")
    provider_timeout_ms: int = Field(default=300_000, ge=1_000, description="The most one answer may take at the provider.")
    rate_requests_per_min: int = Field(default=600, ge=1, description="Requests a user may make in a minute, by role or this.")
    rate_anonymous_per_min: int = Field(
        default=60, ge=1, description="Requests without a token an address may make in a minute."
    )
    rate_login_per_min: int = Field(
        default=10, ge=1, description="Registrations, logins and refreshes of an address in a minute; of an account ten times."
    )
    rate_turns_per_min: int = Field(default=60, ge=1, description="Turns a user may start in a minute, by role or this.")
    max_running_turns: int = Field(default=10, ge=1, description="Turns of a user that may run at once, by role or this.")

    @property
    def origins(self) -> tuple[str, ...]:
        return tuple(origin.strip() for origin in self.cors_origin.split(",") if origin.strip())
