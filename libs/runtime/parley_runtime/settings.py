"""Settings that all services share: where the servers are, how to log. Read from the environment and one `.env`.

Each service adds its own fields in its `settings.py`; `docs/settings.md` and `.env.example` are generated from the classes.
A secret is a SecretStr, so that no log or error shows it.
"""

from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """What every service needs to know."""

    model_config = SettingsConfigDict(env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True)

    node_env: Literal["development", "test", "production"] = Field(
        default="development", description="`production` refuses weak or missing secrets."
    )
    nats_url: str = Field(default="nats://127.0.0.1:4222", description="The NATS server; unset: embedded by `parley up`.")
    database_url: SecretStr = Field(
        default=SecretStr("postgresql://parley@127.0.0.1:5432/parley"),
        description="PostgreSQL, `postgresql://user:password@host:port/name`; unset: embedded by `parley up`.",
    )
    redis_url: SecretStr = Field(
        default=SecretStr("redis://127.0.0.1:6379/0"), description="Valkey or Redis; unset: embedded by `parley up`."
    )
    health_port: int = Field(
        default=0, ge=0, le=65535, description="Port of /healthz, /readyz and /metrics; 0 takes a free one."
    )
    health_host: str = Field(default="127.0.0.1", description="Address the health port listens on.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="How much is logged.")
    log_format: Literal["json", "text"] = Field(default="json", description="JSON lines, or coloured text for people.")
    timezone: str = Field(default="UTC", description="Days and months (of budgets, statistics) are those of this time zone.")
    database_pool_size: int = Field(
        default=5, ge=1, description="Connections each service keeps; as many again are opened under load."
    )

    @field_validator("timezone")
    @classmethod
    def _is_known(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ValueError(f"TIMEZONE={name} is not a time zone; use a name such as UTC or Asia/Shanghai") from error
        return name
